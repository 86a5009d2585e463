"""`runs`: lists the runs of a folder, or checks every file of every run."""

from __future__ import annotations

from tslm.commands.arguments import Parser
from tslm.commands.options import read_yaml


def main(argv: list[str]) -> None:
    """List the runs, newest first, or verify their files."""
    from tslm.training.run_files import verify_runs  # imported here because they need torch
    from tslm.training.run_table import COLUMNS, json_lines, list_runs, table

    parser = Parser(prog="python -m tslm runs", description="List the runs, newest first, or check their files.")
    parser.add_argument("--sort", type=str | None, default=None, help=f"a column to sort by: {', '.join(COLUMNS)}")
    parser.add_argument("--filter", type=str, default="", help="only runs whose name, corpus or state contains this")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line for each run")
    parser.add_argument("--verify", action="store_true", help="read every file of every run, and name damaged ones")
    parser.add_argument("--dir", type=str, default=".",
                        help="a project, which holds lightning_logs; or a folder of run directories; or one of them")
    options = parser.parse_args(argv)
    if options.verify:
        verify_runs(options.dir, read_yaml)
    else:
        print((json_lines if options.json else table)(list_runs(options.dir, options.sort, options.filter)))
