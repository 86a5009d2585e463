"""`python -m tests.benchmarks.tokenizer`: the tokenizer's speed and memory beside other programs'.

Each figure is one JSON line on stdout as soon as it is known, with the keys `name`, `ours`, `peer`, `peer_name`,
`ratio` (`ours` / `peer`), `target`, `holds` and `runs`; a table follows on stderr. The two sides run strictly in turn,
all but the smallest jobs in processes of their own, and the medians count. `pip install -e '.[bench]'` brings the other
programs.
"""

import argparse
import importlib.util
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks.bench import Bench
from tests.benchmarks.measure import Plan, choose, exit_code, machine, markdown, table
from tests.benchmarks.tokenizer_figures import plans


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the figures that the arguments choose, and return the exit code: 2 after a mistake, 130 after Ctrl-C."""
    options = _parser().parse_args(arguments)
    return exit_code(lambda: _measure(options))


def _measure(options: argparse.Namespace) -> None:
    size = int(options.size * 1e6)
    if size < 1 or options.runs < 1 or options.workers < 1:
        raise ValueError("--size, --runs and --workers take numbers above 0")
    for path, what in ((options.counts, "--counts takes a JSON file {pre-token: count}"),
                       (options.train_text, "--train-text takes a UTF-8 text")):
        if path is not None and not path.is_file():
            raise FileNotFoundError(f"{path} does not exist or is no file; {what}")
    chosen = choose(plans(size), options.only)
    _check_installed(chosen)
    options.workdir.mkdir(parents=True, exist_ok=True)
    figures = []
    with tempfile.TemporaryDirectory(prefix="scratch-", dir=options.workdir) as scratch:
        bench = Bench(
            size=size, mixed_size=int((options.mixed_size or options.size) * 1e6), runs=options.runs, seed=options.seed,
            workers=options.workers, counts_file=options.counts, train_file=options.train_text, workdir=options.workdir,
            scratch=Path(scratch), say=lambda sentence: print(f"… {sentence}", file=sys.stderr, flush=True),
        )
        for number, plan in enumerate(chosen, start=1):
            bench.say(f"{number}/{len(chosen)} {plan.name}")
            figures.append(plan.measure(bench, plan.name))
            print(figures[-1].json_line(), flush=True)
    conditions = machine(dict.fromkeys(["tslm", "numpy", *(plan.peer for plan in chosen if plan.peer)]))
    print(f"{table(figures)}\n{conditions}", file=sys.stderr)
    if options.markdown:
        print(f"{markdown(figures)}\n\n{conditions}")


def _check_installed(chosen: list[Plan]) -> None:
    """Look for the packages that the figures need.

    Raises:
        ValueError: some are missing.
    """
    needed = dict.fromkeys(plan.peer for plan in chosen if plan.peer)
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"the figures need {' and '.join(missing)}, not found here; install with `pip install -e '.[bench]'`, or "
            "choose figures without with --only"
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.tokenizer", description=(__doc__ or "").partition("\n\n")[2]
    )
    add = parser.add_argument
    add("--size", type=float, default=1000, help="MB of text drawn from the counts (default: 1000)")
    add("--mixed-size", type=float, help="MB of Python sources and documentation, at most (default: as --size)")
    add("--runs", type=int, default=3, help="on each side (default: 3); rustbpe and tokenizers train once")
    add("--seed", type=int, default=0, help="of the texts (default: 0)")
    add("--only", nargs="+", metavar="NAME", help="the figures with these names or beginnings of names (default: all)")
    add("--workers", type=int, default=2, help="processes of tslm, and of tiktoken (default: 2)")
    add("--counts", type=Path, help="JSON file {pre-token: count} to draw from (default: the embedded corpus)")
    add("--train-text", type=Path, help="text for the small figures (default: the embedded corpus)")
    add("--workdir", type=Path, default=Path(".cache/benchmarks"), help="keeps texts (default: .cache/benchmarks)")
    add("--markdown", action="store_true", help="print the figures as a Markdown table, too, at the end")
    return parser


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # being killed, too, ends the processes it started
    sys.exit(main())
