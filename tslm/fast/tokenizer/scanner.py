"""Finds pre-tokens in UTF-8 text with numpy: a substitute for GPT-2's pattern as a regular expression."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import regex  # type: ignore[import-untyped]  # its stubs are a package of their own

Bytes = npt.NDArray[np.uint8]
Positions = npt.NDArray[np.intp]
Mask = npt.NDArray[np.bool_]

# The kind of character that a byte is part of. A single space before a kind below WHITE belongs to the same pre-token.
LETTER, NUMBER, OTHER, WHITE, SPECIAL = range(5)
# This byte occurs nowhere in UTF-8. Here it overwrites special tokens. In a text it is a special token: it ends a
# document.
_SPECIAL_BYTE = 0xFF


def special_pattern(special_tokens: Iterable[bytes]) -> re.Pattern[bytes] | None:
    """Return a pattern that matches the leftmost special token, and the longest that starts there; None without any.

    The byte 0xFF is left out, since the scanner finds it without a pattern.
    """
    longest_first = sorted((token for token in special_tokens if token != b"\xff"), key=len, reverse=True)
    return re.compile(b"|".join(map(re.escape, longest_first))) if longest_first else None


def pretoken_bounds(text: bytes, specials: re.Pattern[bytes] | None = None) -> Positions:
    """Return the start of each pre-token and the end of the last one; a special token counts as one pre-token.

    The rule uses the kinds of neighbouring bytes (letter, number, other, white space), so it works on whole arrays:

    1. A pre-token starts where the kind changes, and at the last white-space character before anything else.
    2. If that last character is a plain space, it belongs to the word that follows: the word's own start is removed.
    3. An apostrophe that is a start and is followed by s, d, m, t, ll, ve or re ends after those letters.

    Example:
        >>> pretoken_bounds(b"I'll  wait").tolist()
        [0, 1, 4, 5, 10]

    Raises:
        UnicodeDecodeError: the text is not UTF-8.
    """
    if not text:
        return np.zeros(1, np.intp)
    document_ends = np.flatnonzero(np.frombuffer(text, np.uint8) == _SPECIAL_BYTE) if _SPECIAL_BYTE in text else None
    special_spans = [match.span() for match in specials.finditer(text)] if specials else []
    if special_spans:
        hidden = bytearray(text)
        for start, stop in special_spans:
            hidden[start:stop] = bytes([_SPECIAL_BYTE]) * (stop - start)
        text = bytes(hidden)
    data = np.frombuffer(text, np.uint8)
    kind = _byte_kinds(text)
    starts = np.empty(len(data) + 3, np.bool_)  # with space for a start after a contraction that ends the text
    starts[0] = True
    np.not_equal(kind[1:], kind[:-1], out=starts[1 : len(data)])

    before_word = (kind[:-1] == WHITE) & (kind[1:] < WHITE)  # the last byte of white space that a word follows
    is_space = data == ord(" ")
    starts[1 : len(data)] ^= before_word & is_space[:-1]
    starts[: len(data) - 1] |= before_word
    if not text.isascii():  # a white-space character of several bytes starts before its last byte
        for last in np.flatnonzero(before_word & (data[:-1] >= 0x80)).tolist():
            first = last
            while data[first] & 0xC0 == 0x80:
                first -= 1
            starts[last] = False
            starts[first] = True

    _split_contractions(data, starts)
    starts[[position for span in special_spans for position in span]] = True
    if document_ends is not None:
        starts[document_ends] = starts[document_ends + 1] = True
    starts[len(data)] = True
    return np.flatnonzero(starts[: len(data) + 1])


def _split_contractions(data: Bytes, starts: Mask) -> None:
    """Extend each start at an apostrophe over the letters of a contraction, and add a start after them."""
    quotes = np.flatnonzero((data == ord("'")) & starts[: len(data)])
    if len(quotes) == 0:
        return
    following = np.zeros((2, len(quotes)), np.uint8)  # zeros, which are no letters, after the end of the text
    following[0, : np.searchsorted(quotes, len(data) - 1)] = data[quotes[quotes < len(data) - 1] + 1]
    following[1, : np.searchsorted(quotes, len(data) - 2)] = data[quotes[quotes < len(data) - 2] + 2]
    one, two = following
    for length, found in (
        (1, _ENDS_CONTRACTION.take(one)),
        (2, (one == ord("l")) & (two == ord("l")) | ((one == ord("v")) | (one == ord("r"))) & (two == ord("e"))),
    ):
        starts[quotes[found] + 1] = False
        starts[quotes[found] + 1 + length] = True


def _byte_kinds(text: bytes) -> Bytes:
    """Return for each byte the kind of the character that it is part of.

    Raises:
        UnicodeDecodeError: the text is not UTF-8; its `start` is a position among the non-ASCII bytes only.
    """
    kind = np.frombuffer(text.translate(_ASCII_KINDS), np.uint8)
    if text.isascii():
        return kind
    data = np.frombuffer(text, np.uint8)
    wide = np.flatnonzero((data >= 0x80) & (data != _SPECIAL_BYTE))
    # The non-ASCII bytes alone are valid UTF-8, too, so only they are decoded.
    characters = np.frombuffer(data[wide].tobytes().decode().encode("utf-32-le"), "<u4")
    kind = kind.copy()
    widths = 2 + (characters >= 0x800).astype(np.int64) + (characters >= 0x10000)  # bytes of a character in UTF-8
    kind[wide] = np.repeat(_character_kinds(characters), widths)
    return kind


def _classify(characters: str) -> Bytes:
    """Return the kind of each character. `regex` decides, since the tables of `unicodedata` are older."""
    kind = np.full(len(characters), OTHER, np.uint8)
    for match in regex.finditer(r"(\p{L}+)|(\p{N}+)|\s+", characters):
        kind[slice(*match.span())] = {1: LETTER, 2: NUMBER, None: WHITE}[match.lastindex]
    return kind


_ENDS_CONTRACTION = np.array([byte in b"sdmt" for byte in range(256)])
_ASCII_KINDS = bytes(_classify("".join(map(chr, range(0x80))))).ljust(_SPECIAL_BYTE, bytes([OTHER])) + bytes([SPECIAL])


# The kinds of all code points. A page is filled when a text first uses it; filling all would take 60 ms and 10 MB.
_PAGE_BITS = 12
_KINDS = np.zeros(0x110000, np.uint8)
_PAGE_IS_FILLED = np.zeros(0x110000 >> _PAGE_BITS, np.bool_)


def _character_kinds(characters: npt.NDArray[np.uint32]) -> Bytes:
    pages = characters >> _PAGE_BITS
    for page in set(pages[~_PAGE_IS_FILLED[pages]].tolist()):
        members = range(page << _PAGE_BITS, (page + 1) << _PAGE_BITS)
        _KINDS[members.start : members.stop] = _classify("".join(map(chr, members)))
        _PAGE_IS_FILLED[page] = True
    return _KINDS[characters]
