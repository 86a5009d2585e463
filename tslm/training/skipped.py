"""Steps that are not taken because their gradient is not finite: decided and counted on the device, read by reports.

Asking a GPU whether a gradient is finite would make the processor wait for every step. So the answer stays there, as a
flag that `AdamW` obeys, and the count of such steps waits for the next report.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class SkipReport(NamedTuple):
    """What was skipped so far: how many steps, how many in a row at most, and the last of those with its norm."""

    total: int
    longest: int
    step: int
    norm: float


class SkippedSteps:
    """Watches the norm of the gradient. Several processes agree without a word: their gradients are averaged before.

    Args:
        device: where the gradients are.
    """

    def __init__(self, device: torch.device) -> None:
        self.skip = torch.zeros((), dtype=torch.bool, device=device)  # of the step being taken; `AdamW.skip` is this
        self._counts = torch.zeros(4, dtype=torch.int64, device=device)
        self._total, self._longest, self._step, self._in_a_row = self._counts.unbind()
        self._norm = torch.zeros((), device=device)

    def watch(self, norm: Tensor, step: int) -> None:
        """Decide by the norm of a step's gradient whether the step is skipped; nothing is read from the device."""
        torch.logical_not(norm.isfinite(), out=self.skip)
        self._total.add_(self.skip)
        self._in_a_row.add_(1).mul_(self.skip)
        ahead = self.skip.logical_and(self._in_a_row >= self._longest)
        torch.maximum(self._longest, self._in_a_row, out=self._longest)
        self._step.masked_fill_(ahead, step)
        self._norm.copy_(torch.where(ahead, norm, self._norm))

    def report(self) -> SkipReport:
        """Read the counts, for which the processor waits."""
        total, longest, step, _ = self._counts.tolist()
        return SkipReport(total, longest, step, float(self._norm))


def with_telling_gradient(loss: Tensor) -> Tensor:
    """Return the loss; where it is not finite, its gradient is not either, so that watching the gradient is enough.

    The loss is multiplied by 1 + 0 · loss, taken as a constant, which is 1, or NaN for an infinite or undefined loss.
    Of several processes each knows its own loss only, but all of them get the averaged gradient.
    """
    return loss * (1 + 0 * loss.detach())
