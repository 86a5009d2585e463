"""Text to token files, once: what is missing is made and kept in a cache folder, keyed by content and settings.

In: where the text comes from. Out: a tokenizer and two token files. One process prepares, under a file lock; files
appear by rename; a second run with the same text and settings finds everything and starts at once.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

from tslm.data.toy import grammar_fingerprint, write_corpus
from tslm.tokenizer import Span, TokenFile, Tokenizer, encode_files, split_tail, train_bpe
from tslm.tokenizer.corpus import read_blocks
from tslm.tokenizer.jsonl import is_jsonl

TOY_VALID_STORIES = 500
TOY_VALID_SEED = 1_000_003  # added to the training seed: held-out stories are drawn anew
HELD_OUT_SHARE = 0.05
HELD_OUT_BYTES = 10_000_000  # of a large file less than the share is enough to measure with


class Texts(NamedTuple):
    """The text to train on and the text to validate on."""

    train: tuple[Span, ...]
    valid: tuple[Span, ...]


class Prepared(NamedTuple):
    """The tokenizer, and the token files of both texts; no training file where none was asked for."""

    tokenizer: Tokenizer
    train: Path | None
    valid: Path


class Cache:
    """A folder of prepared data."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Let one process at a time prepare; the others wait, and say so."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / "lock")
        try:
            lock.acquire(timeout=1)
        except Timeout:
            print(f"Another process prepares data in {self.folder}; waiting for it.", flush=True)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def content_hash(self, path: Path) -> str:
        """Return a file's SHA-256, remembered as long as its path, size and time of change stay the same."""
        memory_file = self.folder / "hashes.json"
        try:
            memory = json.loads(memory_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            memory = {}
        stat = path.stat()
        key = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
        if key not in memory:
            with path.open("rb") as file:
                memory[key] = hashlib.file_digest(file, "sha256").hexdigest()
            temporary = memory_file.with_suffix(f".{os.getpid()}.new")
            temporary.write_text(json.dumps(memory, indent=1), encoding="utf-8")
            os.replace(temporary, memory_file)
        return str(memory[key])

    def key(self, spans: Sequence[Span], **settings: object) -> str:
        """Return a name for what is made of this text with these settings."""
        # The kind as well: the same bytes are another text when the name says that they are JSON lines.
        parts = [
            [self.content_hash(Path(span.path)), span.start, span.stop, *(["jsonl"] if is_jsonl(span.path) else [])]
            for span in spans
        ]
        text = json.dumps([parts, settings], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:20]


def toy_corpus(cache: Cache, num_stories: int, seed: int) -> Texts:
    """Write the embedded corpus, or find it."""
    folder = cache.folder / "toy" / f"{grammar_fingerprint()[:12]}-{seed}-{num_stories}"
    train, valid = folder / "train.txt", folder / "valid.txt"
    folder.mkdir(parents=True, exist_ok=True)
    if not train.exists():
        write_corpus(train, num_stories, seed, progress=True)
    if not valid.exists():
        write_corpus(valid, TOY_VALID_STORIES, seed + TOY_VALID_SEED)
    return Texts((whole(train),), (whole(valid),))


def tinystories_corpus(cache: Cache) -> Texts:
    """Download TinyStories, or find it."""
    from tslm.data.tinystories import fetch_tinystories  # imports the hub's client, which only this corpus needs

    train, valid = fetch_tinystories(cache.folder / "tinystories", progress=True)
    return Texts((whole(train),), (whole(valid),))


def files_corpus(
    train_files: Sequence[str], valid_files: Sequence[str] | None, separator: str, *, evaluating: bool = False
) -> Texts:
    """Take the user's files; without validation files the last documents of the last file are held out.

    Args:
        train_files: text files to train on.
        valid_files: text files to validate on.
        separator: what stands between two documents.
        evaluating: pass over the training files where validation files are named; they may be on another machine.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: a file is empty, or too short to hold anything out.
    """
    valid = tuple(whole(path) for path in valid_files or ())
    if valid and evaluating:
        return Texts((), valid)
    train = [whole(path) for path in train_files]
    if not valid:
        try:
            kept, held_out = split_tail(train[-1].path, separator.encode(), HELD_OUT_SHARE, HELD_OUT_BYTES)
        except ValueError:
            for _ in read_blocks(train[-1:], []):
                pass  # a file that is not even text is told so first
            raise
        train[-1], valid = kept, (held_out,)
    return Texts(tuple(train), valid)


def whole(path: str | Path) -> Span:
    """Return a whole file as a span.

    Raises:
        FileNotFoundError: it does not exist.
        ValueError: it is empty.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no text file at {path}: give --data.train_files files that exist")
    size = path.stat().st_size
    if not size:
        raise ValueError(f"{path} is empty: give a file with text in it")
    return Span(str(path), 0, size)


def prepare(
    corpus: Texts,
    cache: Cache,
    *,
    vocab_size: int,
    special_tokens: Sequence[str],
    tokenizer: Tokenizer | None = None,
    num_workers: int | None = None,
) -> Prepared:
    """Train the tokenizer and encode the text, or find what an earlier run made.

    Args:
        corpus: the text.
        cache: where everything is kept.
        vocab_size: largest vocabulary, the 256 bytes and the special tokens included.
        special_tokens: never split, never merged with text.
        tokenizer: a tokenizer that exists already, instead of one trained on the training text.
        num_workers: processes; all cores unless given.

    Raises:
        ValueError: the tokenizer is larger than vocab_size, or a file is not UTF-8.
    """
    if tokenizer is None:
        tokenizer = trained_tokenizer(corpus.train, cache, vocab_size, list(special_tokens), num_workers)
    if tokenizer.vocab_size > vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} entries, but data.vocab_size is {vocab_size}: give "
            f"--data.vocab_size {tokenizer.vocab_size}"
        )
    train, valid = (
        token_file(spans, cache, tokenizer, what, num_workers) if spans else None
        for spans, what in zip(corpus, ("training", "validation"), strict=True)
    )
    assert valid is not None
    return Prepared(tokenizer, train, valid)


def trained_tokenizer(
    spans: Sequence[Span], cache: Cache, vocab_size: int, special_tokens: list[str], num_workers: int | None
) -> Tokenizer:
    """Train a tokenizer on a text, or find the one that was."""
    folder = cache.folder / "tokenizers" / cache.key(spans, vocab_size=vocab_size, special=special_tokens)
    if not (folder / "merges.txt").exists():
        vocab, merges = train_bpe(list(spans), vocab_size, special_tokens, num_workers=num_workers, progress=True)
        Tokenizer(vocab, merges, special_tokens).save(folder)
    return Tokenizer.from_dir(folder)


def token_file(
    spans: Sequence[Span], cache: Cache, tokenizer: Tokenizer, what: str, num_workers: int | None
) -> Path:
    """Encode a text, or find its token file; a damaged one in the cache is made again, and that is said."""
    path = cache.folder / "tokens" / f"{cache.key(spans, tokenizer=tokenizer.hash)}.bin"
    try:
        TokenFile.open(path)
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        print(f"The cached {what} tokens are made again: {error}", flush=True)
    else:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    encode_files(tokenizer, list(spans), path, num_workers=num_workers, progress=True)
    return path
