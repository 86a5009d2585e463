"""Minimise mean(w²) by gradient descent at several learning rates: the command `study sgd`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from tslm.errors import UserError
from tslm.optim import SGD
from tslm.studies.layout import print_note, print_table, print_title

RATES = (1.0, 10.0, 100.0, 1000.0)


def print_study(lr: list[float] | None = None, iterations: int = 10, seed: int = 0) -> None:
    """Print the losses and a verdict for each learning rate.

    Args:
        lr: Learning rates; unless given, 1, 10, 100 and 1000.
        iterations: Steps of gradient descent.
        seed: Seed of the weights, 5 · randn(10, 10).

    Raises:
        UserError: a learning rate is negative, there is none, or there is no step.
    """
    rates = list(RATES) if lr is None else lr
    if not rates:
        raise UserError("lr is [], but a study needs a learning rate: give --lr '[1, 10]'")
    if iterations < 1:
        raise UserError(f"iterations is {iterations}, but it must be 1 or more: change --iterations")
    columns = [losses(rate, iterations, seed) for rate in rates]
    print_title(f"What does the learning rate change in {iterations} steps of SGD?")
    print_note("The weights start at 5·randn(10, 10), and the loss is mean(w²). Step t, counted from 0, subtracts "
               "lr/√(t+1) times the gradient w/50, so it multiplies every weight by 1 - lr/(50·√(t+1)).")
    print()
    rows = [["steps", *(f"lr {rate:g}" for rate in rates)]]
    rows += [[str(step), *(f"{column[step]:.4g}" for column in columns)] for step in range(iterations + 1)]
    print_table(rows, ">" * len(rows[0]))
    print()
    print_table([["lr", "verdict"], *([f"{rate:g}", verdict(column)]
                                      for rate, column in zip(rates, columns, strict=True))], "><")


def losses(lr: float, iterations: int = 10, seed: int = 0) -> list[float]:
    """Return mean(w²) before the first step and after each step of `optim.SGD`."""
    weights = torch.nn.Parameter(5 * torch.randn(10, 10, generator=torch.Generator().manual_seed(seed)))
    optimizer = SGD([weights], lr=lr)
    values = []
    for step in range(iterations + 1):
        optimizer.zero_grad()
        loss = (weights**2).mean()
        values.append(loss.item())
        if step < iterations:
            loss.backward()
            optimizer.step()
    return values


def verdict(values: Sequence[float]) -> str:
    """Say what the losses of a run do."""
    first, last = values[0], values[-1]
    if not math.isfinite(last):
        return f"diverges: the loss grows from {first:.3g} beyond the largest float32"
    if last > first:
        return f"diverges: the loss grows from {first:.3g} to {last:.3g}"
    if last == first:
        return f"stays at {first:.3g}"
    fall = f"from {first:.3g} to {last:.3g}"
    if last > first / 2:
        return f"falls slowly, {fall}: the steps are too small"
    return f"falls, {fall}" if last > first / 1e6 else f"falls fastest, {fall}: practically 0"
