"""Skip optimizer steps whose gradient is not finite. The device decides and counts; reports read the counts.

To ask a GPU whether a gradient is finite would make the CPU wait for every step. So the answer stays on the device as a
flag that `AdamW` obeys, and the counts are read with the next report.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from tslm.errors import DivergedError
from tslm.training.settings import OptimizerSettings


class SkipReport(NamedTuple):
    """The skipped steps so far: their number, the most in a row, the last of these, and its gradient norm."""

    total: int
    longest: int
    step: int
    norm: float


class SkippedSteps:
    """Decides by the norm of the gradient which steps are skipped, and counts them.

    Several processes decide alike without communication, because their gradients are averaged first.

    Example: a loop of your own never lets such a step reach the weights, and ends after `max_skipped` of them in a row.

        >>> skipped = SkippedSteps(device)
        >>> optimizer.skip = skipped.skip  # an AdamW
        >>> for step in range(1, steps + 1):
        ...     ...  # compute the loss and its gradients
        ...     norm = clip_gradients(model.parameters(), max_norm=1.0)
        ...     skipped.update(norm + loss.detach(), step)
        ...     optimizer.step()
        ...     if step % 100 == 0:
        ...         check_diverged(skipped.report(), OptimizerSettings(), checkpoint)

    Args:
        device: where the gradients are.

    Attributes:
        skip: a boolean scalar tensor on the device, whether the present step is skipped.
    """

    def __init__(self, device: torch.device) -> None:
        self.skip = torch.zeros((), dtype=torch.bool, device=device)  # of the current step; `AdamW.skip` is this tensor
        self._counts = torch.zeros(4, dtype=torch.int64, device=device)
        self._total, self._longest, self._step, self._in_a_row = self._counts.unbind()
        self._norm = torch.zeros((), device=device)

    def update(self, norm: Tensor, step: int) -> None:
        """Set the flag and the counts by the gradient norm of a step; nothing is read from the device."""
        torch.logical_not(norm.isfinite(), out=self.skip)
        self._total.add_(self.skip)
        self._in_a_row.add_(1).mul_(self.skip)
        is_longest = self.skip.logical_and(self._in_a_row >= self._longest)
        torch.maximum(self._longest, self._in_a_row, out=self._longest)
        self._step.masked_fill_(is_longest, step)
        self._norm.copy_(torch.where(is_longest, norm, self._norm))

    def report(self) -> SkipReport:
        """Read the counts; the CPU waits until the device has completed all steps."""
        total, longest, step, _ = self._counts.tolist()
        return SkipReport(total, longest, step, float(self._norm))


def check_diverged(skipped: SkipReport, settings: OptimizerSettings, checkpoint: Path | None,
                   windows: str = "") -> None:
    """Stop a training that has diverged.

    The message names the newest checkpoint, and the windows of the last skipped step.

    Raises:
        DivergedError: `max_skipped` steps in a row were skipped.
    """
    if skipped.longest < settings.max_skipped:
        return
    saved = "no checkpoint has been saved yet" if checkpoint is None else f"the last checkpoint is {checkpoint}"
    raise DivergedError(f"the gradient norm is {skipped.norm} at optimizer step {skipped.step}, and {skipped.longest} "
                        "steps in a row had to be skipped, so the training has diverged: try a lower --optimizer.lr "
                        f"than {settings.lr:g}; {f'that step has the {windows}; ' * bool(windows)}{saved}")


def propagate_nonfinite(loss: Tensor) -> Tensor:
    """Return the loss; if it is not finite, its gradient is not finite either, so checking the gradient is enough.

    The loss is multiplied by the constant 1 + 0 · loss, which is 1, or NaN if the loss is infinite or NaN. Each process
    knows only its own loss, but all of them receive the averaged gradient.
    """
    return loss * (1 + 0 * loss.detach())


def check_loss(loss: float, module: torch.nn.Module, precision: str) -> None:
    """Raise a DivergedError that says why the loss of an evaluation is not finite, if it is not."""
    if math.isfinite(loss):
        return
    bad = [name for name, weight in module.named_parameters() if not weight.isfinite().all()]
    if bad:
        raise DivergedError(f"the loss is {loss}, because the weights in {bad[0]} are not finite: give an "
                        "earlier checkpoint with --ckpt_path")
    raise DivergedError(f"the loss is {loss}, although all weights are finite: they are too large for the precision "
                    f"{precision}; give --trainer.precision 32-true, or an earlier checkpoint with --ckpt_path")
