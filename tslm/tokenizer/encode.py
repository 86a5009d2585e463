"""Encodes text files into a token file, in parallel and in order, in memory that does not grow with the files.

A tokenizer and paths come in, a `TokenFile` goes out, or nothing at all if anything fails.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from tslm.tokenizer.bpe import Tokenizer
from tslm.tokenizer.corpus import Corpus, Span, TextInput, cut_blocks, read_pieces
from tslm.tokenizer.tokenfile import TokenFile, TokenFileWriter, dtype_for
from tslm.tokenizer.workers import map_in_order

_TASK_BYTES = 1 << 21  # some 20 ms of work, seconds for text without a known word: so long Ctrl-C may take


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

    The ids equal `tokenizer.encode` of the files' concatenated text, whatever the number of workers. The file and its
    sidecar appear by renaming when all is done; after an error or Ctrl-C neither they nor a worker process are left.

    Args:
        tokenizer: what to encode with.
        input_paths: a path, a `Span` (part of a file), or several in the order of the text.
        output_path: where the ids go; `<output_path>.json` is the sidecar.
        num_workers: number of processes; None takes one per core. Below 16 MB the work stays in this process.
        executor: any `concurrent.futures.Executor` to run on instead.
        progress: whether to show a progress bar on stderr.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: a file is empty or not UTF-8 (with its name and the byte's offset), or needs a byte that the
            vocabulary lacks.
    """
    corpus = Corpus(input_paths)
    specials = [token.encode() for token in tokenizer.special_tokens]
    tasks = (_Task(tokenizer, spans, specials) for spans in corpus.split(_TASK_BYTES, specials))
    writer = TokenFileWriter(output_path, tokenizer.vocab_size, tokenizer.hash, corpus.size, tokenizer.special_ids)
    results = map_in_order(_encode_part, tasks, corpus.size, num_workers, executor)
    with (
        writer,  # first, so that no bar appears where nothing can be written
        tqdm(total=corpus.size, desc="encoding", unit="B", unit_scale=True, disable=not progress) as bar,
        closing(results),
    ):
        for text_bytes, ids in results:
            writer.append(ids)
            bar.update(text_bytes)
    return TokenFile.open(output_path)


class _Task(NamedTuple):
    tokenizer: Tokenizer  # sent along each time, but rebuilt only once in each worker
    spans: list[Span]
    specials: list[bytes]


def _encode_part(task: _Task) -> tuple[int, npt.NDArray[Any]]:
    """Return the size of a part of the text, and its ids in the type of the token file."""
    blocks: Iterator[bytes] = cut_blocks(read_pieces(task.spans), task.specials)
    dtype = dtype_for(task.tokenizer.vocab_size)
    ids = [task.tokenizer.file_blocks.encode(block).astype(dtype) for block in blocks]
    return sum(span.stop - span.start for span in task.spans), np.concatenate(ids)
