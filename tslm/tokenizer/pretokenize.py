"""Splits text into pre-tokens, which no merge of BPE crosses, with GPT-2's pattern; splits off special tokens first."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache

import regex  # type: ignore[import-untyped]  # its stubs are a package of their own

from tslm.errors import UserError


def split_pattern(letter: str, number: str, white: str) -> str:
    r"""Return GPT-2's pattern of pre-tokens for given classes of characters.

    With the classes of Unicode it is `'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`.

    Source: the file encoder.py of GPT-2 (Radford et al. 2019).
    """
    return "|".join([
        "'(?:[sdmt]|ll|ve|re)",  # English contractions
        f" ?[{letter}]+",  # letters, with one space before them if there is one
        f" ?[{number}]+",  # numbers, likewise
        f" ?[^{white}{letter}{number}]+",  # other characters, likewise
        f"[{white}]+(?![^{white}])",  # white space, but not the last character before a word: it may belong to the word
        f"[{white}]+",  # white space
    ])


PATTERN = regex.compile(split_pattern(r"\p{L}", r"\p{N}", r"\s"))
# For ASCII strings the standard library's `re` takes 11 µs for 500 characters, `regex` 27 µs. The classes are written
# out, because \s of `re` also matches \x1c to \x1f, which \s of `regex` does not.
_ASCII_PATTERN = re.compile(split_pattern("A-Za-z", "0-9", r"\t-\r "))


@cache
def unicode_hash() -> str:
    """Return the SHA-256 of the classes that `regex` gives to all characters: letter, number, white space or none.

    They change with the version of Unicode that a version of `regex` knows. Then a text can have other pre-tokens, and
    so other ids. The first call takes about 0.1 s.
    """
    characters = "".join(map(chr, range(0x110000)))
    classes = [(*each.span(), each.lastindex) for each in regex.finditer(r"(\p{L}+)|(\p{N}+)|(\s+)", characters)]
    return hashlib.sha256(repr(classes).encode()).hexdigest()


def find_pretokens(text: str) -> list[str]:
    """Split text without special tokens into its pre-tokens.

    Example:
        >>> find_pretokens("I'll  wait, 3 days")
        ['I', "'ll", ' ', ' wait', ',', ' 3', ' days']
    """
    found: list[str] = (_ASCII_PATTERN if text.isascii() else PATTERN).findall(text)
    return found


def encode_specials(special_tokens: Sequence[str]) -> list[bytes]:
    """Return the distinct special tokens as bytes, in the order given.

    Raises:
        UserError: one of them is empty, or the argument is a single string.
    """
    if isinstance(special_tokens, str):
        raise UserError(
            f"special_tokens is the string {special_tokens!r}; give a list of strings, such as [{special_tokens!r}]"
        )
    if "" in special_tokens:
        raise UserError("special_tokens holds an empty string, which would match everywhere; remove it")
    return [token.encode() for token in dict.fromkeys(special_tokens)]


def special_pattern(special_tokens: Iterable[bytes]) -> re.Pattern[bytes] | None:
    """Return a pattern that matches the leftmost special token, and the longest that starts there; None without any."""
    longest_first = sorted(special_tokens, key=len, reverse=True)
    return re.compile(b"|".join(map(re.escape, longest_first))) if longest_first else None


def split_specials(text: bytes, specials: re.Pattern[bytes] | None) -> Iterator[tuple[bytes, bool]]:
    """Yield the special tokens of a text and the pieces between them, each with whether it is a special token.

    Example:
        >>> list(split_specials(b"one<|e|>two", special_pattern([b"<|e|>"])))
        [(b'one', False), (b'<|e|>', True), (b'two', False)]
    """
    end = 0
    for match in specials.finditer(text) if specials else ():
        yield text[end : match.start()], False
        yield match.group(), True
        end = match.end()
    yield text[end:], False
