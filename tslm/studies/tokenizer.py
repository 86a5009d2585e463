"""Measures what a byte-pair tokenizer and its training are worth on a text.

Text files come in, or none, and a tokenizer if there is one; a `TokenizerStudy` goes out, and tokenizer_page.py prints
it.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tslm.data.toy import write_corpus
from tslm.studies.documents import iter_documents, read_document, sample_documents
from tslm.tokenizer import END_OF_TEXT, Tokenizer, encode_files
from tslm.tokenizer.bpe import MergeStep, rank_merges, replay
from tslm.tokenizer.pretokenize import find_pretokens
from tslm.tokenizer.report import TrainingReport, train_with_report

_STRINGS_BYTES = 1 << 22  # how much is encoded string by string: about a second


class Document(NamedTuple):
    """A document's beginning, its size in bytes, and the number of tokens that it takes."""

    text: str
    num_bytes: int
    num_tokens: int


class Speed(NamedTuple):
    """What was done, how many bytes of text it went through, and in how many seconds."""

    name: str
    num_bytes: int
    seconds: float

    @property
    def bytes_per_second(self) -> float:
        """The throughput."""
        return self.num_bytes / self.seconds


@dataclass(frozen=True)
class TokenizerStudy:
    """All that was measured.

    Attributes:
        tokenizer: the one that the study is about.
        training: a training on the text, of `tokenizer` or of one of the same size.
        vocab_size: the size that the training was asked for.
        common_merges: how many merges, from the first, are the same in both; None where both are one.
        num_bytes: size of the text.
        num_tokens: of the whole text, special tokens among them.
        documents: a random sample.
        speeds: of encoding.
        word: a pre-token.
        steps: its encoding.
    """

    tokenizer: Tokenizer
    training: TrainingReport
    vocab_size: int
    common_merges: int | None
    num_bytes: int
    num_tokens: int
    documents: list[Document]
    speeds: list[Speed]
    word: str
    steps: list[MergeStep]


def study_tokenizer(
    input: Sequence[str] | None = None,
    *,
    num_stories: int = 20_000,
    tokenizer: str | None = None,
    vocab_size: int | None = None,
    special_tokens: Sequence[str] | None = None,
    num_workers: int | None = None,
    word: str | None = None,
    seed: int = 0,
) -> TokenizerStudy:
    """Measure a tokenizer and its training on a text.

    Args:
        input: text files; None for stories of the embedded corpus.
        num_stories: how many of those.
        tokenizer: the folder of a tokenizer, which gives size and special tokens of the training too; None for the one
            that is trained.
        vocab_size: of the training; None for 10,000.
        special_tokens: of the training; None for `<|endoftext|>`.
        num_workers: processes; None for one per core.
        word: a pre-token to replay; None for `pick_word`.
        seed: of the stories and of the sample of documents.

    Raises:
        OSError: a file or the tokenizer's folder cannot be read.
        ValueError: options contradict each other, the text holds no word, the vocabulary lacks a byte of text or word,
            or the word is not one pre-token.
    """
    if tokenizer and (vocab_size is not None or special_tokens is not None):
        raise ValueError(
            "--vocab_size and --special_tokens are for a tokenizer that is trained here, but --tokenizer was given; "
            "leave out one or the other"
        )
    if num_stories < 1:
        raise ValueError(f"num_stories is {num_stories}; give 1 or more")
    given = Tokenizer.from_dir(tokenizer) if tokenizer else None
    size = given.vocab_size if given else vocab_size if vocab_size is not None else 10_000
    specials = given.special_tokens if given else special_tokens if special_tokens is not None else [END_OF_TEXT]
    if word is not None:
        check_word(word, specials)
        if given:
            given.encode(word)  # says before anything long if the vocabulary lacks a byte of it

    with tempfile.TemporaryDirectory() as folder:
        source = input or [os.path.join(folder, "stories.txt")]
        if not input:
            write_corpus(source[0], num_stories, seed)
        training = train_with_report(source, size, specials, num_workers=num_workers, progress=True)
        texts = list(filter(None, map(read_document, sample_documents(source, 10, seed))))  # of JSONL some are empty
        if not (training.counts and texts):
            raise ValueError("the text holds nothing but white space and special tokens; give one with words")
        subject = given or training.tokenizer
        in_files, num_tokens = measure_files(subject, source, Path(folder, "ids.bin"), num_workers)
        as_strings = measure_strings(subject, source)
    word = word or pick_word(training.counts)
    return TokenizerStudy(
        tokenizer=subject,
        training=training,
        vocab_size=size,
        common_merges=count_common_merges(given, training.tokenizer) if given else None,
        num_bytes=in_files.num_bytes,
        num_tokens=num_tokens,
        documents=[Document(text[:50], len(text.encode()), len(subject.encode(text))) for text in texts],
        speeds=[in_files, as_strings],
        word=word,
        steps=list(replay(word.encode(), rank_merges(subject.merges))),
    )


def check_word(word: str, special_tokens: Sequence[str]) -> None:
    """Check that a word can be replayed.

    Raises:
        ValueError: it is not one pre-token.
    """
    if word in special_tokens:
        raise ValueError(f"word {word!r} is a special token, which is never merged; give an ordinary word")
    pretokens = find_pretokens(word)
    if len(pretokens) != 1:
        raise ValueError(
            f"word {word!r} is {len(pretokens)} pre-tokens {pretokens}, and nothing is merged across them; give one"
        )


def pick_word(counts: Mapping[bytes, int]) -> str:
    """Return the most frequent word of at least ten bytes; where none is as long, the longest."""
    return max(counts, key=lambda word: (is_word(word), min(len(word), 10), counts[word], word)).decode()


def is_word(token: bytes) -> bool:
    """Tell whether a token is letters, with at most one space in front."""
    try:
        return token.decode().removeprefix(" ").isalpha()
    except UnicodeDecodeError:
        return False


def count_common_merges(one: Tokenizer, other: Tokenizer) -> int:
    """Return how many merges, from the first, two tokenizers have in common."""
    pairs = enumerate(zip(one.merges, other.merges, strict=False))
    return next((rank for rank, (left, right) in pairs if left != right), min(len(one.merges), len(other.merges)))


def measure_files(
    tokenizer: Tokenizer, source: Sequence[str | os.PathLike[str]], output: Path, num_workers: int | None
) -> tuple[Speed, int]:
    """Encode whole files with `encode_files`; return its speed and the number of tokens."""
    fresh = _without_caches(tokenizer)
    start = time.perf_counter()
    tokens = encode_files(fresh, source, output, num_workers=num_workers, progress=True)
    return Speed("encode_files", tokens.source_bytes, time.perf_counter() - start), len(tokens)


def measure_strings(tokenizer: Tokenizer, source: Sequence[str | os.PathLike[str]]) -> Speed:
    """Encode documents from the beginning of the text with `encode`, one at a time; return its speed."""
    texts: list[str] = []
    num_bytes = 0
    for span in iter_documents(source):
        texts.append(read_document(span))
        num_bytes += len(texts[-1].encode())
        if num_bytes >= _STRINGS_BYTES:
            break
    fresh = _without_caches(tokenizer)
    start = time.perf_counter()
    for text in texts:
        fresh.encode(text)
    return Speed("encode, a document at a time", num_bytes, time.perf_counter() - start)


def _without_caches(tokenizer: Tokenizer) -> Tokenizer:
    """Return an equal tokenizer that has not met a word yet, for what came before should not count."""
    return Tokenizer(tokenizer.vocab, tokenizer.merges, tokenizer.special_tokens)
