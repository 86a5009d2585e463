"""Encodes text files into a token file, in parallel and in order, in memory that does not grow with the files.

A tokenizer and paths come in, a `TokenFile` goes out, or nothing at all if anything fails.
"""

from __future__ import annotations

import os
from concurrent.futures import Executor
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from tslm.tokenizer.bpe import END_OF_TEXT, Tokenizer
from tslm.tokenizer.corpus import Corpus, Span, TextInput, read_blocks
from tslm.tokenizer.jsonl import DOCUMENT_END
from tslm.tokenizer.tokenfile import TokenFile, TokenFileWriter, dtype_for
from tslm.tokenizer.workers import keep_freed_memory, map_in_order

_TASK_BYTES = 1 << 22  # some 40 ms of work, seconds for text without a known word: so long Ctrl-C may take
_BLOCK_BYTES = 1 << 20  # larger than where words are counted: here rare words cannot wait for those of later blocks


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

    The ids of plain files equal `tokenizer.encode` of their concatenated text, whatever the number of workers. Of files
    that end in `.jsonl` or `.ndjson` the field `text` of each record is encoded by itself (see `jsonl`), and behind it
    stands `<|endoftext|>`, if that is one of the special tokens and not the record's last token anyway.

    The file and its sidecar appear by renaming when all is done; after an error or Ctrl-C neither they nor a worker
    process are left.

    Args:
        tokenizer: what to encode with.
        input_paths: a path, a `Span` (part of a file), or several in the order of the text.
        output_path: where the ids go; `<output_path>.json` is the sidecar.
        num_workers: number of processes; None takes one per core. Below 16 MB the work stays in this process.
        executor: any `concurrent.futures.Executor` to run on instead.
        progress: whether to show a progress bar on stderr.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: a file is empty or not UTF-8 (with its name and the byte's offset), a line of a JSONL file is no
            record (with its number), or the vocabulary lacks a byte that the text needs.
    """
    corpus = Corpus(input_paths)
    specials = [token.encode() for token in tokenizer.special_tokens]
    coder = _knowing_document_ends(tokenizer)
    tasks = (_Task(coder, spans, specials) for spans in corpus.split(_TASK_BYTES, specials))
    writer = TokenFileWriter(output_path, tokenizer.vocab_size, tokenizer.hash, special_ids=tokenizer.special_ids)
    results = map_in_order(_encode_part, tasks, corpus.size, num_workers, executor)
    with (
        writer,  # first, so that no bar appears where nothing can be written
        tqdm(total=corpus.size, desc="encoding", unit="B", unit_scale=True, disable=not progress) as bar,
        closing(results),
    ):
        for part in results:
            writer.append(part.ids, part.text_bytes)
            bar.update(part.file_bytes)
    return TokenFile.open(output_path)


class _Task(NamedTuple):
    tokenizer: Tokenizer  # sent along each time, but rebuilt only once in each worker
    spans: list[Span]
    specials: list[bytes]


class _Part(NamedTuple):
    ids: npt.NDArray[Any]  # in the type of the token file
    text_bytes: int
    file_bytes: int  # more than those of text in JSONL


def _encode_part(task: _Task) -> _Part:
    """Encode one part of the text."""
    keep_freed_memory()
    blocks_of = task.tokenizer.file_blocks
    dtype = dtype_for(task.tokenizer.vocab_size)
    ids = [np.empty(0, dtype)]
    text_bytes = 0
    for block in read_blocks(task.spans, task.specials, _BLOCK_BYTES):
        encoded = blocks_of.encode(block)
        text_bytes += len(block)
        if DOCUMENT_END in block:
            text_bytes -= block.count(DOCUMENT_END)
            (placeholder,) = blocks_of.encode(DOCUMENT_END)
            encoded = _end_documents(encoded, placeholder, task.tokenizer.special_ids.get(END_OF_TEXT))
        ids.append(encoded.astype(dtype))
    return _Part(np.concatenate(ids), text_bytes, sum(span.stop - span.start for span in task.spans))


def _end_documents(ids: npt.NDArray[Any], placeholder: int, end_of_text: int | None) -> npt.NDArray[Any]:
    """Put `<|endoftext|>` for each placeholder that has none in front of it; remove the others, or without it all."""
    is_end = ids == placeholder
    if end_of_text is None:
        return np.compress(~is_end, ids)
    is_doubled = is_end.copy()
    is_doubled[:1] = False
    is_doubled[1:] &= ids[:-1] == end_of_text
    return np.compress(~is_doubled, np.where(is_end, end_of_text, ids))


def _knowing_document_ends(tokenizer: Tokenizer) -> Tokenizer:
    """Return a tokenizer that has a token for `DOCUMENT_END`, and keeps two of them apart; as a rule the one given."""
    pair = (DOCUMENT_END, DOCUMENT_END)
    if DOCUMENT_END in tokenizer.vocab.values() and pair not in tokenizer.merges:
        return tokenizer
    vocab = tokenizer.vocab | {tokenizer.vocab_size: DOCUMENT_END}
    merges = [merge for merge in tokenizer.merges if merge != pair]
    return Tokenizer(vocab, merges, tokenizer.special_tokens)
