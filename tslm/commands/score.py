"""`score`: the log-probability, perplexity and bits per byte of a text, as JSON lines."""

from __future__ import annotations

import json
import sys
from typing import Literal

from tslm.commands.arguments import Parser
from tslm.commands.input import add_input_options, open_input
from tslm.files import atomic_write, check_outputs


def main(argv: list[str]) -> None:
    """Score texts and print a JSON object a line.

    Args:
        argv: the words after `python -m tslm score`.
    """
    parser = Parser(prog="python -m tslm score", description="Measure how probable a trained model finds a text. Each "
                    "document is scored from its beginning; log_prob is a sum of natural logarithms.")
    add_input_options(parser, joins=False)
    parser.add_argument("--per", type=Literal["token", "line", "file"], default="file",
                        help="an object for each token, line or file; a record of a JSONL file is a line")
    parser.add_argument("--ckpt_path", type=str | None, default=None,
                        help="a checkpoint, a run directory, or 'last' or 'best' of the newest run; 'best' if left out")
    parser.add_argument("--output", type=str | None, default=None, help="a file to write to; else it is printed")
    options = parser.parse_args(argv)

    from tslm.training.runs import find_checkpoint, load_model  # imported here because they need torch
    from tslm.training.score_report import score_rows

    corpus = open_input(options)
    path, notices = find_checkpoint(options.ckpt_path, prefer="best")
    print(*notices, sep="\n", end="\n" * bool(notices), file=sys.stderr, flush=True)
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in score_rows(corpus, options.per, load_model(path)))
    if options.output is None:
        sys.stdout.writelines(lines)
        return
    check_outputs([options.output], [span.path for span in corpus.spans])
    with atomic_write(options.output) as file:
        file.writelines(line.encode() for line in lines)
