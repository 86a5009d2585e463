"""Measure a byte-pair tokenizer and its training on a text; tokenizer_page.py prints the result."""

from __future__ import annotations

import cProfile
import heapq
import os
import pstats
import random
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

from tslm.data.toy import write_corpus
from tslm.errors import UserError
from tslm.tokenizer import END_OF_TEXT, TokenFile, Tokenizer, encode_files
from tslm.tokenizer.bpe import MergeStep, rank_merges, replay
from tslm.tokenizer.corpus import Corpus
from tslm.tokenizer.jsonl import read_documents
from tslm.tokenizer.pretokenize import GPT2, find_pretokens
from tslm.tokenizer.report import TrainingReport, train_with_report
from tslm.tokenizer.sources import Span, find_documents, is_jsonl
from tslm.tokenizer.workers import POOL_BYTES

MAX_DOCUMENT_BYTES = 1 << 20  # a text without END_OF_TEXT is a single document, perhaps of gigabytes
LARGE_BYTES = 1 << 28  # of a text beside which the start of the workers is short
MAX_COPIES = 32
PROFILED_BYTES = 1 << 26
MAX_STRING_BYTES = 1 << 22  # what `measure_strings` encodes: about a second of work


class Sample(NamedTuple):
    """The first 50 characters of a document, its size in bytes, and its number of tokens."""

    text: str
    num_bytes: int
    num_tokens: int


class Profiled(NamedTuple):
    """A function, how often it was called, and the seconds in it without the functions that it called."""

    name: str
    calls: int
    seconds: float


class Speed(NamedTuple):
    """The name of an operation, the bytes of text it processed, and the seconds it took."""

    name: str
    num_bytes: int
    seconds: float

    @property
    def bytes_per_second(self) -> float:
        """The throughput."""
        return self.num_bytes / self.seconds


@dataclass(frozen=True)
class TokenizerStudy:
    """All measurements.

    Attributes:
        tokenizer: the tokenizer under study.
        training: a training on the text, of `tokenizer` itself or of a tokenizer with the same size.
        vocab_size: the requested vocabulary size of that training.
        profile: the functions in which a training in one process spends most time; empty for a large text.
        common_merges: length of the common prefix of both merge lists; None if `tokenizer` was trained here.
        num_bytes: size of the text.
        num_tokens: number of tokens of the text, special tokens included.
        documents: a random sample.
        speeds: encoding speeds.
        word: a pre-token.
        steps: the encoding of `word`, merge by merge.
    """

    tokenizer: Tokenizer
    training: TrainingReport
    vocab_size: int
    profile: list[Profiled]
    common_merges: int | None
    num_bytes: int
    num_tokens: int
    documents: list[Sample]
    speeds: list[Speed]
    word: str
    steps: list[MergeStep]


def study_tokenizer(input: Sequence[str] | None = None, *, num_stories: int = 20_000, tokenizer: str | None = None,
                    vocab_size: int | None = None, special_tokens: Sequence[str] | None = None,
                    num_workers: int | None = None, word: str | None = None, seed: int = 0) -> TokenizerStudy:
    """Measure a tokenizer and its training on a text.

    The arguments are the options of `study tokenizer`; None stands for their defaults.

    Raises:
        OSError: a file or the tokenizer's folder cannot be read.
        UserError: options contradict each other, the text contains no word, or `word` is not one pre-token.
        ValueError: the vocabulary lacks a byte of the text or of `word`.
    """
    if tokenizer and (vocab_size is not None or special_tokens is not None):
        raise UserError("--vocab_size and --special_tokens describe a tokenizer to train, but --tokenizer names an "
                        "existing one: leave out one or the other")
    if num_stories < 1:
        raise UserError(f"num_stories is {num_stories}: give 1 or more")
    given = Tokenizer.from_dir(tokenizer) if tokenizer else None
    size = given.vocab_size if given else vocab_size if vocab_size is not None else 10_000
    specials = given.special_tokens if given else special_tokens if special_tokens is not None else [END_OF_TEXT]
    pattern = given.pattern if given else GPT2
    if word is not None:
        check_word(word, specials, pattern)
        if given:
            given.encode(word)  # raises before the long training if the vocabulary lacks a byte of the word

    with tempfile.TemporaryDirectory() as folder:
        stories = os.path.join(folder, "stories.txt")
        if not input:
            write_corpus(stories, num_stories, seed)
        source = Corpus(input or stories)
        documents = list(iter_documents(source, specials[0].encode() if specials else b""))
        training = train_with_report(source, size, specials, num_workers=num_workers, progress=True, pattern=pattern)
        profile = profile_training(source, size, specials, pattern)
        sample = sample_documents(documents, 10, seed)
        texts = list(filter(None, map(read_document, sample)))  # JSONL can have empty ones
        if not (training.counts and texts):
            raise UserError("the text contains only white space and special tokens: give a text with words")
        subject = given or training.tokenizer
        in_files, num_tokens = measure_files(subject, source, Path(folder, "ids.bin"), num_workers)
        as_strings = measure_strings(subject, documents)
    word = word or pick_word(training.counts)
    return TokenizerStudy(
        tokenizer=subject,
        training=training,
        vocab_size=size,
        profile=profile,
        common_merges=count_common_merges(given, training.tokenizer) if given else None,
        num_bytes=in_files.num_bytes,
        num_tokens=num_tokens,
        documents=[Sample(text[:50], len(text.encode()), len(subject.encode(text))) for text in texts],
        speeds=[in_files, as_strings],
        word=word,
        steps=list(replay(word.encode(), rank_merges(subject.merges))),
    )


def profile_training(source: Corpus, vocab_size: int, specials: Sequence[str], pattern: str) -> list[Profiled]:
    """Train once more in one process under Python's profiler; return the ten functions with most time of their own.

    The profiler itself slows small functions down. A text above `PROFILED_BYTES` is not profiled.
    """
    if sum(span.stop - span.start for span in source.spans) > PROFILED_BYTES:
        return []
    profiler = cProfile.Profile()
    profiler.runcall(train_with_report, source, vocab_size, specials, num_workers=1, progress=False, pattern=pattern)
    found = []
    for (path, _, name), (_, calls, own, *_) in pstats.Stats(profiler).stats.items():  # type: ignore[attr-defined]
        place = Path(path).stem
        found.append(Profiled(f"{place}.{name}" if path != "~" else name.strip("<>"), calls, own))
    return sorted(found, key=lambda each: -each.seconds)[:10]


def iter_documents(source: Corpus, separator: bytes) -> Iterator[Span]:
    """Yield the spans of all documents that are not blank, in order."""
    for span in source.spans:
        for document in find_documents(span, separator):
            if document.text.strip():
                yield span._replace(start=document.start, stop=document.stop)


def sample_documents(documents: Iterable[Span], count: int, seed: int) -> list[Span]:
    """Return `count` random documents in their order, or all if there are fewer."""
    uniform = random.Random(seed).random
    sample = heapq.nsmallest(count, ((uniform(), number, span) for number, span in enumerate(documents)))
    return [span for _, _, span in sorted(sample, key=lambda entry: entry[1])]


def read_document(span: Span) -> str:
    """Return the text of a document, truncated to its first mebibyte."""
    if is_jsonl(span.path):
        data = next(read_documents(span))[:MAX_DOCUMENT_BYTES]
    else:
        with open(span.path, "rb") as file:
            file.seek(span.start)
            data = file.read(min(span.stop - span.start, MAX_DOCUMENT_BYTES))
    return data.decode(errors="ignore")  # the truncation may split a character, which is dropped


def check_word(word: str, special_tokens: Sequence[str], pattern: str = GPT2) -> None:
    """Check that a word is one pre-token.

    Raises:
        UserError: it is not.
    """
    if word in special_tokens:
        raise UserError(f"word {word!r} is a special token, which is never merged: give an ordinary word")
    pretokens = find_pretokens(word, pattern)
    if len(pretokens) != 1:
        raise UserError(f"word {word!r} is {len(pretokens)} pre-tokens {pretokens}, and merges never cross pre-tokens: "
                        "give one")


def pick_word(counts: Mapping[bytes, int]) -> str:
    """Return the most frequent word of at least ten bytes, or the longest word if none is that long."""
    return max(counts, key=lambda word: (is_word(word), min(len(word), 10), counts[word], word)).decode()


def is_word(token: bytes) -> bool:
    """Return whether a token consists of letters, with at most one space before them."""
    try:
        return token.decode().removeprefix(" ").isalpha()
    except UnicodeDecodeError:
        return False


def count_common_merges(one: Tokenizer, other: Tokenizer) -> int:
    """Return the length of the common prefix of two merge lists."""
    pairs = zip(one.merges, other.merges, strict=False)
    return len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))


def measure_files(tokenizer: Tokenizer, source: Corpus, output: Path, num_workers: int | None) -> tuple[Speed, int]:
    """Encode whole files with `encode_files`; return the speed and the number of tokens.

    The start of the workers and the words that are new to them take the same time for a megabyte as for a terabyte. A
    small text is therefore encoded in several copies, and in twice as many: the difference has the time of the copies
    alone.
    """
    def encode(copies: int) -> tuple[TokenFile, float]:
        """Encode some copies of the text; return the ids and the seconds."""
        fresh, corpus = _without_caches(tokenizer), Corpus([span for _ in range(copies) for span in source.spans])
        start = time.perf_counter()
        return encode_files(fresh, corpus, output, num_workers=num_workers, progress=True), time.perf_counter() - start

    tokens, whole = encode(1)
    num_bytes, num_tokens = tokens.source_bytes, len(tokens)
    if source.size >= LARGE_BYTES:
        return Speed("encode_files", num_bytes, whole), num_tokens
    copies = min(MAX_COPIES, -(-POOL_BYTES // source.size))  # so many that the workers start, if the text is no toy
    once, twice = (min(encode(number)[1] for _ in range(2)) for number in (copies, 2 * copies))
    seconds = twice - once if twice > once else twice / 2
    return Speed("encode_files", num_bytes, seconds / copies), num_tokens


def measure_strings(tokenizer: Tokenizer, documents: Iterable[Span]) -> Speed:
    """Encode the first documents of the text one at a time with `encode`; return the speed."""
    texts: list[str] = []
    num_bytes = 0
    for document in documents:
        texts.append(read_document(document))
        num_bytes += len(texts[-1].encode())
        if num_bytes >= MAX_STRING_BYTES:
            break
    fresh = _without_caches(tokenizer)
    start = time.perf_counter()
    for text in texts:
        fresh.encode(text)
    return Speed("encode, a document at a time", num_bytes, time.perf_counter() - start)


def _without_caches(tokenizer: Tokenizer) -> Tokenizer:
    """Return an equal tokenizer with empty caches, so that earlier encodings do not count."""
    return Tokenizer(tokenizer.vocab, tokenizer.merges, tokenizer.special_tokens, pattern=tokenizer.pattern)
