"""Reads text files as one text, and splits it into parts that can be tokenized independently.

Several plain files are one text: their bytes follow each other, so a pre-token may start in one file and end in the
next. In a JSONL file (see `jsonl`) each record is a document of its own. The parts of a text have the same pre-tokens
and special tokens as the whole.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, groupby
from pathlib import Path
from typing import NamedTuple, TypeAlias

from tslm.errors import MissingFileError, UserError
from tslm.files import Stamp, check_unchanged, file_stamp
from tslm.tokenizer.chunking import (
    BLOCK_BYTES,
    CUT_WINDOW,
    Block,
    complete_end,
    overlapping_blocks,
    trim_characters,
    usable_cuts,
)
from tslm.tokenizer.jsonl import DOCUMENT_END, end_of_line, holds_record, is_jsonl, read_documents

_LARGEST_WINDOW = 1 << 20  # bytes that are searched for a cut at once


class Span(NamedTuple):
    """The bytes `start` to `stop` (exclusive) of a file."""

    path: str | os.PathLike[str]
    start: int
    stop: int


class Corpus:
    """The text of one or more files or parts of files, plain or JSONL.

    Args:
        source: a path, a `Span`, or several of them in the order of the text. Of another corpus, the copy remembers the
            files as they were when that one was made.

    Attributes:
        spans: the parts of files.
        size: the bytes of all spans; for JSONL files including the JSON syntax.

    Raises:
        MissingFileError: a file does not exist.
        UserError: there is no file, or a file or span is empty, has no record or exceeds its file.
    """

    def __init__(self, source: TextInput) -> None:
        self.spans: list[Span]
        self._stamps: dict[str | os.PathLike[str], Stamp]
        if isinstance(source, Corpus):
            self.spans, self._stamps = source.spans, source._stamps
        else:
            parts = [source] if isinstance(source, str | os.PathLike | Span) else source
            self.spans = [checked_span(part) for part in parts]
            self._stamps = {span.path: file_stamp(span.path) for span in self.spans}
        if not self.spans:
            raise UserError("no input file was given; name at least one text file")
        self._ends = list(accumulate(span.stop - span.start for span in self.spans))
        self.size = self._ends[-1]

    def check_unchanged(self) -> None:
        """Check that no file changed since this object was made; called after all of the text was read.

        Raises:
            UserError: a file was changed, replaced or removed.
        """
        check_unchanged(self._stamps)

    def between(self, start: int, stop: int) -> list[Span]:
        """Return the parts of files that hold the bytes `start` to `stop` of the whole text."""
        spans = []
        for index in range(bisect_right(self._ends, start), len(self.spans)):
            path, first, last = self.spans[index]
            offset = self._ends[index] - last  # position in the whole text minus position in this file
            if first + offset >= stop:
                break
            spans.append(Span(path, max(first, start - offset), min(last, stop - offset)))
        return spans

    def split(
        self, size: int | Callable[[int], int], special_tokens: Sequence[bytes] = (), window: int = CUT_WINDOW
    ) -> Iterator[list[Span]]:
        """Split the text into parts of about `size` bytes that can be tokenized independently.

        Only the bytes around the cuts are read. A part holds spans of plain files or of JSONL files, never of both.

        Args:
            size: the size of a part, or a function from the number of remaining bytes to it.
            special_tokens: strings that no cut may split.
            window: how many bytes are searched for a cut at first.
        """
        start = 0
        for are_jsonl, spans in groupby(self.spans, key=_is_jsonl):
            end = start + sum(span.stop - span.start for span in spans)
            while start < end:
                wanted = start + (size if isinstance(size, int) else size(self.size - start))
                if wanted >= end:
                    stop = end
                elif are_jsonl:
                    stop = self._line_end(wanted)
                else:
                    stop = self._next_cut(wanted, start, end, special_tokens, window)
                yield self.between(start, stop)
                start = stop

    def _line_end(self, position: int) -> int:
        """Return the end of the line that contains the byte before `position`."""
        path, first, last = self.between(position - 1, self.size)[0]
        return position - 1 + end_of_line(path, first, last) - first

    def _next_cut(self, position: int, start: int, end: int, special_tokens: Sequence[bytes], window: int) -> int:
        """Return the first safe cut from `position` on in the text from `start` to `end`, or `end`."""
        margin = max(map(len, special_tokens), default=1) - 1
        while position < end:
            first, last = max(start, position - margin), min(end, position + window + margin + 1)
            text, skipped = trim_characters(b"".join(map(_read, self.between(first, last))))
            try:
                cut = next(usable_cuts(text, special_tokens), None)
            except UnicodeDecodeError:  # reading this part in full will report the byte
                cut = None
            if cut is not None:
                return first + skipped + cut
            position, window = position + window, min(window * 2, _LARGEST_WINDOW)
        return end


TextInput: TypeAlias = str | os.PathLike[str] | Span | Sequence[str | os.PathLike[str] | Span] | Corpus


def read_blocks(
    spans: Iterable[Span], special_tokens: Sequence[bytes], size: int = BLOCK_BYTES, overlap: int = 0
) -> Iterator[Block]:
    """Read spans as blocks of about `size` bytes that can be tokenized independently.

    Where a text cannot be cut, a block is larger, or with an `overlap` such as `chunking.OVERLAP` blocks overlap.

    In blocks of JSONL files each document is followed by `DOCUMENT_END`. A block holds many short documents or a part
    of a long one.

    Raises:
        UserError: a file is not UTF-8, or a line of a JSONL file is not a record; the message names the place.
    """
    for are_jsonl, group in groupby(spans, key=_is_jsonl):
        if are_jsonl:
            yield from _document_blocks(group, special_tokens, size, overlap)
        else:
            yield from overlapping_blocks(read_pieces(group), special_tokens, size, overlap=overlap)


def _document_blocks(
    spans: Iterable[Span], special_tokens: Sequence[bytes], size: int, overlap: int
) -> Iterator[Block]:
    buffer = bytearray()
    for document in (document for span in spans for document in read_documents(*span)):
        if len(document) > size:
            if buffer:
                yield Block(bytes(buffer))
            buffer = bytearray()
            blocks = overlapping_blocks([document], special_tokens, size, overlap=overlap)
            last = next(blocks)
            for block in blocks:
                yield last
                last = block
            document = last.text
        buffer += document + DOCUMENT_END
        if len(buffer) >= size:
            yield Block(bytes(buffer))
            buffer = bytearray()
    if buffer:
        yield Block(bytes(buffer))


def read_pieces(spans: Iterable[Span], size: int = BLOCK_BYTES) -> Iterator[bytes]:
    """Read spans of plain files in pieces of whole characters, and check that each file is UTF-8.

    Raises:
        UserError: a byte is not UTF-8; the message names the file and the offset of the byte.
    """
    for path, start, stop in spans:
        with open(path, "rb") as file:
            file.seek(start)
            rest = b""
            while start < stop:
                fresh = file.read(min(size, stop - start))
                if not fresh:
                    raise UserError(f"{path} became shorter while it was read: {stop - start:,} bytes are missing")
                start += len(fresh)
                piece = rest + fresh
                end = len(piece) if start == stop else complete_end(piece)
                piece, rest = piece[:end], piece[end:]
                _check_utf8(piece, path, start - len(rest) - len(piece))
                yield piece


def _check_utf8(piece: bytes, path: str | os.PathLike[str], offset: int) -> None:
    try:
        piece.decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8: byte 0x{piece[error.start]:02x} at offset {offset + error.start}; convert the file, "
            "for example with `iconv -f latin1 -t utf-8`, or remove the byte"
        ) from None


def checked_span(part: str | os.PathLike[str] | Span) -> Span:
    """Return a non-empty span of an existing file; a path means the whole file.

    Raises:
        MissingFileError: the file does not exist.
        UserError: the file or span is empty, has no record or exceeds the file, or the path is a folder.
    """
    path = Path(part.path if isinstance(part, Span) else part)
    if not path.exists():
        raise MissingFileError(f"{path} does not exist; check the name (the current folder is {Path.cwd()})")
    if path.is_dir():
        raise UserError(f"{path} is a folder; name the text files in it")
    size = path.stat().st_size
    if size == 0:
        raise UserError(f"{path} is empty; give a file that holds text")
    span = part if isinstance(part, Span) else Span(part, 0, size)
    if not 0 <= span.start < span.stop <= size:
        raise UserError(f"bytes {span.start} to {span.stop} of {path} are not part of a file of {size:,} bytes")
    if is_jsonl(path) and not holds_record(*span):
        raise UserError(f"{path} holds no record, only white space; give a file with one JSON object a line")
    return span


def _is_jsonl(span: Span) -> bool:
    return is_jsonl(span.path)


def _read(span: Span) -> bytes:
    with open(span.path, "rb") as file:
        file.seek(span.start)
        return file.read(span.stop - span.start)
