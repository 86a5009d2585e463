"""Train with several values of one setting: the commands `study lr-range`, `study batch-size` and `study ablation`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tslm.errors import UserError
from tslm.studies.accounting import GIGA, Form, account
from tslm.studies.comparison import verdict
from tslm.studies.fit_runs import FitRun, check_counts, free_prefix, model_of, parse_fit, plot_losses, run_fit
from tslm.studies.layout import check_plot, print_note, print_table, print_title
from tslm.studies.statistics import ratio_interval
from tslm.training.forecast import free_bytes
from tslm.training.settings import OptimizerSettings

RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 1.0, 10.0)
VARIANTS = {
    "no normalisation": ["--model.norm=none"],
    "post-norm": ["--model.norm=post"],
    "no RoPE": ["--model.position=none"],
    "SiLU feed-forward": ["--model.ffn=silu"],  # and d_ff = 4 · d_model
    "Muon": ["--optimizer.class_path=Muon"],
    "tied embeddings": ["--model.tie_embeddings=true"],
}


def print_lr_range(fit: Sequence[str], lr: Sequence[float] | None, steps: int, seeds: int, plot: str | None) -> None:
    """Train once for each learning rate and seed; print a table and draw a plot.

    The arguments are the options of `study lr-range`, after those of `fit` that all runs share.

    Raises:
        UserError: an option is wrong, or matplotlib is not installed.
        SystemExit: Ctrl-C ended a training.
    """
    check_counts(fit, ["optimizer.lr"], steps=steps, seeds=seeds)
    lr = RATES if lr is None else lr
    if not lr or min(lr) <= 0 or len({f"{rate:g}" for rate in lr}) < len(lr):  # the names of runs have six digits
        raise UserError(f"lr is {list(lr)}, but a sweep needs different learning rates above 0: give --lr "
                        "'[0.001, 0.01]'")
    check_plot(plot)
    options = parse_fit(fit)
    for rate in lr:
        OptimizerSettings(**{**vars(options.optimizer), "lr": rate}).check()
    root = str(options.trainer.default_root_dir)
    prefix, start = free_prefix("lr-range", root), math.log(options.data.vocab_size)
    groups: list[list[FitRun]] = []
    for rate in lr:
        groups.append([])
        for seed in range(seeds):
            number = (len(groups) - 1) * seeds + seed + 1
            words = [*fit, f"--trainer.max_steps={steps}", f"--optimizer.lr={rate!r}", f"--seed_everything={seed}"]
            groups[-1].append(run_fit(f"{prefix}-{rate:g}-seed{seed}", words, root,
                                      f"run {number} of {len(lr) * seeds}: lr {rate:g}, seed {seed}"))
    losses = [sum(run.loss for run in group) / seeds for group in groups]
    # A loss above that of guessing all tokens alike has diverged, too, even if it is a number.
    losses = [math.inf if loss > start else loss for loss in losses]
    print_title(f"Which learning rate trains best in {steps:,} steps?")
    print_table([["lr", "validation loss", "runs"], *(
        [f"{rate:g}", f"{loss:.4f}" if math.isfinite(loss) else "diverged", f"{prefix}-{rate:g}-seed*"]
        for rate, loss in zip(lr, losses, strict=True))], ">><")
    print_note(f"Nats per token; guessing all {options.data.vocab_size:,} tokens alike has {start:.4f}, and a run "
               "above that counts as diverged.")
    if any(map(math.isfinite, losses)):
        print_note(f"The lowest loss is at lr {lr[losses.index(min(losses))]:g}.")
    if plot is not None:
        plot_losses(Path(plot), "learning rate", lr, losses, [group[0] for group in groups])
        print(f"The plot is in {plot}.")


def print_batch_size(fit: Sequence[str], steps: int, max_batch_size: int | None, plot: str | None) -> None:
    """Train with batches of 1, 2, 4 … windows on the same number of tokens; print a table.

    Every batch is computed at once. The learning rate grows with the root of the batch size (Malladi et al. 2022, "On
    the SDEs and Scaling Rules for Adaptive Gradient Algorithms").

    The arguments are the options of `study batch-size`, after those of `fit` that all runs share. The steps are
    those at the batch size of the configuration; they decide the tokens of all runs.

    Raises:
        UserError: an option is wrong.
        SystemExit: Ctrl-C ended a training.
    """
    limits = {} if max_batch_size is None else {"max_batch_size": max_batch_size}
    check_counts(fit, ["data.micro_batch_size"], steps=steps, **limits)
    check_plot(plot)
    options = parse_fit(fit)
    root, data = str(options.trainer.default_root_dir), options.data
    windows = steps * data.batch_size
    most = min(windows, _largest_batch(options) if max_batch_size is None else max_batch_size)
    sizes = [1 << power for power in range(most.bit_length())]
    prefix = free_prefix("batch-size", root)
    runs: list[FitRun] = []
    rows = [["batch", "steps", "lr", "validation loss", "tokens/s", "seconds", "run"]]
    for size in sizes:
        rate = options.optimizer.lr * math.sqrt(size / data.batch_size)
        words = [*fit, f"--trainer.max_steps={windows // size}", f"--data.batch_size={size}",
                 f"--data.micro_batch_size={size}", f"--optimizer.lr={rate!r}"]
        try:
            run = run_fit(f"{prefix}-{size}", words, root, f"run {len(runs) + 1} of {len(sizes)}: batch of {size}")
        except (torch.OutOfMemoryError, MemoryError):
            rows.append([f"{size:,}", "", "", "out of memory", "", "", f"{prefix}-{size}"])
            break
        runs.append(run)
        loss = f"{run.loss:.4f}" if math.isfinite(run.loss) else "diverged"
        rows.append([f"{size:,}", f"{windows // size:,}", f"{rate:.3g}", loss,
                     f"{run.tokens_per_second:,.0f}", f"{run.seconds:,.1f}", run.path.name])
    print_title(f"What does the batch size change for {windows * data.context_length:,} tokens?")
    print_table(rows, ">>>>>><")
    print_note("The learning rate is the configuration's times √(batch / its batch). The seconds are those of the "
               "whole run, with its start and validation.")
    if plot is not None:
        plot_losses(Path(plot), "windows in a batch", sizes[: len(runs)], [run.loss for run in runs], runs)
        print(f"The plot is in {plot}.")


def print_ablation(fit: Sequence[str], steps: int, seeds: int, only: Sequence[str] | None) -> None:
    """Train the configuration and its variants with the same seeds; print paired differences with intervals.

    Runs of one seed see the same windows, so the difference of two losses is taken seed by seed. Its interval is
    Student's, over the seeds.

    The arguments are the options of `study ablation`, after those of `fit` that all runs share.

    Raises:
        UserError: an option is wrong.
        SystemExit: Ctrl-C ended a training.
    """
    check_counts(fit, [], steps=steps, seeds=seeds)
    if only is not None and not only:
        raise UserError(f"only is [], but an ablation needs a variant: give --only some of {', '.join(VARIANTS)}")
    if wrong := set(only or ()) - set(VARIANTS):
        raise UserError(f"only names {min(wrong)!r}, but the variants are {', '.join(VARIANTS)}: change --only")
    options = parse_fit(fit)
    root, width = str(options.trainer.default_root_dir), options.model.d_model
    variants = {"base": [], **{name: words for name, words in VARIANTS.items() if only is None or name in only}}
    if "SiLU feed-forward" in variants:
        variants["SiLU feed-forward"] = [*VARIANTS["SiLU feed-forward"], f"--model.d_ff={4 * width}"]
    for words in variants.values():
        parse_fit([*fit, *words])  # a wrong option is reported before the first run, not after an hour
    prefix = free_prefix("ablation", root)
    losses: dict[str, list[float]] = {}
    for name, words in variants.items():
        losses[name] = []
        for seed in range(seeds):
            number = (len(losses) - 1) * seeds + seed + 1
            own = [*fit, *words, f"--trainer.max_steps={steps}", f"--seed_everything={seed}"]
            run = run_fit(f"{prefix}-{name.replace(' ', '-')}-seed{seed}", own, root,
                          f"run {number} of {len(variants) * seeds}: {name}, seed {seed}")
            losses[name].append(run.loss)
    tokens = steps * options.data.batch_size * options.data.context_length
    print_title(f"What does each part contribute, after {tokens:,} tokens and over {seeds} seeds?")
    rows = [["", "validation loss", "minus base", "verdict"]]
    for name, values in losses.items():
        if not all(map(math.isfinite, values)):
            rows.append([name, "diverged", "", f"{sum(map(math.isinf, values))} of {seeds} runs diverged"])
            continue
        mean = f"{sum(values) / seeds:.4f}"
        if name == "base" or not all(map(math.isfinite, losses["base"])):
            rows.append([name, mean, "", ""])
            continue
        difference = ratio_interval([value - base for value, base in zip(values, losses["base"], strict=True)],
                                    [1.0] * seeds)
        if seeds == 1:
            rows.append([name, mean, f"{difference.mean:.4f}", "one seed shows no interval"])
            continue
        rows.append([name, mean, str(difference), verdict(difference, name, "the base", "nats per token")])
    print_table(rows, "<>><")
    print_note("95% intervals of the paired differences; runs of one seed see the same windows in the same order.")


def _largest_batch(options: Any) -> int:  # noqa: ANN401 - jsonargparse's Namespace
    """Return the largest batch that the account of the model allows in the memory that is free here."""
    config = model_of(options)
    form: Form = "silu" if config.ffn == "silu" else "swiglu"
    free = free_bytes(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    free = 4 * GIGA if free is None else free
    largest = account(config, form).largest_batch(free)
    if largest < 1:
        raise UserError(f"not even a batch of 1 fits into {free / GIGA:.1f} GB: give a smaller model or context")
    return largest
