"""Cuts text into pre-tokens, which BPE never merges across: GPT-2's pattern, as a `regex` and as a numpy scanner.

Text comes in as a string or as UTF-8 bytes; strings, or the positions of the pre-tokens' first bytes, go out. Both
forms agree on every input: `PATTERN` is the definition, `pretoken_starts` the fast way to the same borders.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import regex  # type: ignore[import-untyped]  # its stubs are a package of their own

Bytes = npt.NDArray[np.uint8]
Positions = npt.NDArray[np.intp]
Mask = npt.NDArray[np.bool_]

PATTERN = regex.compile(r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
# The same for ASCII strings, where the standard library's `re` is more than twice as fast. Its own \s would not do: it
# counts \x1c to \x1f as white space, `regex` does not.
_ASCII = re.compile(
    r"'(?:[sdmt]|ll|ve|re)| ?[A-Za-z]+| ?[0-9]+| ?[^\t-\r A-Za-z0-9]+|[\t-\r ]+(?![^\t-\r ])|[\t-\r ]+"
)

# What a byte is part of. The order matters: all kinds below WHITE let a single space in front of them attach.
LETTER, NUMBER, OTHER, WHITE, SPECIAL = range(5)
_SPECIAL_BYTE = 0xFF  # occurs nowhere in UTF-8, so it can stand for the bytes of a special token


def find_pretokens(text: str) -> list[str]:
    r"""Split text that holds no special token into its pre-tokens.

    The alternatives of the pattern, in order: the contractions 's 'd 'm 't 'll 've 're; letters, numbers or other
    signs, each with one space in front if there is one; white space up to its last character, which the next word may
    take; white space.

    Source: the `encoder.py` that came with GPT-2 (Radford et al. 2019).

    Example:
        >>> find_pretokens("I'll  wait, 3 days")
        ['I', "'ll", ' ', ' wait', ',', ' 3', ' days']
    """
    found: list[str] = (_ASCII if text.isascii() else PATTERN).findall(text)
    return found


def encode_specials(special_tokens: Sequence[str]) -> list[bytes]:
    """Return the distinct special tokens as bytes, in the order given.

    Raises:
        ValueError: one of them is empty, or the argument is a single string.
    """
    if isinstance(special_tokens, str):
        raise ValueError(
            f"special_tokens is the string {special_tokens!r}; give a list of strings, such as [{special_tokens!r}]"
        )
    if "" in special_tokens:
        raise ValueError("special_tokens holds an empty string, which would match everywhere; remove it")
    return [token.encode() for token in dict.fromkeys(special_tokens)]


def special_pattern(special_tokens: Sequence[bytes]) -> re.Pattern[bytes] | None:
    """Return a pattern that finds special tokens leftmost and, where several begin, the longest; None without any."""
    longest_first = sorted(special_tokens, key=len, reverse=True)
    return re.compile(b"|".join(map(re.escape, longest_first))) if longest_first else None


def pretoken_starts(text: bytes, specials: re.Pattern[bytes] | None = None) -> Positions:
    """Return the position of each pre-token's first byte; a special token counts as one pre-token.

    The rule works on the kinds of neighbouring bytes (letter, number, other, white space), and so in whole arrays:

    1. A pre-token starts where the kind changes, and at the last white-space character before anything else.
    2. If that last character is a plain space, it takes the word behind it along: the word's own start goes.
    3. An apostrophe that is a start and is followed by s, d, m, t, ll, ve or re ends behind those letters.

    Example:
        >>> pretoken_starts(b"I'll  wait").tolist()
        [0, 1, 4, 5]

    Raises:
        UnicodeDecodeError: the text is not UTF-8.
    """
    if not text:
        return np.empty(0, np.intp)
    special_spans = [match.span() for match in specials.finditer(text)] if specials else []
    if special_spans:
        hidden = bytearray(text)
        for start, stop in special_spans:
            hidden[start:stop] = bytes([_SPECIAL_BYTE]) * (stop - start)
        text = bytes(hidden)
    data = np.frombuffer(text, np.uint8)
    kind = byte_kinds(text)
    starts = np.empty(len(data) + 3, np.bool_)  # room for the start behind a contraction that ends the text
    starts[0] = True
    np.not_equal(kind[1:], kind[:-1], out=starts[1 : len(data)])

    before_word = (kind[:-1] == WHITE) & (kind[1:] < WHITE)  # marks the last byte of white space that a word follows
    is_space = data == ord(" ")
    starts[1 : len(data)] ^= before_word & is_space[:-1]
    starts[: len(data) - 1] |= before_word
    if not text.isascii():  # a wider white-space character starts some bytes before its last
        for last in sparse_nonzero(before_word & (data[:-1] >= 0x80)).tolist():
            first = last
            while data[first] & 0xC0 == 0x80:
                first -= 1
            starts[last] = False
            starts[first] = True

    _split_contractions(data, starts)
    starts[[position for span in special_spans for position in span]] = True
    return np.flatnonzero(starts[: len(data)])


def pretoken_borders(text: bytes, specials: re.Pattern[bytes] | None = None) -> Positions:
    """Return what `pretoken_starts` does, and behind it the end of the text."""
    return np.append(pretoken_starts(text, specials), len(text))


def _split_contractions(data: Bytes, starts: npt.NDArray[np.bool_]) -> None:
    """Let a start at an apostrophe take the letters of a contraction along, and put the next start behind them."""
    quotes = sparse_nonzero((data == ord("'")) & starts[: len(data)])
    if len(quotes) == 0:
        return
    following = np.zeros((2, len(quotes)), np.uint8)  # zeros, which are no letters, where the text ends
    following[0, : np.searchsorted(quotes, len(data) - 1)] = data[quotes[quotes < len(data) - 1] + 1]
    following[1, : np.searchsorted(quotes, len(data) - 2)] = data[quotes[quotes < len(data) - 2] + 2]
    one, two = following
    for length, found in (
        (1, _ENDS_CONTRACTION.take(one)),
        (2, (one == ord("l")) & (two == ord("l")) | ((one == ord("v")) | (one == ord("r"))) & (two == ord("e"))),
    ):
        starts[quotes[found] + 1] = False
        starts[quotes[found] + 1 + length] = True


def byte_kinds(text: bytes) -> Bytes:
    """Return for each byte the kind of the character that it is part of (`LETTER` to `SPECIAL`).

    Raises:
        UnicodeDecodeError: the text is not UTF-8; its `start` is a position among the non-ASCII bytes only.
    """
    kind = np.frombuffer(text.translate(_ASCII_KINDS), np.uint8)
    if text.isascii():
        return kind
    data = np.frombuffer(text, np.uint8)
    wide = sparse_nonzero((data >= 0x80) & (data != _SPECIAL_BYTE))
    # The non-ASCII bytes alone, put together, are valid UTF-8 as well: the price is theirs, not that of the whole text.
    characters = np.frombuffer(data[wide].tobytes().decode().encode("utf-32-le"), "<u4")
    kind = kind.copy()
    kind[wide] = np.repeat(_kinds_of(characters), _widths(characters))
    return kind


def safe_cuts(text: bytes) -> tuple[Positions, Positions]:
    r"""Return positions where the text can be cut in two that have the same pre-tokens apart as together.

    First those in front of ASCII white space that follows something else: there a pre-token ends whatever it is, and
    white space, which looks ahead (`(?!\S)`), stays whole. Then those behind a run of letters or of numbers: no
    pre-token goes on there, and none that such a run ends looks ahead; but if what follows is a stretch of white space,
    it is in the first list already. (Behind other signs an apostrophe could wait for its letters.) Special tokens are
    the caller's affair: see `corpus.usable_cuts`.
    """
    kind = byte_kinds(text)
    changes = np.flatnonzero(kind[1:] != kind[:-1]) + 1
    is_ascii_white = (kind[changes] == WHITE) & (np.frombuffer(text, np.uint8)[changes] < 0x80)
    return changes[is_ascii_white], changes[~is_ascii_white & (kind[changes - 1] <= NUMBER)]


def is_utf8(text: bytes) -> bool:
    """Tell whether bytes are UTF-8, in little more time than it takes to see that nearly all of them are ASCII."""
    if text.isascii():
        return True
    data = np.frombuffer(text, np.uint8)
    is_kept = data >= 0x80
    # With the byte behind each, so that what is apart stays apart.
    np.logical_or(is_kept[1:], is_kept[:-1], out=is_kept[1:])
    try:
        data[sparse_nonzero(is_kept)].tobytes().decode()
    except UnicodeDecodeError:
        return False
    return True


def sparse_nonzero(mask: Mask) -> Positions:
    """Do what `flatnonzero` does, in a third of its time where few are set: eight at a time are looked at."""
    whole = len(mask) // 8 * 8
    groups = mask[:whole].view(np.uint64)
    at = np.flatnonzero(groups != 0)
    inside = np.flatnonzero(groups[at].view(np.bool_))
    found: Positions = 8 * at[inside >> 3] + (inside & 7)
    rest = np.flatnonzero(mask[whole:])
    return np.concatenate([found, rest + whole]) if len(rest) else found


def _widths(characters: npt.NDArray[np.uint32]) -> npt.NDArray[np.int64]:
    """Return the number of bytes that each non-ASCII character takes in UTF-8."""
    return 2 + (characters >= 0x800).astype(np.int64) + (characters >= 0x10000)


def _classify(characters: str) -> Bytes:
    """Return the kind of each character, taken from `regex` itself: `unicodedata` lags behind its tables."""
    kind = np.full(len(characters), OTHER, np.uint8)
    for match in regex.finditer(r"(\p{L}+)|(\p{N}+)|\s+", characters):
        kind[slice(*match.span())] = {1: LETTER, 2: NUMBER, None: WHITE}[match.lastindex]
    return kind


_ENDS_CONTRACTION = np.array([byte in b"sdmt" for byte in range(256)])
_ASCII_KINDS = bytes(_classify("".join(map(chr, range(0x80))))).ljust(_SPECIAL_BYTE, bytes([OTHER])) + bytes([SPECIAL])


# The kinds of all code points, filled page by page as they are met: the whole would take 60 ms and 10 MB to make.
_PAGE_BITS = 12
_KINDS = np.zeros(0x110000, np.uint8)
_PAGE_IS_FILLED = np.zeros(0x110000 >> _PAGE_BITS, np.bool_)


def _kinds_of(characters: npt.NDArray[np.uint32]) -> Bytes:
    """Return the kinds of code points."""
    pages = characters >> _PAGE_BITS
    for page in set(pages[~_PAGE_IS_FILLED[pages]].tolist()):
        members = range(page << _PAGE_BITS, (page + 1) << _PAGE_BITS)
        _KINDS[members.start : members.stop] = _classify("".join(map(chr, members)))
        _PAGE_IS_FILLED[page] = True
    return _KINDS[characters]
