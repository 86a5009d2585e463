"""The texts on which the tokenizer's substitutes are compared with the functions as they are written, and measured."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

# Every kind of character and white space, contractions, a special token within another, and words of many lengths.
_TRICKY = (
    " I'll can't we'VE 's''s it\u2019s  two\t tabs \r\n\n \x1c\x0b a\u3000b \xa0\u2028c\u0301 \u00e9\u00c9\u00df "
    "\u5b57\u3092\u8aad\u3080 \U0001f600\U0001f44d\U0001f3fd \u0662\u00bd\u2163 20.5%, x=[1]; \0nul a\0 <|e|><|e|> "
    "<|e|> <|a b|> <|a b counter-revolutionaries aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab"
).encode()
_PROSE = b" the cat ate. The theme, then that.\n\nAt ten she ate the tea; he hates to eat! 'the' that's 1234 attest" * 2
PROBE_TEXTS = [_TRICKY, _PROSE, b"no white space", b" "]
PROBE_SPECIALS = [b"<|e|>", b"<|e|><|e|>", b"<|a b|>", b"\xff"]


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """What encoding looks up: the fields of `tokenizer.bpe.Vocabulary`, whose objects come with the calls."""

    ids: Mapping[bytes, int]
    ranks: Mapping[tuple[bytes, bytes], int]
    special_ids: Mapping[bytes, int]
    pattern: str = "gpt2"


def probe_vocabulary() -> Vocabulary:
    """Return a vocabulary whose merges compete, so that some tokens never result."""
    merges = [(b"t", b"h"), (b"th", b"e"), (b" ", b"t"), (b"a", b"t"), (b"e", b"r"), (b" t", b"he"), (b" ", b"th"),
              (b"a", b"a"), (b"aa", b"aa"), (b" th", b"e"), (b"h", b"e"), (b"at", b"e"), (b" ", b"ate"),
              (b"\xc3", b"\xa9"), (b"1", b"2"), (b"2", b"3"), (b"1", b"23"), (b"\n", b"\n"), (b"'", b"s"),
              (b"aaaa", b"b")]
    tokens = [bytes([byte]) for byte in range(256)] + [left + right for left, right in merges]
    ids = {token: id_ for id_, token in reversed([*enumerate(tokens)])}
    special_ids = {token: len(tokens) + n for n, token in enumerate(PROBE_SPECIALS)}
    return Vocabulary(ids, {pair: rank for rank, pair in enumerate(merges)}, special_ids)


def example_words(distinct: int, count: int) -> list[bytes]:
    """Draw words to measure with, some of them much more often than others, as in a text."""
    rng = random.Random(0)
    words = [b" " + bytes(rng.choices(b"etaoinshrdlu", k=rng.randint(2, 9))) for _ in range(distinct)]
    return rng.choices(words, [1 / rank for rank in range(1, distinct + 1)], k=count)


def example_vocabulary() -> Vocabulary:
    """Return a vocabulary for `example_words`: the bytes and the pairs of the twelve letters and the space."""
    letters = [bytes([letter]) for letter in b" etaoinshrdlu"]
    merges = [(left, right) for left in letters for right in letters[1:]]
    tokens = [bytes([byte]) for byte in range(256)] + [left + right for left, right in merges]
    return Vocabulary({token: id_ for id_, token in enumerate(tokens)}, {p: n for n, p in enumerate(merges)}, {})
