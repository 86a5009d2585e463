"""Finds the documents of text files: paths come in, spans and their text go out.

They end with `<|endoftext|>`; in JSONL files each line is one.
"""

from __future__ import annotations

import heapq
import mmap
import os
import random
import re
from collections.abc import Iterator, Sequence

from tslm.tokenizer import END_OF_TEXT, Span
from tslm.tokenizer.jsonl import is_jsonl, read_documents

_LONGEST = 1 << 20  # bytes; a text without END_OF_TEXT is one document, of gigabytes perhaps


def iter_documents(source: Sequence[str | os.PathLike[str]]) -> Iterator[Span]:
    """Yield where each document stands, `<|endoftext|>` not included; blank ones are passed over.

    The end of a file ends a document too.
    """
    for path in source:
        end = b"\n" if is_jsonl(path) else re.escape(END_OF_TEXT.encode())
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
            start = 0
            for border in re.finditer(end + b"|\\Z", text):
                stop, following = border.span()
                if text[start:stop].strip():
                    yield Span(path, start, stop)
                start = following


def sample_documents(source: Sequence[str | os.PathLike[str]], count: int, seed: int) -> list[Span]:
    """Return `count` documents, or all if there are fewer, every choice of them equally likely; in their order."""
    uniform = random.Random(seed).random
    drawn = heapq.nsmallest(count, ((uniform(), number, span) for number, span in enumerate(iter_documents(source))))
    return [span for _, _, span in sorted(drawn, key=lambda each: each[1])]


def read_document(span: Span) -> str:
    """Return the text of a document; of a very long one the first mebibyte."""
    if is_jsonl(span.path):
        data = next(read_documents(*span))[:_LONGEST]
    else:
        with open(span.path, "rb") as file:
            file.seek(span.start)
            data = file.read(min(span.stop - span.start, _LONGEST))
    return data.decode(errors="ignore")  # which may drop the character that the mebibyte ends in
