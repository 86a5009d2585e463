"""Divides the user's texts into documents to train on and documents to hold out for validation."""

from __future__ import annotations

import hashlib
import mmap
from array import array
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from tqdm import tqdm

from tslm.errors import UserError
from tslm.tokenizer.sources import Span, find_documents, is_jsonl

_SHOWN = 1 << 28  # bytes from which a progress bar is shown; they take about a second


def hold_out(spans: Sequence[Span], separator: bytes, share: float, most: int,
             least: int) -> tuple[list[Span], list[Span], str]:
    """Divide texts into documents to train on and whole documents to hold out.

    The rule: documents are ordered by a hash of their bytes, and the first ones are held out until they have `share` of
    all bytes, but at most `most` and at least `least`. So they are spread over the whole input, they do not depend on
    the order of the files, and copies of a document stay on one side. A document of more than half of all bytes is
    never held out. If no document can be, as where there is only one, the end of the last text is held out.

    Args:
        spans: the texts.
        separator: stands between the documents of a text file; empty if nothing does.
        share: the share of all bytes to hold out.
        most: the largest number of bytes to hold out; the last document may exceed it.
        least: the smallest number of bytes to hold out, up to half of all.

    Returns:
        The spans to train on, the spans to hold out, and a notice if the end of a text had to be held out, else "".

    Raises:
        UserError: nothing would be left on one side.
    """
    owners, ends, hashes = array("q"), array("q"), array("Q")  # of each document
    size = sum(span.stop - span.start for span in spans)
    with tqdm(total=size, desc="finding documents", unit="B", unit_scale=True, disable=size < _SHOWN) as bar:
        for owner, span in enumerate(spans):
            done = span.start
            for document in find_documents(span, separator):
                owners.append(owner)
                ends.append(document.end)
                hashes.append(int.from_bytes(hashlib.blake2b(document.text.strip(), digest_size=8).digest()))
                if document.end - done >= _SHOWN >> 7 or document.end == span.stop:
                    bar.update(document.end - done)
                    done = document.end
    # A document begins where the one before it ends.
    starts = np.append(0, ends[:-1])
    is_new = np.append(True, np.diff(owners) != 0)
    starts[is_new] = [span.start for span in spans]
    _, group = np.unique(np.array(hashes), return_inverse=True)
    totals = np.bincount(group, np.array(ends) - starts).astype(np.int64)
    possible = np.flatnonzero(totals <= size // 2)  # in the order of the hashes
    wanted = min(max(min(int(size * share), most), least), size // 2)
    number = int(np.searchsorted(np.cumsum(totals[possible]), wanted)) + 1
    chosen = np.isin(group, possible[:number])
    if not chosen.any():
        what = "is a single document" if len(owners) == 1 else "repeats or dwarfs all other documents"
        first, last = _split_end(spans[-1], share, most, least, what)
        return [*spans[:-1], first], [last], (
            f"{spans[-1].label} {what}, so its end is held out for validation: {last.stop - last.start:,} bytes."
        )
    # Documents of one side that follow each other in one file are one span.
    begins = np.flatnonzero(is_new | np.append(True, np.diff(chosen) != 0)).tolist()
    sides: tuple[list[Span], list[Span]] = [], []
    for begin, after in pairwise([*begins, len(owners)]):
        part = spans[owners[begin]]._replace(start=int(starts[begin]), stop=ends[after - 1])
        sides[bool(chosen[begin])].append(part)
    return *sides, ""


def _split_end(span: Span, share: float, most: int, least: int, what: str) -> tuple[Span, Span]:
    """Divide a text into a first part and an end of about `share` of its bytes, at a line break if there is one.

    The other arguments are those of `hold_out`, and what is wrong with the text.
    """
    size = span.stop - span.start
    wanted = min(max(min(int(size * share), most), least), size // 2)
    earliest = max(span.stop - wanted, span.start + 1)
    with open(span.path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        cut = text.find(b"\n", earliest - 1, span.stop - 1) + 1
        if not cut:
            cut = earliest
            while cut < span.stop and text[cut] & 0xC0 == 0x80:
                cut += 1
    if cut >= span.stop or is_jsonl(span.path):
        raise UserError(f"{span.label} {what}, and its {size:,} bytes leave nothing to hold out; give more text, or a "
                        "file for validation")
    return span._replace(stop=cut), span._replace(start=cut)
