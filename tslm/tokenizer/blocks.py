"""Reads parts of text files as blocks that can be tokenized independently, and checks that they are UTF-8."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from tslm.errors import UserError
from tslm.tokenizer.chunking import BLOCK_BYTES, Block, complete_end, overlapping_blocks
from tslm.tokenizer.jsonl import DOCUMENT_END, read_documents
from tslm.tokenizer.pretokenize import GPT2
from tslm.tokenizer.sources import Span, is_jsonl

LONGEST_END = 1 << 12  # bytes in which the separator at the end of a file is searched


def read_blocks(
    spans: Iterable[Span],
    special_tokens: Sequence[bytes],
    size: int = BLOCK_BYTES,
    overlap: int = 0,
    pattern: str = GPT2,
) -> Iterator[Block]:
    """Read spans as blocks of about `size` bytes that can be tokenized independently.

    Where a text cannot be cut, a block is larger, or with an `overlap` such as `chunking.OVERLAP` blocks overlap.

    Each document of a JSONL file, and each span that is marked so, is followed by `DOCUMENT_END`, unless its text ends
    with the separator already. A block holds many short documents or a part of a long one.

    Args:
        spans: parts of text files, or of JSONL files, never of both.
        special_tokens: the special tokens that are recognized in these texts, the separator first.
        size: the size of a block in bytes.
        overlap: see above.
        pattern: the pattern of pre-tokens.

    Raises:
        UserError: a file is not UTF-8, or a line of a JSONL file is not a record; the message names the place.
    """
    buffer = bytearray()
    for text, ends in _texts(spans, special_tokens[:1]):
        if isinstance(text, bytes) and len(text) <= size:
            blocks = iter([Block(text)])
        else:
            pieces = [text] if isinstance(text, bytes) else text
            blocks = overlapping_blocks(pieces, special_tokens, size, overlap=overlap, pattern=pattern)
        last = next(blocks, Block(b""))
        for block in blocks:
            if buffer:
                yield Block(bytes(buffer))
                buffer = bytearray()
            yield last
            last = block
        buffer += last.text
        if ends:
            buffer += DOCUMENT_END
        if len(buffer) >= size or not ends:
            yield Block(bytes(buffer))
            buffer = bytearray()
    if buffer:
        yield Block(bytes(buffer))


def _texts(spans: Iterable[Span], separators: Sequence[bytes]) -> Iterator[tuple[bytes | Iterable[bytes], bool]]:
    """Yield each text, whole or in pieces, and whether `DOCUMENT_END` follows it."""
    pieces: list[Iterable[bytes]] = []
    for span in spans:
        if is_jsonl(span.path):
            yield from ((document, True) for document in read_documents(span))
            continue
        pieces.append(read_pieces([span]))
        if span.ends:
            yield chain.from_iterable(pieces), not _ends_with(span, separators)
            pieces = []
    if pieces:
        yield chain.from_iterable(pieces), False


def _ends_with(span: Span, separators: Sequence[bytes]) -> bool:
    """Whether a separator is the last thing in a span, apart from line breaks."""
    end = read_span(span._replace(start=max(span.start, span.stop - LONGEST_END)))
    return any(end.endswith(separator) or end.rstrip(b"\r\n").endswith(separator) for separator in separators)


def read_pieces(spans: Iterable[Span], size: int = BLOCK_BYTES) -> Iterator[bytes]:
    """Read spans of plain files in pieces of whole characters, and check that each file is UTF-8.

    Raises:
        UserError: a byte is not UTF-8; the message names the file and the offset of the byte.
    """
    for span in spans:
        start, stop = span.start, span.stop
        with open(span.path, "rb") as file:
            file.seek(start)
            rest = b""
            while start < stop:
                fresh = file.read(min(size, stop - start))
                if not fresh:
                    raise UserError(
                        f"{span.label} became shorter while it was read: {stop - start:,} bytes are missing"
                    )
                start += len(fresh)
                piece = rest + fresh
                end = len(piece) if start == stop else complete_end(piece)
                piece, rest = piece[:end], piece[end:]
                check_utf8(piece, span.label, start - len(rest) - len(piece))
                yield piece


def check_utf8(piece: bytes, name: str, offset: int) -> None:
    """Check a part of a file that begins at `offset`.

    Raises:
        UserError: a byte is not UTF-8; the message names the file and the offset of the byte.
    """
    try:
        piece.decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{name} is not UTF-8: byte 0x{piece[error.start]:02x} at offset {offset + error.start}; convert the file, "
            "for example with `iconv -f latin1 -t utf-8`, or replace its bad bytes by U+FFFD with --data.errors "
            "replace (--errors replace in `tokenize` and the like)"
        ) from None


def read_span(span: Span) -> bytes:
    """Return the bytes of a part of a file."""
    with open(span.path, "rb") as file:
        file.seek(span.start)
        return file.read(span.stop - span.start)
