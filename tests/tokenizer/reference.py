"""Slow and obvious BPE, straight from the definition, and texts that are hard to cut."""

import random
from collections import Counter
from itertools import pairwise

import regex

from tslm.tokenizer.pretokenize import PATTERN

# Every kind of character, the letters of the contractions, and white space of one, two and three bytes.
TRICKY = list("aZ1' \t\n\r\x0b\x1c.,!sdmtlvre'' \x00\x85\xa0\u3000\u2028é字😀²١\u0301")


def tricky_text(rng: random.Random, length: int, pieces: list[str] = TRICKY) -> str:
    """Draw a text of `length` pieces."""
    return "".join(rng.choices(pieces, k=length))


def slow_pretokens(text: str, special_tokens: list[str]) -> list[str]:
    """Cut out the special tokens, leftmost and longest, and apply the pattern between them."""
    if not special_tokens:
        return PATTERN.findall(text)
    longest_first = sorted(special_tokens, key=len, reverse=True)
    parts = regex.split("(" + "|".join(map(regex.escape, longest_first)) + ")", text)
    return [word for part in parts for word in ([part] if part in special_tokens else PATTERN.findall(part))]


def slow_counts(text: str, special_tokens: list[str]) -> dict[bytes, int]:
    """Count pre-tokens."""
    return dict(Counter(word.encode() for word in slow_pretokens(text, special_tokens) if word not in special_tokens))


def slow_merges(counts: dict[bytes, int], number: int) -> list[tuple[bytes, bytes]]:
    """Train BPE, counting all pairs anew before each merge."""
    words = [([bytes([byte]) for byte in word], count) for word, count in counts.items()]
    merges = []
    for _ in range(number):
        pairs = Counter()
        for word, count in words:
            for pair in pairwise(word):
                pairs[pair] += count
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        words = [(merge(word, best), count) for word, count in words]
    return merges


def merge(word: list[bytes], pair: tuple[bytes, bytes]) -> list[bytes]:
    """Replace each occurrence of a pair, from left to right."""
    merged, at = [], 0
    while at < len(word):
        if tuple(word[at : at + 2]) == pair:
            merged.append(word[at] + word[at + 1])
            at += 2
        else:
            merged.append(word[at])
            at += 1
    return merged


def slow_encode(
    text: str, ids: dict[bytes, int], merges: list[tuple[bytes, bytes]], special_tokens: list[str]
) -> list[int]:
    """Encode with the merges tried one after the other, which trained merges allow."""
    encoded = []
    for piece in slow_pretokens(text, special_tokens):
        word = [piece.encode()] if piece in special_tokens else [bytes([byte]) for byte in piece.encode()]
        for pair in merges:
            if len(word) == 1:
                break
            word = merge(word, pair)
        encoded += [ids[token] for token in word]
    return encoded
