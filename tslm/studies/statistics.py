"""Confidence intervals for the difference between two models, and between two groups of runs."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Values = npt.ArrayLike

CONFIDENCE = 0.95
_BLOCKS = 200


class Interval(NamedTuple):
    """`mean` ± `half` holds the true value in 95 of 100 cases."""

    mean: float
    half: float

    @property
    def excludes_zero(self) -> bool:
        """Whether a difference was seen."""
        return abs(self.mean) > self.half

    def __str__(self) -> str:
        digits = 4 if self.half == 0 or not math.isfinite(self.half) else max(2, min(6, 1 - math.floor(
            math.log10(self.half))))
        return f"{self.mean:.{digits}f} ± {self.half:.{digits}f}"


def ratio_interval(sums: Values, sizes: Values, population: int | None = None) -> Interval:
    """Return the interval of Σ sums / Σ sizes over units that are drawn independently.

    With r_i = sums_i - mean · sizes_i, the variance is m / (m - 1) · Σ r_i² / (Σ sizes)²  (Cochran 1977, Sampling
    Techniques, section 6.3). If the m units are drawn without replacement from `population` units, it is multiplied by
    1 - m / population (section 2.6), and the interval is for the ratio over all of these.

    Args:
        sums: for each unit, such as a window of text, the difference of two models in nats.
        sizes: the tokens of each unit.
        population: how many units there are; None for an unlimited supply.

    Example: differences of 1, 2 and 3 nats in windows of ten tokens give 0.2 ± 0.25.
    """
    sums, sizes = np.asarray(sums, np.float64), np.asarray(sizes, np.float64)
    number = len(sums)
    mean = float(sums.sum() / sizes.sum())
    if number < 2:
        return Interval(mean, math.inf)
    residuals = sums - mean * sizes
    variance = number / (number - 1) * float(residuals @ residuals) / float(sizes.sum()) ** 2
    if population is not None:
        variance *= 1 - number / population
    return Interval(mean, student_quantile(number - 1) * math.sqrt(variance))


def in_blocks(sums: Values, sizes: Values, number: int = _BLOCKS) -> tuple[npt.NDArray[np.float64], ...]:
    """Join consecutive units, of which neighbours may depend on each other, into at most `number` blocks."""
    groups = np.array_split(np.arange(len(np.asarray(sums))), min(number, len(np.asarray(sums))))
    starts = [group[0] for group in groups]
    return tuple(np.add.reduceat(np.asarray(values, np.float64), starts) for values in (sums, sizes))


def group_interval(first: Values, second: Values) -> Interval:
    """Return the interval of the difference of two means, first minus second (Welch 1947).

    Each group is a sample of runs that differ in their seeds. With s² / n of each group, the degrees of freedom are
    (s₁²/n₁ + s₂²/n₂)² / ((s₁²/n₁)² / (n₁ - 1) + (s₂²/n₂)² / (n₂ - 1)).
    """
    groups = [np.asarray(each, np.float64) for each in (first, second)]
    mean = float(groups[0].mean() - groups[1].mean())
    if min(map(len, groups)) < 2:
        return Interval(mean, math.inf)
    errors = [float(each.var(ddof=1)) / len(each) for each in groups]
    if sum(errors) == 0:
        return Interval(mean, 0.0)
    freedom = sum(errors) ** 2 / sum(error**2 / (len(each) - 1) for error, each in zip(errors, groups, strict=True))
    return Interval(mean, student_quantile(freedom) * math.sqrt(sum(errors)))


@lru_cache(1024)
def student_quantile(freedom: float, confidence: float = CONFIDENCE) -> float:
    """Return the t with which Student's distribution has `confidence` of its mass in -t … t.

    The mass is 1 - I_x(f/2, 1/2) with x = f / (f + t²) and the regularized incomplete beta function I (Abramowitz and
    Stegun 1964, 26.7.1); it is solved for t by bisection.

    Example: 4.303 for 2 degrees of freedom, 1.960 for very many.
    """
    low, high = 0.0, 1.0
    while 1 - _incomplete_beta(freedom / 2, 0.5, freedom / (freedom + high * high)) < confidence:
        high *= 2
    for _ in range(45):
        middle = (low + high) / 2
        mass = 1 - _incomplete_beta(freedom / 2, 0.5, freedom / (freedom + middle * middle))
        low, high = (middle, high) if mass < confidence else (low, middle)
    return (low + high) / 2


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """Return I_x(a, b) by its continued fraction (Abramowitz and Stegun 26.5.8), with the method of Lentz (1976)."""
    if x in (0.0, 1.0):
        return x
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(b, a, 1 - x)  # where the fraction converges fast
    value = ratio = 1.0
    inverse = 0.0
    for term in range(1, 20_000):
        m, is_odd = divmod(term, 2)
        step = (-(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)) if is_odd
                else m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)))
        inverse = 1 / (1 + step * inverse)
        ratio = 1 + step / ratio
        value *= ratio * inverse
        if abs(ratio * inverse - 1) < 1e-13:
            break
    logarithm = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    return math.exp(logarithm) / (a * value)
