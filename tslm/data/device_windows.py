"""The batches of a `WindowStream` on a GPU that holds a copy of the token ids.

A batch then costs the CPU a few kernel launches. Where the windows start is computed by the stream itself, on the CPU,
so there is one definition of the windows. The starts of many batches are computed and copied to the GPU together,
without waiting for it. Tested on a CPU and on an H200.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tslm.data.windows import TokenIds, WindowStream

DTYPES = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes: integers that torch can gather
AHEAD = 64  # batches whose starts are computed and copied together


class DeviceWindows:
    """Draws the batches of a `WindowStream` on a device that holds a copy of its token ids.

    The copy has the width of the stream's ids: two bytes for a vocabulary of up to 65,536.
    """

    def __init__(self, stream: WindowStream, device: torch.device) -> None:
        self.stream, self.device = stream, device
        self.ids = copy_ids(stream.dataset, device)
        self._mask = 2 ** (8 * min(self.ids.element_size(), 7)) - 1  # undoes the sign extension of `long`
        self._group = (-1, 0, 0, 0)  # identifies the batches whose starts are known
        self._starts = torch.empty(0)
        self._offsets = torch.arange(stream.context_length + 1, device=device)

    @property
    def windows_per_pass(self) -> int:
        """As of the stream."""
        return self.stream.windows_per_pass

    def batch(self, step: int, batch_size: int, *, rank: int = 0, world_size: int = 1) -> tuple[Tensor, Tensor]:
        """Return what `WindowStream.batch` returns, on the device."""
        starts = self._starts_of(step, batch_size, rank, world_size)
        tokens = self.ids[starts[:, None] + self._offsets].long().bitwise_and_(self._mask)  # (B, T + 1)
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def _starts_of(self, step: int, batch_size: int, rank: int, world_size: int) -> Tensor:
        """Return where the windows of a batch start: (batch_size,), int64, on the device."""
        group = step // AHEAD, batch_size, rank, world_size
        if group != self._group:
            first = ((step // AHEAD * AHEAD + np.arange(AHEAD)) * world_size + rank) * batch_size
            first += self.stream.offset
            starts = self.stream.starts((first[:, None] + np.arange(batch_size)).ravel())
            host = torch.from_numpy(starts).view(AHEAD, batch_size)
            if self.device.type == "cuda":
                host = host.pin_memory()  # or the copy would wait for the GPU
            self._group, self._starts = group, host.to(self.device, non_blocking=True)
        return self._starts[step % AHEAD]


def copy_ids(ids: TokenIds, device: torch.device, piece_size: int = 2**25) -> Tensor:
    """Copy token ids to a device, bit for bit, as integers of the same width that torch can gather."""
    dtype = DTYPES[ids.dtype.itemsize]
    copy = torch.empty(len(ids), dtype=dtype, device=device)
    for start in range(0, len(ids), piece_size):
        piece = torch.from_numpy(np.array(ids[start : start + piece_size]))
        copy[start : start + len(piece)] = piece.view(dtype)
    return copy
