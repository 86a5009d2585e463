"""Reads text files as documents, and splits them into parts that can be tokenized independently.

In a text file the separator stands between documents, and the end of the file ends one. In a JSONL file (see `jsonl`)
each record is a document. The parts of a text have the same pre-tokens and special tokens as the whole.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, chain, groupby, zip_longest
from pathlib import Path
from typing import TypeAlias

from tslm.errors import UserError
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
from tslm.tokenizer.jsonl import DOCUMENT_END, end_of_line, read_documents
from tslm.tokenizer.plain import Errors, plain_copy
from tslm.tokenizer.pretokenize import GPT2
from tslm.tokenizer.sources import FIELD, PathLike, Span, find_spans, is_jsonl

_LONGEST_END = 1 << 12  # bytes in which the separator at the end of a file is searched
_LARGEST_WINDOW = 1 << 20  # bytes that are searched for a cut at once


class Corpus:
    """The text of files, folders, glob patterns or parts of files.

    Args:
        source: a path, a glob pattern, a `Span`, or several of them in the order of the text (see `sources`). A file
            that is compressed or Parquet is unpacked into a temporary folder, which lasts as long as the object. Of
            another corpus, the copy remembers the files as they were when that one was made.
        text_field: the field of a JSONL record, or the column of a Parquet file, that holds the document.
        errors: "strict", or "replace" for U+FFFD in place of bytes that are not UTF-8.
        joined: whether several text files are one text in parts, so that no document ends where a file ends.
        allow_special: whether special tokens are recognized in records too. In a text file they always are.

    Attributes:
        spans: the parts of files. Those that end a document are marked, unless the whole corpus is one text file.
        size: the bytes of all spans; for JSONL files including the JSON syntax.
        notices: what the user should be told about the files.
        allow_special: as given.

    Raises:
        MissingFileError: a file does not exist, or no file matches a pattern.
        UserError: there is no file, or a file or span is empty, has no record, exceeds its file or cannot be unpacked.
    """

    def __init__(
        self,
        source: TextInput,
        *,
        text_field: str = FIELD,
        errors: Errors = "strict",
        joined: bool = False,
        allow_special: bool = False,
        progress: bool = False,
    ) -> None:
        self.spans: list[Span]
        self.notices: list[str]
        self.allow_special: bool
        self._stamps: dict[PathLike, Stamp]
        self._folder: _TemporaryFolder | None = None
        if isinstance(source, Corpus):
            self.spans, self._stamps, self._folder = source.spans, source._stamps, source._folder
            self.notices, self.allow_special = source.notices, source.allow_special
        else:
            parts = [source] if isinstance(source, str | os.PathLike | Span) else source
            spans, self.notices = find_spans(
                parts, lambda path: plain_copy(path, self._new_folder, text_field, errors, progress), text_field
            )
            self.spans = spans if joined else end_documents(spans)
            self._stamps = {span.path: file_stamp(span.path) for span in self.spans}
            self.allow_special = allow_special
        if not self.spans:
            raise UserError("no input file was given; name at least one text file")
        self._ends = list(accumulate(span.stop - span.start for span in self.spans))
        self.size = self._ends[-1]

    def _new_folder(self) -> Path:
        if self._folder is None:
            self._folder = _TemporaryFolder()
        return Path(tempfile.mkdtemp(dir=self._folder.path))

    def allows_special(self, span: Span) -> bool:
        """Return whether special tokens are recognized in a part: in text always, in records if the user wants it."""
        return self.allow_special or not is_jsonl(span.path)

    def specials_of(self, spans: Sequence[Span], special_tokens: list[bytes]) -> list[bytes]:
        """Return the special tokens that are recognized in a part."""
        return special_tokens if self.allows_special(spans[0]) else []

    def check_unchanged(self, span: Span | None = None) -> None:
        """Check that no file, or not that of a span, changed since this object was made; called after it was read.

        Raises:
            UserError: a file was changed, replaced or removed.
        """
        check_unchanged(self._stamps if span is None else {span.path: self._stamps[span.path]})

    def between(self, start: int, stop: int) -> list[Span]:
        """Return the parts of files that hold the bytes `start` to `stop` of the whole text."""
        spans = []
        for index in range(bisect_right(self._ends, start), len(self.spans)):
            span = self.spans[index]
            offset = self._ends[index] - span.stop  # position in the whole text minus position in this file
            if span.start + offset >= stop:
                break
            last = min(span.stop, stop - offset)
            spans.append(
                span._replace(start=max(span.start, start - offset), stop=last, ends=span.ends and last == span.stop)
            )
        return spans

    def split(
        self,
        size: int | Callable[[int], int],
        special_tokens: Sequence[bytes] = (),
        window: int = CUT_WINDOW,
        pattern: str = GPT2,
    ) -> Iterator[list[Span]]:
        """Split the text into parts of about `size` bytes that can be tokenized independently.

        Only the bytes around the cuts are read. A part holds spans of plain files or of JSONL files, never of both.

        Args:
            size: the size of a part, or a function from the number of remaining bytes to it.
            special_tokens: strings that no cut may split.
            window: how many bytes are searched for a cut at first.
            pattern: the pattern of pre-tokens, which no cut may change.
        """
        start = 0
        for are_jsonl, spans in groupby(self.spans, key=lambda span: is_jsonl(span.path)):
            end = start + sum(span.stop - span.start for span in spans)
            while start < end:
                wanted = start + (size if isinstance(size, int) else size(self.size - start))
                if wanted >= end:
                    stop = end
                elif are_jsonl:
                    stop = self._line_end(wanted)
                else:
                    following = range(bisect_left(self._ends, wanted), len(self.spans))
                    limit = min(next((self._ends[index] for index in following if self.spans[index].ends), end), end)
                    stop = self._next_cut(wanted, start, limit, special_tokens, window, pattern)
                    rest = self.between(stop, limit) if limit - stop <= _LONGEST_END else []
                    if rest and not b"".join(map(_read, rest)).strip(b"\r\n"):
                        stop = limit  # the line breaks at the end of a document stay with the separator before them
                yield self.between(start, stop)
                start = stop

    def _line_end(self, position: int) -> int:
        """Return the end of the line that contains the byte before `position`."""
        span = self.between(position - 1, self.size)[0]
        return position - 1 + end_of_line(span) - span.start

    def _next_cut(
        self, position: int, start: int, end: int, special_tokens: Sequence[bytes], window: int, pattern: str
    ) -> int:
        """Return the first safe cut from `position` on in the text from `start` to `end`, or `end`."""
        margin = max(map(len, special_tokens), default=1) - 1
        while position < end:
            first, last = max(start, position - margin), min(end, position + window + margin + 1)
            text, skipped = trim_characters(b"".join(map(_read, self.between(first, last))))
            try:
                cut = next(usable_cuts(text, special_tokens, pattern=pattern), None)
            except UnicodeDecodeError:  # reading this part in full will report the byte
                cut = None
            if cut is not None:
                return first + skipped + cut
            position, window = position + window, min(window * 2, _LARGEST_WINDOW)
        return end


class _TemporaryFolder:
    """A folder that is removed with the last reference to this object, or at the end of the process."""

    def __init__(self) -> None:
        self.path = tempfile.mkdtemp(prefix="tslm-")
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


TextInput: TypeAlias = PathLike | Span | Sequence[PathLike | Span] | Corpus


def end_documents(spans: Sequence[Span]) -> list[Span]:
    """Mark the spans at whose end a document ends: those that the rest of the same text file does not follow.

    A single text file is left as it is, so that its ids are those of its text.
    """
    ends = [
        is_jsonl(span.path) or next_.path != span.path or next_.start < span.stop
        for span, next_ in zip_longest(spans, spans[1:], fillvalue=Span("", 0, 0))
    ]
    if sum(ends) == 1 and not is_jsonl(spans[0].path):
        return list(spans)
    return [span._replace(ends=end) for span, end in zip(spans, ends, strict=True)]


def read_blocks(
    spans: Iterable[Span],
    special_tokens: Sequence[bytes],
    size: int = BLOCK_BYTES,
    overlap: int = 0,
    pattern: str = GPT2,
) -> Iterator[Block]:
    """Read spans as blocks of about `size` bytes that can be tokenized independently.

    Where a text cannot be cut, a block is larger, or with an `overlap` such as `chunking.OVERLAP` blocks overlap.

    Each document of a JSONL file, and each span that is marked so, is followed by `DOCUMENT_END`, unless its text ends
    with the separator already. A block holds many short documents or a part of a long one.

    Args:
        spans: parts of text files, or of JSONL files, never of both.
        special_tokens: the special tokens that are recognized in these texts, the separator first.
        size: the size of a block in bytes.
        overlap: see above.
        pattern: the pattern of pre-tokens.

    Raises:
        UserError: a file is not UTF-8, or a line of a JSONL file is not a record; the message names the place.
    """
    buffer = bytearray()
    for text, ends in _texts(spans, special_tokens[:1]):
        if isinstance(text, bytes) and len(text) <= size:
            blocks = iter([Block(text)])
        else:
            pieces = [text] if isinstance(text, bytes) else text
            blocks = overlapping_blocks(pieces, special_tokens, size, overlap=overlap, pattern=pattern)
        last = next(blocks, Block(b""))
        for block in blocks:
            if buffer:
                yield Block(bytes(buffer))
                buffer = bytearray()
            yield last
            last = block
        buffer += last.text
        if ends:
            buffer += DOCUMENT_END
        if len(buffer) >= size or not ends:
            yield Block(bytes(buffer))
            buffer = bytearray()
    if buffer:
        yield Block(bytes(buffer))


def _texts(spans: Iterable[Span], separators: Sequence[bytes]) -> Iterator[tuple[bytes | Iterable[bytes], bool]]:
    """Yield each text, whole or in pieces, and whether `DOCUMENT_END` follows it."""
    pieces: list[Iterable[bytes]] = []
    for span in spans:
        if is_jsonl(span.path):
            yield from ((document, True) for document in read_documents(span))
            continue
        pieces.append(read_pieces([span]))
        if span.ends:
            yield chain.from_iterable(pieces), not _ends_with(span, separators)
            pieces = []
    if pieces:
        yield chain.from_iterable(pieces), False


def _ends_with(span: Span, separators: Sequence[bytes]) -> bool:
    """Whether a separator is the last thing in a span, apart from line breaks."""
    end = _read(span._replace(start=max(span.start, span.stop - _LONGEST_END)))
    return any(end.endswith(separator) or end.rstrip(b"\r\n").endswith(separator) for separator in separators)


def read_pieces(spans: Iterable[Span], size: int = BLOCK_BYTES) -> Iterator[bytes]:
    """Read spans of plain files in pieces of whole characters, and check that each file is UTF-8.

    Raises:
        UserError: a byte is not UTF-8; the message names the file and the offset of the byte.
    """
    for span in spans:
        start, stop = span.start, span.stop
        with open(span.path, "rb") as file:
            file.seek(start)
            rest = b""
            while start < stop:
                fresh = file.read(min(size, stop - start))
                if not fresh:
                    raise UserError(
                        f"{span.label} became shorter while it was read: {stop - start:,} bytes are missing"
                    )
                start += len(fresh)
                piece = rest + fresh
                end = len(piece) if start == stop else complete_end(piece)
                piece, rest = piece[:end], piece[end:]
                check_utf8(piece, span.label, start - len(rest) - len(piece))
                yield piece


def check_utf8(piece: bytes, name: str, offset: int) -> None:
    """Check a part of a file that begins at `offset`.

    Raises:
        UserError: a byte is not UTF-8; the message names the file and the offset of the byte.
    """
    try:
        piece.decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{name} is not UTF-8: byte 0x{piece[error.start]:02x} at offset {offset + error.start}; convert the file, "
            "for example with `iconv -f latin1 -t utf-8`, or replace its bad bytes by U+FFFD with --data.errors "
            "replace (--errors replace in `tokenize` and the like)"
        ) from None


def _read(span: Span) -> bytes:
    with open(span.path, "rb") as file:
        file.seek(span.start)
        return file.read(span.stop - span.start)
