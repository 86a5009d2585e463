"""Trains a tokenizer and reports time, memory, the longest token and the compression."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import mul

from tslm.tokenizer.corpus import TextInput
from tslm.tokenizer.pretokenize import GPT2, encode_specials
from tslm.tokenizer.tokenizer import Tokenizer
from tslm.tokenizer.train import check_vocab_size, count_pretokens, merge_pretokens
from tslm.tokenizer.workers import resolve_workers

SHOWN = 100  # bytes of a token; in a text without a place to cut it may have megabytes


@dataclass(frozen=True)
class TrainingReport:
    """A tokenizer and its training.

    Attributes:
        tokenizer: the trained tokenizer.
        counts: how often each pre-token occurs in the text.
        counting_seconds: the time from files to counts.
        merging_seconds: the time from counts to merges.
        peak_bytes: `peak_memory` at the end.
    """

    tokenizer: Tokenizer
    counts: dict[bytes, int]
    counting_seconds: float
    merging_seconds: float
    peak_bytes: int | None

    @property
    def seconds(self) -> float:
        """The time of training."""
        return self.counting_seconds + self.merging_seconds

    @property
    def memory(self) -> str:
        """The peak memory as text."""
        if self.peak_bytes is None:
            return "not known on this system"
        return f"at most {self.peak_bytes / 1e6:,.0f} MB over all processes"

    def lines(self) -> list[str]:
        """Return the report as lines of text, each with a name and its value."""
        longest = longest_tokens(self.tokenizer, 1)[0]
        compression = f"{bytes_per_token(self.tokenizer, self.counts):.2f} bytes per token" if self.counts else (
            "unknown: the text holds nothing but special tokens"
        )
        return [
            f"time           {self.seconds:.1f} s: counting {self.counting_seconds:.1f} s, "
            f"merging {self.merging_seconds:.1f} s",
            f"peak memory    {self.memory}",
            f"longest token  {longest[:SHOWN].decode(errors='replace')!r}{' …' * (len(longest) > SHOWN)} "
            f"({len(longest)} bytes)",
            f"compression    {compression}",
        ]


def train_with_report(
    input_path: TextInput,
    vocab_size: int,
    special_tokens: Sequence[str],
    *,
    num_workers: int | None = None,
    progress: bool = False,
    pattern: str = GPT2,
) -> TrainingReport:
    """Train as `train_bpe` does, which documents arguments and errors, and measure it."""
    check_vocab_size(vocab_size, encode_specials(special_tokens))
    start = time.perf_counter()
    counts = count_pretokens(
        input_path, special_tokens, num_workers=num_workers, progress=progress, pattern=pattern
    )
    between = time.perf_counter()
    vocab, merges = merge_pretokens(counts, vocab_size, special_tokens, progress=progress)
    end = time.perf_counter()
    peak_bytes = peak_memory(num_workers)
    tokenizer = Tokenizer(vocab, merges, special_tokens, pattern=pattern)
    return TrainingReport(tokenizer, counts, between - start, end - between, peak_bytes)


def peak_memory(num_workers: int | None) -> int | None:
    """Return an upper bound in bytes of the memory that this process and its workers held at one time.

    The bound is the peak of this process plus, for each other worker, the peak of the largest child that has ended. It
    assumes that all peaks coincide, and counts shared libraries once for each process. On Linux the peak of a process
    includes that of the process that started it.

    Args:
        num_workers: the number of processes, including this one, as for `train_bpe`.

    Returns:
        The bound; None on Windows, which does not report it.
    """
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # the unit of ru_maxrss
    own, child = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return unit * (own + (resolve_workers(num_workers) - 1) * child)


def longest_tokens(tokenizer: Tokenizer, count: int) -> list[bytes]:
    """Return the longest tokens that are not special, the longest first; among equally long ones, by id."""
    specials = set(tokenizer.special_ids.values())
    tokens = [token for id_, token in sorted(tokenizer.vocab.items()) if id_ not in specials]
    return sorted(tokens, key=len, reverse=True)[:count]


def bytes_per_token(tokenizer: Tokenizer, counts: Mapping[bytes, int]) -> float:
    """Return the compression of a text without special tokens: the bytes of its pre-tokens per token.

    Each distinct pre-token is encoded once, so the text is not read again.

    Raises:
        UserError: the vocabulary lacks a byte of the text.
    """
    tokens: int = sum(map(mul, counts.values(), tokenizer.count_tokens([*counts])))
    return sum(count * len(word) for word, count in counts.items()) / tokens
