"""Joins the tokens of blocks that overlap inside a pre-token, so that a pre-token of any length needs little memory.

Two blocks are joined at the first token that both have at the same place. The result is that of the whole pre-token,
for any merges, for this reason. Whether a merge crosses the boundary between two tokens depends on these two alone: the
merges within each of them, and their order, follow from its own bytes. So a sequence of tokens is the encoding of its
bytes if each pair of neighbours is the encoding of its own bytes. Each pair of the joined sequence is a pair of the
first block or of the second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from tslm.errors import UserError
from tslm.tokenizer.bpe import Ids
from tslm.tokenizer.chunking import Block


def join_blocks(
    blocks: Iterable[Block], encode: Callable[[bytes], Ids], vocab: Mapping[int, bytes], margin: int
) -> Iterator[Ids]:
    """Yield the ids of the tokens of a text that arrives in blocks (see `chunking.overlapping_blocks`).

    Two blocks that share no token are encoded as one.

    Args:
        blocks: the blocks in the order of the text.
        encode: returns the ids of a block.
        vocab: the bytes of each id.
        margin: the length of the longest special token: one may begin so far before the end of a block.

    Raises:
        UserError: a pre-token whose beginning was yielded turns out to depend on its end.
    """
    text, ids, overlap, is_joined = b"", np.empty(0, np.uint32), 0, False
    for block in blocks:
        if not overlap:
            text, ids, is_joined = block.text, encode(block.text), False
        elif joined := _join(ids, block.text, overlap - margin, overlap, encode, vocab):
            before, ids, start = joined
            text, is_joined = block.text[start:], True
            yield before
        else:
            text += block.text[overlap:]
            first, ids = ids[0], encode(text)
            if is_joined and ids[0] != first:  # no vocabulary is known for which this happens
                raise UserError("the text has a pre-token that is too long to be encoded in parts; divide it")
        overlap = block.overlap
        if not overlap:
            yield ids


def _join(
    ids: Ids, text: bytes, last_end: int, overlap: int, encode: Callable[[bytes], Ids], vocab: Mapping[int, bytes]
) -> tuple[Ids, Ids, int] | None:
    """Join the ids of a block and those of the next one.

    Args:
        ids: the ids of the first block.
        text: the second block; its first `overlap` bytes are the last of the first block.
        last_end: the last position in `text` at which a common token may end.
        overlap: see `text`.
        encode: returns the ids of a block.
        vocab: the bytes of each id.

    Returns:
        The ids before the first common token, the ids from there on, and the start of that token in `text`; None if
        there is no common token.
    """
    ends: dict[int, int] = {}  # of the tokens within the overlap, by their starts
    start = overlap
    for id_ in reversed(ids.tolist()):
        start, end = start - len(vocab[id_]), start
        if start < 0:
            break
        ends[start] = end
    # The second block is encoded from a boundary of the first one on, so that they agree in repetitive texts. It is a
    # boundary of characters, too, because only whole characters can be encoded.
    aligned = [start for start in reversed(ends) if text[start] & 0xC0 != 0x80]
    if not aligned:
        return None
    start = aligned[0]
    own = encode(text[start:])
    for index, id_ in enumerate(own.tolist()):
        end = start + len(vocab[id_])
        if end > last_end:
            return None
        if ends.get(start) == end:
            before = len(ids) - sum(other >= start for other in ends)
            return ids[:before], own[index:], start
        start = end
    return None
