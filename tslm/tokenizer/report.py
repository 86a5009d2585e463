"""Trains a tokenizer and takes note of what it cost and what it is worth.

Text files come in; a `TrainingReport` goes out: the tokenizer, the counts behind it, seconds, memory, and from these
the longest token and the compression.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tslm.tokenizer.bpe import Tokenizer
from tslm.tokenizer.corpus import TextInput
from tslm.tokenizer.count import count_pretokens
from tslm.tokenizer.pretokenize import encode_specials
from tslm.tokenizer.train import check_vocab_size, merge_pretokens
from tslm.tokenizer.workers import resolve_workers


@dataclass(frozen=True)
class TrainingReport:
    """A tokenizer and its training.

    Attributes:
        tokenizer: what was trained.
        counts: how often each pre-token occurs in the text.
        counting_seconds: the first half of training, files to counts.
        merging_seconds: the second half, counts to merges.
        peak_bytes: `peak_memory` at the end.
    """

    tokenizer: Tokenizer
    counts: dict[bytes, int]
    counting_seconds: float
    merging_seconds: float
    peak_bytes: int | None

    @property
    def seconds(self) -> float:
        """Both halves together."""
        return self.counting_seconds + self.merging_seconds

    @property
    def memory(self) -> str:
        """The peak memory in words."""
        if self.peak_bytes is None:
            return "not known on this system"
        return f"at most {self.peak_bytes / 1e6:,.0f} MB over all processes"

    def lines(self) -> list[str]:
        """Return the report as lines of text, a name and its value in each."""
        longest = longest_tokens(self.tokenizer, 1)[0]
        compression = f"{bytes_per_token(self.tokenizer, self.counts):.2f} bytes per token" if self.counts else (
            "none to measure: the text holds nothing but special tokens"
        )
        return [
            f"time           {self.seconds:.1f} s: counting {self.counting_seconds:.1f} s, "
            f"merging {self.merging_seconds:.1f} s",
            f"peak memory    {self.memory}",
            f"longest token  {longest.decode(errors='replace')!r} ({len(longest)} bytes)",
            f"compression    {compression}",
        ]


def train_with_report(
    input_path: TextInput,
    vocab_size: int,
    special_tokens: Sequence[str],
    *,
    num_workers: int | None = None,
    progress: bool = False,
) -> TrainingReport:
    """Do what `train_bpe` does, which documents arguments and errors, and measure it."""
    check_vocab_size(vocab_size, encode_specials(special_tokens))
    start = time.perf_counter()
    counts = count_pretokens(input_path, special_tokens, num_workers=num_workers, progress=progress)
    between = time.perf_counter()
    vocab, merges = merge_pretokens(counts, vocab_size, special_tokens, progress=progress)
    end = time.perf_counter()
    peak_bytes = peak_memory(num_workers)
    return TrainingReport(Tokenizer(vocab, merges, special_tokens), counts, between - start, end - between, peak_bytes)


def peak_memory(num_workers: int | None) -> int | None:
    """Return an upper bound in bytes of the memory that this process and its workers held at one time.

    It is the process's own peak plus, for each other worker, that of the largest child that has ended. So it supposes
    that all were at their peaks together, and counts the libraries that they share once for each. On Linux a process
    also begins with the peak of the one that started it.

    Args:
        num_workers: how many processes there were at a time, this one included, as `train_bpe` was told.

    Returns:
        None on Windows, which does not say.
    """
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # what ru_maxrss counts in
    own, child = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return unit * (own + (resolve_workers(num_workers) - 1) * child)


def longest_tokens(tokenizer: Tokenizer, count: int) -> list[bytes]:
    """Return the longest tokens that are not special ones, the longest first; of equal ones that with the lower id."""
    specials = set(tokenizer.special_ids.values())
    tokens = [token for id_, token in sorted(tokenizer.vocab.items()) if id_ not in specials]
    return sorted(tokens, key=len, reverse=True)[:count]


def bytes_per_token(tokenizer: Tokenizer, counts: Mapping[bytes, int]) -> float:
    """Return the compression of a text, special tokens left out: the bytes of its pre-tokens by the number of tokens.

    Each distinct pre-token is encoded once, so that the text need not be read again.

    Raises:
        ValueError: the vocabulary lacks a byte of the text.
    """
    tokens = sum(count * len(tokenizer.encode(word.decode())) for word, count in counts.items())
    return sum(count * len(word) for word, count in counts.items()) / tokens
