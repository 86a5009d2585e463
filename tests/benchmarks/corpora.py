"""Texts to measure on: one drawn from pre-token counts, and one collected from the Python that is installed.

Both are UTF-8 files of documents that end with `<|endoftext|>`. Both have a seed and a size.
"""

import contextlib
import os
import random
import sysconfig
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from math import ceil
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import regex

from tslm.errors import UserError
from tslm.tokenizer import END_OF_TEXT

_DOCUMENT_END = f"\n{END_OF_TEXT}".encode()
_UNITS_PER_DOCUMENT = 180  # about as many words as a TinyStories story has
_TEXT_SUFFIXES = (".py", ".md", ".rst", ".txt")
_CHUNK = 1 << 19  # units drawn at a time; about 2.5 MB of text

# The classes of GPT-2's pre-tokens. Every pre-token belongs to exactly one class.
_CLASSES = {
    "spaced_word": r" \p{L}+| \p{N}+",
    "bare_word": r"\p{L}+|\p{N}+",
    "contraction": r"'(?:[sdmt]|ll|ve|re)",
    "opener": r" [^\s\p{L}\p{N}]+",
    "sign": r"[^\s\p{L}\p{N}]+",
    "line_break": r"[^\S ]",  # one white space character that is not a space
    "gap": r"\s+",
}
# How a unit begins. A contraction and signs may follow.
_SPACED, _OPENED, _OPENER, _BROKEN = range(4)
_SUFFIXABLE = (_SPACED, _OPENED, _BROKEN)


class PretokenSource:
    r"""Draws pre-tokens in an order that the pattern splits into the same pre-tokens again.

    A text is a sequence of units. A unit is one of four kinds: a word with its leading space (` dog`), an opening sign
    and a bare word (` "Come`), a line break and a bare word (`\nOnce`), or a sign alone. A contraction and then signs
    may follow a word. Other white space may precede a leading space. Two pre-tokens that the pattern would join, such
    as two bare words, are never neighbours. The sums of the counts decide how often each kind is drawn, so every
    pre-token keeps its frequency.

    Args:
        counts: `{pre-token: count}` under GPT-2's pattern.

    Attributes:
        bytes_per_unit: Average number of bytes of a unit.

    Raises:
        UserError: A key is not one pre-token, a count is not positive, or no key is a word with a leading space.
    """

    def __init__(self, counts: Mapping[str, int]) -> None:
        groups = _group(counts)
        self._pretokens: list[bytes] = [token.encode() for group in groups.values() for token in group]
        first, self._draws = 0, {}
        for name, group in groups.items():
            self._draws[name] = _Draw(first, list(group.values()))
            first += len(group)
        self._document_end = len(self._pretokens)
        self._pretokens.append(_DOCUMENT_END)

        total = {name: sum(group.values()) for name, group in groups.items()}
        words = total["spaced_word"] + total["bare_word"]
        line_breaks = max(0, total["line_break"] - words // _UNITS_PER_DOCUMENT)  # the others are at document ends
        opened = min(total["opener"], total["bare_word"])
        broken = min(total["bare_word"] - opened, line_breaks)
        kinds = np.array([total["spaced_word"], opened, total["opener"] - opened, broken], dtype=float)
        if not kinds[_SPACED]:
            raise UserError("the counts have no word with a leading space, such as ' the': add some")
        self.bytes_per_unit = sum(len(token.encode()) * count for token, count in counts.items()) / kinds.sum()
        self._kinds = kinds.cumsum() / kinds.sum()
        suffixable = kinds[list(_SUFFIXABLE)].sum()
        unbroken = kinds.sum() - broken
        self._contracted = total["contraction"] / suffixable
        self._signed = total["sign"] / suffixable
        self._lined, self._gapped = (line_breaks - broken) / unbroken, total["gap"] / unbroken
        self._ends_at = _BROKEN if broken else _SPACED
        self._ended = min(1.0, kinds.sum() / _UNITS_PER_DOCUMENT / kinds[self._ends_at])

    def draw(self, units: int, rng: np.random.Generator) -> list[bytes]:
        """Return the pre-tokens and document ends of this many units, in text order."""
        kind = np.searchsorted(self._kinds, rng.random(units), side="right")
        # One row per unit. Columns: document end, white space, first pre-token, opened word, contraction, signs.
        slots = np.full((units, 6), -1, dtype=np.int32)

        def fill(slot: int, where: npt.NDArray[np.bool_], name: str) -> None:
            slots[where, slot] = self._draws[name](int(where.sum()), rng)

        slots[(kind == self._ends_at) & (rng.random(units) < self._ended), 0] = self._document_end
        chance = rng.random(units)
        fill(1, (kind == _BROKEN) | (chance < self._lined), "line_break")
        fill(1, (kind != _BROKEN) & (chance >= self._lined) & (chance < self._lined + self._gapped), "gap")
        fill(2, kind == _SPACED, "spaced_word")
        fill(2, (kind == _OPENED) | (kind == _OPENER), "opener")
        fill(3, (kind == _OPENED) | (kind == _BROKEN), "bare_word")
        fill(4, (kind != _OPENER) & (rng.random(units) < self._contracted), "contraction")
        fill(5, (kind != _OPENER) & (rng.random(units) < self._signed), "sign")
        return list(map(self._pretokens.__getitem__, slots[slots >= 0].tolist()))


class _Draw:
    """Draws members of one class in random order, each as often as its share of the counts, up to rounding."""

    def __init__(self, first: int, counts: list[int]) -> None:
        self._members = np.arange(first, first + len(counts), dtype=np.int32)
        cumulative = np.concatenate([[0], np.cumsum(np.array(counts, dtype=float))])
        self._shares = cumulative / (cumulative[-1] or 1.0)

    def __call__(self, size: int, rng: np.random.Generator) -> npt.NDArray[np.int32]:
        # Systematic sampling: one random offset, then equal distances of 1/size. Over many calls, rare members appear
        # in the right proportion too.
        edges = np.ceil(self._shares * size - rng.random()).astype(np.int64).clip(0, size)
        edges[0], edges[-1] = 0, size
        drawn = np.repeat(self._members, np.diff(edges))
        rng.shuffle(drawn)
        return drawn


def _group(counts: Mapping[str, int]) -> dict[str, dict[str, int]]:
    groups: dict[str, dict[str, int]] = {name: {} for name in _CLASSES}
    patterns = {name: regex.compile(pattern) for name, pattern in _CLASSES.items()}
    for token, count in counts.items():
        if not isinstance(count, int) or count < 1:
            raise UserError(f"the count of {token!r} is {count!r}, but counts must be whole numbers from 1")
        for name, pattern in patterns.items():
            if pattern.fullmatch(token):
                groups[name][token] = count
                break
        else:
            raise UserError(f"{token!r} in the counts is not one pre-token of GPT-2's pattern: remove it")
    return groups


def write_drawn_text(path: Path, counts: Mapping[str, int], size: int, seed: int) -> None:
    """Write a text of at least `size` bytes with the pre-token frequencies of `counts`."""
    source, rng = PretokenSource(counts), np.random.default_rng(seed)
    with _atomic(path) as file:
        written = 0
        while written < size:
            units = min(_CHUNK, ceil((size - written) / source.bytes_per_unit))
            written += file.write(b"".join(source.draw(units, rng)))
        file.write(_DOCUMENT_END + b"\n")


def python_folders() -> list[Path]:
    """Return the folders of the standard library, the installed packages and their documentation."""
    paths = [Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    return [*paths, Path(sysconfig.get_path("data")) / "share"]


def write_mixed_text(path: Path, size: int, seed: int, folders: Iterable[Path]) -> None:
    """Write about `size` bytes of .py, .md, .rst and .txt files, or all of them, in an order that the seed decides.

    Files that are not UTF-8 or that contain `<|endoftext|>` are skipped. So all sides of a comparison see the same
    document boundaries.
    """
    files = sorted({file for folder in folders for suffix in _TEXT_SUFFIXES for file in folder.rglob(f"*{suffix}")})
    random.Random(seed).shuffle(files)
    with _atomic(path) as file:
        written = 0
        for name in files:
            document = _read_document(name)
            if document:
                file.write(document + _DOCUMENT_END + b"\n")
                written += len(document) + len(_DOCUMENT_END) + 1
            if written >= size:
                break


def _read_document(path: Path) -> bytes:
    """Return the bytes of a file, or b"" for a file to be skipped.

    A file is skipped if it cannot be read, is not UTF-8, or contains the special token. It is also skipped if it
    contains a character that the Unicode version of this Python does not define, because the programs have Unicode
    tables of different age and would disagree on whether the character is a letter.
    """
    try:
        document = path.read_bytes()
        characters = set(document.decode()) if not document.isascii() else set()
    except (OSError, UnicodeDecodeError):
        return b""
    if any(unicodedata.category(character) == "Cn" for character in characters):
        return b""
    return b"" if END_OF_TEXT.encode() in document else document


@contextlib.contextmanager
def _atomic(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that gets its name only when it is complete."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # otherwise the system writes it to disk while the first runs are timed
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
