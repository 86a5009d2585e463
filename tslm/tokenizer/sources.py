"""Finds the files that an input names, and the documents in them."""

from __future__ import annotations

import codecs
import glob
import mmap
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeAlias

from tslm.errors import MissingFileError, UserError

FIELD = "text"
RECORDS = (".jsonl", ".ndjson")
PARQUET = ".parquet"
_KNOWN_ENDINGS = (".txt", *RECORDS, PARQUET)
PACKINGS = (".gz", ".xz", ".zst")

_BOM = codecs.BOM_UTF8
_CHUNK = 1 << 20
_KNOWN = f"{', '.join(_KNOWN_ENDINGS)}, each also with {', '.join(PACKINGS)}"

PathLike: TypeAlias = str | os.PathLike[str]


class Span(NamedTuple):
    """The bytes `start` to `stop` (exclusive) of a file.

    Attributes:
        path: the file.
        start: the first byte.
        stop: the byte after the last one.
        ends: whether the end of the span is the end of a document, so that the separator follows.
        field: the field of a JSONL record that holds the document.
        name: the name for messages, if `path` is a copy.
    """

    path: PathLike
    start: int
    stop: int
    ends: bool = False
    field: str = FIELD
    name: str | None = None

    @property
    def label(self) -> str:
        """The name for messages."""
        return self.name or os.fspath(self.path)


def is_jsonl(path: PathLike) -> bool:
    """Return whether a file name ends in `.jsonl` or `.ndjson`, in upper or lower case."""
    return os.fspath(path).lower().endswith(RECORDS)


def find_files(inputs: Iterable[PathLike]) -> Iterator[tuple[PathLike, bool]]:
    """Yield the files of each input, and whether the input names that file itself.

    An input is a file with any name; or a folder, of which all files with a known ending are taken, also in folders
    within it, in the order of their names, but nothing hidden; or a glob pattern such as `texts/*.txt`.

    Raises:
        MissingFileError: nothing has that name or matches that pattern.
        UserError: a folder holds no file with a known ending.
    """
    for given in inputs:
        path = os.fspath(given)
        if os.path.isdir(path):
            found = [name for name in _walk(path) if _without_packing(name).endswith(_KNOWN_ENDINGS)]
            if not found:
                raise UserError(f"the folder {path} holds no file with a known ending ({_KNOWN}); name the files")
            yield from ((name, False) for name in found)
        elif os.path.exists(path) or not glob.has_magic(path):
            if not os.path.exists(path):
                raise MissingFileError(f"{path} does not exist; check the name (the current folder is {Path.cwd()})")
            yield given, True
        else:
            found = sorted(name for name in glob.iglob(path, recursive=True) if os.path.isfile(name))
            if not found:
                raise MissingFileError(
                    f"no file matches {path}; check the pattern (the current folder is {Path.cwd()})"
                )
            yield from ((name, False) for name in found)


def _walk(folder: str) -> Iterator[str]:
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (os.path.join(place, name) for name in sorted(names) if not name.startswith("."))


def _without_packing(path: PathLike) -> str:
    """Return a file name in lower case, without the ending of a compressed file."""
    name = os.fspath(path).lower()
    return name.removesuffix(next((ending for ending in PACKINGS if name.endswith(ending)), ""))


def find_spans(
    inputs: Iterable[PathLike | Span], plain: Callable[[PathLike], tuple[PathLike, int]], text_field: str = FIELD
) -> tuple[list[Span], list[str]]:
    """Return the text of all inputs as spans of plain files, and notices for the user.

    Args:
        inputs: files, folders and glob patterns (see `find_files`); spans are taken as they are.
        plain: returns a file in plain form, and how much of it was replaced (see `plain.plain_copy`).
        text_field: the field of a JSONL record that holds the document.

    Raises:
        MissingFileError: a file does not exist.
        UserError: a file is empty, is a `.json` file, or cannot be unpacked.
    """
    spans, notices, empty = list[Span](), list[str](), 0
    for given in inputs:
        if isinstance(given, Span):
            spans.append(checked_span(given))
            continue
        for path, is_named in find_files([given]):
            if not is_named and os.path.getsize(path) == 0:
                empty += 1
                continue
            check_kind(path)
            copy, replaced = plain(path)
            check_no_json(copy, path)
            span = Span(copy, 0, os.path.getsize(copy), field=text_field, name=None if copy == path else str(path))
            if replaced:
                notices.append(f"{path}: {replaced:,} bytes or characters that are not UTF-8 were replaced by U+FFFD.")
            with open(copy, "rb") as file:
                if file.read(len(_BOM)) == _BOM:
                    span = span._replace(start=len(_BOM))
                    notices.append(f"{path}: the byte order mark at its start is dropped.")
            spans.append(checked_span(span))
    if empty:
        notices.append(f"{empty:,} empty {'file is' if empty == 1 else 'files are'} left out.")
    return spans, notices


def check_kind(path: PathLike) -> None:
    """Check that a file is a regular file and not empty.

    Raises:
        UserError: it is neither.
    """
    if not os.path.isfile(path):
        raise UserError(f"{path} is no regular file; name a text file")
    if os.path.getsize(path) == 0:
        raise UserError(f"{path} is empty; give a file that holds text")


def check_no_json(copy: PathLike, path: PathLike) -> None:
    """Check that a `.json` file does not begin as a JSON array or object does.

    Args:
        copy: the file in plain form.
        path: the file as the user names it.

    Raises:
        UserError: it does.
    """
    if not os.fspath(copy).lower().endswith(".json"):
        return
    with open(copy, "rb") as file:
        first = file.read(1 << 10).removeprefix(_BOM).lstrip()[:1]
    if first == b"[":
        raise UserError(f"{path} is a JSON array; write one object a line into a .jsonl file, for example with "
                        "`jq -c '.[]'`")
    if first == b"{":
        raise UserError(f"{path} is JSON; if each line holds an object, rename it to end in .jsonl")


def checked_span(span: Span) -> Span:
    """Check that a span is a part of an existing file and not empty.

    Raises:
        MissingFileError: the file does not exist.
        UserError: the span is empty, has no record or exceeds the file.
    """
    if not os.path.exists(span.path):
        raise MissingFileError(f"{span.label} does not exist; check the name (the current folder is {Path.cwd()})")
    size = os.path.getsize(span.path)
    if size == 0 or (span.start == span.stop == size == len(_BOM)):
        raise UserError(f"{span.label} is empty; give a file that holds text")
    if not 0 <= span.start < span.stop <= size:
        raise UserError(f"bytes {span.start} to {span.stop} of {span.label} are not part of a file of {size:,} bytes")
    if is_jsonl(span.path) and not holds_record(span):
        raise UserError(f"{span.label} holds no record, only white space; give a file with one JSON object a line")
    return span


def holds_record(span: Span) -> bool:
    """Return whether a span holds anything but white space."""
    with open(span.path, "rb") as file:
        file.seek(span.start)
        rest = span.stop - span.start
        while rest > 0 and (chunk := file.read(min(_CHUNK, rest))):
            if not chunk.isspace():
                return True
            rest -= len(chunk)
    return False


class Document(NamedTuple):
    """A document of a file.

    Attributes:
        start: the first byte in the file.
        stop: the byte after the last one.
        end: the byte after the separator and the line breaks that follow the document.
        text: the bytes of the document; of a record, the whole line.
    """

    start: int
    stop: int
    end: int
    text: bytes


def find_documents(span: Span, separator: bytes) -> Iterator[Document]:
    """Yield the documents of a plain file.

    In a text file, a document ends before the separator or at the end of the file. In a JSONL file, each line that is
    not blank is one. A blank document belongs to the next one, and is yielded only at the end.

    Args:
        span: a part of a plain file.
        separator: stands between the documents of a text file; empty if nothing does.
    """
    pattern = re.escape(separator) + rb"[\r\n]*" if separator else rb"(?!)"
    boundaries = re.compile(rb"\n\s*" if is_jsonl(span.path) else pattern)
    with open(span.path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        end, start = span.start, span.start
        for match in boundaries.finditer(text, span.start, span.stop):
            stop, next_start = match.span()
            document = text[start:stop]
            if document and not document.isspace():
                end = next_start
                yield Document(start, stop, end, document)
            start = next_start
        if end < span.stop:
            yield Document(start, span.stop, span.stop, text[start : span.stop])
