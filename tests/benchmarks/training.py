"""`python -m tests.benchmarks.training`: the speed, memory and losses of training beside other libraries'.

Each figure is one JSON line on stdout as soon as it is known, with the keys of `python -m tests.benchmarks.tokenizer`
and, where there is more to say, further ones behind them: `form` is eager or compiled. A table follows on stderr.
The sides run strictly in turn, each in processes of its own, in bf16, on a CPU with as many threads as torch takes,
and the medians count; lightning_cost and the losses of loss_parity_fp32 are of float32.
`pip install -e '.[bench]'` brings transformers, `pip install psutil && pip install --no-deps litgpt` the other peer;
figures whose peer is missing are named and left out.
"""

import argparse
import importlib.util
import shlex
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks.measure import Figure, Plan, choose, exit_code, machine, markdown, table
from tests.benchmarks.training_figures import Training, plans
from tests.benchmarks.training_jobs import SHAPES


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the figures that the arguments choose, and return the exit code.

    1 if one of them could not be measured, 2 after a mistake, 130 after Ctrl-C.
    """
    options = _parser().parse_args(arguments)
    return exit_code(lambda: _measure(options))


def _measure(options: argparse.Namespace) -> int:
    numbers = ("batch_size", "memory_batch_size", "steps", "runs", "parity_tokens", "parity_seeds")
    if min(getattr(options, name) for name in numbers) < 1:
        raise ValueError(", ".join(f"--{name.replace('_', '-')}" for name in numbers) + " take numbers above 0")
    if options.parity_text is not None and not options.parity_text.is_file():
        raise FileNotFoundError(f"{options.parity_text} does not exist or is no file; --parity-text takes a UTF-8 text")
    if options.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise ValueError("--device cuda, but torch finds no CUDA GPU here; leave it out to measure on the CPU")
    chosen = _installed(choose(plans(), options.only))
    options.workdir.mkdir(parents=True, exist_ok=True)
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="scratch-", dir=options.workdir) as scratch:
        training = Training(
            shape=options.shape, small=options.small, quick=options.quick, batch_size=options.batch_size,
            memory_batch_size=options.memory_batch_size, steps=options.steps, runs=options.runs, seed=options.seed,
            device=options.device,
            parity_text=options.parity_text, parity_tokens=options.parity_tokens, parity_seeds=options.parity_seeds,
            fit_options=shlex.split(options.fit_options), workdir=options.workdir, scratch=Path(scratch), say=_say,
        )
        for number, plan in enumerate(chosen, start=1):
            _say(f"{number}/{len(chosen)} {plan.name}")
            try:
                figures.append(plan.measure(training, plan.name))
            except ChildProcessError as error:
                _say(f"{plan.name} was not measured: {error}")
            else:
                print(figures[-1].json_line(), flush=True)
    conditions = machine(dict.fromkeys(["tslm", "torch", "lightning", *(plan.peer for plan in chosen if plan.peer)]))
    if options.device == "cuda":
        conditions = f"{torch.cuda.get_device_name()}, {conditions}"
    print(f"{table(figures)}\n{conditions}", file=sys.stderr)
    if options.markdown:
        print(f"{markdown(figures)}\n\n{conditions}")
    return 0 if len(figures) == len(chosen) else 1


def _installed(chosen: list[Plan]) -> list[Plan]:
    """Return the plans whose peers are here; name the others in one line."""
    missing = [plan for plan in chosen if plan.peer is not None and importlib.util.find_spec(plan.peer) is None]
    if missing:
        peers = " and ".join(dict.fromkeys(str(plan.peer) for plan in missing))
        _say(f"{peers} not found here, so {', '.join(plan.name for plan in missing)} are left out; --help tells how to "
             "install")
    return [plan for plan in chosen if plan not in missing]


def _say(sentence: str) -> None:
    print(f"… {sentence}", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.training", description=(__doc__ or "").partition("\n\n")[2]
    )
    add = parser.add_argument
    add("--only", nargs="+", metavar="NAME", help="the figures with these names or beginnings of names (default: all)")
    add("--runs", type=int, default=3, help="on each side (default: 3); of memory and compile time one")
    add("--steps", type=int, default=5, help="whose time counts, in one run (default: 5)")
    add("--seed", type=int, default=0, help="of weights and windows (default: 0)")
    add("--device", choices=["cpu", "cuda"], default="cpu",
        help="where the steps of tokens_vs_…, matmul_share, memory_… and compile_time are taken (default: cpu)")
    add("--shape", choices=SHAPES, default="course", help="the model of most figures (default: course)")
    add("--small", choices=SHAPES, default="small", help="the model of loss_parity (default: small)")
    add("--quick", choices=SHAPES, default="quick", help="the model of lightning_cost (default: quick)")
    add("--batch-size", type=int, default=16, help="windows in a step (default: 16)")
    add("--memory-batch-size", type=int, default=64, help="the same for the figures of memory (default: 64)")
    add("--parity-text", type=Path, help="UTF-8 text for loss_parity (default: the embedded corpus)")
    add("--parity-tokens", type=int, default=1_000_000, help="that each side trains on (default: 1,000,000)")
    add("--parity-seeds", type=int, default=3, help="trainings of each side, from --seed on (default: 3)")
    add("--fit-options", default="--config configs/quickstart.yaml", help="for first_step (default: %(default)s)")
    add("--workdir", type=Path, default=Path(".cache/benchmarks"), help="of what is kept (default: .cache/benchmarks)")
    add("--markdown", action="store_true", help="print the figures as a Markdown table, too, at the end")
    return parser


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # being killed, too, ends the processes it started
    sys.exit(main())
