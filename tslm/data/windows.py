"""Windows of an array of token ids: `context_length` ids are the inputs, and each one's successor is its target.

There are three ways to choose windows. `get_batch` draws them with a torch generator. `WindowStream` computes window i
from (seed, i), so that training can resume at any step without saved state. `sequential_windows` covers the array once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tslm.errors import UserError

TokenIds = npt.NDArray[np.integer[Any]]


def get_batch(
    dataset: TokenIds,
    batch_size: int,
    context_length: int,
    device: str | torch.device,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw random windows of a data set.

    With n token ids and T = `context_length`, each of the starts 0 … n - T - 1 is equally likely.

    Example: of the data set 0, 1, 2, …, a row of the inputs may be 5, 6, 7. Its targets are then 6, 7, 8.

    Args:
        dataset: token ids, a one-dimensional array of integers; if it is a memory map, only the windows are read.
        batch_size: number of windows, B.
        context_length: tokens in a window, T.
        device: the device of the returned tensors.
        generator: the source of randomness; torch's global generator if None.

    Returns:
        Inputs and targets, both (B, T), int64, on the device.

    Raises:
        UserError: the data set has fewer than T + 1 tokens, or T is below 1.
        ValueError: the data set is not a one-dimensional array of integers.
        RuntimeError: torch does not know the device.
    """
    device = torch.device(device)
    number = _number_of_starts(dataset, context_length)
    drawn_on = generator.device if generator is not None else None
    starts = torch.randint(number, (batch_size,), generator=generator, device=drawn_on).cpu().numpy()
    inputs, targets = _gather(dataset, starts, context_length)
    return inputs.to(device), targets.to(device)


class WindowStream:
    """An endless stream of random windows in which window i is a function of (seed, i) alone.

    So a run resumes without saved state, the windows do not depend on the batch size or the number of processes, and
    any window can be computed by itself. With r_i the i-th output of SplitMix64 (Steele, Lea & Flood 2014) and s the
    number of possible starts,

        start_i = ⌊r_i · s / 2⁶⁴⌋        (Lemire 2019).

    SplitMix64 computes r_i without its predecessors. The probabilities of two starts differ by at most 2⁻⁶⁴.

    Example: `WindowStream(ids, 256, seed=0).batch(10, 8)` returns the windows 80 … 87.

    Args:
        dataset: token ids, a one-dimensional array of integers; it may be a memory map.
        context_length: tokens in a window, T.
        seed: any integer.

    Raises:
        UserError: the data set has fewer than T + 1 tokens, or T is below 1.
        ValueError: the data set is not a one-dimensional array of integers.
    """

    def __init__(self, dataset: TokenIds, context_length: int, seed: int) -> None:
        self.dataset = dataset
        self.context_length = context_length
        self.number_of_starts = _number_of_starts(dataset, context_length)
        # Without this mixing, the stream of seed + 0x9E37… would be the stream of seed shifted by one window.
        self.origin = _mix(np.array([seed % 2**64], dtype=np.uint64))
        self.offset = 0  # added to window numbers in `batch`; a run resumed with another batch size needs it

    def random(self, indices: npt.ArrayLike) -> npt.NDArray[np.uint64]:
        """Return the random numbers r_i, uniform in 0 … 2⁶⁴ - 1, for indices i ≥ 0: (k,) → (k,)."""
        counters = np.atleast_1d(indices).astype(np.uint64) + np.uint64(1)
        return _mix(self.origin + counters * _GOLDEN)

    def starts(self, indices: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Return the positions in the data set at which the windows with indices i ≥ 0 start: (k,) → (k,), int64."""
        return _scale(self.random(indices), self.number_of_starts).astype(np.int64)

    @property
    def windows_per_pass(self) -> int:
        """The windows that have as many tokens as the data set."""
        return max(1, (len(self.dataset) - 1) // self.context_length)

    def batch(self, step: int, batch_size: int, *, rank: int = 0, world_size: int = 1) -> tuple[Tensor, Tensor]:
        """Return the batch of process `rank` of `world_size` at a step; steps and ranks count from 0.

        The batch holds the windows f, f + 1, …, f + batch_size - 1 with
        f = (step · world_size + rank) · batch_size + offset.
        So two processes with a batch size of 8 together read what one process reads with a batch size of 16.

        Returns:
            Inputs and targets, both (batch_size, T), int64.
        """
        first = (step * world_size + rank) * batch_size + self.offset
        return _gather(self.dataset, self.starts(np.arange(first, first + batch_size)), self.context_length)


def sequential_windows(dataset: TokenIds, context_length: int) -> npt.NDArray[np.int64]:
    """Divide a data set into windows such that every token except the first is a target exactly once.

    A window (start, length) has the inputs `dataset[start : start + length]` and the targets
    `dataset[start + 1 : start + length + 1]`.

    Example: for ten tokens and a context length of 4, the windows are [[0, 4], [4, 4], [8, 1]].

    Returns:
        (number of windows, 2), int64: start and length. Only the last window may be shorter than the context length.

    Raises:
        UserError: the data set has fewer than two tokens, so there is no target; or the context length is below 1.
        ValueError: the data set is not a one-dimensional array of integers.
    """
    _check(dataset, context_length)
    if len(dataset) < 2:
        raise UserError(f"the data set has {len(dataset)} tokens, but a prediction needs at least 2: use a longer text")
    starts = np.arange(0, len(dataset) - 1, context_length)
    return np.stack([starts, np.minimum(context_length, len(dataset) - 1 - starts)], axis=1)


def _check(dataset: TokenIds, context_length: int) -> None:
    if dataset.ndim != 1 or dataset.dtype.kind not in "iu":
        raise ValueError(f"the data set is {dataset.shape} {dataset.dtype}: give a one-dimensional array of integers")
    if context_length < 1:
        raise UserError(f"context_length is {context_length}: give at least 1")


def _number_of_starts(dataset: TokenIds, context_length: int) -> int:
    _check(dataset, context_length)
    if len(dataset) <= context_length:
        raise UserError(
            f"the data set has {len(dataset)} tokens, but a context_length of {context_length} needs at least "
            f"{context_length + 1}: use a longer text or a shorter context"
        )
    return len(dataset) - context_length


def _gather(dataset: TokenIds, starts: npt.NDArray[np.int64], context_length: int) -> tuple[Tensor, Tensor]:
    """Copy inputs and targets, (B, T) each, with one strided view and one index array: no Python loop over windows."""
    rows = np.lib.stride_tricks.sliding_window_view(np.asarray(dataset), context_length + 1)[starts]
    return torch.from_numpy(rows[:, :-1].astype(np.int64)), torch.from_numpy(rows[:, 1:].astype(np.int64))


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2⁶⁴ / golden ratio, made odd: the increment of SplitMix64's counter
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))  # shift and factor of each round of its output function
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def _mix(z: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Apply the output function of SplitMix64 to counters; uint64 arithmetic is modulo 2⁶⁴, as it requires."""
    for shift, factor in _MIX:
        z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
    return z ^ (z >> np.uint64(31))


def _scale(random: npt.NDArray[np.uint64], number: int) -> npt.NDArray[np.uint64]:
    """Return ⌊random · number / 2⁶⁴⌋ exactly, from products of 32-bit halves, which cannot overflow."""
    high, low = random >> _HALF, random & _LOW
    number_high, number_low = np.uint64(number >> 32), np.uint64(number & 0xFFFFFFFF)
    middle = high * number_low + (low * number_low >> _HALF)
    carry = (middle & _LOW) + low * number_high >> _HALF
    product: npt.NDArray[np.uint64] = high * number_high + (middle >> _HALF) + carry
    return product
