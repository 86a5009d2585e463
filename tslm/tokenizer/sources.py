"""Finds the files that an input names, and the documents in them."""

from __future__ import annotations

import codecs
import glob
import mmap
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, NoReturn, TypeAlias

from tslm.errors import MissingFileError, UserError

FIELD = "text"
RECORDS = (".jsonl", ".ndjson")
PARQUET = ".parquet"
_KNOWN_ENDINGS = (".txt", *RECORDS, PARQUET)
PACKINGS = (".gz", ".xz", ".zst")

_BOM = codecs.BOM_UTF8
_RECURSIVE = re.compile(r"(?:^|(?<=/))\*\*(?:/+|$)")  # in a glob pattern: any folders
_CHUNK = 1 << 20
_KNOWN = f"{', '.join(_KNOWN_ENDINGS)}, each also with {', '.join(PACKINGS)}"

_FROM_UTF16 = "convert it, for example with `iconv -f utf-16 -t utf-8`"
_FORMS = [  # of files that are not text: a position, the bytes there, what the file is, and what to do
    (257, b"ustar", "an archive of tar", "unpack it, and name the folder"),
    (0, b"PK\3\4", "an archive of zip", "unpack it, and name the folder"),
    (0, b"\x1f\x8b", "compressed by gzip", "rename it to end in .gz"),
    (0, b"\xfd7zXZ\0", "compressed by xz", "rename it to end in .xz"),
    (0, b"\x28\xb5\x2f\xfd", "compressed by zstd", "rename it to end in .zst"),
    (4, b"1AY&SY", "compressed by bzip2", "unpack it, for example with `bunzip2`"),
    (0, b"PAR1", "Parquet", "rename it to end in .parquet"),
    (0, codecs.BOM_UTF16_LE, "UTF-16", _FROM_UTF16),
    (0, codecs.BOM_UTF16_BE, "UTF-16", _FROM_UTF16),
]

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


def find_files(given: PathLike, notices: list[str]) -> Iterator[tuple[PathLike, bool]]:
    """Yield the files of an input, and whether the input names that file itself.

    An input is a file with any name; or a folder, of which all files with a known ending are taken, also in folders
    within it, in the order of their names, but nothing hidden; or a glob pattern such as `texts/*.txt`. A file that a
    folder or a pattern has under several names, by links, is taken once. `notices` gets one about other files.

    Raises:
        MissingFileError: nothing has that name or matches that pattern.
        UserError: a folder holds no file with a known ending.
    """
    path = os.fspath(given)
    if os.path.isdir(path):
        names = [os.path.join(place, name) for place, names in _walk(path) for name in names]
        found = [name for name in names if _without_packing(name).endswith(_KNOWN_ENDINGS)]
        if not found:
            raise UserError(f"the folder {path} holds no file with a known ending ({_KNOWN}); name the files")
        if others := sorted({*names} - {*found}):
            notices.append(f"{path}: {len(others):,} of {len(names):,} files are left out, such as {others[0]}; known "
                           f"endings are {_KNOWN}.")
        yield from ((name, False) for name in _once(found))
    elif os.path.exists(path):
        yield given, True
    elif not glob.has_magic(path):
        raise MissingFileError(f"{path} does not exist; check the name (the current folder is {Path.cwd()})")
    else:
        found = _once(sorted(name for name in _matches(path) if os.path.isfile(name)))
        if not found:
            raise MissingFileError(f"no file matches {path}; check the pattern (the current folder is {Path.cwd()})")
        yield from ((name, False) for name in found)


def _walk(folder: str) -> Iterator[tuple[str, list[str]]]:
    """Yield a folder and the folders in it, each once, even if links lead to it, and the names of their files.

    Raises:
        OSError: a folder cannot be read.
    """
    known = set[str]()
    for place, folders, names in os.walk(folder, followlinks=True, onerror=_refuse):
        if (real := os.path.realpath(place)) in known:
            folders.clear()
            continue
        known.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield place, sorted(name for name in names if not name.startswith("."))


def _refuse(error: OSError) -> NoReturn:
    raise error  # os.walk would leave the folder out


def _matches(pattern: str) -> Iterator[str]:
    """Yield what matches a glob pattern. Links to folders are followed as in `_walk`; glob would follow loops."""
    stars = _RECURSIVE.search(pattern)
    if stars is None:
        yield from glob.iglob(pattern)
        return
    base, rest = pattern[: stars.start()], pattern[stars.end() :] or "*"
    for top in glob.iglob(base) if base else [os.curdir]:
        for place, _ in _walk(top):
            folder = place if base else place.removeprefix(os.curdir).removeprefix(os.sep)
            yield from _matches(os.path.join(glob.escape(folder), rest))


def _once(names: Iterable[str]) -> list[str]:
    """Leave out the names of files that have an earlier name, by links."""
    found = dict[str, str]()
    for name in names:
        found.setdefault(os.path.realpath(name), name)
    return list(found.values())


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
        UserError: a file is empty or no text, or cannot be unpacked.
    """
    spans, notices, empty = list[Span](), list[str](), 0
    for given in inputs:
        if isinstance(given, Span):
            spans.append(checked_span(given))
            continue
        for path, is_named in find_files(given, notices):
            if not is_named and os.path.isfile(path) and os.path.getsize(path) == 0:
                empty += 1
                continue
            check_kind(path)
            copy, replaced = plain(path)
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


def check_form(copy: PathLike, path: PathLike) -> None:
    """Check that a file does not begin as an archive, a compressed file, Parquet, UTF-16 or a JSON array does.

    Some of these are UTF-8 by chance: an archive of tar with text in it, and English in UTF-16.

    Args:
        copy: the file, unpacked if the ending of its name says that it is compressed.
        path: the file as the user names it.

    Raises:
        UserError: it does.
    """
    with open(copy, "rb") as file:
        head = file.read(1 << 10)
    for start, mark, form, advice in _FORMS:
        if head.startswith(mark, start):
            raise UserError(f"{path} is {form}; {advice}")
    for each, other, order in ((head[1::2], head[::2], "16le"), (head[::2], head[1::2], "16be")):
        if other.count(0) == 0 and 16 <= len(each) <= 1.1 * each.count(0):
            raise UserError(f"{path} is UTF-16, as every second byte is zero; {_FROM_UTF16.replace('16', order)}")
    first = head.removeprefix(_BOM).lstrip()[:1] if os.fspath(copy).lower().endswith(".json") else b""
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
