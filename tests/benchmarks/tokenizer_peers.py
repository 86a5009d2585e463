"""The jobs of the tokenizer's benchmark: the same work in tslm and in each peer, one function each.

Each function runs in a new process (see `measure.run_alone`) and imports only what it needs. Functions that return
seconds exclude the imports and include the start of worker processes.
"""

import base64
import gc
import json
import mmap
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

END_OF_TEXT = "<|endoftext|>"  # not imported, so that the peers' processes do not import tslm
# GPT-2's pattern, and the faster equivalent that tiktoken itself uses.
PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
TIKTOKEN_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
TOKENIZER_JSON, RANKS = "tokenizer.json", "ranks.tiktoken"
_READ = 1 << 20


# Training


def train_tslm(text: str, vocab_size: int, workers: int) -> float:
    """Train with `train_bpe`."""
    from tslm.tokenizer import train_bpe

    return seconds(lambda: train_bpe(text, vocab_size, [END_OF_TEXT], num_workers=workers))


def train_gigatoken(text: str, vocab_size: int) -> float:
    """Train with gigatoken, on all cores."""
    import gigatoken

    source = gigatoken.TextFileSource([text], separator=END_OF_TEXT)
    return seconds(lambda: gigatoken.train_bpe(source, vocab_size, [END_OF_TEXT]))


def train_rustbpe(text: str, vocab_size: int) -> float:
    """Train with rustbpe. It has no special tokens, so it gets the documents and a vocabulary that is one smaller."""
    import rustbpe

    tokenizer = rustbpe.Tokenizer()
    return seconds(lambda: tokenizer.train_from_iterator(documents(text), vocab_size - 1, pattern=PATTERN))


def train_tokenizers(text: str, vocab_size: int) -> float:
    """Train with Hugging Face's tokenizers on the documents."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END_OF_TEXT], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    return seconds(lambda: tokenizer.train_from_iterator(documents(text), trainer))


def merge_tslm(counts: str, vocab_size: int) -> float:
    """Compute the merges of a count table with `merge_pretokens`."""
    from tslm.tokenizer import merge_pretokens

    table = {token.encode(): count for token, count in json.loads(Path(counts).read_text(encoding="utf-8")).items()}
    return seconds(lambda: merge_pretokens(table, vocab_size, [END_OF_TEXT]))


# Encoding a file to a file of uint16. The caller measures the whole process, so these return nothing.


def encode_tslm(text: str, folder: str, output: str, workers: int) -> float:
    """Encode with `encode_files`; the seconds count from the loaded tokenizer on."""
    from tslm.tokenizer import Tokenizer, encode_files

    tokenizer = Tokenizer.from_dir(folder)
    return seconds(lambda: encode_files(tokenizer, text, output, num_workers=workers))


def encode_gigatoken(text: str, folder: str, output: str) -> None:
    """Encode with gigatoken by documents, its fastest way, and insert the special tokens between them."""
    import gigatoken
    import numpy as np

    tokenizer = gigatoken.Tokenizer.from_json((Path(folder) / TOKENIZER_JSON).read_text(encoding="utf-8"))
    layout = tokenizer.encode_files(gigatoken.TextFileSource([text], separator=END_OF_TEXT)).layout
    ids, boundaries = np.asarray(layout.content.data), np.asarray(layout.offsets.data)[1:-1]
    np.insert(ids.astype("<u2"), boundaries, tokenizer.encode(END_OF_TEXT)[0]).tofile(output)


def encode_tiktoken(text: str, folder: str, output: str, workers: int) -> None:
    """Encode with tiktoken in several processes, each with its part of the documents."""
    from multiprocessing import Pool

    parts = [f"{output}.{number}" for number in range(workers)]
    boundaries = _document_boundaries(text, workers)
    with Pool(workers) as pool:
        jobs = zip(boundaries, boundaries[1:], parts, [text] * workers, [folder] * workers, strict=False)
        pool.starmap(_encode_part, jobs)
    first, *others = map(Path, parts)
    with first.open("ab") as file:
        for part in others:
            with part.open("rb") as source:
                shutil.copyfileobj(source, file, _READ)
            part.unlink()
    first.replace(output)


def _encode_part(start: int, stop: int, output: str, text: str, folder: str) -> None:
    encoding = load_tiktoken(folder)
    with open(output, "wb") as file:
        for block in _blocks(text, start, stop):
            encoding.encode_to_numpy(block, allowed_special={END_OF_TEXT}).astype("<u2").tofile(file)


def encode_alone_tiktoken(text: str, folder: str, output: str) -> float:
    """Encode with tiktoken in this process; the seconds count from the loaded tokenizer on."""
    encoding = load_tiktoken(folder)

    def encode() -> None:
        with open(output, "wb") as file:
            for block in _blocks(text, 0, os.path.getsize(text)):
                encoding.encode_to_numpy(block, allowed_special={END_OF_TEXT}).astype("<u2").tofile(file)

    return seconds(encode)


def _document_boundaries(path: str, parts: int) -> list[int]:
    """Return offsets after document ends that divide a file into parts of about equal size."""
    end = END_OF_TEXT.encode()
    boundaries = [0]
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        for part in range(1, parts):
            found = text.find(end, max(boundaries[-1], len(text) * part // parts))
            boundaries.append(len(text) if found == -1 else found + len(end))
        return [*boundaries, len(text)]


def _blocks(path: str, start: int, stop: int) -> Iterator[str]:
    """Yield a part of a file in blocks of whole documents, about a megabyte each, where tiktoken is fastest."""
    rest = b""
    with open(path, "rb") as file:
        file.seek(start)
        while fresh := file.read(min(_READ, stop - file.tell())):
            whole, end, rest = (rest + fresh).rpartition(END_OF_TEXT.encode())
            if whole or end:
                yield (whole + end).decode()
    if rest:
        yield rest.decode()


# Encoding a stream


def stream_tslm(text: str, folder: str) -> float:
    """Encode the lines of a file with `encode_iterable`."""
    from tslm.tokenizer import Tokenizer

    return _seconds_of_stream(text, Tokenizer.from_dir(folder).encode_iterable)


def stream_tiktoken(text: str, folder: str) -> float:
    """Encode the lines of a file one by one with tiktoken."""
    encode = load_tiktoken(folder).encode_ordinary
    return _seconds_of_stream(text, lambda lines: chain.from_iterable(map(encode, lines)))


def stream_memory_tslm(text: str, folder: str) -> int:
    """Return the peak of the bytes that `encode_iterable` allocates."""
    from tslm.tokenizer import Tokenizer

    return _memory_of_stream(text, Tokenizer.from_dir(folder).encode_iterable)


def stream_memory_tiktoken(text: str, folder: str) -> int:
    """Return the peak of the bytes of Python objects in tiktoken, line by line, without Rust's allocations."""
    encode = load_tiktoken(folder).encode_ordinary
    return _memory_of_stream(text, lambda lines: chain.from_iterable(map(encode, lines)))


def _seconds_of_stream(text: str, encode: Callable[[Any], Iterator[int]]) -> float:
    with open(text, encoding="utf-8", newline="") as lines:
        return seconds(lambda: deque(encode(lines), maxlen=0))


def _memory_of_stream(text: str, encode: Callable[[Any], Iterator[int]]) -> int:
    import tracemalloc

    with open(text, encoding="utf-8", newline="") as lines:
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        deque(encode(lines), maxlen=0)
        return tracemalloc.get_traced_memory()[1] - before


# Helpers of the jobs


def seconds(job: Callable[[], object]) -> float:
    """Return the seconds that a call takes. Garbage is collected before the clock starts."""
    gc.collect()
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


def documents(path: str) -> Iterator[str]:
    """Yield the texts between the special tokens of a file."""
    rest = ""
    with open(path, encoding="utf-8", newline="") as file:
        for block in iter(partial(file.read, _READ), ""):
            *whole, rest = (rest + block).split(END_OF_TEXT)
            yield from whole
    yield rest


def load_tiktoken(folder: str | Path) -> Any:
    """Return the tiktoken encoding that `save_for_peers` wrote."""
    import tiktoken

    lines = (Path(folder) / RANKS).read_bytes().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, lines)}
    special = {END_OF_TEXT: ranks.pop(END_OF_TEXT.encode())}
    return tiktoken.Encoding("benchmark", pat_str=TIKTOKEN_PATTERN, mergeable_ranks=ranks, special_tokens=special)


def load_tokenizers(folder: str | Path) -> Any:
    """Return the tokenizer that `save_for_peers` wrote, loaded with Hugging Face's tokenizers."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(Path(folder) / TOKENIZER_JSON))


def save_for_peers(tokenizer: Any, folder: Path) -> None:
    """Write a tokenizer for tslm, for gigatoken and tokenizers (tokenizer.json), and for tiktoken (ranks)."""
    tokenizer.save(folder)
    vocab = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    merges = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    special = {"id": tokenizer.special_ids[END_OF_TEXT], "content": END_OF_TEXT, "special": True, "normalized": False,
               "single_word": False, "lstrip": False, "rstrip": False}
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
             "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
             "vocab": vocab, "merges": [merge.split(" ") for merge in merges]}
    (folder / TOKENIZER_JSON).write_text(json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [special], "normalizer": None,
        "pre_tokenizer": byte_level, "post_processor": None, "decoder": byte_level, "model": model,
    }), encoding="utf-8")
    (folder / RANKS).write_bytes(
        b"".join(b"%b %d\n" % (base64.b64encode(token), id_) for id_, token in tokenizer.vocab.items())
    )
