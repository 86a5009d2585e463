"""The options of commands that read text."""

from __future__ import annotations

import sys
from typing import Any

from tslm.commands.arguments import Parser
from tslm.tokenizer.corpus import Corpus
from tslm.tokenizer.plain import Errors
from tslm.tokenizer.sources import FIELD


def add_input_options(parser: Parser, default: str | None = None, *, joins: bool = True) -> None:
    """Add `--input` and the options that say how it is read.

    Without a default, `--input` must be given. With `joins`, several files may be one text.
    """
    parser.add_argument("--input", type=str, nargs="+", required=default is None, default=None,
                        help="files, folders or glob patterns: text (UTF-8), .jsonl, .ndjson or .parquet, each also "
                        f"as .gz, .xz or .zst{f'; {default} if left out' if default else ''}")
    parser.add_argument("--text_field", type=str, default=FIELD,
                        help="the field of a JSONL record, or the column of a Parquet file, that holds the document")
    parser.add_argument("--errors", type=Errors, default="strict",
                        help="what to do with bytes that are not UTF-8: strict stops, replace puts U+FFFD there")
    if joins:
        parser.add_argument("--join_files", type=bool, default=False,
                            help="whether several text files are one text in parts; else each is a document")
    parser.add_argument("--allow_special", type=bool, default=False,
                        help="whether special tokens are recognized in records too; in text files they always are")


def open_input(options: Any) -> Corpus:  # noqa: ANN401 (a namespace)
    """Open the files that the options name, and print notices about them."""
    joined = options.get("join_files", False)  # not every command has it
    corpus = Corpus(options.input, text_field=options.text_field, errors=options.errors, joined=joined,
                    allow_special=options.allow_special, progress=True)
    for notice in corpus.notices:
        print(notice, file=sys.stderr)
    return corpus
