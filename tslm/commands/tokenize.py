"""`tokenize`: encodes text files into one file of token ids."""

from __future__ import annotations

import sys
import time

from tslm.commands.arguments import Parser
from tslm.commands.input import add_input_options, open_input
from tslm.files import check_outputs
from tslm.tokenizer import END_OF_TEXT, Tokenizer, encode_files
from tslm.tokenizer.serialization import input_paths


def main(argv: list[str]) -> None:
    """Encode text files into a token file."""
    parser = Parser(prog="python -m tslm tokenize", description="Turn text files into one file of token ids.")
    parser.add_argument("--tokenizer", type=str, required=True, help="a folder written by `train-tokenizer`, a "
                        "tokenizer.json or a .tiktoken file")
    add_input_options(parser)
    parser.add_argument("--output", type=str, required=True,
                        help="the token file; its description is written to the same name with .json appended")
    parser.add_argument("--num_workers", type=int | None, default=None, help="processes; one per core if left out")
    options = parser.parse_args(argv)

    check_outputs([options.output, f"{options.output}.json"], input_paths(options.tokenizer))
    start, tokenizer = time.perf_counter(), Tokenizer.from_dir(options.tokenizer)
    if END_OF_TEXT not in tokenizer.special_tokens and END_OF_TEXT.encode() in tokenizer.vocab.values():
        print(f"{options.tokenizer} has the token {END_OF_TEXT}, but its tokenizer_config.json does not name it as a "
              "special one, so no text becomes it.", file=sys.stderr)
    tokens = encode_files(tokenizer, open_input(options), options.output, num_workers=options.num_workers,
                          progress=True)
    seconds = time.perf_counter() - start
    print(f"{options.output}: {len(tokens):,} tokens ({tokens.dtype}), {tokens.source_bytes / len(tokens):.2f} bytes "
          f"each, in {seconds:.1f} s")
