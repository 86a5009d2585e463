"""Surrogates in strings: halves of characters, which UTF-8 cannot express alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from tslm.errors import UserError


def utf8_pieces(parts: Iterable[str]) -> Iterator[bytes]:
    """Yield the parts of a text in UTF-8; one that ends with half of a pair of surrogates waits for the next."""
    waiting = ""
    for part in parts:
        text = waiting + part
        waiting = text if "\ud800" <= text[-1:] <= "\udbff" else ""
        if not waiting:
            yield to_utf8(text)
    if waiting:
        yield to_utf8(waiting)


def to_utf8(text: str) -> bytes:
    """Return a text in UTF-8, in which a pair of surrogates is the character that it expresses.

    Raises:
        UserError: the text holds a lone surrogate; the message names its position.
    """
    try:
        return text.encode()
    except UnicodeEncodeError:
        pass
    try:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le").encode()  # joins pairs of surrogates
    except UnicodeDecodeError:
        error = re.search("[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]", text)
        assert error is not None
        raise UserError(
            f"the text holds the lone surrogate U+{ord(error.group()):04X} at position {error.start()}, which UTF-8 "
            "cannot express; read it with the right encoding or replace that character"
        ) from None


def repair_surrogates(text: str) -> str:
    """Join pairs of surrogates to their character, and replace lone surrogates by U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
