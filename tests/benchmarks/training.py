"""`python -m tests.benchmarks.training`: speed, memory and losses of training beside other libraries.

Each figure is one JSON line on stdout, printed as soon as it is measured, with the keys `name`, `ours`, `peer`,
`peer_name`, `ratio` (`ours` / `peer`), `target`, `holds` and `runs`, and sometimes more, such as `form` (eager or
compiled). A table follows on stderr. Both sides run in turn, each run in a new process, in the precision that `fit`
chooses, with torch's number of threads, and the medians count. lightning_cost and loss_parity_fp32 use float32.
--mode takes away from all processes what other machines lack.
`pip install -e '.[bench]'` installs transformers, and `pip install psutil && pip install --no-deps litgpt` installs
litgpt. Figures whose peer is not installed are skipped, with a notice.
"""

import argparse
import os
import shlex
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.benchmarks import training_peers
from tests.benchmarks.measure import Figure, Plan, choose, exit_code, is_installed, machine, markdown, run_alone, table
from tests.benchmarks.training_figures import Runner, Training, plans
from tests.benchmarks.training_jobs import SHAPES
from tests.modes import MODES, add_mode
from tslm.errors import MissingFileError, UserError


def main(
    arguments: Sequence[str] | None = None, installed: Callable[[str], bool] = is_installed, run: Runner = run_alone
) -> int:
    """Measure the chosen figures and return the exit code.

    Args:
        arguments: Words of the command line, or None for those of this process.
        installed: Says whether a package is installed.
        run: Runs a job; `run_alone` starts a new process for it.

    Returns:
        0; 1 if a figure could not be measured; 2 after a user's mistake; 130 after Ctrl-C.
    """
    options = _parser().parse_args(arguments)
    return exit_code(lambda: _measure(options, installed, run))


def _measure(options: argparse.Namespace, installed: Callable[[str], bool], run: Runner) -> int:
    numbers = ("batch_size", "memory_batch_size", "steps", "runs", "parity_tokens", "parity_seeds")
    if min(getattr(options, name) for name in numbers) < 1:
        raise UserError(", ".join(f"--{name.replace('_', '-')}" for name in numbers) + " must be at least 1")
    if options.parity_text is not None and not options.parity_text.is_file():
        raise MissingFileError(f"{options.parity_text} is not a file: give a UTF-8 text as --parity-text")
    if options.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise UserError("--device is cuda, but torch finds no CUDA GPU: leave the option out to measure on the CPU")
    chosen = _with_peer(choose(plans(), options.only), installed)
    options.workdir.mkdir(parents=True, exist_ok=True)
    os.environ.update(MODES[options.mode])  # for the processes that measure
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="scratch-", dir=options.workdir) as scratch:
        training = Training(
            shape=options.shape, small=options.small, quick=options.quick, batch_size=options.batch_size,
            memory_batch_size=options.memory_batch_size, steps=options.steps, runs=options.runs, seed=options.seed,
            device=options.device, precision=options.precision, peer_forms=tuple(options.peer_forms), run=run,
            parity_text=options.parity_text, parity_tokens=options.parity_tokens, parity_seeds=options.parity_seeds,
            fit_options=shlex.split(options.fit_options), workdir=options.workdir, scratch=Path(scratch),
            notify=_notify,
        )
        for number, plan in enumerate(chosen, start=1):
            _notify(f"{number}/{len(chosen)} {plan.name}")
            try:
                figures.append(plan.measure(training, plan.name))
            except ChildProcessError as error:
                _notify(f"{plan.name} was not measured: {error}")
            else:
                print(figures[-1].json_line(), flush=True)
    conditions = machine(dict.fromkeys(["tslm", "torch", "lightning", *(plan.peer for plan in chosen if plan.peer)]))
    if options.device == "cuda":
        conditions = f"{torch.cuda.get_device_name()}, {conditions}"
    print(f"{table(figures)}\n{conditions}", file=sys.stderr)
    if options.markdown:
        print(f"{markdown(figures)}\n\n{conditions}")
    return 0 if len(figures) == len(chosen) else 1


def _with_peer(chosen: list[Plan], installed: Callable[[str], bool]) -> list[Plan]:
    """Return the plans whose peers are installed; name the others in one line."""
    missing = [plan for plan in chosen if plan.peer is not None and not installed(plan.peer)]
    if missing:
        peers = " and ".join(dict.fromkeys(str(plan.peer) for plan in missing))
        _notify(f"{peers} not installed, so {', '.join(plan.name for plan in missing)} are skipped: see --help")
    return [plan for plan in chosen if plan not in missing]


def _notify(sentence: str) -> None:
    print(f"… {sentence}", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.training", description=(__doc__ or "").partition("\n\n")[2]
    )
    add = parser.add_argument
    add("--only", nargs="+", metavar="NAME", help="figures, by name or by the beginning of a name (default: all)")
    add("--runs", type=int, default=3, help="runs on each side; memory and compile time run once (default: 3)")
    add("--steps", type=int, default=5, help="steps per run whose time counts (default: 5)")
    add("--seed", type=int, default=0, help="seed of weights and windows (default: 0)")
    add("--device", choices=["cpu", "cuda"], default="cpu",
        help="device of tokens_vs_…, matmul_share, memory… and compile_time (default: cpu)")
    add("--precision", choices=["auto", "bf16", "fp32"], default="auto",
        help="of the figures of --device (default: what `fit` chooses in the --mode)")
    add_mode(parser)
    add("--peer-forms", nargs="+", choices=training_peers.FORMS, default=training_peers.FORMS, metavar="FORM",
        help=f"how the peers run, some of {', '.join(training_peers.FORMS)} (default: all)")
    add("--shape", choices=SHAPES, default="course", help="model of most figures (default: course)")
    add("--small", choices=SHAPES, default="small", help="model of loss_parity (default: small)")
    add("--quick", choices=SHAPES, default="quick", help="model of lightning_cost (default: quick)")
    add("--batch-size", type=int, default=16, help="windows in a step (default: 16)")
    add("--memory-batch-size", type=int, default=64, help="windows in a step of the memory figures (default: 64)")
    add("--parity-text", type=Path, help="UTF-8 text for loss_parity (default: the embedded corpus)")
    add("--parity-tokens", type=int, default=1_000_000, help="training tokens of loss_parity (default: 1,000,000)")
    add("--parity-seeds", type=int, default=3, help="number of seeds of loss_parity, from --seed on (default: 3)")
    add("--fit-options", default="--config configs/quickstart.yaml",
        help="options of `fit` for first_step and two_at_once (default: %(default)s)")
    add("--workdir", type=Path, default=Path(".cache/benchmarks"),
        help="folder of compiled code and prepared data (default: .cache/benchmarks)")
    add("--markdown", action="store_true", help="also print a Markdown table at the end")
    return parser


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # SIGTERM, too, must end the processes started here
    sys.exit(main())
