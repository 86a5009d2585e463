"""Reads text files as one long text and cuts it into parts that can be tokenized apart.

Paths come in (or `Span`s, byte ranges of files); byte ranges for workers and blocks of checked UTF-8 go out. Several
plain files count as one text, their bytes one behind the other, so a pre-token may begin in one file and end in the
next. In JSONL files (see `jsonl`) each record is a text of its own. All cuts are safe ones: the parts have the same
pre-tokens and special tokens apart as together.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, groupby
from pathlib import Path
from typing import NamedTuple, TypeAlias

from tslm.tokenizer.cuts import BLOCK_BYTES, CUT_WINDOW, cut_blocks, usable_cuts, whole_characters, whole_characters_end
from tslm.tokenizer.jsonl import DOCUMENT_END, end_of_line, holds_record, is_jsonl, read_documents
from tslm.tokenizer.pretokenize import is_utf8


class Span(NamedTuple):
    """The bytes `start` to `stop` (exclusive) of a file."""

    path: str | os.PathLike[str]
    start: int
    stop: int


TextInput: TypeAlias = str | os.PathLike[str] | Span | Sequence[str | os.PathLike[str] | Span]


class Corpus:
    """The text that lies in one or more files or parts of files, plain or JSONL.

    Args:
        source: a path, a `Span`, or several of them in the order of the text.

    Attributes:
        spans: the parts of files.
        size: bytes of all of them together, those of JSON's own signs included.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: a file or span is empty, has no record or reaches past the end of its file, or there is none at all.
    """

    def __init__(self, source: TextInput) -> None:
        parts = [source] if isinstance(source, str | os.PathLike | Span) else source
        self.spans = [checked_span(part) for part in parts]
        if not self.spans:
            raise ValueError("no input file was given; name at least one text file")
        self._ends = list(accumulate(span.stop - span.start for span in self.spans))
        self.size = self._ends[-1]

    def between(self, start: int, stop: int) -> list[Span]:
        """Return the parts of files that hold the bytes `start` to `stop` of the whole text."""
        spans = []
        for index in range(bisect_right(self._ends, start), len(self.spans)):
            path, first, last = self.spans[index]
            offset = self._ends[index] - last  # from a position in this file to one in the whole text
            if first + offset >= stop:
                break
            spans.append(Span(path, max(first, start - offset), min(last, stop - offset)))
        return spans

    def split(
        self, size: int | Callable[[int], int], special_tokens: Sequence[bytes] = ()
    ) -> Iterator[list[Span]]:
        """Cut the text into parts of about `size` bytes that can be tokenized apart; only the borders are read.

        The size may be a function of the bytes that are left. A part holds spans of plain files or of JSONL files,
        never of both.
        """
        start = 0
        for are_jsonl, spans in groupby(self.spans, key=_is_jsonl):
            end = start + sum(span.stop - span.start for span in spans)
            while start < end:
                wanted = start + (size if isinstance(size, int) else size(self.size - start))
                if wanted >= end:
                    stop = end
                elif are_jsonl:
                    stop = self._line_after(wanted)
                else:
                    stop = self._cut_after(wanted, start, end, special_tokens)
                yield self.between(start, stop)
                start = stop

    def _line_after(self, position: int) -> int:
        """Return the end of the line that the byte in front of `position` is part of."""
        path, first, last = self.between(position - 1, self.size)[0]
        return position - 1 + end_of_line(path, first, last) - first

    def _cut_after(self, position: int, start: int, end: int, special_tokens: Sequence[bytes]) -> int:
        """Return the first safe cut a little behind `position` in the text from `start` to `end`, or `end`."""
        margin = max(map(len, special_tokens), default=1) - 1
        window = CUT_WINDOW
        while position < end:
            first, last = max(start, position - margin), min(end, position + window + margin + 1)
            text, skipped = whole_characters(b"".join(map(_read, self.between(first, last))))
            try:
                cut = next(usable_cuts(text, special_tokens), None)
            except UnicodeDecodeError:  # whoever reads this part in full will name the byte
                cut = None
            if cut is not None:
                return first + skipped + cut
            position, window = position + window, window * 2
        return end


def read_blocks(spans: Iterable[Span], special_tokens: Sequence[bytes], size: int = BLOCK_BYTES) -> Iterator[bytes]:
    """Read byte ranges as blocks of about `size` bytes that can be tokenized apart.

    In blocks of JSONL files a `DOCUMENT_END` stands behind each document. A block holds many short documents or part of
    a long one.

    Raises:
        ValueError: a file is not UTF-8, or a line of a JSONL file no record; the sentence names the place.
    """
    for are_jsonl, group in groupby(spans, key=_is_jsonl):
        if are_jsonl:
            yield from _document_blocks(group, special_tokens, size)
        else:
            yield from cut_blocks(read_pieces(group), special_tokens, size)


def _document_blocks(spans: Iterable[Span], special_tokens: Sequence[bytes], size: int) -> Iterator[bytes]:
    held: list[bytes] = []
    held_bytes = 0
    for document in (document for span in spans for document in read_documents(*span)):
        if len(document) > size:
            if held:
                yield b"".join(held)
            yield from cut_blocks([document + DOCUMENT_END], special_tokens, size)
            held, held_bytes = [], 0
        else:
            held += document, DOCUMENT_END
            held_bytes += len(document) + 1
            if held_bytes >= size:
                yield b"".join(held)
                held, held_bytes = [], 0
    if held:
        yield b"".join(held)


def read_pieces(spans: Iterable[Span], size: int = BLOCK_BYTES) -> Iterator[bytes]:
    """Read byte ranges of plain files in pieces of whole characters, checking that each file is UTF-8.

    Raises:
        ValueError: a byte is not UTF-8; the sentence names the file and the byte's offset in it.
    """
    for path, start, stop in spans:
        with open(path, "rb") as file:
            file.seek(start)
            rest = b""
            while start < stop:
                fresh = file.read(min(size, stop - start))
                if not fresh:
                    raise ValueError(f"{path} became shorter while it was read: {stop - start:,} bytes are missing")
                start += len(fresh)
                piece = rest + fresh
                whole = len(piece) if start == stop else whole_characters_end(piece)
                piece, rest = piece[:whole], piece[whole:]
                if not is_utf8(piece):
                    offset = start - len(rest) - len(piece)
                    raise ValueError(f"{path} is not UTF-8: {_first_fault(piece, offset)}")
                yield piece


def _first_fault(text: bytes, offset: int) -> str:
    """Name the first byte of a text that is not UTF-8, and how to mend that."""
    try:
        text.decode()
    except UnicodeDecodeError as error:
        return (
            f"byte 0x{text[error.start]:02x} at offset {offset + error.start}; convert the file, for example with "
            "`iconv -f latin1 -t utf-8`, or remove the byte"
        )
    raise AssertionError("is_utf8 and bytes.decode disagree")


def checked_span(part: str | os.PathLike[str] | Span) -> Span:
    """Return a non-empty span inside an existing file; a path means all of it.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file or span is empty, has no record or reaches past the end of the file.
    """
    path = Path(part.path if isinstance(part, Span) else part)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; check the name (the present folder is {Path.cwd()})")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name the text files in it")
    size = path.stat().st_size
    if size == 0:
        raise ValueError(f"{path} is empty; give a file that holds text")
    span = part if isinstance(part, Span) else Span(part, 0, size)
    if not 0 <= span.start < span.stop <= size:
        raise ValueError(f"bytes {span.start} to {span.stop} of {path} are no part of a file of {size:,} bytes")
    if is_jsonl(path) and not holds_record(*span):
        raise ValueError(f"{path} holds no record, only white space; give a file with one JSON object a line")
    return span


def _is_jsonl(span: Span) -> bool:
    return is_jsonl(span.path)


def _read(span: Span) -> bytes:
    with open(span.path, "rb") as file:
        file.seek(span.start)
        return file.read(span.stop - span.start)
