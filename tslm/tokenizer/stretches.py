r"""Cuts text into stretches: white space with what follows it, up to the next white space.

A block of text comes in; the positions where its stretches begin go out. A stretch (` word`, ` end."`, `\n\nOnce`)
holds whole pre-tokens, and a text repeats its stretches as it repeats its words. They are found with a fifth of the
work that pre-tokens take, so only the distinct ones need ever be cut into pre-tokens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import regex  # type: ignore[import-untyped]  # its stubs are a package of their own

from tslm.tokenizer.pretokenize import Bytes, Positions, special_pattern

_SAMPLE = 1 << 11  # stretches that decide for their block
_LONGEST = 16  # bytes that a lexicon packs into integers


def stretch_starts(text: bytes, specials: re.Pattern[bytes] | None = None) -> Positions | None:
    r"""Return the position of each stretch's first byte, or None for a text that is better cut into pre-tokens at once.

    A stretch begins at an ASCII white-space character behind anything else than white space. No pre-token crosses such
    a place, none looks back, and the only one that looks ahead is white space, `\s+(?!\S)`, of which all is in one
    stretch. So the pre-tokens of a text are those of its stretches, each by itself.

    That needs a text that begins with white space and ends with something else, and no special token with white space
    inside it. It is worth it where stretches are short: in prose, not in source code or Chinese.

    Args:
        text: a block of UTF-8.
        specials: the pattern of the special tokens with white space in them (see `divide_specials`).

    Example:
        >>> stretch_starts(b" I'll  wait,\n\nhe said").tolist()
        [0, 5, 12, 16]
    """
    if not text[:1].isspace() or text[-1:].isspace() or text.endswith(_WIDE_WHITE):
        return None
    if specials is not None and specials.search(text):
        return None
    data = np.frombuffer(text, np.uint8)
    is_white = np.subtract(data, ord("\t")) < 5  # \t \n \v \f \r; what lies below \t wraps around to 200 and more
    is_white |= data == ord(" ")
    begins = np.empty(len(data), np.bool_)
    begins[0] = True
    np.greater(is_white[1:], is_white[:-1], out=begins[1:])
    if not text.isascii():
        _clear_behind_wide_white_space(data, begins)
    starts = np.flatnonzero(begins)
    sample = np.diff(starts[: _SAMPLE + 1])
    if 10 * len(starts) < len(text) or 50 * np.count_nonzero(sample > _LONGEST) > len(sample):
        return None
    return starts


def divide_specials(
    special_tokens: Sequence[bytes],
) -> tuple[re.Pattern[bytes] | None, re.Pattern[bytes] | None]:
    """Return the patterns of the special tokens without white space, which lie within stretches, and of the others.

    In a text that has stretches the others do not occur, and none may be seen where stretches of different places are
    put together.
    """
    has_space = [re.search(rb"[\t-\r ]", token) is not None for token in special_tokens]
    return (
        special_pattern([token for token, spaced in zip(special_tokens, has_space, strict=True) if not spaced]),
        special_pattern([token for token, spaced in zip(special_tokens, has_space, strict=True) if spaced]),
    )


def _clear_behind_wide_white_space(data: Bytes, begins: npt.NDArray[np.bool_]) -> None:
    """Let no stretch begin behind a white-space character of two or three bytes, such as U+00A0 or U+3000."""
    at = np.flatnonzero(begins[1:] & (data[:-1] >= 0x80)) + 1
    endings = data[at - 2].astype(np.uint32) << 8 | data[at - 1]
    begins[at[np.logical_or.reduce([endings == number for number in _TWO_BYTES])]] = False
    endings |= np.where(at > 2, data[at - 3], 0).astype(np.uint32) << 16
    begins[at[np.logical_or.reduce([endings == number for number in _THREE_BYTES])]] = False


# The white space of `regex` that is not ASCII; the last is U+3000.
_WIDE_WHITE = tuple(white.encode() for white in regex.findall(r"\s", "".join(map(chr, range(0x80, 0x3001)))))
_TWO_BYTES, _THREE_BYTES = ([int.from_bytes(w, "big") for w in _WIDE_WHITE if len(w) == size] for size in (2, 3))
