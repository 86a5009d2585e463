"""Slow, obvious splitting, counting, training and encoding, from the definition, and texts that are hard to split."""

import random
from collections import Counter

import regex

from tslm import fast, merge_pretokens
from tslm.tokenizer.bpe import encode, rank_merges
from tslm.tokenizer.pretokenize import PATTERN

# Every kind of character, the letters of the contractions, and white space of one, two and three bytes.
TRICKY = list("aZ1' \t\n\r\x0b\x1c.,!sdmtlvre'' \x00\x85\xa0\u3000\u2028é字😀²١\u0301")


def tricky_text(rng: random.Random, length: int, pieces: list[str] = TRICKY) -> str:
    """Draw a text of `length` pieces."""
    return "".join(rng.choices(pieces, k=length))


def slow_pretokens(text: str, special_tokens: list[str]) -> list[str]:
    """Split at the special tokens, leftmost and longest, and apply the pattern between them."""
    if not special_tokens:
        return PATTERN.findall(text)
    longest_first = sorted(special_tokens, key=len, reverse=True)
    parts = regex.split("(" + "|".join(map(regex.escape, longest_first)) + ")", text)
    return [word for part in parts for word in ([part] if part in special_tokens else PATTERN.findall(part))]


def slow_counts(text: str, special_tokens: list[str]) -> dict[bytes, int]:
    """Count pre-tokens."""
    return dict(Counter(word.encode() for word in slow_pretokens(text, special_tokens) if word not in special_tokens))


def slow_merges(
    counts: dict[bytes, int], vocab_size: int, special_tokens: list[str]
) -> tuple[dict[int, bytes], list[tuple[bytes, bytes]]]:
    """Train by the definition."""
    with fast.shut():
        return merge_pretokens(counts, vocab_size, special_tokens)


def slow_word(word: bytes, merges: list[tuple[bytes, bytes]]) -> list[bytes]:
    """Return the tokens of one pre-token by the definition."""
    return encode(word, rank_merges(merges))


def slow_encode(
    text: str, ids: dict[bytes, int], merges: list[tuple[bytes, bytes]], special_tokens: list[str]
) -> list[int]:
    """Split, and encode each pre-token by the definition."""
    words = slow_pretokens(text, special_tokens)
    ranks = rank_merges(merges)
    tokens = [[word.encode()] if word in special_tokens else encode(word.encode(), ranks) for word in words]
    return [ids[token] for word in tokens for token in word]
