"""Divides one text file in two: what to train on, and whole documents from its end to hold out for validation.

A path and a share come in; two `Span`s, which lie behind one another and make up the file, go out.
"""

from __future__ import annotations

import mmap
import os

from tslm.tokenizer.corpus import Span, checked_span
from tslm.tokenizer.jsonl import holds_record, is_jsonl


def split_tail(
    path: str | os.PathLike[str], separator: bytes, fraction: float, max_bytes: int
) -> tuple[Span, Span]:
    """Divide a file into a first part and a tail of whole documents, of about `fraction` of it and at most `max_bytes`.

    The cut lies behind a separator and the line break that follows it; where the tail would hold no separator, behind a
    line break; where it would hold none of these either, between two characters. In a JSONL file it lies behind a line
    break in any case, so the tail is the last record, whatever its size, if there is no later one.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: one of the parts would be empty.
    """
    whole = checked_span(path)
    earliest = max(whole.stop - min(int(whole.stop * fraction), max_bytes), 1)
    if is_jsonl(path):
        return _split_lines(whole, earliest)
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        for border in filter(None, (separator, b"\n")):
            at = text.find(border, max(0, earliest - len(border)))
            while at != -1:
                cut = at + len(border)
                while border != b"\n" and text[cut : cut + 1] in (b"\r", b"\n"):
                    cut += 1
                if earliest <= cut < whole.stop:
                    return Span(path, 0, cut), Span(path, cut, whole.stop)
                at = text.find(border, at + 1)
        cut = earliest
        while cut < whole.stop and text[cut] & 0xC0 == 0x80:
            cut += 1
    if cut >= whole.stop:
        raise ValueError(
            f"{path} has {whole.stop:,} bytes, of which a fraction of {fraction} (at most {max_bytes:,} bytes) leaves "
            "nothing to hold out; give a longer file, a larger fraction or a file of its own for validation"
        )
    return Span(path, 0, cut), Span(path, cut, whole.stop)


def _split_lines(whole: Span, earliest: int) -> tuple[Span, Span]:
    """Divide a JSONL file at the first line break from `earliest` on that has a record behind it, or at the last."""
    path, _, stop = whole
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        while text[stop - 1 : stop].isspace():
            stop -= 1
        cut = (text.find(b"\n", earliest - 1, stop) + 1) or (text.rfind(b"\n", 0, stop) + 1)
    if not holds_record(path, 0, cut):
        raise ValueError(
            f"{path} has a single record, so nothing is left to train on beside what is held out; give more records, "
            "or a file of its own for validation"
        )
    return Span(path, 0, cut), Span(path, cut, whole.stop)
