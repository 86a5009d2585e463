"""Reads JSONL files: one JSON object a line, whose field `text` is a document.

Error messages about a line name the file and the number of the line.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any, BinaryIO

from tslm.errors import UserError

FIELD = "text"
# Follows each document where several share a block. The byte occurs nowhere in UTF-8. Counting and encoding treat it as
# a special token, so that no pre-token and no other special token crosses it, and remove it from their results.
DOCUMENT_END = b"\xff"

_ENDINGS = (".jsonl", ".ndjson")
_FORM = f'each line holds one JSON object with a field "{FIELD}", such as {{"{FIELD}": "Once upon a time"}}'
_CHUNK = 1 << 20


def is_jsonl(path: str | os.PathLike[str]) -> bool:
    """Return whether a file name ends in `.jsonl` or `.ndjson`, in upper or lower case."""
    return os.fspath(path).lower().endswith(_ENDINGS)


def read_documents(path: str | os.PathLike[str], start: int, stop: int) -> Iterator[bytes]:
    r"""Yield the document of each record in UTF-8; blank lines are skipped.

    Args:
        path: a JSONL file.
        start: the start of the first line.
        stop: the end of the last line.

    Raises:
        UserError: a line is not a record, or its text is not Unicode; the message names the file and the line.

    Example:
        A file of the two lines `{"text": "one\ntwo", "id": 7}` and `{"text": ""}` gives `b"one\ntwo"` and `b""`.
    """
    with open(path, "rb") as file:
        file.seek(start)
        while start < stop:
            line = file.readline(stop - start)
            if not line:
                raise UserError(f"{path} became shorter while it was read: {stop - start:,} bytes are missing")
            if not line.isspace():
                try:
                    document = _text_of(line.rstrip(b"\r\n"))
                except ValueError as error:
                    number = 1 + _count_lines(file, start)
                    raise UserError(f"{path}, line {number}, {error}") from None
                yield document
            start += len(line)


def end_of_line(path: str | os.PathLike[str], start: int, stop: int) -> int:
    """Return the position after the next line break, or `stop` if there is none before it."""
    with open(path, "rb") as file:
        file.seek(start)
        return start + len(file.readline(stop - start))


def holds_record(path: str | os.PathLike[str], start: int, stop: int) -> bool:
    """Return whether a byte range holds anything but white space."""
    with open(path, "rb") as file:
        file.seek(start)
        while start < stop and (chunk := file.read(min(_CHUNK, stop - start))):
            if not chunk.isspace():
                return True
            start += len(chunk)
    return False


def _text_of(line: bytes) -> bytes:
    """Return the document of one record.

    Raises:
        ValueError: the line is not a record; the message is the second half of a sentence about the line.
    """
    try:
        record: Any = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise ValueError(
            f"is not UTF-8: byte 0x{line[error.start]:02x} at place {error.start + 1} of the line; convert the file, "
            "for example with `iconv -f latin1 -t utf-8`, or remove the byte"
        ) from None
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON: {error.msg} at character {error.pos + 1}; {_FORM}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets thousands deep
        raise ValueError(f"is JSON that cannot be read ({error}); {_FORM}") from None
    if not isinstance(record, dict):
        raise ValueError(f"is {_KINDS[type(record)]}, not an object; {_FORM}")
    if FIELD not in record:
        fields = ", ".join(map(repr, list(record)[:5])) or "no field at all"
        raise ValueError(f'has no field "{FIELD}" but {fields}; {_FORM}')
    text = record[FIELD]
    if not isinstance(text, str):
        raise ValueError(f'has {_KINDS[type(text)]} in its field "{FIELD}", not a string; {_FORM}')
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"holds the lone surrogate U+{ord(text[error.start]):04X}, which UTF-8 cannot express; replace that "
            "character, or write the pair of escapes that it is one half of"
        ) from None


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
