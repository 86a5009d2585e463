"""Stochastic gradient descent with a decaying step size: the smallest useful optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from tslm.errors import UserError


class SGD(Optimizer):
    r"""Gradient descent with the rate lr / √(t + 1), t counted from 0.

        θ ← θ - lr / √(t + 1) · g

    Args:
        params: parameters, or parameter groups as dictionaries.
        lr: the rate of the first step.

    Raises:
        UserError: lr is negative or not a number.

    Example: for lr = 1 and the loss θ², starting at θ = 1, the gradient is 2 and the first step leads to -1. There the
        gradient is -2, and the second step, with the rate 1/√2, leads to -1 + √2 ≈ 0.414.
    """

    def __init__(self, params: Iterable[Tensor] | Iterable[dict[str, Any]], lr: float) -> None:
        if not lr >= 0:
            raise UserError(f"lr is {lr}, but a learning rate must be 0 or more")
        super().__init__(params, {"lr": lr})

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step; `closure`, if given, recomputes the loss and the gradients first, and its loss is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                t = state.get("step", 0)
                parameter.add_(parameter.grad, alpha=-group["lr"] / math.sqrt(t + 1))
                state["step"] = t + 1
        return loss
