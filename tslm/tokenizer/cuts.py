"""Cuts a text into blocks that can be tokenized apart: they have the same pre-tokens and special tokens as together.

Pieces of any size come in, of a file or of what a caller has; blocks of about one size go out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from tslm.tokenizer.pretokenize import safe_cuts

BLOCK_BYTES = 3 << 16  # with its arrays it stays within a core's second-level cache, or nearly so
CUT_WINDOW = 1 << 9  # how much is searched for a cut at first; the search doubles it


def cut_blocks(
    pieces: Iterable[bytes], special_tokens: Sequence[bytes], size: int = BLOCK_BYTES, first: int | None = None
) -> Iterator[bytes]:
    """Regroup a text that arrives in pieces of any kind into blocks that can be tokenized apart.

    A block is handed out as soon as `size` bytes are held and there is a safe cut; without one (a megabyte of one
    letter) the pieces are held until there is. The first block has `first` bytes, if that is given, and the next ones
    twice as many each time, so that a slow source yields something soon.
    """
    slices = (piece[at : at + size] for piece in pieces for at in range(0, len(piece), size))
    held: list[bytes] = []
    held_bytes, wanted, usual = 0, first or size, first or size
    for piece in slices:
        held.append(piece)
        held_bytes += len(piece)
        if held_bytes < wanted:
            continue
        text = b"".join(held)
        if cut := _last_cut(text, special_tokens):
            yield text[:cut]
            text = text[cut:]
            usual = min(2 * usual, size)
            wanted = usual
        else:
            wanted = 2 * len(text)  # searching the same bytes again after every piece would be quadratic
        held, held_bytes = [text], len(text)
    if held_bytes:
        yield b"".join(held)


def usable_cuts(text: bytes, special_tokens: Sequence[bytes], backwards: bool = False) -> Iterator[int]:
    """Yield the safe cuts of a text at which no special token lies across, whatever comes before and behind the text.

    Cuts in front of white space come first, all the others after them.

    Raises:
        UnicodeDecodeError: the text is not UTF-8.
    """
    for cuts in safe_cuts(text):
        for cut in cuts[::-1].tolist() if backwards else cuts.tolist():
            if _is_clear(text, cut, special_tokens):
                yield cut


def _is_clear(text: bytes, cut: int, special_tokens: Sequence[bytes]) -> bool:
    """Tell whether no special token lies across a cut, whatever comes before and behind the text."""
    longest = max(map(len, special_tokens), default=1)
    if not longest - 1 <= cut <= len(text) - longest + 1:
        return False
    return not any(token in text[cut - len(token) + 1 : cut + len(token) - 1] for token in special_tokens)


def _last_cut(text: bytes, special_tokens: Sequence[bytes]) -> int | None:
    """Return the last usable cut of a text, looking at more and more of its end."""
    window = min(CUT_WINDOW, len(text))
    cut = len(text)
    while (cut := text.rfind(b" ", len(text) - window, cut)) > 0:  # nearly always the first is one
        if text[cut - 1] < 0x80 and not text[cut - 1 : cut].isspace() and _is_clear(text, cut, special_tokens):
            return cut
    while True:
        tail, skipped = whole_characters(text[-window:])
        found = next(usable_cuts(tail, special_tokens, backwards=True), None)
        if found is not None:
            return len(text) - min(window, len(text)) + skipped + found
        if window >= len(text):
            return None
        window *= 4


def whole_characters(text: bytes) -> tuple[bytes, int]:
    """Remove the parts of characters that were cut at both ends; also return how much went at the beginning."""
    first = 0
    while first < min(3, len(text)) and text[first] & 0xC0 == 0x80:
        first += 1
    return text[first : whole_characters_end(text)], first


def whole_characters_end(text: bytes) -> int:
    """Return the position at which the last character begins if it is cut, or else the length."""
    for back in range(1, min(4, len(text)) + 1):
        lead = text[-back]
        if lead & 0xC0 != 0x80:
            width = 1 if lead < 0x80 else 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
            return len(text) - back if width > back else len(text)
    return len(text)
