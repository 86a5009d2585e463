"""Counts the distinct pre-tokens of a text, in parallel over byte ranges of its files.

Paths come in, `{pre-token: count}` goes out. BPE training needs nothing else: merges never cross pre-tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from contextlib import closing
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from tslm.tokenizer.corpus import Corpus, Span, TextInput, read_blocks
from tslm.tokenizer.jsonl import DOCUMENT_END
from tslm.tokenizer.lexicon import Lexicon
from tslm.tokenizer.pretokenize import Positions, encode_specials, pretoken_borders, special_pattern
from tslm.tokenizer.stretches import divide_specials, stretch_borders
from tslm.tokenizer.tables import Keys
from tslm.tokenizer.workers import keep_freed_memory, map_in_order, resolve_workers
from tslm.tokenizer.workspace import Workspace

Counts = npt.NDArray[np.uint64]

_TOGETHER = 1 << 14  # words that are looked up in the wider tables at a time

# Each part costs some 50 ms, to meet the words of the text and to hand their counts on. So parts are large at first,
# and small at the end, where all workers should end together (guided self-scheduling, Polychronopoulos and Kuck 1987).
_SMALLEST_PART, _LARGEST_PART = 1 << 25, 1 << 27


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
    share = 1.5 * resolve_workers(num_workers)

    def part_bytes(rest: int) -> int:
        return min(max(int(rest / share), _SMALLEST_PART), _LARGEST_PART)

    tasks = ((spans, specials) for spans in corpus.split(part_bytes, specials))
    total = _Tally()
    bar = tqdm(total=corpus.size, desc="counting", unit="B", unit_scale=True, disable=not progress)
    results = map_in_order(_count_part, tasks, corpus.size, num_workers, executor)
    with bar, closing(results):
        for part in results:
            total.add_times(part.text, np.append(0, np.cumsum(part.sizes)), part.counts)
            bar.update(part.file_bytes)
    return total.as_dict(without=specials)


class _PartialCount(NamedTuple):
    """The counts of one part as a few flat arrays, which cross to another process faster than a dictionary."""

    file_bytes: int
    text: bytes  # the pre-tokens, one behind the other
    sizes: Positions
    counts: Counts


def _count_part(task: tuple[list[Span], list[bytes]]) -> _PartialCount:
    """Count the pre-tokens of one part of the text: in prose by way of its stretches, elsewhere at once."""
    keep_freed_memory()
    spans, specials = task
    pattern = special_pattern(specials)
    within_stretches, across_stretches = divide_specials(specials)
    space = Workspace()
    stretches, pretokens = _Tally(space), _Tally(space)
    for block in read_blocks(spans, specials):
        borders = stretch_borders(block, across_stretches, space)
        if borders is None:
            pretokens.add(block, pretoken_borders(block, pattern))
        else:
            stretches.add(block, borders)
    text, sizes, counts = stretches.words()
    borders = pretoken_borders(text, within_stretches)
    pretokens.add_times(text, borders, counts[np.searchsorted(np.cumsum(sizes), borders[:-1], "right")])
    return _PartialCount(sum(span.stop - span.start for span in spans), *pretokens.words())


class _Tally:
    """How often each word was met."""

    def __init__(self, space: Workspace | None = None) -> None:
        self._lexicon = Lexicon(space=space)
        self._later: list[Keys] = []  # words to look up in the wider tables
        self._waiting = 0

    def add(self, text: bytes, borders: Positions) -> None:
        """Count each word of a text once."""
        numbers, _, missed = self._lexicon.number_frequent(text, borders)
        np.add.at(self._lexicon.values, numbers, np.uint64(1))
        for wrong in (missed.packed_at, missed.others_at):
            np.subtract.at(self._lexicon.values, numbers[wrong], np.uint64(1))
        others, _ = self._lexicon.number_others(missed.others)
        np.add.at(self._lexicon.values, others, np.uint64(1))
        self._later.append(missed.keys)
        self._waiting += len(missed.keys)
        if self._waiting > _TOGETHER:
            self._catch_up()

    def add_times(self, text: bytes, borders: Positions, times: Counts) -> None:
        """Count each word of a text so many times."""
        numbers, _ = self._lexicon.number(text, borders)
        np.add.at(self._lexicon.values, numbers, times)

    def _catch_up(self) -> None:
        if self._later:
            numbers, _ = self._lexicon.number_packed(np.concatenate(self._later))
            np.add.at(self._lexicon.values, numbers, np.uint64(1))
            self._later, self._waiting = [], 0

    def words(self) -> tuple[bytes, Positions, Counts]:
        """Return the distinct words one behind the other, their sizes and their counts."""
        self._catch_up()
        words = self._lexicon.words()
        return words.text, words.sizes, self._lexicon.values[words.numbers]

    def as_dict(self, without: Sequence[bytes]) -> dict[bytes, int]:
        """Return the count of each word, except those of special tokens and of the ends of documents."""
        text, sizes, counts = self.words()
        ends = np.cumsum(sizes)
        counted = {
            text[start:end]: count
            for start, end, count in zip((ends - sizes).tolist(), ends.tolist(), counts.tolist(), strict=True)
        }
        for word in [word for word in counted if word in without or word.startswith(DOCUMENT_END)]:
            del counted[word]
        return counted
