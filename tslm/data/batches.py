"""Batches of windows as the trainer iterates over them: without end for training, all of them once for validation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from tslm.data.device_windows import DeviceWindows
from tslm.data.windows import WindowStream, sequential_windows

Item = TypeVar("Item")
Batch = tuple[torch.Tensor, torch.Tensor]
TokenIds = npt.NDArray[np.integer[Any]]


class TrainBatches:
    """Random windows from a given micro-batch on; it has no state, so resuming needs none."""

    def __init__(
        self, windows: WindowStream | DeviceWindows, batch_size: int, first: int, rank: int, world_size: int
    ) -> None:
        self.windows, self.batch_size, self.first = windows, batch_size, first
        self.rank, self.world_size = rank, world_size

    def __iter__(self) -> Iterator[Batch]:
        index = self.first
        while True:
            yield self.windows.batch(index, self.batch_size, rank=self.rank, world_size=self.world_size)
            index += 1


class Batches(Generic[Item]):
    """Batches that are all there; a plain list would be taken for several loaders."""

    def __init__(self, items: Sequence[Item]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Item]:
        return iter(self.items)


class ValidBatches:
    """Sequential windows in batches; the last window may be shorter and is a batch of its own."""

    def __init__(self, ids: TokenIds, groups: list[list[tuple[int, int]]]) -> None:
        self.ids, self.groups = ids, groups

    def __len__(self) -> int:
        return len(self.groups)

    def __iter__(self) -> Iterator[Batch]:
        for group in self.groups:
            rows = np.stack([self.ids[start : start + length + 1] for start, length in group]).astype(np.int64)
            tokens = torch.from_numpy(rows)
            yield tokens[:, :-1], tokens[:, 1:]


def valid_batches(
    ids: TokenIds, context_length: int, batch_size: int, rank: int = 0, world_size: int = 1
) -> ValidBatches:
    """Group one process's share of the sequential windows into batches of one length each."""
    windows = [(int(start), int(length)) for start, length in sequential_windows(ids, context_length)]
    full = [window for window in windows if window[1] == context_length][rank::world_size]
    short = [window for window in windows if window[1] != context_length]
    groups = [full[i : i + batch_size] for i in range(0, len(full), batch_size)]
    if short and rank == world_size - 1:
        groups.append(short)
    return ValidBatches(ids, groups)
