"""`python -m tests.campaigns.sweep`: compare settings of the optimizer by validation loss after the same tokens.

Each training is one JSON line on stdout and in the log. A table on stderr shows the mean validation loss of each
setting and its difference from the base. The first value of each option is the base. Every other value is tried with
the other options at their base, or, with --grid, in all combinations. A training that is in the log is not repeated, so
a sweep can be stopped, resumed and extended. Settings share seeds: the initial weights and, for one batch size, the
windows are equal. So differences are computed seed by seed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import version
from itertools import product
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from tests.benchmarks import training_parity
from tests.benchmarks.training_jobs import SHAPES
from tslm.errors import UserError


@dataclass(frozen=True)
class Setting:
    """Settings of one training.

    Attributes:
        lr: Peak learning rate.
        warmup: Fraction of the steps in which the learning rate rises.
        final_lr: Learning rate at the end, as a fraction of the peak.
        weight_decay: λ of AdamW.
        beta1: Decay rate of the average of the gradient.
        beta2: Decay rate of the average of the squared gradient.
        batch_size: Windows in a step. The tokens are fixed, so a larger batch takes fewer steps.
    """

    lr: float
    warmup: float
    final_lr: float
    weight_decay: float
    beta1: float
    beta2: float
    batch_size: int


Values = dict[str, list[float]]
DEFAULTS = Setting(lr=3e-3, warmup=0.05, final_lr=0.0, weight_decay=0.01, beta1=0.9, beta2=0.95, batch_size=16)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the trainings that the log does not have, and return the exit code: 0, 2 after a user's mistake, 130."""
    options = _parser().parse_args(arguments)
    try:
        return _sweep(options)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2


def _sweep(options: argparse.Namespace) -> int:
    if options.tokens < 1 or options.seeds < 1:
        raise UserError("--tokens and --seeds must be at least 1")
    settings = combinations({field.name: getattr(options, field.name) for field in fields(Setting)}, options.grid)
    options.log.parent.mkdir(parents=True, exist_ok=True)
    code = 0
    with tempfile.TemporaryDirectory() as folder:
        ids = training_parity.token_ids(options.text, SHAPES[options.shape]["vocab_size"], Path(folder), options.seed)
        common = {"text": hashlib.sha256(ids.read_bytes()).hexdigest()[:16], "shape": options.shape,
                  "tokens": options.tokens, "precision": options.precision}
        seeds = range(options.seed, options.seed + options.seeds)
        trials = [common | asdict(setting) | {"seed": seed} for seed in seeds for setting in settings]
        try:
            run_missing(trials, options.log, lambda trial: train(ids, trial))
        except KeyboardInterrupt:
            code = 130
    done = [line for line in read_log(options.log) if common.items() <= line.items()]
    names = [*(field.name for field in fields(Setting)), "seed"]
    losses = {tuple(line[name] for name in names): line["valid"] for line in done}
    print(table(settings, seeds, losses), file=sys.stderr)
    return code


def combinations(values: Values, grid: bool) -> list[Setting]:
    """Return the base and the settings to compare with it.

    Example: two values of lr and two of weight_decay give three settings, and four in a grid.
    """
    names = list(values)
    if grid:
        return [_setting(dict(zip(names, chosen, strict=True))) for chosen in product(*values.values())]
    base = _setting({name: chosen[0] for name, chosen in values.items()})
    others = [replace(base, **{name: value}) for name, chosen in values.items() for value in chosen[1:]]
    return list(dict.fromkeys([base, *others]))


def _setting(values: dict[str, float]) -> Setting:
    return Setting(**values)  # type: ignore[arg-type]  # batch_size is an int, as its option says


def run_missing(trials: list[dict[str, Any]], log: Path, run: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Run the trials that the log does not have. Append each one with its result to the log, and print it."""
    lines = read_log(log)
    missing = [trial for trial in trials if not any(trial.items() <= line.items() for line in lines)]
    for number, trial in enumerate(missing, start=1):
        result = run(trial)
        with log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(trial | result) + "\n")
            file.flush()
            os.fsync(file.fileno())
        print(json.dumps(trial | result), flush=True)
        print(f"… {number} of {len(missing)} trainings done", file=sys.stderr, flush=True)


def read_log(log: Path) -> list[dict[str, Any]]:
    """Return the lines of a log. An incomplete last line is removed from the file.

    Raises:
        UserError: A line is not JSON.
    """
    if not log.exists():
        return []
    text = log.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if whole != text:
        os.truncate(log, len(whole))
    lines = []
    for number, line in enumerate(whole.decode().splitlines(), start=1):
        try:
            lines.append(json.loads(line))
        except ValueError as error:
            raise UserError(f"{log} is not a log of a sweep: line {number} is not JSON ({error})") from None
    return lines


def train(ids: Path, trial: dict[str, Any]) -> dict[str, Any]:
    """Train one model; return `valid`, its loss (None if not finite), `train`, `seconds` and versions."""
    import torch

    from tslm.training.module import LanguageModule
    from tslm.training.settings import OptimizerSettings

    sizes = SHAPES[trial["shape"]]
    steps = -(-trial["tokens"] // (trial["batch_size"] * sizes["context_length"]))
    settings = OptimizerSettings(
        lr=trial["lr"], lr_min=trial["final_lr"] * trial["lr"], warmup_steps=round(trial["warmup"] * steps),
        betas=(trial["beta1"], trial["beta2"]), weight_decay=trial["weight_decay"],
    )
    torch.manual_seed(trial["seed"])
    module = LanguageModule(**sizes, optimizer=settings)
    batches, held_out = training_parity.windows(ids, sizes["context_length"], trial["batch_size"], trial["seed"])
    start = time.perf_counter()
    losses, valid = training_parity.train_ours(module, batches, held_out, steps, trial["precision"])
    finite = [None if not math.isfinite(loss) else loss for loss in training_parity.twentieths(losses)]
    return {"valid": valid if math.isfinite(valid) else None, "train": finite,
            "seconds": round(time.perf_counter() - start, 1), "tslm": version("tslm"), "torch": version("torch")}


def table(settings: list[Setting], seeds: Iterable[int], losses: dict[tuple[Any, ...], float | None]) -> str:
    """Return one line per setting: its changes to the base, its mean loss, and the difference from the base.

    The difference is the mean over the seeds that both have, with its standard error.

    Args:
        settings: Settings, the base first.
        seeds: Seeds.
        losses: Loss by (*values of the setting, seed); None for a training that diverged.
    """
    base, rows = settings[0], [("setting", "valid loss", "difference", "seeds")]
    for setting in settings:
        keys = [(*asdict(setting).values(), seed) for seed in seeds]
        found = [losses[key] for key in keys if key in losses]
        finite = [loss for loss in found if loss is not None]
        pairs = [(losses[key], losses.get((*asdict(base).values(), key[-1]))) for key in keys if key in losses]
        differences = [loss - other for loss, other in pairs if loss is not None and other is not None]
        changes = [f"{name}={value:g}" for name, value in asdict(setting).items() if value != getattr(base, name)]
        diverged = len(found) - len(finite)
        rows.append((
            " ".join(changes) or "base: " + " ".join(f"{name}={value:g}" for name, value in asdict(base).items()),
            f"{fmean(finite):.4f}" if finite else "",
            _mean_and_error(differences) if setting != base else "",
            f"{len(found)}" + (f", {diverged} diverged" if diverged else ""),
        ))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _mean_and_error(differences: list[float]) -> str:
    if len(differences) < 2:
        return "".join(f"{difference:+.4f}" for difference in differences)
    return f"{fmean(differences):+.4f} ± {stdev(differences) / math.sqrt(len(differences)):.4f}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.campaigns.sweep", description=(__doc__ or "").partition("\n\n")[2]
    )
    add = parser.add_argument
    for name, default in asdict(DEFAULTS).items():
        add(f"--{name.replace('_', '-')}", type=type(default), nargs="+", default=[default], metavar="VALUE",
            help=f"value of the base, then others (default: {default:g})")
    add("--grid", action="store_true", help="try all combinations instead of one change at a time")
    add("--text", type=Path, help="UTF-8 text; its last tenth is held out (default: the embedded corpus)")
    add("--shape", choices=SHAPES, default="small", help="model (default: small, 3.3M parameters)")
    add("--tokens", type=int, default=1_000_000, help="tokens of each training (default: 1,000,000)")
    add("--precision", choices=["fp32", "bf16"], default="bf16", help="precision of the matmuls (default: bf16)")
    add("--seed", type=int, default=0, help="first seed (default: 0)")
    add("--seeds", type=int, default=3, help="number of seeds (default: 3)")
    add("--log", type=Path, default=Path(".cache/sweep.jsonl"), help="file of JSON lines (default: .cache/sweep.jsonl)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
