"""The text of files as documents, split into parts that can be tokenized independently; `blocks` reads these.

In a text file the separator stands between documents, and the end of the file ends one. In a JSONL file (see `jsonl`)
each record is a document. The parts of a text have the same pre-tokens and special tokens as the whole.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, groupby, zip_longest
from pathlib import Path
from typing import TypeAlias

from tslm.errors import UserError
from tslm.files import Stamp, check_unchanged, file_stamp
from tslm.tokenizer.blocks import LONGEST_END, read_span
from tslm.tokenizer.chunking import CUT_WINDOW, trim_characters, usable_cuts
from tslm.tokenizer.jsonl import end_of_line
from tslm.tokenizer.plain import Errors, plain_copy
from tslm.tokenizer.pretokenize import GPT2
from tslm.tokenizer.sources import FIELD, PathLike, Span, find_spans, is_jsonl

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
                    rest = self.between(stop, limit) if limit - stop <= LONGEST_END else []
                    if rest and not b"".join(map(read_span, rest)).strip(b"\r\n"):
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
            text, skipped = trim_characters(b"".join(map(read_span, self.between(first, last))))
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
