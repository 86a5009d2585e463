"""Finds spikes of the training loss: steps whose loss is far above those before."""

from __future__ import annotations

import math
from collections import deque

FLAT = 1e-5  # smallest standard deviation, relative to the mean; below it, rounding alone would count as a spike


class LossSpikes:
    """Compares the loss of each step with the mean and the standard deviation of the steps before it.

    A spike is a loss above mean + deviations · σ with σ² = mean of squares - square of the mean. After a reported
    spike nothing is reported for `window` steps; then the mean has adapted if the loss has stayed high.

    Args:
        window: steps whose losses are compared.
        least: steps that must precede the first spike.
        deviations: a loss this many standard deviations above the mean is a spike.
    """

    def __init__(self, window: int = 1000, least: int = 100, deviations: float = 5.0) -> None:
        self.window, self.least, self.deviations = window, least, deviations
        self._losses: deque[float] = deque()
        self._sum = self._squares = 0.0
        self._silent = 0  # steps until a spike is reported again

    def add(self, loss: float) -> float | None:
        """Add the loss of the next step, in nats; if it is a spike to report, return its distance from the mean in σ.

        A loss that is not finite is left out, because its step is skipped and reported as such.
        """
        if not math.isfinite(loss):
            return None
        count, distance = len(self._losses), 0.0
        if count >= self.least:
            mean = self._sum / count
            deviation = math.sqrt(max(self._squares / count - mean * mean, 0.0))
            distance = (loss - mean) / max(deviation, FLAT * abs(mean), 1e-12)
        self._include(loss, 1)
        if count == self.window:
            self._include(self._losses.popleft(), -1)
        self._losses.append(loss)
        self._silent -= 1
        if distance <= self.deviations or self._silent > 0:
            return None
        self._silent = self.window
        return distance

    def _include(self, loss: float, sign: int) -> None:
        self._sum += sign * loss
        self._squares += sign * loss * loss
