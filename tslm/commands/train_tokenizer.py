"""`train-tokenizer`: text files in, a folder with vocab.json and merges.txt out."""

from __future__ import annotations

from tslm.commands.arguments import Parser
from tslm.tokenizer import END_OF_TEXT
from tslm.tokenizer.report import train_with_report


def main(argv: list[str]) -> None:
    """Learn a vocabulary, save it and report what it took.

    Args:
        argv: the words after `python -m tslm train-tokenizer`.
    """
    parser = Parser(prog="python -m tslm train-tokenizer", description="Learn a byte-pair vocabulary from text files.")
    parser.add_argument("--input", type=str, nargs="+", required=True,
                        help="the text: one file or several, UTF-8; of .jsonl files the field \"text\" of each line")
    parser.add_argument("--vocab_size", type=int, default=10_000,
                        help="maximum size, the special tokens and the 256 bytes included")
    parser.add_argument("--special_tokens", type=list[str], default=[END_OF_TEXT],
                        help="pieces of text that are one token each, and that no other token crosses")
    parser.add_argument("--output", type=str, required=True, help="the folder for vocab.json and merges.txt")
    parser.add_argument("--num_workers", type=int | None, default=None, help="processes; all cores if left out")
    options = parser.parse_args(argv)

    report = train_with_report(options.input, options.vocab_size, options.special_tokens,
                               num_workers=options.num_workers, progress=True)
    report.tokenizer.save(options.output)
    print(f"{options.output}: {len(report.tokenizer.vocab):,} tokens")
    print(*report.lines(), sep="\n")
