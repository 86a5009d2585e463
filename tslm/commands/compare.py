"""`compare`: two or more runs side by side, or two groups of runs that differ in their seeds."""

from __future__ import annotations

from tslm.commands.arguments import Parser
from tslm.commands.input import add_input_options, open_input


def main(argv: list[str]) -> None:
    """Compare runs and print settings, curves, losses and a verdict."""
    parser = Parser(prog="python -m tslm compare", description="Compare runs: settings, curves, and the loss on one "
                    "text with 95% intervals.")
    parser.add_argument("runs", type=str, nargs="+", help="run directories, their names, or checkpoints")
    parser.add_argument("--to", type=str, nargs="+", default=[],
                        help="a second group of runs; each group holds runs that differ in their seeds")
    add_input_options(parser, "the first run's validation text", joins=False)
    parser.add_argument("--plot", type=str | None, default=None, help="a PNG file for the curves")
    parser.add_argument("--max_documents", type=int, default=2000,
                        help="at most so many documents of the text, evenly spaced")
    parser.add_argument("--ffn", type=str, nargs="+", default=[],
                        help="the classes of the models' own feed-forward layers, as module.Class")
    options = parser.parse_args(argv)

    from tslm.studies.compare_report import print_comparison  # imported here because it needs torch

    corpus = open_input(options) if options.input else None
    print_comparison(options.runs, options.to, corpus, options.plot, options.max_documents, options.ffn)
