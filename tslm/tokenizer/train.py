"""Trains byte-level BPE: from the counts of pre-tokens to a vocabulary and its merges.

Text files, or `{pre-token: count}`, come in; `vocab` (id -> bytes) and `merges` (pairs of bytes in the order in which
they were made) go out. `merging` finds the pairs; `plain` shows the method without its speed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor

from tqdm import tqdm

from tslm.tokenizer.corpus import TextInput
from tslm.tokenizer.count import count_pretokens
from tslm.tokenizer.merging import merged_pairs
from tslm.tokenizer.pretokenize import encode_specials

Vocab = dict[int, bytes]
Merges = list[tuple[bytes, bytes]]


def train_bpe(
    input_path: TextInput,
    vocab_size: int,
    special_tokens: Sequence[str],
    *,
    num_workers: int | None = None,
    executor: Executor | None = None,
    progress: bool = False,
) -> tuple[Vocab, Merges]:
    """Train a byte-level BPE tokenizer on one or more UTF-8 files.

    Starting from single bytes, the most frequent pair of neighbouring tokens inside a pre-token becomes a new token,
    again and again; among equally frequent pairs it is the lexicographically greater pair of byte strings. Ids: the
    special tokens in the order given, the 256 bytes, the merges.

    Args:
        input_path: a path, a `Span` (part of a file), or several, which are read as one text; in `.jsonl` files the
            field `text` of each line is a text of its own.
        vocab_size: the greatest number of entries, with the 256 bytes and the special tokens; training ends earlier
            when no pair is left.
        special_tokens: strings that are one token each and that nothing is merged across.
        num_workers: number of processes for counting; None takes one per core. It does not change the result.
        executor: any `concurrent.futures.Executor` to count on instead.
        progress: whether to show progress bars on stderr.

    Returns:
        The vocabulary (id to bytes) and the merges.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: a file is empty or not UTF-8, or `vocab_size` is too small.

    Source: Sennrich, Haddow and Birch 2016 (https://arxiv.org/abs/1508.07909), on bytes as in GPT-2 (Radford et al.
        2019).
    """
    check_vocab_size(vocab_size, encode_specials(special_tokens))
    counts = count_pretokens(
        input_path, special_tokens, num_workers=num_workers, executor=executor, progress=progress
    )
    return merge_pretokens(counts, vocab_size, special_tokens, progress=progress)


def merge_pretokens(
    counts: Mapping[bytes, int], vocab_size: int, special_tokens: Sequence[str], *, progress: bool = False
) -> tuple[Vocab, Merges]:
    """Make the merges of BPE from the counts of pre-tokens; the second half of `train_bpe`, which documents the rules.

    Example:
        >>> counts = {b"low": 5, b"lower": 2, b"widest": 3, b"newest": 6}
        >>> merge_pretokens(counts, 256 + 6, [])[1]
        [(b's', b't'), (b'e', b'st'), (b'o', b'w'), (b'l', b'ow'), (b'w', b'est'), (b'n', b'e')]

        `e s` and `s t` both occur 9 times at first; `s t` is the greater pair.

    Raises:
        ValueError: `vocab_size` is below 256 plus the number of special tokens.
    """
    specials = encode_specials(special_tokens)
    check_vocab_size(vocab_size, specials)
    tokens = [bytes([byte]) for byte in range(256)]  # tokens and merges have their own numbers here: bytes first
    merges: Merges = []
    wanted = vocab_size - len(specials) - 256
    with tqdm(total=wanted, desc="merging", unit=" pairs", disable=not progress) as bar:
        for left, right in merged_pairs(counts, tokens, wanted):
            merges.append((tokens[left], tokens[right]))
            if progress:
                bar.set_postfix_str(f"{tokens[left]!r} + {tokens[right]!r}", refresh=False)
                bar.update()
    return dict(enumerate(specials + tokens)), merges


def check_vocab_size(vocab_size: int, specials: Sequence[bytes]) -> None:
    """Check that the 256 bytes and the special tokens fit, which is worth knowing before a long count.

    Raises:
        ValueError: they do not.
    """
    least = 256 + len(specials)
    if vocab_size < least:
        raise ValueError(
            f"vocab_size is {vocab_size}, but the 256 bytes and {len(specials)} special tokens alone take {least}; "
            f"give {least} or more"
        )
