"""Counts the distinct pre-tokens of a text, in parallel over byte ranges of its files.

Paths come in, `{pre-token: count}` goes out. BPE training needs nothing else: merges never cross pre-tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from contextlib import closing
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from tslm.tokenizer.corpus import Corpus, Span, TextInput, read_blocks
from tslm.tokenizer.jsonl import DOCUMENT_END
from tslm.tokenizer.lexicon import Lexicon
from tslm.tokenizer.pretokenize import encode_specials, pretoken_starts, special_pattern
from tslm.tokenizer.workers import map_in_order, resolve_workers

_TASK_BYTES = (1 << 22, 1 << 26)  # small enough for a lively progress bar, large enough that few tables are joined


def count_pretokens(
    input_path: TextInput,
    special_tokens: Sequence[str],
    *,
    num_workers: int | None = None,
    executor: Executor | None = None,
    progress: bool = False,
) -> dict[bytes, int]:
    """Count how often each pre-token occurs in one or more UTF-8 files.

    The text is cut at special tokens, which are not counted, and between them by GPT-2's pattern
    (`pretokenize.PATTERN`). Several plain files are read as one text. Of files that end in `.jsonl` or `.ndjson` the
    field `text` of each record is a text of its own (see `jsonl`). Neither the number of workers nor the size of their
    parts changes the result.

    Args:
        input_path: a path, a `Span` (part of a file), or several.
        special_tokens: strings that no pre-token may cross, such as `<|endoftext|>` between documents.
        num_workers: number of processes; None takes one per core. Below 16 MB the work stays in this process.
        executor: any `concurrent.futures.Executor` to run on instead.
        progress: whether to show a progress bar on stderr.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: a file is empty or not UTF-8 (with its name and the byte's offset), a line of a JSONL file is no
            record (with its number), or a special token is empty.

    Example:
        A file that holds `low low<|endoftext|>low` gives `{b"low": 2, b" low": 1}`.
    """
    specials = encode_specials(special_tokens)
    corpus = Corpus(input_path)
    smallest, largest = _TASK_BYTES
    task_bytes = min(max(corpus.size // (4 * resolve_workers(num_workers)), smallest), largest)
    tasks = ((spans, specials) for spans in corpus.split(task_bytes, specials))
    counts: dict[bytes, int] = {}
    bar = tqdm(total=corpus.size, desc="counting", unit="B", unit_scale=True, disable=not progress)
    results = map_in_order(_count_part, tasks, corpus.size, num_workers, executor)
    with bar, closing(results):
        for part in results:
            part.add_to(counts)
            bar.update(part.text_bytes)
    return counts


class _PartialCount(NamedTuple):
    """The counts of one part as a few flat arrays, which cross to another process faster than a dictionary."""

    text_bytes: int
    words: bytes  # one behind the other
    sizes: npt.NDArray[np.uint32]
    counts: npt.NDArray[np.int64]

    def add_to(self, counts: dict[bytes, int]) -> None:
        start = 0
        for size, count in zip(self.sizes.tolist(), self.counts.tolist(), strict=True):
            word = self.words[start : start + size]
            counts[word] = counts.get(word, 0) + count
            start += size


def _count_part(task: tuple[list[Span], list[bytes]]) -> _PartialCount:
    """Count the pre-tokens of one part of the text."""
    spans, specials = task
    starts_of = partial(pretoken_starts, specials=special_pattern(specials))
    lexicon = Lexicon()
    words: list[bytes] = []
    counts = np.zeros(1 << 12, np.int64)
    for block in read_blocks(spans, specials):
        numbers, new_words = lexicon.number(block, starts_of(block))
        words += new_words
        if len(words) > len(counts):
            counts = np.concatenate([counts, np.zeros(2 * len(words), np.int64)])
        found = np.bincount(numbers)
        counts[: len(found)] += found
    kept = [
        (word, count)
        for word, count in zip(words, counts.tolist(), strict=False)
        if word not in specials and not word.startswith(DOCUMENT_END)
    ]
    return _PartialCount(
        text_bytes=sum(span.stop - span.start for span in spans),
        words=b"".join(word for word, _ in kept),
        sizes=np.array([len(word) for word, _ in kept], np.uint32),
        counts=np.array([count for _, count in kept], np.int64),
    )
