"""Random inputs that a tokenizer is likely to get wrong: texts, special tokens, vocabularies and damaged files."""

import json
import random

from tests.tokenizer.reference import slow_counts
from tslm.tokenizer import END_OF_TEXT, Tokenizer, merge_pretokens

WHITE = [*"\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a",
         *"\u2028\u2029\u202f\u205f\u3000"]  # fmt: skip
_NOT_WHITE = [*"\x00\x1c\x1d\x1e\x1f\x7f\u180e\u200b\u200d\u2060\ufeff"]  # other programs treat these as white space
_APOSTROPHES = ["'", "''", "'s", "'S", "'d", "'m", "'t", "'l", "'ll", "'lL", "'v", "'ve", "'re", "\u2019s", "'\u017f"]
_MARKS = [*"\u0300\u0301\u0338\u20e3\ufe0f\u0903\u3099", "e\u0301", "\U0001f468\u200d\U0001f469", "\U0001f1e9" * 2]
_NUMBERS = [*"019\u00b2\u00bd\u0663\u0967\u2167\u3007\u4e00\U0001d7d8\U00010107"]
_EDGES = [*"\x7f\x80\u07ff\u0800\ud7ff\ue000\uf8ff\ufffd\ufffe\uffff\U00010000\U000e0001\U0010ffff"]
_LETTERS = [*"aAzZ\u00aa\u00df\u00e9\u0130\u01c5\u0416\u05d0\u0627\u0905\u0e01\u3042\u5b57\uac00\U00020000"]
_OTHERS = [*".,!?-_=<|>()\"\\#@\u20ac\u2014\u2026\U0001f600"]
_WORDS = ["low", "lower", " low", " newest", "the", " the", "eight888", "don't", "I'll", "x", "xx", "\u0441\u043b"]
_GROUPS = [WHITE, _NOT_WHITE, _APOSTROPHES, _MARKS, _NUMBERS, _EDGES, _LETTERS, _OTHERS, _WORDS, [" "], ["\n"]]
_SPECIALS = [END_OF_TEXT, END_OF_TEXT * 2, "<|e", "<|e|>", "<|e|><|e|>", "a", "ab", "a b", " ", "  ", " low", "low er",
             "\n", "\n\n", "\u00e9", "\u3000", "'", "'s", "'ll", "ll", "\u0301", "\U0001f600", "\U0010ffff", "12",
             ".", "\x00"]  # fmt: skip
# Invalid UTF-8: lone bytes, an overlong NUL, a surrogate, a code point above U+10FFFF, an incomplete character.
_BAD_BYTES = [b"\xff", b"\x80", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82"]
_BAD_RECORDS = [b"[]", b"1", b"null", b'"text"', b"{}", b'{"text": null}', b'{"text": ["a"]}', b'{"Text": "a"}',
                b'{"text": "\\udc00\\ud800"}', b"[" * 30, b"NaN", b"\xef\xbb\xbf{}"]  # fmt: skip
_BAD_PARTS = [b"\xff", b"\xc3", b'"', b"\\", b"\n", b"\\ud800", b"\\ud83d\\ude00", b"\x00", b"}"]  # of a line of JSON


def nasty_text(rng: random.Random, pieces: int) -> str:
    """Draw a text of up to `pieces` parts: characters, words of about 8, 16 or 32 bytes, runs of one character."""
    groups = rng.sample(_GROUPS, rng.randint(1, 6))
    drawn = []
    for _ in range(rng.randint(0, pieces)):
        kind = rng.random()
        if kind < 0.02:
            drawn.append(rng.choice(rng.choice(groups)) * rng.choice([2, 3, 8, 33, 200]))
        elif kind < 0.04:
            drawn.append(any_character(rng))
        elif kind < 0.08:
            length = rng.choice([7, 8, 9, 15, 16, 17, 31, 32, 33, 64])
            drawn.append("".join(rng.choices("ab\x00" if rng.random() < 0.1 else "abcdefgh", k=length)))
        else:
            drawn.append(rng.choice(rng.choice(groups)))
    text = "".join(drawn)
    return "".join(filter(str.isascii, text)) if rng.random() < 0.2 else text


def any_character(rng: random.Random) -> str:
    """Draw a code point from all of Unicode, or near the start of a length of UTF-8."""
    while True:
        point = rng.choice([rng.randrange(0x110000), rng.randrange(0x300), rng.randrange(0x2000, 0x3100)])
        if not 0xD800 <= point < 0xE000:
            return chr(point)


def nasty_specials(rng: random.Random) -> list[str]:
    """Draw special tokens that overlap, that are prefixes of each other, or that contain white space."""
    return rng.sample(_SPECIALS, rng.choice([0, 1, 1, 2, 3, 6]))


def with_specials(rng: random.Random, text: str, specials: list[str]) -> str:
    """Insert special tokens and parts of them into a text."""
    for _ in range(rng.randint(0, 8) if specials else 0):
        token = rng.choice(specials)
        at = rng.randint(0, len(text))
        text = text[:at] + rng.choice([token, token, token * 2, token[:-1], token[1:]]) + text[at:]
    return text


def odd_tokenizer(rng: random.Random, text: str, specials: list[str], *, complete: bool = False) -> Tokenizer:
    """Return a tokenizer trained on a part of the text, or made of random merges of its bytes.

    The vocabulary may have duplicate tokens, unused tokens and gaps between ids. Merges may be duplicate or
    unreachable. Unless `complete` is set, bytes and merged tokens may be missing from the vocabulary.
    """
    if rng.random() < 0.4:
        size = 256 + len(specials) + 40
        return Tokenizer(*merge_pretokens(slow_counts(text[:400], specials), size, specials), specials)
    merges: list[tuple[bytes, bytes]] = []
    data = text.encode()
    tokens = [data[at : at + 1] for at in range(min(len(data), 300))] or [b"a"]
    for _ in range(rng.randint(0, 60)):
        left, right = rng.choice(tokens), rng.choice(tokens)
        if data and rng.random() < 0.5:  # a pair that occurs in the text
            at = rng.randrange(len(data))
            left, right = data[at : at + 1], data[at + 1 : at + 2]
        if left and right:
            merges.append((left, right))
            tokens.append(left + right)
    if rng.random() < 0.2:
        merges += rng.choices(merges, k=3) if merges else []
    if rng.random() < 0.2:
        merges.append((b"never", b" reached"))
    entries = list(dict.fromkeys([*(bytes([byte]) for byte in range(256)), *(left + right for left, right in merges)]))
    if not complete and rng.random() < 0.3:
        entries = [entry for entry in entries if rng.random() < 0.98]
    entries += rng.choices(entries, k=rng.choice([0, 0, 5]))
    entries += [b"unreachable", b"\xff\xff"] * (rng.random() < 0.2)
    rng.shuffle(entries)
    gap = rng.choice([1, 1, 3, 400])  # with a gap of 400 some ids need more than two bytes
    return Tokenizer({gap * n: entry for n, entry in enumerate(entries)}, merges, specials)


def broken_bytes(rng: random.Random, text: str) -> bytes:
    """Return the UTF-8 of a text with up to two damages: bytes replaced, removed, inserted or truncated."""
    data = bytearray(text.encode())
    for _ in range(rng.choice([0, 1, 1, 2])):
        at = rng.randint(0, len(data))
        fresh = rng.choice([*_BAD_BYTES, rng.randbytes(2)])
        width = rng.choice([0, 1, len(data) if rng.random() < 0.3 else 1])
        data[at : at + width] = fresh if rng.random() < 0.7 else b""
    return bytes(data)


def broken_lines(rng: random.Random, texts: list[str]) -> bytes:
    """Return a JSONL file of the texts. One line may be damaged."""
    lines = []
    for text in texts:
        record = {"id": 1, "text": text} if rng.random() < 0.5 else {"text": text, "text2": [None, {"text": 1}]}
        lines.append(json.dumps(record, ensure_ascii=rng.random() < 0.5).encode())
        lines += rng.choice([[], [], [], [b""], [b" \t\r"]])
    damage = rng.choice([None, None, _truncate, _corrupt, _replace])
    if damage is not None and lines:
        at = rng.randrange(len(lines))
        lines[at] = damage(rng, lines[at])
    return rng.choice([b"\n", b"\r\n"]).join(lines) + rng.choice([b"", b"\n", b"\n\n"])


def _truncate(rng: random.Random, line: bytes) -> bytes:
    return line[: rng.randint(0, len(line))]


def _corrupt(rng: random.Random, line: bytes) -> bytes:
    at = rng.randint(0, len(line))
    return line[:at] + rng.choice(_BAD_PARTS) + line[at + rng.randint(0, 1) :]


def _replace(rng: random.Random, line: bytes) -> bytes:
    return rng.choice(_BAD_RECORDS)
