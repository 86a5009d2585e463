"""Encodes text files into a token file, in parallel and in order, in memory that does not grow with the files.

Only the ids of a text without a safe cut, such as a pre-token of 100 MB, are held together.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from tslm.files import check_outputs
from tslm.tokenizer.blocks import read_blocks
from tslm.tokenizer.chunking import OVERLAP, Block
from tslm.tokenizer.corpus import Corpus, TextInput
from tslm.tokenizer.jsonl import DOCUMENT_END
from tslm.tokenizer.sources import Span, is_jsonl
from tslm.tokenizer.token_file import TokenFile, TokenFileWriter, dtype_for, sidecar_path
from tslm.tokenizer.tokenizer import Tokenizer
from tslm.tokenizer.workers import POOL_BYTES, map_in_order

_TASK_BYTES = 1 << 22  # about 40 ms of work, or seconds for text of unknown words; Ctrl-C takes as long
_BLOCK_BYTES = 1 << 20  # larger than for counting, because the new words of a block are encoded together


def encode_files(
    tokenizer: Tokenizer,
    input_paths: TextInput,
    output_path: str | os.PathLike[str],
    *,
    num_workers: int | None = None,
    executor: Executor | None = None,
    progress: bool = False,
) -> TokenFile:
    """Encode one or more UTF-8 files into a token file.

    The ids of one text file equal `tokenizer.encode` of its text, for every number of workers. Several files are
    documents: each is followed by the separator, which is the first special token, unless it ends with it. In files
    that end in `.jsonl` or `.ndjson` the field `text` of each record is a document, in which the spelling of a special
    token is text. Compressed files and Parquet files are unpacked first (see `Corpus`).

    The file and its sidecar appear by renaming when all is done. After an error or Ctrl-C neither they nor a worker
    process remain.

    Args:
        tokenizer: the tokenizer.
        input_paths: a file, a folder, a glob pattern, a `Span` (part of a file), several of them in the order of the
            text, or a `Corpus`.
        output_path: the file of ids; `<output_path>.json` is its sidecar.
        num_workers: number of processes; None means one per core. Less than 16 MB is encoded in this process.
        executor: any `concurrent.futures.Executor` to run on instead.
        progress: whether to show a progress bar on stderr.

    Raises:
        MissingFileError: a file does not exist.
        UserError: a file is empty or not UTF-8 (with its name and the offset of the byte), a line of a JSONL file is
            not a record (with its number), a file changes while it is read, or the vocabulary lacks a byte that
            the text needs. Or the output or its sidecar is an input, a folder or a device.
    """
    return encode_corpus(
        tokenizer, Corpus(input_paths), output_path, num_workers=num_workers, executor=executor, progress=progress
    )


def encode_corpus(
    tokenizer: Tokenizer,
    corpus: Corpus,
    output_path: str | os.PathLike[str],
    *,
    num_workers: int | None = None,
    executor: Executor | None = None,
    progress: bool = False,
    task_bytes: int = _TASK_BYTES,
    block_bytes: int = _BLOCK_BYTES,
    pool_bytes: int = POOL_BYTES,
    overlap: int = OVERLAP,
) -> TokenFile:
    """Encode as `encode_files` does, with a choice of sizes, which do not change the result.

    `task_bytes` is the size of the part that a worker encodes at a time, `block_bytes` the size of the blocks in which
    a part is read, `overlap` how many bytes two blocks share where there is no safe cut. Texts smaller than
    `pool_bytes` are encoded in this process.
    """
    output = Path(output_path)
    check_outputs([output, sidecar_path(output)], [span.path for span in corpus.spans])
    specials = [token.encode() for token in tokenizer.special_tokens]
    tasks = (
        _Task(tokenizer, spans, corpus.specials_of(spans, specials), block_bytes, overlap)
        for spans in corpus.split(task_bytes, specials, pattern=tokenizer.pattern)
    )
    writer = TokenFileWriter(output, tokenizer.vocab_size, tokenizer.hash, special_ids=tokenizer.special_ids)
    results = map_in_order(_encode_part, tasks, corpus.size, num_workers, executor, pool_bytes)
    document_bytes = _DocumentBytes(tokenizer)
    with (
        writer,  # first, so that no progress bar appears if the file cannot be written
        tqdm(total=corpus.size, desc="encoding", unit="B", unit_scale=True, disable=not progress) as bar,
        closing(results),
    ):
        for part in results:
            for ids in part.ids:
                writer.append(ids)
            writer.append(np.empty(0, np.uint16), part.text_bytes, document_bytes.of(part))
            bar.update(part.file_bytes)
        corpus.check_unchanged()  # before the token file appears
    return TokenFile.open(output)


class _Task(NamedTuple):
    tokenizer: Tokenizer  # sent with each task, but restored only once in each worker
    spans: list[Span]
    specials: list[bytes]
    block_bytes: int
    overlap: int


class _Part(NamedTuple):
    ids: list[npt.NDArray[Any]]  # in the type of the token file
    text_bytes: int
    file_bytes: int  # more than `text_bytes` for JSONL
    added: int  # separators that the text does not spell
    are_records: bool


class _DocumentBytes:
    """Counts the bytes of documents: of the text without separators and, in a text file, the line breaks after them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._separator = tokenizer.separator
        self._separator_bytes = 0 if self._separator is None else len(tokenizer.vocab[self._separator])
        self._is_break = np.zeros(tokenizer.vocab_size, bool)
        self._is_break[[id_ for id_, token in tokenizer.vocab.items() if token.startswith(b"\n")]] = True
        self._follows = False  # whether a separator was the last token of the previous part

    def of(self, part: _Part) -> int:
        """Return the bytes of the documents in a part; called for all parts in their order."""
        size = part.text_bytes + self._separator_bytes * part.added
        for ids in filter(len, part.ids if self._separator is not None else ()):
            places = np.flatnonzero(ids == self._separator)
            size -= self._separator_bytes * len(places)
            if not part.are_records:
                after = places + 1
                size -= int(self._is_break[ids[after[after < len(ids)]]].sum())
                size -= int(self._follows and self._is_break[ids[0]])
            self._follows = bool(ids[-1] == self._separator)
        return size


def _encode_part(task: _Task) -> _Part:
    tokenizer, separator = task.tokenizer, task.tokenizer.separator
    dtype = dtype_for(tokenizer.vocab_size)
    text_bytes = added = 0

    def blocks() -> Iterator[Block]:
        """Yield the blocks, and count the bytes of their texts."""
        nonlocal text_bytes
        for block in read_blocks(task.spans, task.specials, task.block_bytes, task.overlap, tokenizer.pattern):
            text_bytes += len(block.text) - block.overlap - block.text.count(DOCUMENT_END)
            yield block

    parts, allow_special = [], bool(task.specials)
    for ids in tokenizer.encode_blocks(blocks(), allow_special=allow_special):
        is_end = ids == tokenizer.vocab_size  # the id of `DOCUMENT_END`
        if is_end.any():  # the separator takes its place, unless there is none or the text spells it there
            is_added = is_end & (separator is not None)
            if allow_special:
                is_added[1:] &= ids[:-1] != separator
            added += int(is_added.sum())
            ids = np.where(is_added, separator or 0, ids)[is_added | ~is_end]
        parts.append(ids.astype(dtype))
    file_bytes = sum(span.stop - span.start for span in task.spans)
    return _Part(parts, text_bytes, file_bytes, added, is_jsonl(task.spans[0].path))
