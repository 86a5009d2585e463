"""Splits text at special tokens, and the pieces between them into pre-tokens, which no merge of BPE crosses."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import Any

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
        f"[{white}]+(?![^{white}])",  # white space, without its last character if other text follows, as in "  word"
        f"[{white}]+",  # white space
    ])


PATTERN = regex.compile(split_pattern(r"\p{L}", r"\p{N}", r"\s"))
GPT2, CL100K, NONE = "gpt2", "cl100k", "none"  # the names of patterns; a user's own pattern is its own name
_CL100K = (  # of GPT-4, as in tiktoken_ext/openai_public.py of tiktoken 0.14
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|"
    r"\s+(?!\S)|\s"
)
_NAMED = {GPT2: PATTERN, CL100K: regex.compile(_CL100K), NONE: regex.compile("(?s).+")}
# For ASCII strings the standard library's `re` takes 11 µs for 500 characters, `regex` 27 µs. The classes are written
# out, because \s of `re` also matches \x1c to \x1f, which \s of `regex` does not.
_ASCII_PATTERN = re.compile(split_pattern("A-Za-z", "0-9", r"\t-\r "))


def find_pretokens(text: str, pattern: str = GPT2) -> list[str]:
    r"""Split text without special tokens into its pre-tokens.

    Args:
        text: the text.
        pattern: "gpt2", "cl100k" (of GPT-4), "none" (the text is one pre-token) or a regular expression of the package
            `regex`, which must match all of the text, one pre-token after the other.

    Raises:
        UserError: the pattern is invalid, leaves out a part of the text, or takes too long.

    Example:
        >>> find_pretokens("I'll  wait, 3 days")
        ['I', "'ll", ' ', ' wait', ',', ' 3', ' days']
        >>> find_pretokens("I'll  wait, 3 days", r"\w+|\W")
        ['I', "'", 'll', ' ', ' ', 'wait', ',', ' ', '3', ' ', 'days']
    """
    if pattern in _NAMED:
        named = _ASCII_PATTERN if pattern == GPT2 and text.isascii() else _NAMED[pattern]
        return named.findall(text)
    seconds = _SECONDS + len(text) / _CHARACTERS_PER_SECOND
    found, end = [], 0
    try:
        for match in compiled(pattern).finditer(text, timeout=seconds):
            if match.start() != end:
                break
            if match.end() > end:
                found.append(match.group())
                end = match.end()
    except (TimeoutError, MemoryError):
        raise UserError(
            f"the pattern {pattern[:200]!r} took more than {seconds:.0f} seconds, or all memory, for a text of "
            f"{len(text):,} characters: give one without nested repetitions, such as (a+)+"
        ) from None
    if end < len(text):
        raise UserError(
            f"the pattern {pattern[:200]!r} leaves out {text[end : end + 20]!r} at character {end} of a text: give "
            f"{GPT2}, {CL100K}, {NONE}, or a regular expression that matches any text, such as one that ends in |(?s:.)"
        )
    return found


# A pattern may come from a checkpoint that another person made. `regex` compiles x{n} as n copies of x, so that
# ((a{1000}){1000}){1000} would fill the memory.
_LONGEST_PATTERN = 2048  # characters
_MOST_COPIES = 100_000  # of a character of the pattern
_REPETITION = re.compile(r"\{(?=[\s#\d])([^}]*)", re.ASCII)
# A pattern may take exponential time: a text gets 10 s, and 1 s more for each 100,000 characters.
_SECONDS, _CHARACTERS_PER_SECOND = 10.0, 1e5


def compiled(pattern: str) -> Any:  # noqa: ANN401 - `regex` has no types
    """Return a pattern in compiled form; also called early, to check it.

    Raises:
        UserError: it is too long, or no regular expression.
    """
    allowed = f"give {GPT2}, {CL100K}, {NONE}, or a regular expression of the Python package `regex`"
    if not isinstance(pattern, str) or not 0 < len(pattern) <= _LONGEST_PATTERN:
        raise UserError(
            f"the pattern {str(pattern)[:40]!r} is not a text of 1 to {_LONGEST_PATTERN:,} characters: {allowed}"
        )
    if pattern in _NAMED:
        return _NAMED[pattern]
    copies = len(pattern)
    for repetition in _REPETITION.findall(pattern):
        least = repetition.split(",")[0]
        copies *= max(1, int(least)) if least.isdecimal() else _MOST_COPIES  # in verbose mode it may hold a comment
        if copies > _MOST_COPIES:
            raise UserError(
                f"the pattern {pattern[:200]!r} repeats too often, at {{{repetition}}}: give smaller numbers in "
                "braces, without spaces"
            )
    try:
        return regex.compile(pattern)  # which remembers the last 500
    except (regex.error, ValueError, TypeError, OverflowError, RecursionError, MemoryError) as error:
        raise UserError(f"the pattern {pattern[:200]!r} is no regular expression ({error}): {allowed}") from None


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


@cache
def unicode_hash() -> str:
    """Return the SHA-256 of the classes that `regex` gives to all characters: letter, number, white space or none.

    They change with the version of Unicode that a version of `regex` knows. Then a text can have other pre-tokens, and
    so other ids. The first call takes about 0.1 s.
    """
    characters = "".join(map(chr, range(0x110000)))
    classes = [(*each.span(), each.lastindex) for each in regex.finditer(r"(\p{L}+)|(\p{N}+)|(\s+)", characters)]
    return hashlib.sha256(repr(classes).encode()).hexdigest()
