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

from tslm.tokenizer.jsonl import DOCUMENT_END, end_of_line, holds_record, is_jsonl, read_documents
from tslm.tokenizer.pretokenize import is_utf8, safe_cuts

BLOCK_BYTES = 3 << 16  # with its arrays it stays within a core's second-level cache, or nearly so
_WINDOW = 1 << 9  # how much is searched for a cut at first; the search doubles it


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
        window = _WINDOW
        while position < end:
            first, last = max(start, position - margin), min(end, position + window + margin + 1)
            text, skipped = _whole_characters(b"".join(map(_read, self.between(first, last))))
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
                whole = len(piece) if start == stop else _whole_characters_end(piece)
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


def cut_blocks(
    pieces: Iterable[bytes], special_tokens: Sequence[bytes], size: int = BLOCK_BYTES, first: int | None = None
) -> Iterator[bytes]:
    """Regroup a text that arrives in pieces of any kind into blocks that can be tokenized apart.

    A block is handed out as soon as `size` bytes are held and there is a safe cut; without one (a megabyte of one
    letter) the pieces are held until there is. The first block has `first` bytes, if that is given, and the next ones
    twice as many each time, so that a slow source yields something soon.
    """
    slices = (piece[at : at + size] for piece in pieces for at in range(0, len(piece), size))
    held: list[bytes] = []
    held_bytes, wanted, usual = 0, first or size, first or size
    for piece in slices:
        held.append(piece)
        held_bytes += len(piece)
        if held_bytes < wanted:
            continue
        text = b"".join(held)
        if cut := _last_cut(text, special_tokens):
            yield text[:cut]
            text = text[cut:]
            usual = min(2 * usual, size)
            wanted = usual
        else:
            wanted = 2 * len(text)  # searching the same bytes again after every piece would be quadratic
        held, held_bytes = [text], len(text)
    if held_bytes:
        yield b"".join(held)


def usable_cuts(text: bytes, special_tokens: Sequence[bytes], backwards: bool = False) -> Iterator[int]:
    """Yield the safe cuts of a text at which no special token lies across, whatever comes before and behind the text.

    Cuts in front of white space come first, all the others after them.

    Raises:
        UnicodeDecodeError: the text is not UTF-8.
    """
    for cuts in safe_cuts(text):
        for cut in cuts[::-1].tolist() if backwards else cuts.tolist():
            if _is_clear(text, cut, special_tokens):
                yield cut


def _is_clear(text: bytes, cut: int, special_tokens: Sequence[bytes]) -> bool:
    """Tell whether no special token lies across a cut, whatever comes before and behind the text."""
    longest = max(map(len, special_tokens), default=1)
    if not longest - 1 <= cut <= len(text) - longest + 1:
        return False
    return not any(token in text[cut - len(token) + 1 : cut + len(token) - 1] for token in special_tokens)


def _last_cut(text: bytes, special_tokens: Sequence[bytes]) -> int | None:
    """Return the last usable cut of a text, looking at more and more of its end."""
    window = min(_WINDOW, len(text))
    cut = len(text)
    while (cut := text.rfind(b" ", len(text) - window, cut)) > 0:  # nearly always the first is one
        if text[cut - 1] < 0x80 and not text[cut - 1 : cut].isspace() and _is_clear(text, cut, special_tokens):
            return cut
    while True:
        tail, skipped = _whole_characters(text[-window:])
        found = next(usable_cuts(tail, special_tokens, backwards=True), None)
        if found is not None:
            return len(text) - min(window, len(text)) + skipped + found
        if window >= len(text):
            return None
        window *= 4


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


def _whole_characters(text: bytes) -> tuple[bytes, int]:
    """Remove the parts of characters that were cut at both ends; also return how much went at the beginning."""
    first = 0
    while first < min(3, len(text)) and text[first] & 0xC0 == 0x80:
        first += 1
    return text[first : _whole_characters_end(text)], first


def _whole_characters_end(text: bytes) -> int:
    """Return the position at which the last character begins if it is cut, or else the length."""
    for back in range(1, min(4, len(text)) + 1):
        lead = text[-back]
        if lead & 0xC0 != 0x80:
            width = 1 if lead < 0x80 else 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
            return len(text) - back if width > back else len(text)
    return len(text)
