"""Batches of windows as the trainer iterates over them: without end for training, all of them once for validation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

import numpy as np
import torch

from tslm.data.device_windows import DeviceWindows
from tslm.data.documents import Positions, document_windows
from tslm.data.windows import TokenIds, WindowStream, sequential_windows

Item = TypeVar("Item")
Batch = tuple[torch.Tensor, torch.Tensor]


class TrainBatches:
    """Random windows from a given batch on; it has no state, so resuming needs none."""

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
    """Windows in batches, those of a batch all of one length."""

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
    ids: TokenIds, context_length: int, batch_size: int, rank: int = 0, world_size: int = 1,
    documents: Positions | None = None,
) -> ValidBatches:
    """Group one process's share of the sequential windows into batches of one length each.

    A batch stands where its last window does in the text, and those that never filled stand at the end; so what comes
    first, if not all of it is looked at, is no choice by length.

    Args:
        ids: the text's tokens.
        context_length: tokens in a window.
        batch_size: windows in a batch, at most.
        rank: number of this process.
        world_size: number of processes.
        documents: where documents begin, for windows that begin there; None for windows one behind the other.
    """
    windows = (sequential_windows(ids, context_length) if documents is None
               else document_windows(ids, context_length, documents))
    groups, filling = [], defaultdict[int, list[tuple[int, int]]](list)
    for start, length in windows[rank::world_size].tolist():
        filling[length].append((start, length))
        if len(filling[length]) == batch_size:
            groups.append(filling.pop(length))
    return ValidBatches(ids, groups + list(filling.values()))
