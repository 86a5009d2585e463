"""Finds segments and numbers distinct words in C: `find_bounds` of `fast.tokenizer.segments`, and `WordTable`.

Measured on 40 MB of TinyStories, one thread, nanoseconds for each byte in numpy and in C: segments 0.74 and 0.28,
counting them 2.5 and 1.1.
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
from tslm.fast.tokenizer.hash_tables import Keys
from tslm.fast.tokenizer.probes import PROBE_TEXTS
from tslm.fast.tokenizer.scanner import Positions
from tslm.fast.tokenizer.word_table import Words, WordTable

SOURCES = (Path(__file__).with_name("words.c"),)
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
    count = _library().find_segments(text, ctypes.c_int64(len(text)), build.address(bounds))
    return bounds[: count + 1]


class CompiledWordTable:
    """Distinct words and their numbers, as `WordTable`; a number counts the words in the order in which they arrived.

    Args:
        bits: the table has room for 2 ** bits words before it first grows.

    Raises:
        UnavailableError: the library cannot be compiled or loaded on this machine.
        MemoryError: there is no memory, or, in methods, a word has 2³¹ bytes or more.
    """

    def __init__(self, bits: int = 14) -> None:
        self._library, self._bits = _library(), bits
        self._table = self._new()

    def _new(self) -> Any:  # noqa: ANN401 - a pointer type of ctypes
        table = self._library.new_words(ctypes.c_int64(self._bits), ctypes.c_uint64(secrets.randbits(64)))
        if not table:
            raise MemoryError
        return table

    def __del__(self) -> None:
        if (table := vars(self).pop("_table", None)) is not None:
            self._library.free_words(table)

    def clear(self) -> None:
        """Remove all words."""
        old, self._table = self._table, self._new()
        self._library.free_words(old)

    @property
    def values(self) -> Keys:
        """The value of each word, by its number; 0 for a new word. The array is valid until words are added."""
        return _array(self._table.contents.values, "<u8", self._table.contents.count)

    def count(self, text: bytes, bounds: Positions, times: Keys | None = None) -> None:
        """Add to the value of each word of a text its entry of `times`, or 1."""
        bounds = np.ascontiguousarray(bounds, np.int64)
        times = None if times is None else np.ascontiguousarray(times, np.uint64)
        _checked(self._library.count_words(
            self._table, text, build.address(bounds), ctypes.c_int64(len(bounds) - 1),
            None if times is None else build.address(times)))

    def number(self, text: bytes, bounds: Positions) -> tuple[Positions, Positions]:
        """Return the number of each word of a text, and the indices of the words that are new, each word once."""
        bounds = np.ascontiguousarray(bounds, np.int64)
        numbers, fresh = (np.empty(len(bounds) - 1, np.int64) for _ in range(2))
        count = _checked(self._library.number_words(
            self._table, text, build.address(bounds), ctypes.c_int64(len(bounds) - 1), build.address(numbers),
            build.address(fresh)))
        return numbers, fresh[:count]

    def words(self) -> Words:
        """Return all words, in the order of their numbers."""
        table = self._table.contents
        sizes = np.diff(_array(table.ends, "<i8", table.count), prepend=0)
        return Words(_array(table.text, "|u1", int(sizes.sum())).tobytes(), sizes, np.arange(len(sizes)))


def gather(values: Keys, ids: npt.NDArray[np.uint32], size: int) -> npt.NDArray[np.uint32]:
    """Return the ids of words, `size` in total: value / 2³² is the position of a word's ids, the rest their number."""
    out = np.empty(size, np.uint32)
    _library().gather_ids(build.address(values), ctypes.c_int64(len(values)), build.address(ids), build.address(out))
    return out


@functools.cache
def is_available() -> bool:
    """Whether this machine can have the library, and it numbers the words of some texts as `WordTable` does."""
    if sys.byteorder != "little":
        return False
    text = b"".join(PROBE_TEXTS) * 2
    bounds = segments.find_bounds(text)
    try:
        compiled = CompiledWordTable(bits=2)
        agrees = np.array_equal(find_bounds(text), bounds)
    except UnavailableError as error:
        warn_unavailable(error)
        return False
    tables = compiled, WordTable()
    fresh = [np.sort(table.number(text, bounds)[1]) for table in tables]
    words = [sorted(_words_of(table)) for table in tables]
    if agrees and np.array_equal(fresh[0], fresh[1]) and words[0] == words[1]:
        return True
    warnings.warn("words are counted and encoded without the library in C, because it finds others",
                  DisagreementWarning, stacklevel=2)
    return False


def _words_of(table: CompiledWordTable | WordTable) -> list[bytes]:
    text, sizes, _ = table.words()
    return [text[end - size : end] for size, end in zip(sizes.tolist(), np.cumsum(sizes).tolist(), strict=True)]


@functools.cache
def _library() -> ctypes.CDLL:
    library = build.load(SOURCES)
    library.new_words.restype = ctypes.POINTER(_Table)
    for function in (library.find_segments, library.count_words, library.number_words):
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
