"""Windows out of one long array of token ids: `context_length` tokens as inputs, the same shifted by one as targets.

Three ways to choose the windows: `get_batch` draws them from a generator; `WindowStream` computes them from a seed and
a number, so that training can stop and go on anywhere; `sequential_windows` walks through everything once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

TokenIds = npt.NDArray[np.integer[Any]]


def get_batch(
    dataset: TokenIds,
    batch_size: int,
    context_length: int,
    device: str | torch.device,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw random windows: every start 0 … n - context_length - 1 is equally likely, n being the size of the data set.

    With the data set 0, 1, 2, …, a row of the inputs may be 5, 6, 7; its targets are then 6, 7, 8.

    Args:
        dataset: token ids, a one-dimensional array of integers; a memory map is read where it is needed only.
        batch_size: number of windows, B.
        context_length: tokens in a window, T.
        device: where the batch goes.
        generator: the source of randomness; torch's global one if left out.

    Returns:
        Inputs and targets, both (B, T), int64, on the device.

    Raises:
        ValueError: the data set is shorter than one window and its last target.
        RuntimeError: torch does not know the device.
    """
    device = torch.device(device)
    number = _number_of_starts(dataset, context_length)
    where = generator.device if generator is not None else None
    starts = torch.randint(number, (batch_size,), generator=generator, device=where).cpu().numpy()
    inputs, targets = _gather(dataset, starts, context_length)
    return inputs.to(device), targets.to(device)


class WindowStream:
    """An endless stream of random windows in which window i is a function of (seed, i) and of nothing else.

    Nothing has to be saved to go on where a run stopped, nothing depends on the number of processes or on the size of
    a batch, and any window can be looked up. The random numbers are those of SplitMix64 (Steele, Lea & Flood 2014),
    whose i-th output can be had without the ones before it; the high half of its product with the number of starts is
    a start (Lemire 2019). Among s starts none is more likely than another by more than a part in 2⁶⁴ / s.

    Args:
        dataset: token ids, a one-dimensional array of integers, memory map or not.
        context_length: tokens in a window, T.
        seed: any integer.

    Raises:
        ValueError: the data set is shorter than one window and its last target.
    """

    def __init__(self, dataset: TokenIds, context_length: int, seed: int) -> None:
        self.dataset = dataset
        self.context_length = context_length
        self.number_of_starts = _number_of_starts(dataset, context_length)
        # Mixed once, or the stream of seed + 0x9E37… would be this one shifted by a window.
        self.origin = _mix(np.array([seed % 2**64], dtype=np.uint64))

    def random(self, indices: npt.ArrayLike) -> npt.NDArray[np.uint64]:
        """Return the random numbers of these indices (k,), each 0 or more: (k,), 0 … 2⁶⁴-1."""
        counters = np.atleast_1d(indices).astype(np.uint64) + np.uint64(1)
        return _mix(self.origin + counters * GOLDEN)

    def starts(self, indices: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Return where the windows of these indices (k,), each 0 or more, begin in the data set: (k,), int64."""
        return _scale(self.random(indices), self.number_of_starts).astype(np.int64)

    def batch(self, step: int, batch_size: int, *, rank: int = 0, world_size: int = 1) -> tuple[Tensor, Tensor]:
        """Return the batch that process `rank` of `world_size` reads at a step, counted from 0.

        Its windows have the indices (step · world_size + rank) · batch_size + 0 … batch_size - 1, so that two processes
        with batches of 8 read together what one process reads with batches of 16.

        Returns:
            Inputs and targets, both (batch_size, T), int64.
        """
        first = (step * world_size + rank) * batch_size
        return _gather(self.dataset, self.starts(np.arange(first, first + batch_size)), self.context_length)


def sequential_windows(dataset: TokenIds, context_length: int) -> npt.NDArray[np.int64]:
    """Cut a data set into windows in which every token but the first is a target exactly once.

    For ten tokens and a context length of 4: [[0, 4], [4, 4], [8, 1]]. The window (start, length) has the inputs
    `dataset[start : start + length]` and the targets `dataset[start + 1 : start + length + 1]`.

    Returns:
        (number of windows, 2): start and length; only the last window may be shorter than the context length.

    Raises:
        ValueError: the data set has fewer than two tokens, so that there is nothing to predict.
    """
    _check(dataset, context_length)
    if len(dataset) < 2:
        raise ValueError(f"the data set has {len(dataset)} tokens, but predicting one needs two: use a longer text")
    starts = np.arange(0, len(dataset) - 1, context_length)
    return np.stack([starts, np.minimum(context_length, len(dataset) - 1 - starts)], axis=1)


def _check(dataset: TokenIds, context_length: int) -> None:
    if dataset.ndim != 1 or dataset.dtype.kind not in "iu":
        raise ValueError(
            f"the data set has the shape {dataset.shape} and the type {dataset.dtype}, but token ids are a "
            "one-dimensional array of integers"
        )
    if context_length < 1:
        raise ValueError(f"context_length is {context_length}, but a window holds at least 1 token")


def _number_of_starts(dataset: TokenIds, context_length: int) -> int:
    _check(dataset, context_length)
    if len(dataset) <= context_length:
        raise ValueError(
            f"the data set has {len(dataset)} tokens, but a context_length of {context_length} needs at least "
            f"{context_length + 1}: use a longer text or a shorter context"
        )
    return len(dataset) - context_length


def _gather(dataset: TokenIds, starts: npt.NDArray[np.int64], context_length: int) -> tuple[Tensor, Tensor]:
    """Copy the windows out, (B, T) each. One strided view and one fancy index: no Python per window."""
    rows = np.lib.stride_tricks.sliding_window_view(np.asarray(dataset), context_length + 1)[starts]
    return torch.from_numpy(rows[:, :-1].astype(np.int64)), torch.from_numpy(rows[:, 1:].astype(np.int64))


GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2⁶⁴ / golden ratio, odd: the step of SplitMix64's counter
MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))  # its output function: shift and factor of each round
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def _mix(z: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Turn a counter into a random number: the output function of SplitMix64, modulo 2⁶⁴ as uint64 arrays are."""
    for shift, factor in MIX:
        z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
    return z ^ (z >> np.uint64(31))


def _scale(random: npt.NDArray[np.uint64], number: int) -> npt.NDArray[np.uint64]:
    """Return ⌊random · number / 2⁶⁴⌋ exactly, from products of 32-bit halves, none of which overflows."""
    high, low = random >> _HALF, random & _LOW
    number_high, number_low = np.uint64(number >> 32), np.uint64(number & 0xFFFFFFFF)
    middle = high * number_low + (low * number_low >> _HALF)
    carry = (middle & _LOW) + low * number_high >> _HALF
    product: npt.NDArray[np.uint64] = high * number_high + (middle >> _HALF) + carry
    return product
