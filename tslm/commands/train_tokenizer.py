"""`train-tokenizer`: learns a vocabulary from text files and writes vocab.json and merges.txt."""

from __future__ import annotations

from tslm.commands.arguments import Parser
from tslm.commands.input import add_input_options, open_input
from tslm.files import check_outputs
from tslm.tokenizer import END_OF_TEXT
from tslm.tokenizer.report import train_with_report
from tslm.tokenizer.serialization import output_paths


def main(argv: list[str]) -> None:
    """Learn a vocabulary, save it, and print time, memory and compression."""
    parser = Parser(prog="python -m tslm train-tokenizer", description="Learn a byte-pair vocabulary from text files.")
    add_input_options(parser)
    parser.add_argument("--vocab_size", type=int, default=10_000,
                        help="maximum size, including the special tokens and the 256 bytes")
    parser.add_argument("--special_tokens", type=list[str], default=[END_OF_TEXT],
                        help="strings that are one token each; merges never cross them")
    parser.add_argument("--pattern", type=str, default="gpt2",
                        help="how text is split before merging: gpt2, cl100k (GPT-4's), none, or a regular expression")
    parser.add_argument("--output", type=str, required=True, help="the folder for vocab.json and merges.txt")
    parser.add_argument("--num_workers", type=int | None, default=None, help="processes; one per core if left out")
    options = parser.parse_args(argv)

    corpus = open_input(options)
    check_outputs(output_paths(options.output), [span.path for span in corpus.spans])
    report = train_with_report(corpus, options.vocab_size, options.special_tokens,
                               num_workers=options.num_workers, progress=True, pattern=options.pattern)
    report.tokenizer.save(options.output)
    print(f"{options.output}: {len(report.tokenizer.vocab):,} tokens")
    print(*report.lines(), sep="\n")
