"""Prepare data: train the tokenizer, encode the text, and keep both in a cache folder.

The cache is keyed by the content of the text and by the settings, so a second run with the same text and settings
reuses everything. One process prepares at a time, under a file lock. Files appear by rename.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tslm.data.cache import Cache
from tslm.data.texts import Reading, Texts
from tslm.errors import MissingFileError, UserError
from tslm.tokenizer import Span, TokenFile, Tokenizer, encode_files, train_bpe
from tslm.tokenizer.corpus import Corpus
from tslm.tokenizer.pretokenize import GPT2


class Prepared(NamedTuple):
    """The tokenizer and both token files; `train` is None if no training text was given."""

    tokenizer: Tokenizer
    train: Path | None
    valid: Path


def prepare(
    texts: Texts,
    cache: Cache,
    *,
    vocab_size: int,
    special_tokens: Sequence[str],
    pattern: str | None = None,
    tokenizer: Tokenizer | None = None,
    num_workers: int | None = None,
    reading: Reading = Reading(),  # noqa: B008 (never changed)
) -> Prepared:
    """Train the tokenizer and encode both texts; reuse what the cache holds.

    Without a tokenizer, one is trained on the training text. Without a pattern (see `pretokenize.find_pretokens`), it
    is that of the tokenizer, or GPT-2's.

    Raises:
        UserError: the tokenizer is larger than vocab_size, there is neither a tokenizer nor a training text, or a file
            is not UTF-8 or changes while it is read.
    """
    # Each corpus is made before its hash is computed and checked after it was read, so the cache never holds one text
    # under the hash of another.
    def corpus(spans: Sequence[Span]) -> Corpus:
        """Make the corpus of some spans."""
        return Corpus(spans, joined=reading.joined, allow_special=reading.allow_special)

    train, valid = corpus(texts.train) if texts.train else None, corpus(texts.valid)
    if tokenizer is None:
        if train is None:
            raise UserError("there is no training text to train a tokenizer on: give --data.tokenizer or a checkpoint")
        tokenizer = trained_tokenizer(train, cache, vocab_size, list(special_tokens), num_workers, pattern or GPT2)
    if pattern not in (None, tokenizer.pattern):
        raise UserError(f"data.pattern is {pattern!r}, but the tokenizer was trained with {tokenizer.pattern!r}: leave "
                        "--data.pattern out, or train another tokenizer")
    if tokenizer.vocab_size > vocab_size:
        raise UserError(f"the tokenizer has {tokenizer.vocab_size} entries, but data.vocab_size is {vocab_size}: give "
                        f"--data.vocab_size {tokenizer.vocab_size}")
    train_path = token_file(train, cache, tokenizer, "training", num_workers) if train is not None else None
    return Prepared(tokenizer, train_path, token_file(valid, cache, tokenizer, "validation", num_workers))


def trained_tokenizer(corpus: Corpus, cache: Cache, vocab_size: int, special_tokens: list[str], num_workers: int | None,
                      pattern: str = GPT2) -> Tokenizer:
    """Return a tokenizer trained on a text; train it if the cache has none, or a damaged one."""
    key = cache.key(corpus.spans, vocab_size=vocab_size, special=special_tokens, allow_special=corpus.allow_special,
                    **({} if pattern == GPT2 else {"pattern": pattern}))
    folder = cache.folder / "tokenizers" / key
    try:
        tokenizer = Tokenizer.from_dir(folder)
        if set(tokenizer.special_tokens) == set(special_tokens):
            return tokenizer
        problem = f"{folder} has lost its special tokens"
    except MissingFileError:
        problem = ""
    except UserError as error:
        problem = str(error)
    if problem:
        print(f"The tokenizer is trained again, because the cached one is unusable: {problem}", flush=True)
    vocab, merges = train_bpe(corpus, vocab_size, special_tokens, num_workers=num_workers, progress=True,
                              pattern=pattern)
    tokenizer = Tokenizer(vocab, merges, special_tokens, pattern=pattern)
    tokenizer.save(folder)
    return tokenizer


def token_file(corpus: Corpus, cache: Cache, tokenizer: Tokenizer, role: str, num_workers: int | None) -> Path:
    """Return the path of a text's token file; encode the text if the cache has none, or a damaged one."""
    key = cache.key(corpus.spans, tokenizer=tokenizer.hash, allow_special=corpus.allow_special)
    path = cache.folder / "tokens" / f"{key}.bin"
    try:
        TokenFile.open(path, tokenizer.hash)
        return path
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        print(f"The {role} text is encoded again, because the cached token file is unusable: {error}", flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    encode_files(tokenizer, corpus, path, num_workers=num_workers, progress=True)
    return path
