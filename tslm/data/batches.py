"""The batches that the trainer iterates over: endless random windows for training, all windows once for validation.

This file also decides how many windows are computed at a time, and which of them each process of a trainer gets.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

import lightning.pytorch as pl
import numpy as np
import torch

from tslm.data.device_windows import DeviceWindows
from tslm.data.documents import Positions, document_starts, document_windows
from tslm.data.windows import TokenIds, WindowStream, sequential_windows
from tslm.errors import UserError
from tslm.tokenizer import TokenFile, Tokenizer

# Limits on a CPU, in tokens. Up to WHOLE_TOKENS a process computes all its windows at once; more are split into
# micro-batches of at most MICRO_BATCH_TOKENS. Activations take most of the memory of a training step, so micro-batches
# halve it for 64 windows. Adding up their gradients takes time, but touching less memory saves as much.
WHOLE_TOKENS, MICRO_BATCH_TOKENS = 4096, 2048

Item = TypeVar("Item")
Batch = tuple[torch.Tensor, torch.Tensor]


def default_micro_batch(windows: int, context_length: int, device_type: str) -> int:
    """Return how many of a process's windows are computed at a time if the user does not state it.

    A GPU computes all of them at once. A CPU does so up to `WHOLE_TOKENS`, else it takes the largest divisor of
    `windows` that has at most `MICRO_BATCH_TOKENS`.

    Example: 64 windows of 256 tokens are computed 8 at a time on a CPU, and 16 windows all at once.
    """
    if device_type != "cpu" or windows * context_length <= WHOLE_TOKENS:
        return windows
    most = max(1, MICRO_BATCH_TOKENS // context_length)
    return max(size for size in range(1, most + 1) if windows % size == 0)


def check_sizes(vocab_size: int, num_special: int, context_length: int, batch_size: int,
                micro_batch_size: int | None, num_workers: int | None) -> None:
    """Raise a UserError for impossible sizes, before anything is prepared."""
    if vocab_size < 256 + num_special:
        raise UserError(f"data.vocab_size is {vocab_size}, but the 256 bytes and the special tokens alone need "
                        f"{256 + num_special}: give --data.vocab_size at least {256 + num_special}")
    sizes = {"context_length": context_length, "batch_size": batch_size, "micro_batch_size": micro_batch_size,
             "num_workers": num_workers}
    for name, value in sizes.items():
        if value is not None and value < 1:
            raise UserError(f"data.{name} is {value}: give --data.{name} at least 1")


def split_batch(batch_size: int, context_length: int, *, world_size: int = 1, device_type: str = "cpu",
                micro_batch_size: int | None = None) -> tuple[int, int]:
    """Split the windows of one optimizer step: batch_size = world_size · accumulate · micro_batch_size.

    `batch_size` counts the windows of all processes, `micro_batch_size` those that one process computes at a time; if
    None, `default_micro_batch` decides.

    Returns:
        micro_batch_size and accumulate, the micro-batches that each process computes in one optimizer step.

    Raises:
        UserError: batch_size is not divisible by world_size · micro_batch_size.
    """
    multiple = world_size * (micro_batch_size or 1)
    if batch_size % multiple:
        lower = batch_size // multiple * multiple
        reasons, choices = "", f"--data.batch_size {f'{lower} or ' * bool(lower)}{lower + multiple}"
        if micro_batch_size is not None:
            reasons += f" with data.micro_batch_size {micro_batch_size}"
            choices += ", or another --data.micro_batch_size"
        if world_size > 1:
            reasons += f" on {world_size} processes"
            choices += ", or another --trainer.devices"
        raise UserError(f"data.batch_size is {batch_size}, but{reasons} it must be a multiple of {multiple}: give "
                        f"{choices}")
    windows = batch_size // world_size
    size = micro_batch_size or default_micro_batch(windows, context_length, device_type)
    return size, windows // size


class TrainBatches:
    """An endless sequence of micro-batches of random windows.

    There is no state to save: micro-batch i of process r holds the `batch_size` windows from number
    (i · world_size + r) · batch_size on.

    Args:
        windows: the windows.
        batch_size: windows in a micro-batch.
        first: called when an iteration begins; returns the number of its first micro-batch.
        rank: number of this process, r.
        world_size: number of processes.
        repeat: if not 0, the first `repeat` micro-batches are repeated forever.
    """

    def __init__(self, windows: WindowStream | DeviceWindows, batch_size: int, first: Callable[[], int], rank: int,
                 world_size: int, repeat: int = 0) -> None:
        self.windows, self.batch_size, self.first = windows, batch_size, first
        self.rank, self.world_size, self.repeat = rank, world_size, repeat

    def __iter__(self) -> Iterator[Batch]:
        index = self.first()
        while True:
            number = index % self.repeat if self.repeat else index
            yield self.windows.batch(number, self.batch_size, rank=self.rank, world_size=self.world_size)
            index += 1


class OnePass(TrainBatches):
    """The same micro-batches, in epochs of as many tokens as the text has: for a trainer that counts epochs."""

    def __len__(self) -> int:
        return max(1, self.windows.windows_per_pass // (self.batch_size * self.world_size))

    def __iter__(self) -> Iterator[Batch]:
        return itertools.islice(super().__iter__(), len(self))


class Batches(Generic[Item]):
    """A finite loader over batches in memory. Lightning would treat a plain list as several loaders."""

    def __init__(self, items: Sequence[Item]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Item]:
        return iter(self.items)


class ValidBatches:
    """Batches of validation windows; the windows of one batch have the same length.

    Args:
        ids: the text's tokens.
        groups: for each batch the (start, length) of its windows.
    """

    def __init__(self, ids: TokenIds, groups: list[list[tuple[int, int]]]) -> None:
        self.ids, self.groups = ids, groups

    def __len__(self) -> int:
        return len(self.groups)

    def __iter__(self) -> Iterator[Batch]:
        for group in self.groups:
            rows = np.stack([self.ids[start : start + length + 1] for start, length in group]).astype(np.int64)
            tokens = torch.from_numpy(rows)
            yield tokens[:, :-1], tokens[:, 1:]


def valid_batches(ids: TokenIds, context_length: int, batch_size: int, rank: int = 0, world_size: int = 1,
                  documents: Positions | None = None) -> ValidBatches:
    """Group one process's share of the sequential windows into batches of one length each.

    A batch is placed where its last window is in the text; batches that are not full come at the end. So a validation
    that is limited to the first batches does not select windows by their length.

    With `documents`, windows begin where documents begin; else each follows the one before it.
    """
    windows = (sequential_windows(ids, context_length) if documents is None
               else document_windows(ids, context_length, documents))
    groups, open_groups = [], defaultdict[int, list[tuple[int, int]]](list)
    for start, length in windows[rank::world_size].tolist():
        open_groups[length].append((start, length))
        if len(open_groups[length]) == batch_size:
            groups.append(open_groups.pop(length))
    # A process without windows has a batch without targets, because all processes take part in each validation.
    return ValidBatches(ids, groups + list(open_groups.values()) or [[(0, 0)]])


class WindowLoaders(pl.LightningDataModule):
    """The part of a `TextDataModule` that serves windows; its arguments are explained there."""

    def __init__(self, context_length: int, batch_size: int, micro_batch_size: int | None, seed: int,
                 align_documents: bool, on_device: bool | None) -> None:
        super().__init__()
        self.context_length, self.batch_size, self.micro_batch_size = context_length, batch_size, micro_batch_size
        self.seed, self.align_documents, self.on_device = seed, align_documents, on_device
        self.tokenizer: Tokenizer | None = None
        self.windows: WindowStream | None = None
        self.train_tokens: TokenFile | None = None
        self.valid_tokens: TokenFile | None = None

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimizer step, over all processes."""
        return self.batch_size * self.context_length

    def split(self, world_size: int, device_type: str) -> tuple[int, int]:
        """Return the windows that each process computes at a time, and how often it does so in an optimizer step.

        Raises:
            UserError: batch_size is not divisible by world_size · micro_batch_size.
        """
        return split_batch(self.batch_size, self.context_length, world_size=world_size, device_type=device_type,
                           micro_batch_size=self.micro_batch_size)

    @property
    def separator(self) -> int | None:
        """The token between documents, if windows are aligned with documents; else None.

        Raises:
            UserError: the tokenizer has no such token.
        """
        if not self.align_documents:
            return None
        assert self.tokenizer is not None
        if self.tokenizer.separator is None:
            raise UserError("data.align_documents is on, but the tokenizer has no special token to separate documents: "
                            "give --data.align_documents false, or another --data.tokenizer")
        return self.tokenizer.separator

    def document_starts(self, tokens: TokenFile) -> Positions | None:
        """Return where documents begin, for windows that start there; None for windows that start anywhere."""
        separator = self.separator
        return None if separator is None else document_starts(tokens.ids, separator)

    def train_dataloader(self) -> TrainBatches:
        """Serve micro-batches of random windows, from the current optimizer step on.

        They come without end, or for a stock Trainer in epochs of as many tokens as the text has. Step s has the
        windows s · batch_size … (s + 1) · batch_size - 1, however they are split. A run that is resumed with another
        batch size continues after the windows that it has seen.

        Raises:
            UserError: batch_size is not divisible by the number of processes and micro-batches.
        """
        trainer = self._attached()
        assert self.windows is not None
        rank, world_size, accumulate = trainer.global_rank, trainer.world_size, trainer.accumulate_grad_batches
        micro_batch_size, rest = divmod(self.batch_size, world_size * accumulate)
        if rest:  # with a stock Trainer; StepTrainer derives its accumulation from `split`
            raise UserError(f"data.batch_size is {self.batch_size}, but the trainer divides it among {world_size} "
                            f"processes and {accumulate} micro-batches: give --data.batch_size a multiple of "
                            f"{world_size * accumulate}")
        seen = getattr(getattr(trainer, "lightning_module", None), "tokens_seen", None)  # of a resumed run
        self.windows.offset = 0 if seen is None else seen // self.context_length - trainer.global_step * self.batch_size
        device = trainer.strategy.root_device
        on_device = device.type == "cuda" if self.on_device is None else self.on_device
        windows = DeviceWindows(self.windows, device) if on_device else self.windows
        kind = TrainBatches if hasattr(trainer, "step_loop") else OnePass  # a StepTrainer; a stock one counts epochs
        loader = kind(windows, micro_batch_size, lambda: trainer.global_step * accumulate, rank, world_size,
                      repeat=getattr(trainer, "overfit_steps", 0) * accumulate)
        overfit = getattr(trainer, "overfit_batches", 0)  # of a stock Trainer: micro-batches, or a share of them
        if isinstance(loader, OnePass) and overfit:
            loader.repeat = overfit if isinstance(overfit, int) else max(1, int(overfit * len(loader)))
        return loader

    def _attached(self) -> pl.Trainer:
        if self.trainer is None:
            raise UserError("TextDataModule serves batches to a trainer only: give it to one as datamodule=...")
        return self.trainer

    def windows_of(self, step: int) -> str:
        """Name the windows of an optimizer step, counted from 1: of `self.windows.batch(step - 1, batch_size)`."""
        assert self.windows is not None
        first = (step - 1) * self.batch_size + self.windows.offset
        return f"windows {first} to {first + self.batch_size - 1} of data.seed {self.seed}"

    def val_dataloader(self) -> ValidBatches:
        """Serve the validation text in order, each target exactly once, divided among the processes.

        As in training, a batch has batch_size windows over all processes.
        """
        trainer = self._attached()
        assert self.valid_tokens is not None
        rank, world_size = trainer.global_rank, trainer.world_size
        return valid_batches(self.valid_tokens.ids, self.context_length, max(1, self.batch_size // world_size), rank,
                             world_size, self.document_starts(self.valid_tokens))

    test_dataloader = val_dataloader  # TinyStories and the toy corpus have no third part
