"""`python -m tests.benchmarks.tokenizer`: speed and memory of the tokenizer beside other programs.

Each figure is one JSON line on stdout, printed as soon as it is measured, with the keys `name`, `ours`, `peer`,
`peer_name`, `ratio` (`ours` / `peer`), `target`, `holds` and `runs`. A table follows on stderr. Both sides run in turn,
all but the smallest jobs in new processes, and the medians count. `pip install -e '.[bench]'` installs the peers.
"""

import argparse
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.benchmarks.measure import Plan, choose, exit_code, is_installed, machine, markdown, table
from tests.benchmarks.tokenizer_figures import plans
from tests.benchmarks.tokenizer_inputs import TokenizerInputs
from tslm.errors import MissingFileError, UserError


def main(arguments: Sequence[str] | None = None, installed: Callable[[str], bool] = is_installed) -> int:
    """Measure the chosen figures and return the exit code: 0, 2 after a user's mistake, 130 after Ctrl-C."""
    options = _parser().parse_args(arguments)
    return exit_code(lambda: _measure(options, installed))


def _measure(options: argparse.Namespace, installed: Callable[[str], bool]) -> None:
    size = int(options.size * 1e6)
    if size < 1 or options.runs < 1 or options.workers < 1:
        raise UserError("--size, --runs and --workers must be above 0")
    for path, what in ((options.counts, "give a JSON file {pre-token: count} as --counts"),
                       (options.train_text, "give a UTF-8 text as --train-text")):
        if path is not None and not path.is_file():
            raise MissingFileError(f"{path} is not a file: {what}")
    chosen = choose(plans(size), options.only)
    _check_installed(chosen, installed)
    options.workdir.mkdir(parents=True, exist_ok=True)
    figures = []
    with tempfile.TemporaryDirectory(prefix="scratch-", dir=options.workdir) as scratch:
        inputs = TokenizerInputs(
            size=size, mixed_size=int((options.mixed_size or options.size) * 1e6), runs=options.runs, seed=options.seed,
            workers=options.workers, counts_file=options.counts, train_file=options.train_text, workdir=options.workdir,
            scratch=Path(scratch), notify=lambda sentence: print(f"… {sentence}", file=sys.stderr, flush=True),
        )
        for number, plan in enumerate(chosen, start=1):
            inputs.notify(f"{number}/{len(chosen)} {plan.name}")
            figures.append(plan.measure(inputs, plan.name))
            print(figures[-1].json_line(), flush=True)
    conditions = machine(dict.fromkeys(["tslm", "numpy", *(plan.peer for plan in chosen if plan.peer)]))
    print(f"{table(figures)}\n{conditions}", file=sys.stderr)
    if options.markdown:
        print(f"{markdown(figures)}\n\n{conditions}")


def _check_installed(chosen: list[Plan], installed: Callable[[str], bool]) -> None:
    """Check that the packages that the figures need are installed.

    Raises:
        UserError: Some are missing.
    """
    needed = dict.fromkeys(plan.peer for plan in chosen if plan.peer)
    missing = [name for name in needed if not installed(name)]
    if missing:
        raise UserError(
            f"the figures need {' and '.join(missing)}: run `pip install -e '.[bench]'`, or choose other figures with "
            "--only"
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.tokenizer", description=(__doc__ or "").partition("\n\n")[2]
    )
    add = parser.add_argument
    add("--size", type=float, default=1000, help="size in MB of the text drawn from the counts (default: 1000)")
    add("--mixed-size", type=float, help="largest size in MB of the mixed text (default: as --size)")
    add("--runs", type=int, default=3, help="runs on each side; rustbpe and tokenizers train once (default: 3)")
    add("--seed", type=int, default=0, help="seed of the texts (default: 0)")
    add("--only", nargs="+", metavar="NAME", help="figures, by name or by the beginning of a name (default: all)")
    add("--workers", type=int, default=2, help="processes of tslm and of tiktoken (default: 2)")
    add("--counts", type=Path, help="JSON file {pre-token: count} to draw text from (default: the embedded corpus)")
    add("--train-text", type=Path, help="text for the small figures (default: the embedded corpus)")
    add("--workdir", type=Path, default=Path(".cache/benchmarks"),
        help="folder that keeps the texts (default: .cache/benchmarks)")
    add("--markdown", action="store_true", help="also print a Markdown table at the end")
    return parser


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # SIGTERM, too, must end the processes started here
    sys.exit(main())
