"""Merges many words of any length in C.

Measured, one thread, all pre-tokens of 5 MB, in numpy and in C: Chinese 0.55 and 0.21 s, Thai 0.45 and 0.17 s, base64
0.63 and 0.10 s, English README 21 and 2 ms.
"""

from __future__ import annotations

import ctypes
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from tslm.fast.cpu import build
from tslm.fast.cpu.words import library
from tslm.fast.tokenizer.batched_merge import BatchedMerge, Symbols
from tslm.fast.tokenizer.scanner import Positions


class _Merges(ctypes.Structure):
    """`Merges` in merge.c."""

    _fields_: ClassVar = [
        ("cells", ctypes.c_void_p), ("byte_ranks", ctypes.c_void_p), ("lefts", ctypes.c_void_p),
        ("rights", ctypes.c_void_p), ("merged", ctypes.c_void_p), ("shift", ctypes.c_int64), ("never", ctypes.c_int64),
    ]


class CompiledMerge(BatchedMerge):
    """`BatchedMerge` in C.

    Raises:
        UnavailableError: the library cannot be compiled or loaded on this machine.
    """

    def _prepare(self, lefts: Symbols, rights: Symbols, merged: Symbols) -> None:
        bits = (8 * len(lefts) + 1).bit_length()  # at most an eighth of the slots is occupied: probing twice is rare
        arrays: list[npt.NDArray[Any]] = [np.empty((1 << bits, 2), np.int64), np.empty(1 << 16, np.int32)]
        self._arrays = [*arrays, lefts, rights, merged]  # the library reads them
        self._merges = _Merges(*[build.address(array) for array in self._arrays], 64 - bits, len(lefts))
        library().prepare_merges(ctypes.byref(self._merges))

    def merge(self, text: bytes, bounds: Positions) -> tuple[Symbols, Positions]:
        """Merge in each word, again and again, the leftmost pair of the lowest rank.

        Raises:
            MemoryError: there is no memory for the longest word.
        """
        bounds = np.ascontiguousarray(bounds, np.int64)
        symbols, counts = np.empty(len(text), np.int32), np.empty(len(bounds) - 1, np.int64)
        total = library().merge_words(
            ctypes.byref(self._merges), text, build.address(bounds), ctypes.c_int64(len(counts)),
            build.address(symbols), build.address(counts))
        if total < 0:
            raise MemoryError
        return symbols[:total], counts
