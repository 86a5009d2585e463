r"""Cuts text into stretches: white space with what follows it, up to the next white space.

A block of text comes in; the positions where its stretches begin go out. A stretch (` word`, ` end."`, `\n\nOnce`)
holds whole pre-tokens, and a text repeats its stretches as it repeats its words. They are found with a quarter of the
work that pre-tokens take, so only the distinct ones need ever be cut into pre-tokens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from tslm.tokenizer.pretokenize import Positions, special_pattern
from tslm.tokenizer.tables import PACKED_BYTES
from tslm.tokenizer.workspace import Workspace

_SAMPLE = 1 << 14  # bytes that decide for their block


def stretch_borders(
    text: bytes, specials: re.Pattern[bytes] | None = None, space: Workspace | None = None
) -> Positions | None:
    r"""Return where each stretch begins and the last one ends, or None for a text better cut into pre-tokens at once.

    A stretch begins at an ASCII white-space character behind an ASCII character of any other kind. No pre-token crosses
    such a place, none looks back, and the only one that looks ahead is white space, `\s+(?!\S)`, of which all is in one
    stretch. So the pre-tokens of a text are those of its stretches, each by itself. (Behind a character outside ASCII
    none begins: it could be white space too.)

    That needs a text that begins with white space and ends with something else, and no special token with white space
    inside it. It is worth it where stretches are short: in English prose, not in source code or Chinese.

    Args:
        text: a block of UTF-8.
        specials: the pattern of the special tokens with white space in them (see `divide_specials`).
        space: where to work.

    Example:
        >>> stretch_borders(b" I'll  wait,\n\nhe said").tolist()
        [0, 5, 12, 16, 21]
    """
    if not text[:1].isspace() or text[-1] in _MAY_BE_WHITE or (specials is not None and specials.search(text)):
        return None
    space = space or Workspace()
    sample = _find_borders(text[:_SAMPLE], space)
    long_ones = np.count_nonzero(np.diff(sample) > PACKED_BYTES)
    if 10 * len(sample) < len(text[:_SAMPLE]) or 50 * long_ones > len(sample):
        return None
    return _find_borders(text, space)


def _find_borders(text: bytes, space: Workspace) -> Positions:
    size = len(text)
    data = np.frombuffer(text, np.uint8)
    shifted = space.array("shifted", size, np.uint8)
    is_white, is_either, is_border = (space.array(name, size + 1, np.bool_) for name in ("white", "either", "border"))

    np.less(np.subtract(data, ord("\t"), out=shifted), 5, out=is_white[:size])  # \t \n \v \f \r; less than \t wraps
    np.equal(data, ord(" "), out=is_either[:size])
    np.logical_or(is_white, is_either, out=is_white)
    np.greater_equal(data, 0x80, out=is_either[:size])
    np.logical_or(is_white, is_either, out=is_either)  # white space, or outside ASCII
    np.greater(is_white[1:size], is_either[: size - 1], out=is_border[1:size])
    is_border[0] = is_border[size] = True
    return np.flatnonzero(is_border)


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


# A last byte behind which more white space could belong to it: white space, or part of a character outside ASCII. (0xff
# is none: it ends a document, see `jsonl`.)
_MAY_BE_WHITE = frozenset(b"\t\n\v\f\r " + bytes(range(0x80, 0xFF)))
