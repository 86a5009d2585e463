"""The windows of a `WindowStream` on a GPU: the token ids lie there, and so does the drawing.

A batch then costs the processor a few launches, and nothing crosses the bus while training. The plain form is
`windows.WindowStream`, whose numbers these are, bit for bit; tested on a CPU, run on an H200.

A `DocumentStream` sorts a whole epoch's windows, so its places are found on the CPU and cross the bus, for many batches
at a time and without waiting; not yet run on a GPU.

Torch has no arithmetic on uint64, but sums and products modulo 2⁶⁴ have the same bits in int64; only a shift to the
right must be kept from copying the sign.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tslm.data.documents import DocumentStream
from tslm.data.windows import GOLDEN, MIX, TokenIds, WindowStream

DTYPES = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # of those widths, what torch can gather
AHEAD = 64  # batches whose starts are found together, by some thirty launches
COPIED_AT_ONCE = 2**25  # ids: the ids may be a memory map of something larger than the memory


class DeviceWindows:
    """Draws the batches of a `WindowStream` on a device that holds a copy of its token ids.

    The copy has the ids' own width, two bytes for a vocabulary of up to 65,536.

    Args:
        stream: says which windows there are.
        device: where the ids go and the batches are made.
    """

    def __init__(self, stream: WindowStream, device: torch.device) -> None:
        self.context_length, self.number_of_starts = stream.context_length, stream.number_of_starts
        self.origin = int(stream.origin.view(np.int64)[0])
        self.ids = copy_ids(stream.dataset, device)
        self._documents = stream if isinstance(stream, DocumentStream) else None
        self._drawn_on = torch.device("cpu") if self._documents is not None else device
        self._bits = 2 ** (8 * min(self.ids.element_size(), 7)) - 1  # of an id; they take the copied sign away again
        self._group = (-1, 0, 0, 0)  # whose starts are known: the number of the group, and what else they depend on
        self._starts = torch.empty(0)
        self._window = torch.arange(self.context_length + 1, device=device)

    def starts(self, indices: Tensor) -> Tensor:
        """Return where the windows of these indices, int64 and each 0 or more, begin in the data set; in any shape."""
        if self._documents is None:
            return _scale(_mix((indices + 1) * _signed(GOLDEN) + self.origin), self.number_of_starts)
        found = torch.from_numpy(self._documents.starts(indices.flatten().numpy())).view_as(indices)
        device = self.ids.device
        return found.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else found

    def batch(self, step: int, batch_size: int, *, rank: int = 0, world_size: int = 1) -> tuple[Tensor, Tensor]:
        """Return what `WindowStream.batch` returns, on the device."""
        starts = self._starts_of(step, batch_size, rank, world_size)
        tokens = self.ids[starts[:, None] + self._window].long().bitwise_and_(self._bits)  # (B, T + 1)
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def _starts_of(self, step: int, batch_size: int, rank: int, world_size: int) -> Tensor:
        """Where the windows of a batch begin: (batch_size,)."""
        group = step // AHEAD, batch_size, rank, world_size
        if group != self._group:
            steps = torch.arange(step // AHEAD * AHEAD, (step // AHEAD + 1) * AHEAD, device=self._drawn_on)
            first = (steps * world_size + rank) * batch_size
            self._group = group
            self._starts = self.starts(first[:, None] + torch.arange(batch_size, device=self._drawn_on))
        return self._starts[step % AHEAD]


def copy_ids(ids: TokenIds, device: torch.device) -> Tensor:
    """Copy an array to a device piece by piece, bit for bit, as integers of the same width that torch can gather."""
    dtype = DTYPES[ids.dtype.itemsize]
    copy = torch.empty(len(ids), dtype=dtype, device=device)
    for start in range(0, len(ids), COPIED_AT_ONCE):
        piece = torch.from_numpy(np.array(ids[start : start + COPIED_AT_ONCE]))
        copy[start : start + len(piece)] = piece.view(dtype)
    return copy


def _signed(number: int | np.uint64) -> int:
    """The int64 with the bits of a uint64."""
    return (int(number) + 2**63) % 2**64 - 2**63


def _shift(z: Tensor, bits: int) -> Tensor:
    """Return z >> bits of the uint64 whose bits z has."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _mix(z: Tensor) -> Tensor:
    """Return `windows._mix` of the uint64 whose bits z has."""
    for shift, factor in MIX:
        z = (z ^ _shift(z, shift)) * _signed(factor)
    return z ^ _shift(z, 31)


def _scale(random: Tensor, number: int) -> Tensor:
    """Return `windows._scale` of the uint64 whose bits `random` has: ⌊random · number / 2⁶⁴⌋."""
    high, low = _shift(random, 32), random & 0xFFFFFFFF
    number_high, number_low = number >> 32, number & 0xFFFFFFFF
    middle = high * number_low + _shift(low * number_low, 32)
    carry = _shift((middle & 0xFFFFFFFF) + low * number_high, 32)
    return high * number_high + _shift(middle, 32) + carry
