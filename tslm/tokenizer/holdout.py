"""Divides one text file into a part to train on and whole documents at its end to hold out for validation."""

from __future__ import annotations

import mmap
import os

from tslm.errors import UserError
from tslm.tokenizer.corpus import Span, checked_span
from tslm.tokenizer.jsonl import holds_record, is_jsonl


def split_tail(
    path: str | os.PathLike[str], separator: bytes, fraction: float, max_bytes: int
) -> tuple[Span, Span]:
    """Divide a file into a first part and a tail of about `fraction` of its bytes, at most `max_bytes`.

    The cut follows a separator and the line break after it. If the tail would hold no separator, the cut follows a line
    break; if there is none either, the cut is between two characters. A JSONL file is always cut after a line break,
    so that its tail is at least the last record, whatever its size.

    Raises:
        MissingFileError: the file does not exist.
        UserError: one of the two parts would be empty.
    """
    whole = checked_span(path)
    earliest = max(whole.stop - min(int(whole.stop * fraction), max_bytes), 1)
    if is_jsonl(path):
        return _split_lines(whole, earliest)
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        for boundary in filter(None, (separator, b"\n")):
            at = text.find(boundary, max(0, earliest - len(boundary)))
            while at != -1:
                cut = at + len(boundary)
                while boundary != b"\n" and text[cut : cut + 1] in (b"\r", b"\n"):
                    cut += 1
                if earliest <= cut < whole.stop:
                    return Span(path, 0, cut), Span(path, cut, whole.stop)
                at = text.find(boundary, at + 1)
        cut = earliest
        while cut < whole.stop and text[cut] & 0xC0 == 0x80:
            cut += 1
    if cut >= whole.stop:
        raise UserError(
            f"{path} has {whole.stop:,} bytes, of which a fraction of {fraction} (at most {max_bytes:,} bytes) leaves "
            "nothing to hold out; give a longer file, a larger fraction or a separate file for validation"
        )
    return Span(path, 0, cut), Span(path, cut, whole.stop)


def _split_lines(whole: Span, earliest: int) -> tuple[Span, Span]:
    """Divide a JSONL file at the first line break from `earliest` on that a record follows, or else at the last one."""
    path, _, stop = whole
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        while text[stop - 1 : stop].isspace():
            stop -= 1
        cut = (text.find(b"\n", earliest - 1, stop) + 1) or (text.rfind(b"\n", 0, stop) + 1)
    if not holds_record(path, 0, cut):
        raise UserError(
            f"{path} has a single record, so nothing is left to train on besides the held-out part; give more records, "
            "or a separate file for validation"
        )
    return Span(path, 0, cut), Span(path, cut, whole.stop)
