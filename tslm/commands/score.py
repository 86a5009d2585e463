"""`score`: the log-probability, perplexity and bits per byte of a text, as JSON lines and as a page."""

from __future__ import annotations

import json
import os
import sys
from contextlib import ExitStack
from typing import Literal

from tslm.commands.arguments import Parser
from tslm.commands.input import add_input_options, open_input
from tslm.errors import UserError
from tslm.files import atomic_write, check_outputs


def main(argv: list[str]) -> None:
    """Score texts and print a JSON object a line."""
    parser = Parser(prog="python -m tslm score", description="Measure how probable a trained model finds a text. Each "
                    "document is scored from its beginning; log_prob is a sum of natural logarithms.")
    add_input_options(parser, joins=False)
    parser.add_argument("--per", type=Literal["token", "line", "file"], default="file",
                        help="an object for each token, line or file; a record of a JSONL file is a line")
    parser.add_argument("--ckpt_path", type=str | None, default=None,
                        help="a checkpoint, a run directory, or 'last' or 'best' of the newest run; 'best' if left out")
    parser.add_argument("--ffn", type=str | None, default=None,
                        help="the class of the model's own feed-forward layer, as module.Class")
    parser.add_argument("--output", type=str | None, default=None, help="a file to write to; else it is printed")
    parser.add_argument("--html", type=str | None, default=None,
                        help="also write a page to this file: each token in the colour of its surprise, the likeliest "
                        "alternatives, and the true probabilities in stories of the embedded corpus")
    options = parser.parse_args(argv)

    from tslm.training.runs import find_checkpoint, load_model  # imported here because they need torch
    from tslm.training.score_report import score_rows
    from tslm.training.surprise_page import SurprisePage

    corpus = open_input(options)
    outputs = [path for path in (options.output, options.html) if path is not None]
    check_outputs(outputs, [span.path for span in corpus.spans])
    if len(set(map(os.path.realpath, outputs))) < len(outputs):
        raise UserError(f"--output and --html are both {options.html}: give two files")
    path, notices = find_checkpoint(options.ckpt_path, prefer="best")
    print(*notices, sep="\n", end="\n" * bool(notices), file=sys.stderr, flush=True)
    loaded = load_model(path, ffn=options.ffn)
    page = None if options.html is None else SurprisePage(loaded)
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in score_rows(corpus, options.per, loaded, page))
    with ExitStack() as files:
        html, output = (None if name is None else files.enter_context(atomic_write(name))
                        for name in (options.html, options.output))
        if output is None:
            sys.stdout.writelines(lines)
        else:
            output.writelines(line.encode() for line in lines)
        if html is not None and page is not None:
            html.write(page.html().encode())
