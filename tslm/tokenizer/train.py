"""Trains byte-level BPE: files to counts of pre-tokens, counts to merges and a vocabulary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import closing
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from tslm.errors import UserError
from tslm.fast import replaceable
from tslm.tokenizer.blocks import read_blocks
from tslm.tokenizer.bpe import Pair, merge_pairs
from tslm.tokenizer.chunking import BLOCK_BYTES
from tslm.tokenizer.corpus import Corpus, TextInput
from tslm.tokenizer.jsonl import DOCUMENT_END
from tslm.tokenizer.pretokenize import GPT2, compiled, encode_specials, find_pretokens, special_pattern, split_specials
from tslm.tokenizer.sources import Span
from tslm.tokenizer.workers import POOL_BYTES, map_in_order, resolve_workers

# Joined pre-tokens, their sizes in bytes and their counts. Sending and adding 300,000 words in this form takes a third
# of the time that it takes as dictionaries.
PackedCounts: TypeAlias = tuple[bytes, npt.NDArray[np.intp], npt.NDArray[np.uint64]]

# Each part costs about 50 ms: its words are new to the worker, and its counts are sent back. So parts are large at
# first, and small at the end, so that all workers end together (guided self-scheduling, Polychronopoulos and Kuck
# 1987).
_SMALLEST_PART, _LARGEST_PART = 1 << 25, 1 << 27


def train_bpe(
    input_path: TextInput,
    vocab_size: int,
    special_tokens: Sequence[str],
    *,
    num_workers: int | None = None,
    executor: Executor | None = None,
    progress: bool = False,
    pattern: str = GPT2,
) -> tuple[dict[int, bytes], list[Pair]]:
    """Train a byte-level BPE tokenizer on one or more UTF-8 files.

    The rule: start with single bytes; merge the most frequent pair of neighbouring tokens within pre-tokens into a new
    token, again and again. Among equally frequent pairs the lexicographically greater pair of byte strings is merged.
    Ids are given to the special tokens in their order, then to the 256 bytes, then to the merges.

    Memory grows with the distinct pre-tokens, up to about 100 bytes for each of their bytes, but not with repetitions.

    Args:
        input_path: a file, a folder, a glob pattern, a `Span` (part of a file), several of them, or a `Corpus`. Each
            text file ends a document. In `.jsonl` files the field `text` of each line is one, and special tokens are
            not recognized there.
        vocab_size: the largest number of entries, including the 256 bytes and the special tokens; training ends earlier
            when no pair is left.
        special_tokens: strings that are one token each and that no merge crosses.
        num_workers: number of processes that count; None means one per core. It does not change the result.
        executor: any `concurrent.futures.Executor` to count on instead.
        progress: whether to show progress bars on stderr.
        pattern: how text is split into pre-tokens: "gpt2", "cl100k" (GPT-4's), "none", or a regular expression (see
            `pretokenize.find_pretokens`). Give the `Tokenizer` the same one.

    Returns:
        The vocabulary (id to bytes) and the merges.

    Raises:
        MissingFileError: a file does not exist.
        UserError: a file is empty or not UTF-8, `vocab_size` is too small, or the pattern is unusable.

    Source: Sennrich, Haddow and Birch 2016 (https://arxiv.org/abs/1508.07909), on bytes as in GPT-2 (Radford et al.
        2019).
    """
    check_vocab_size(vocab_size, encode_specials(special_tokens))
    counts = count_pretokens(
        input_path, special_tokens, num_workers=num_workers, executor=executor, progress=progress, pattern=pattern
    )
    return merge_pretokens(counts, vocab_size, special_tokens, progress=progress)


def count_pretokens(
    input_path: TextInput,
    special_tokens: Sequence[str],
    *,
    num_workers: int | None = None,
    executor: Executor | None = None,
    progress: bool = False,
    pattern: str = GPT2,
) -> dict[bytes, int]:
    """Count how often each pre-token occurs in one or more UTF-8 files.

    The text is split at special tokens, which are not counted, and between them by the pattern (see `pretokenize`).
    No pre-token crosses the end of a file. In files that end in `.jsonl` or `.ndjson` the field `text` of each record
    is a separate text, in which special tokens are not recognized (see `Corpus`). The number of workers does not change
    the result.

    Args:
        input_path: a file, a folder, a glob pattern, a `Span` (part of a file), several of them, or a `Corpus`.
        special_tokens: strings that no pre-token may cross, such as `<|endoftext|>` between documents.
        num_workers: number of processes; None means one per core. Less than 16 MB is counted in this process.
        executor: any `concurrent.futures.Executor` to run on instead.
        progress: whether to show a progress bar on stderr.
        pattern: "gpt2", "cl100k", "none", or a regular expression.

    Raises:
        MissingFileError: a file does not exist.
        UserError: a file is empty or not UTF-8 (with its name and the offset of the byte), a line of a JSONL file is
            not a record (with its number), a file changes while it is read, a special token is empty, or the pattern
            is invalid, takes too long or leaves out a part of the text.

    Example:
        A file that holds `low low<|endoftext|>low` gives `{b"low": 2, b" low": 1}`.
    """
    specials = encode_specials(special_tokens)
    compiled(pattern)  # checks it
    return count_corpus(
        Corpus(input_path), specials, num_workers=num_workers, executor=executor, progress=progress, pattern=pattern
    )


def count_corpus(
    corpus: Corpus,
    specials: list[bytes],
    *,
    num_workers: int | None = None,
    executor: Executor | None = None,
    progress: bool = False,
    pattern: str = GPT2,
    largest_part: int = _LARGEST_PART,
    block_bytes: int = BLOCK_BYTES,
    pool_bytes: int = POOL_BYTES,
) -> dict[bytes, int]:
    """Count as `count_pretokens` does, with a choice of sizes, which do not change the result.

    `largest_part` is the size of the largest part that a worker counts at a time, `block_bytes` the size of the blocks
    in which a part is read. Texts smaller than `pool_bytes` are counted in this process.
    """
    share = 1.5 * resolve_workers(num_workers)

    def part_bytes(rest: int) -> int:
        """Return the size of the next part if `rest` bytes are left."""
        return min(max(int(rest / share), _SMALLEST_PART), largest_part)

    parts = corpus.split(part_bytes, specials, pattern=pattern)
    tasks = (_Task(spans, corpus.specials_of(spans, specials), block_bytes, pattern) for spans in parts)
    results = map_in_order(_count_part, tasks, corpus.size, num_workers, executor, pool_bytes)
    bar = tqdm(total=corpus.size, desc="counting", unit="B", unit_scale=True, disable=not progress)

    def counted() -> Iterator[PackedCounts]:
        """Yield the counts of each part, and show the progress."""
        for counts, file_bytes in results:
            yield counts
            bar.update(file_bytes)

    with bar, closing(results):
        counts = add_counts(counted())
    corpus.check_unchanged()
    return counts


class _Task(NamedTuple):
    spans: list[Span]
    specials: list[bytes]
    block_bytes: int
    pattern: str


def _count_part(task: _Task) -> tuple[PackedCounts, int]:
    """Count one part of the text; also return the bytes that were read."""
    blocks = (block.text for block in read_blocks(task.spans, task.specials, task.block_bytes, 0, task.pattern))
    counts = count_blocks(blocks, [*task.specials, DOCUMENT_END], task.pattern)
    return counts, sum(span.stop - span.start for span in task.spans)


@replaceable
def count_blocks(blocks: Iterable[bytes], special_tokens: Sequence[bytes], pattern: str = GPT2) -> PackedCounts:
    """Count the pre-tokens of a text.

    Example: the block `b"low low<|e|>low"` with the special token `b"<|e|>"` gives low twice and ` low` once.

    Args:
        blocks: the text in UTF-8, cut where no pre-token or special token spans the cut.
        special_tokens: they separate pre-tokens and are not counted; they may hold any bytes.
        pattern: the pattern of pre-tokens.

    Returns:
        The distinct pre-tokens joined, their sizes in bytes, and their counts; in any order.

    Raises:
        UnicodeDecodeError: a piece between special tokens is not UTF-8.
    """
    specials = special_pattern(special_tokens)
    counts = Counter[str]()
    for block in blocks:
        for piece, is_special in split_specials(block, specials):
            if not is_special:
                counts.update(find_pretokens(piece.decode(), pattern))
    pretokens = [pretoken.encode() for pretoken in counts]
    return b"".join(pretokens), np.array([*map(len, pretokens)], np.intp), np.array([*counts.values()], np.uint64)


@replaceable
def add_counts(parts: Iterable[PackedCounts]) -> dict[bytes, int]:
    """Return the sum of the counts of several parts of a text.

    Example: low twice in one part and three times in another give `{b"low": 5}`.

    Args:
        parts: for each part what `count_blocks` returns; they are read one by one.
    """
    total = Counter[bytes]()
    for text, sizes, counts in parts:
        end = 0
        for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
            total[text[end : end + size]] += count
            end += size
    return dict(total)


def merge_pretokens(
    counts: Mapping[bytes, int], vocab_size: int, special_tokens: Sequence[str], *, progress: bool = False
) -> tuple[dict[int, bytes], list[Pair]]:
    """Make the merges of BPE from the counts of pre-tokens: the second half of `train_bpe`, which documents the rule.

    Example:
        >>> counts = {b"low": 5, b"lower": 2, b"widest": 3, b"newest": 6}
        >>> merge_pretokens(counts, 256 + 6, [])[1]
        [(b's', b't'), (b'e', b'st'), (b'o', b'w'), (b'l', b'ow'), (b'w', b'est'), (b'n', b'e')]

        `e s` and `s t` both occur 9 times at first; `s t` is the greater pair.

    Args:
        counts: how often each pre-token occurs.
        vocab_size: the largest number of entries, including the 256 bytes and the special tokens.
        special_tokens: they get the first ids, in their order.
        progress: whether to show a progress bar on stderr.

    Returns:
        The vocabulary (id to bytes) and the merges.

    Raises:
        UserError: `vocab_size` is below 256 plus the number of special tokens.
    """
    specials = encode_specials(special_tokens)
    check_vocab_size(vocab_size, specials)
    tokens = specials + [bytes([byte]) for byte in range(256)]
    max_merges = vocab_size - len(tokens)
    merges: list[Pair] = []
    with tqdm(total=max_merges, desc="merging", unit=" pairs", disable=not progress) as bar:
        for left, right in merge_pairs(counts, max_merges):
            merges.append((left, right))
            tokens.append(left + right)
            if progress:
                bar.set_postfix_str(f"{left[:40]!r} + {right[:40]!r}", refresh=False)  # a token may have megabytes
                bar.update()
    return dict(enumerate(tokens)), merges


def check_vocab_size(vocab_size: int, specials: Sequence[bytes]) -> None:
    """Check that the 256 bytes and the special tokens fit; called before a long count.

    Raises:
        UserError: they do not fit.
    """
    least = 256 + len(specials)
    if vocab_size < least:
        raise UserError(
            f"vocab_size is {vocab_size}, but the 256 bytes and {len(specials)} special tokens alone take {least}; "
            f"give {least} or more"
        )
