"""Reads JSONL files: one JSON object a line, of which a field, `text` by default, is a document.

Error messages about a line name the file and the number of the line.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, BinaryIO

from tslm.errors import UserError
from tslm.tokenizer.sources import Span

# Follows each document where several share a block. The byte occurs nowhere in UTF-8. Counting and encoding treat it as
# a special token, so that no pre-token and no other special token crosses it, and remove it from their results.
DOCUMENT_END = b"\xff"

_CHUNK = 1 << 20


def read_documents(span: Span) -> Iterator[bytes]:
    r"""Yield the document of each record in UTF-8; blank lines are skipped.

    Args:
        span: the lines of a JSONL file, from the start of the first to the end of the last.

    Raises:
        UserError: a line is not a record, or its text is not Unicode; the message names the file and the line.

    Example:
        A file of the two lines `{"text": "one\ntwo", "id": 7}` and `{"text": ""}` gives `b"one\ntwo"` and `b""`.
    """
    start, stop = span.start, span.stop
    with open(span.path, "rb") as file:
        file.seek(start)
        while start < stop:
            line = file.readline(stop - start)
            if not line:
                raise UserError(f"{span.label} became shorter while it was read: {stop - start:,} bytes are missing")
            if not line.isspace():
                try:
                    document = _text_of(line.rstrip(b"\r\n"), span.field)
                except ValueError as error:
                    number = 1 + _count_lines(file, start)
                    raise UserError(f"{span.label}, line {number}, {error}") from None
                yield document
            start += len(line)


def end_of_line(span: Span) -> int:
    """Return the position after the first line break of a span, or the end of the span if it has none."""
    with open(span.path, "rb") as file:
        file.seek(span.start)
        return span.start + len(file.readline(span.stop - span.start))


def _text_of(line: bytes, field: str) -> bytes:
    """Return the document of one record.

    Raises:
        ValueError: the line is not a record; the message is the second half of a sentence about the line.
    """
    try:
        record: Any = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise ValueError(
            f"is not UTF-8: byte 0x{line[error.start]:02x} at place {error.start + 1} of the line; convert the file, "
            "for example with `iconv -f latin1 -t utf-8`, or replace its bad bytes by U+FFFD with --data.errors "
            "replace (--errors replace in `tokenize` and the like)"
        ) from None
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON: {error.msg} at character {error.pos + 1}; {_form(field)}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets thousands deep
        raise ValueError(f"is JSON that cannot be read ({error}); {_form(field)}") from None
    if not isinstance(record, dict):
        raise ValueError(f"is {_KINDS[type(record)]}, not an object; {_form(field)}")
    if field not in record:
        fields = ", ".join(map(repr, list(record)[:5])) or "no field at all"
        raise ValueError(
            f'has no field "{field}" but {fields}; {_form(field)}, or name another with --data.text_field '
            "(--text_field in `tokenize`)"
        )
    text = record[field]
    if not isinstance(text, str):
        raise ValueError(f'has {_KINDS[type(text)]} in its field "{field}", not a string; {_form(field)}')
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"holds the lone surrogate U+{ord(text[error.start]):04X}, which UTF-8 cannot express; write the "
            "pair of escapes that it is one half of, or replace it with --data.errors replace (--errors in `tokenize`)"
        ) from None


def _form(field: str) -> str:
    return f'each line holds one JSON object with a field "{field}", such as {{"{field}": "Once upon a time"}}'


_KINDS: dict[type, str] = {
    dict: "an object", list: "an array", str: "a string", int: "a number", float: "a number", bool: "a truth value",
    type(None): "null",
}  # fmt: skip


def _count_lines(file: BinaryIO, stop: int) -> int:
    """Return the number of line breaks in the first `stop` bytes; called only for an error message."""
    file.seek(0)
    lines = 0
    while stop > 0 and (chunk := file.read(min(_CHUNK, stop))):
        lines += chunk.count(b"\n")
        stop -= len(chunk)
    return lines
