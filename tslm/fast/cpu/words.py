"""The tokenizer's library in C. Here: `find_bounds` of `fast.tokenizer.segments`, and its `WordTable`.

Measured on 40 MB of TinyStories, one thread, nanoseconds for each byte in numpy and in C: segments 0.74 and 0.28.
Counting them takes 1.1, and 20 in Python.
"""

from __future__ import annotations

import ctypes
import functools
import secrets
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from tslm.fast.cpu import build
from tslm.fast.door import DisagreementWarning, UnavailableError, warn_unavailable
from tslm.fast.tokenizer import segments
from tslm.fast.tokenizer.probes import PROBE_TEXTS
from tslm.fast.tokenizer.scanner import Positions
from tslm.fast.tokenizer.word_table import Values, WordTable

SOURCES = tuple(Path(__file__).with_name(name) for name in ("words.c", "merge.c", "make_merges.c"))
WORTH_LOADING = 1 << 17  # bytes of a block; smaller texts take less time than the library takes to load


class _Table(ctypes.Structure):
    """`Words` in words.c."""

    _fields_: ClassVar = [
        ("slots", ctypes.c_void_p), ("text", ctypes.c_void_p), ("ends", ctypes.c_void_p), ("values", ctypes.c_void_p),
        ("factor", ctypes.c_uint64), ("shift", ctypes.c_int64), ("count", ctypes.c_int64),
        ("count_room", ctypes.c_int64), ("text_room", ctypes.c_int64),
    ]


def find_bounds(text: bytes) -> Positions:
    """Substitute for `segments.find_bounds`."""
    bounds = np.empty(len(text) // 2 + 10, np.int64)
    count = library().find_segments(text, ctypes.c_int64(len(text)), build.address(bounds))
    return bounds[: count + 1]


class CompiledWordTable:
    """Distinct words and their numbers, as `WordTable`.

    Args:
        bits: the table has room for 2 ** bits words before it first grows.

    Raises:
        UnavailableError: the library cannot be compiled or loaded on this machine.
        MemoryError: there is no memory, or, in methods, a word has 2³¹ bytes or more.
    """

    def __init__(self, bits: int = 14) -> None:
        self._library, self._bits = library(), bits
        self._table = self._new()

    def _new(self) -> Any:  # noqa: ANN401 - a pointer type of ctypes
        table = self._library.new_words(ctypes.c_int64(self._bits), ctypes.c_uint64(secrets.randbits(64)))
        if not table:
            raise MemoryError
        return table

    def __del__(self) -> None:
        if (table := vars(self).pop("_table", None)) is not None:
            self._library.free_words(table)

    def __len__(self) -> int:
        return int(self._table.contents.count)

    def clear(self) -> None:
        """Remove all words."""
        old, self._table = self._table, self._new()
        self._library.free_words(old)

    @property
    def values(self) -> Values:
        """The value of each word, by its number; 0 for a new word. The array is valid until words are added."""
        return _array(self._table.contents.values, "<u8", self._table.contents.count)

    def count(self, text: bytes, bounds: Positions, times: Values | None = None) -> None:
        """Add to the value of each word of a text its entry of `times`, or 1."""
        bounds = np.ascontiguousarray(bounds, np.int64)
        times = None if times is None else np.ascontiguousarray(times, np.uint64)
        _checked(self._library.count_words(
            self._table, text, build.address(bounds), ctypes.c_int64(len(bounds) - 1),
            None if times is None else build.address(times)))

    def number(self, text: bytes, bounds: Positions) -> Positions:
        """Return the number of each word of a text."""
        bounds = np.ascontiguousarray(bounds, np.int64)
        numbers = np.empty(len(bounds) - 1, np.int64)
        _checked(self._library.number_words(
            self._table, text, build.address(bounds), ctypes.c_int64(len(numbers)), build.address(numbers)))
        return numbers

    def words(self, first: int = 0) -> tuple[bytes, Positions]:
        """Return the words from number `first` on: joined, and the size of each."""
        table = self._table.contents
        ends = _array(table.ends, "<i8", table.count)
        start = int(ends[first - 1]) if first else 0
        sizes = np.diff(ends[first:], prepend=start)
        return _array(table.text + start, "|u1", int(sizes.sum())).tobytes(), sizes


def gather(values: Values, ids: npt.NDArray[np.uint32], size: int) -> npt.NDArray[np.uint32]:
    """Return the ids of words, `size` in total: value / 2³² is the position of a word's ids, the rest their number."""
    out = np.empty(size, np.uint32)
    library().gather_ids(build.address(values), ctypes.c_int64(len(values)), build.address(ids), build.address(out))
    return out


@functools.cache
def is_available() -> bool:
    """Whether this machine can have the library, and it finds and numbers the words of some texts as Python does."""
    if sys.byteorder != "little":
        return False
    text = b"".join(PROBE_TEXTS) * 2
    bounds = segments.find_bounds(text)
    try:
        tables, found = (CompiledWordTable(bits=2), WordTable()), find_bounds(text)
    except UnavailableError as error:
        warn_unavailable(error)
        return False
    numbers, expected = (table.number(text, bounds).tolist() for table in tables)
    if numbers == expected and tables[0].words()[0] == tables[1].words()[0] and found.tolist() == bounds.tolist():
        return True
    warnings.warn("words are counted and encoded without the library in C, because it finds others",
                  DisagreementWarning, stacklevel=2)
    return False


@functools.cache
def library() -> ctypes.CDLL:
    """Return the library of all C files of the tokenizer.

    Raises:
        UnavailableError: it cannot be compiled or loaded on this machine.
    """
    library = build.load(SOURCES)
    library.new_words.restype = ctypes.POINTER(_Table)
    library.new_training.restype = ctypes.c_void_p
    for function in (library.find_segments, library.count_words, library.number_words, library.merge_words):
        function.restype = ctypes.c_int64
    return library


def _checked(result: int) -> int:
    if result < 0:
        raise MemoryError
    return result


def _array(address: int, kind: str, size: int) -> npt.NDArray[Any]:
    """Return an array over memory of the library, without a copy."""
    memory = SimpleNamespace(
        __array_interface__={"data": (address, False), "shape": (size,), "typestr": kind, "version": 3})
    return np.asarray(memory)
