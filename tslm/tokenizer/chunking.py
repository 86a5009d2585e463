"""Cuts a text into blocks that can be tokenized independently, with the same result as the whole text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import regex  # type: ignore[import-untyped]

from tslm.tokenizer.pretokenize import CL100K, GPT2, NONE, special_pattern

BLOCK_BYTES = 3 << 16  # a block and the arrays made from it nearly fit a core's second-level cache
CUT_WINDOW = 1 << 9  # bytes that are searched for a cut at first; the window grows until there is one
OVERLAP = 1 << 12  # bytes; the tokens of two blocks of random letters agree after a few dozen
_LENGTHS = 16  # the length of an overlapping block, in overlaps

_RUN = regex.compile(r"(?P<white>\s+)|(?P<word>\p{L}+|\p{N}+)|[^\s\p{L}\p{N}]+")  # a run of characters of one kind
_CUTTABLE = GPT2, CL100K  # patterns with safe cuts within a text, see `safe_cuts`
# Blocks may overlap inside such a text, because all of it is a part of one pre-token. cl100k divides numbers, and white
# space by what follows.
_OVERLAPS = {GPT2: _RUN, CL100K: regex.compile(r"\p{L}+|[^\s\p{L}\p{N}]+"), NONE: regex.compile("(?s).+")}


class Block(NamedTuple):
    """A part of a text.

    Attributes:
        text: the part in UTF-8.
        overlap: how many bytes at its end the next block begins with, because there is no safe cut. They are a part of
            one pre-token. 0 where the cut is safe.
    """

    text: bytes
    overlap: int = 0


def cut_blocks(
    pieces: Iterable[bytes],
    special_tokens: Sequence[bytes],
    size: int = BLOCK_BYTES,
    first: int | None = None,
    pattern: str = GPT2,
) -> Iterator[bytes]:
    """Regroup a text that arrives in pieces of any size into blocks that can be tokenized independently.

    A block is yielded as soon as at least `size` bytes have arrived and they contain a safe cut. Where they do not, as
    in a megabyte of one letter, the block grows until there is one.

    Args:
        pieces: the text in UTF-8. A piece may end inside a character.
        special_tokens: strings that no cut may split.
        size: the size of a block in bytes.
        first: the size of the first block. Each further block is twice as large, up to `size`, so that a slow source
            yields its first block early.
        pattern: the pattern of pre-tokens (see `pretokenize.find_pretokens`). Within the pre-tokens of "none" and of a
            user's own pattern the only safe cuts follow special tokens.
    """
    return (block.text for block in overlapping_blocks(pieces, special_tokens, size, first, 0, pattern))


def overlapping_blocks(
    pieces: Iterable[bytes],
    special_tokens: Sequence[bytes],
    size: int = BLOCK_BYTES,
    first: int | None = None,
    overlap: int = OVERLAP,
    pattern: str = GPT2,
) -> Iterator[Block]:
    """Regroup a text as `cut_blocks` does, but into blocks that stay small where there is no safe cut.

    There, consecutive blocks overlap by about `overlap` bytes. `Tokenizer.encode_blocks` joins their tokens.
    """
    slices = (piece[at : at + size] for piece in pieces for at in range(0, len(piece), size))
    buffer: list[bytes] = []
    buffered, wanted, usual = 0, first or size, first or size
    for piece in slices:
        buffer.append(piece)
        buffered += len(piece)
        if buffered < wanted:
            continue
        text = b"".join(buffer)
        if cut := _last_cut(text, special_tokens, pattern) or _last_special_end(text, special_tokens):
            yield Block(text[:cut])
            text = text[cut:]
            usual = min(2 * usual, size)
            wanted = usual
        elif overlap and (shared := _shared_end(text, special_tokens, overlap, pattern)):
            stop = complete_end(text)
            yield Block(text[:stop], shared)
            text = text[stop - shared :]
            wanted = _LENGTHS * overlap
        else:
            wanted = 2 * len(text)  # searching the same bytes again for every piece would be quadratic
        buffer, buffered = [text], len(text)
    if buffered:
        yield Block(b"".join(buffer))


def usable_cuts(
    text: bytes, special_tokens: Sequence[bytes], backwards: bool = False, pattern: str = GPT2
) -> Iterator[int]:
    """Yield the safe cuts of a text that split no special token, whatever precedes and follows the text.

    Cuts before white space are yielded first, then all others. For "none" and a user's own pattern, which may look at
    any part of its text, the cuts are the ends of special tokens.

    Raises:
        UnicodeDecodeError: the text is not UTF-8.
    """
    if pattern not in _CUTTABLE:
        yield from _special_ends(text, special_tokens)
        return
    for cuts in safe_cuts(text.decode(), pattern):
        for cut in reversed(cuts) if backwards else cuts:
            if _splits_no_special(text, cut, special_tokens):
                yield cut


def safe_cuts(text: str, pattern: str = GPT2) -> tuple[list[int], list[int]]:
    r"""Return the positions, in bytes, at which a text can be cut without changing its pre-tokens.

    The first list holds cuts before white space that follows something else. A pre-token ends there in any case, and
    the white space, whose pattern looks ahead (`(?!\S)`), stays in one piece. The second list holds cuts after a run of
    letters or of numbers: no pre-token continues there, and none that ends there looks ahead. After other characters
    there is no safe cut, since an apostrophe may belong to the letters that follow it.

    For cl100k the same holds, but line breaks belong to the characters before them that are neither letters nor
    numbers.
    """
    before_white: list[int] = []
    after_words: list[int] = []
    position, follows_word = 0, False
    for run in _RUN.finditer(text):
        if position:
            if run["white"]:
                if follows_word or pattern == GPT2 or run.group()[0] not in "\r\n":
                    before_white.append(position)
            elif follows_word:
                after_words.append(position)
        position += len(run.group().encode())
        follows_word = run["word"] is not None
    return before_white, after_words


def _splits_no_special(text: bytes, cut: int, special_tokens: Sequence[bytes]) -> bool:
    longest = max(map(len, special_tokens), default=1)
    if not longest - 1 <= cut <= len(text) - longest + 1:
        return False
    return not any(token in text[cut - len(token) + 1 : cut + len(token) - 1] for token in special_tokens)


def _special_ends(text: bytes, special_tokens: Sequence[bytes]) -> Iterator[int]:
    """Yield the ends of special tokens that no other one overlaps: they are found whatever precedes the text."""
    pattern, margin = special_pattern(special_tokens), max(map(len, special_tokens), default=1) - 1
    for match in pattern.finditer(text) if pattern else ():
        start, end = match.span()
        if margin <= start and end + margin <= len(text) and not any(
            text.startswith(token, at) and (at, len(token)) != (start, end - start)
            for token in special_tokens
            for at in range(start - len(token) + 1, end)
        ):
            yield end


def _last_cut(text: bytes, special_tokens: Sequence[bytes], pattern: str) -> int | None:
    """Return the last usable cut of a text. The end of the text is searched in growing windows."""
    if pattern not in _CUTTABLE:
        return None
    window = min(CUT_WINDOW, len(text))
    cut = len(text)
    while (cut := text.rfind(b" ", len(text) - window, cut)) > 0:  # in prose the first space is nearly always a cut
        before = text[cut - 1 : cut]
        if before.isascii() and not before.isspace() and _splits_no_special(text, cut, special_tokens):
            return cut
    while True:
        tail, skipped = trim_characters(text[-window:])
        found = next(usable_cuts(tail, special_tokens, backwards=True, pattern=pattern), None)
        if found is not None:
            return len(text) - min(window, len(text)) + skipped + found
        if window >= len(text):
            return None
        window *= 4


def _last_special_end(text: bytes, special_tokens: Sequence[bytes]) -> int | None:
    """Return the end of the last special token of a text in which none starts before the text.

    A longer special token at the same place must end within the text, too.
    """
    pattern, longest = special_pattern(special_tokens), max(map(len, special_tokens), default=0)
    last = None
    for match in pattern.finditer(text) if pattern else ():
        if match.start() + longest > len(text):
            break
        last = match.end()
    return last


def _shared_end(text: bytes, special_tokens: Sequence[bytes], overlap: int, pattern: str) -> int | None:
    """Return how many bytes at the end of an uncuttable text the next block repeats; None if the text must grow."""
    if len(text) < _LENGTHS * overlap or pattern not in _OVERLAPS:
        return None
    longest = max(map(len, special_tokens), default=0)
    stop = complete_end(text)
    characters, _ = trim_characters(text[stop - overlap - longest : stop])
    specials = special_pattern(special_tokens)
    if (specials and specials.search(text)) or not _OVERLAPS[pattern].fullmatch(characters.decode()):
        return None
    return len(characters)


def trim_characters(text: bytes) -> tuple[bytes, int]:
    """Remove incomplete characters at both ends; also return the number of bytes removed at the start."""
    first = 0
    while first < min(3, len(text)) and text[first] & 0xC0 == 0x80:
        first += 1
    return text[first : complete_end(text)], first


def complete_end(text: bytes) -> int:
    """Return the position of the last character if it is incomplete, else the length of the text."""
    for back in range(1, min(4, len(text)) + 1):
        lead = text[-back]
        if lead & 0xC0 != 0x80:
            width = 1 if lead < 0x80 else 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
            return len(text) - back if width > back else len(text)
    return len(text)
