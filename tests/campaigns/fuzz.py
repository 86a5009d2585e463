"""`python -m tests.campaigns.fuzz`: compare the tokenizer with slow references on random difficult inputs.

The result is one JSON line per family of checks on stdout. Each failing case is printed on stderr, with its inputs and
the options that repeat it. The exit code is 1 if a case failed.

    python -m tests.campaigns.fuzz --count 50000 --seed 7
    python -m tests.campaigns.fuzz --seconds 300
"""

import json
import random
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain, pairwise
from pathlib import Path
from typing import TypeVar
from unittest import mock

from tests.campaigns.campaign import Case, check_equal, check_fails, run_campaign
from tests.campaigns.fuzz_inputs import (
    broken_bytes,
    broken_lines,
    nasty_specials,
    nasty_text,
    odd_tokenizer,
    with_specials,
)
from tests.tokenizer.reference import slow_counts, slow_merges, slow_pretokens, slow_word
from tslm.fast.tokenizer import encode_blocks, encode_words
from tslm.fast.tokenizer.scanner import pretoken_bounds, special_pattern
from tslm.tokenizer import END_OF_TEXT, TokenFile, Tokenizer, merge_pretokens
from tslm.tokenizer import tokenizer as tokenizer_module
from tslm.tokenizer.chunking import cut_blocks, usable_cuts
from tslm.tokenizer.corpus import Corpus, TextInput
from tslm.tokenizer.encode import encode_corpus
from tslm.tokenizer.pretokenize import PATTERN, encode_specials, find_pretokens
from tslm.tokenizer.train import count_corpus

Text = TypeVar("Text", str, bytes)
BOM = "\ufeff"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the campaign and return the exit code."""
    families = [scanner, cuts, vocabularies, streams, training, damaged_bytes, json_lines]
    description = "Compare the tokenizer with slow references on random difficult inputs."
    return run_campaign("tests.campaigns.fuzz", families, description, arguments)


def scanner(case: Case) -> None:
    """Compare the scanner's pre-tokens with those of `regex`, with and without special tokens, and at each cut."""
    text, specials = _draw_text(case)
    data = text.encode()
    words = PATTERN.findall(text)
    check_equal(find_pretokens(text), words)
    check_equal(_scanned(data, []), words)
    check_equal(_scanned(data, specials), slow_pretokens(text, specials))
    for cut in usable_cuts(data, encode_specials(specials)):
        apart = [word for part in (data[:cut], data[cut:]) for word in slow_pretokens(part.decode(), specials)]
        check_equal(apart, slow_pretokens(text, specials))


def cuts(case: Case) -> None:
    """Compare the pre-tokens of all blocks with those of the whole text, for any block size."""
    text, specials = _draw_text(case)
    size = case.rng.choice([1, 5, 60, 1000])
    case.note(size=size)
    blocks = list(cut_blocks(_split(case.rng, text.encode()), encode_specials(specials), size))
    check_equal(b"".join(blocks), text.encode())
    words = [word for block in blocks for word in slow_pretokens(block.decode(), specials)]
    check_equal(words, slow_pretokens(text, specials))


def vocabularies(case: Case) -> None:
    """Compare every way to encode with merging by definition, for unusual vocabularies."""
    text, specials = _draw_text(case)
    with _other_ways_to_merge(case):
        tokenizer = _odd(case, text, specials)
        expected = _encode_slowly(tokenizer, text)
        for encode_it in (tokenizer.encode, lambda text: list(tokenizer.encode_iterable([text])),
                          lambda text: tokenizer.encode_bytes(text.encode()).tolist()):  # fmt: skip
            for _ in range(2):  # the second time from caches
                if expected is None:
                    check_fails(partial(encode_it, text), "the vocabulary lacks the ")
                else:
                    check_equal(encode_it(text), expected)
    if expected is not None:
        check_equal(tokenizer.decode(expected), text)


def streams(case: Case) -> None:
    """Compare `encode_iterable` and `encode_files` with `encode`, for random parts, blocks and tasks."""
    length, least = case.rng.choice([(40, 1), (40, 1), (3000, 60)])  # long texts are not encoded byte by byte
    text, specials = _draw_text(case, length)
    tokenizer = _odd(case, text, specials, complete=True)
    ids = tokenizer.encode(text)
    check_equal(tokenizer.decode(ids), text)
    with mock.patch.object(tokenizer_module, "_STREAM_BYTES", max(least, case.rng.choice([1, 64, 1 << 13]))):
        check_equal(list(tokenizer.encode_iterable(_split(case.rng, text))), ids)
    parts = [part for part in _split(case.rng, text) if part.removeprefix(BOM)]
    if parts:
        sizes = _small_parts(case, least)
        joined = case.rng.random() < 0.5
        case.note(parts=parts, joined=joined)
        corpus = Corpus([case.write(f"{n}.txt", part.encode()) for n, part in enumerate(parts)], joined=joined)
        parts = [part.removeprefix(BOM) for part in parts]  # a byte order mark at the start of a file is dropped
        text = "".join(parts)
        if joined or len(parts) == 1:
            ids = tokenizer.encode(text)
        else:
            ids = [*chain.from_iterable(_with_end(tokenizer, part) for part in parts)]
        file = encode_files(tokenizer, corpus, case.folder / "ids.bin", sizes)
        check_equal((file.ids.tolist(), file.source_bytes), (ids, len(text.encode())))
        check_equal(count_pretokens(corpus, specials, sizes), _counts([text] if joined else parts, specials))


def training(case: Case) -> None:
    """Compare `merge_pretokens` with counting all pairs again for every merge."""
    rng = case.rng
    letters = rng.choice(["a", "ab", "abc", "abcdefgh", "aé字\0"])
    words = {"".join(rng.choices(letters, k=rng.randint(1, 14))).encode() for _ in range(rng.randint(0, 12))}
    if rng.random() < 0.3:
        words |= {rng.randbytes(rng.randint(1, 6)) for _ in range(5)}
    counts = {word: rng.choice([0, 1, 1, 2, 3, 1000, 1 << 40]) for word in sorted(words)}
    specials = nasty_specials(rng)
    size = 256 + len(specials) + rng.choice([0, 1, 10, 100])
    case.note(counts=counts, vocab_size=size, specials=specials)
    check_equal(merge_pretokens(counts, size, specials), slow_merges(counts, size, specials))


def damaged_bytes(case: Case) -> None:
    """Count files of any bytes: exactly, or with an error that names the same bad byte as Python's decoder."""
    text, specials = _draw_text(case, case.rng.choice([5, 100]))
    data = broken_bytes(case.rng, text).removeprefix(BOM.encode()) or b"\x80"
    case.note(data=data)
    path = case.write("a.txt", data)
    call = partial(count_pretokens, path, specials, _small_parts(case))
    try:
        readable = data.decode()
    except UnicodeDecodeError as error:
        check_fails(call, f"{path} is not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start};")
    else:
        check_equal(call(), slow_counts(readable, specials))


def json_lines(case: Case) -> None:
    """Encode and count JSONL, perhaps damaged: exactly by record, or with an error that names the first bad line.

    A plain text file may precede and follow the JSONL file.
    """
    rng = case.rng
    specials = rng.choice([[], [END_OF_TEXT], sorted({END_OF_TEXT, *nasty_specials(rng)}), nasty_specials(rng)])
    texts = [with_specials(rng, nasty_text(rng, rng.choice([0, 3, 40])), specials) for _ in range(rng.randint(1, 12))]
    plain = [rng.choice(["", "", nasty_text(rng, 9)]) for _ in range(2)]
    data = broken_lines(rng, texts).removeprefix(BOM.encode()) or b"\n"
    plain = [text.removeprefix(BOM) for text in plain]
    case.note(data=data, plain=plain, specials=specials)
    path = case.write("a.jsonl", data)
    before, after = ([case.write(f"{n}.txt", text.encode())] if text else [] for n, text in enumerate(plain))
    sources = [*before, path, *after]
    tokenizer = _odd(case, "".join(texts + plain), specials, complete=True)
    documents, bad_line = _read_slowly(data)
    sizes = _small_parts(case)
    allow_special = rng.random() < 0.5
    case.note(allow_special=allow_special)

    def counted() -> dict[bytes, int]:
        return count_pretokens(Corpus(sources, allow_special=allow_special), specials, sizes)

    def encoded() -> TokenFile:
        return encode_files(tokenizer, Corpus(sources, allow_special=allow_special), case.folder / "ids.bin", sizes)

    if bad_line is not None or not documents:
        part = f"{path} holds no record" if not data.strip() else f"{path}, line {bad_line}, "
        check_fails(counted, part)
        check_fails(encoded, part)
        return
    file, found = encoded(), counted()
    inner = chain.from_iterable(_with_end(tokenizer, text, is_record=True, allow_special=allow_special)
                                for text in documents)
    first, last = ([*_with_end(tokenizer, text)] if text else [] for text in plain)
    size = sum(len(text.encode()) for text in [*plain, *documents])
    check_equal((file.ids.tolist(), file.source_bytes), ([*first, *inner, *last], size))
    counts = Counter(_counts(plain, specials))
    counts.update(_counts(documents, specials if allow_special else []))
    check_equal(found, dict(counts))


def _counts(texts: Sequence[str], specials: list[str]) -> dict[bytes, int]:
    """Count the pre-tokens of several documents."""
    counts = Counter[bytes]()
    for text in texts:
        counts.update(slow_counts(text, specials))
    return dict(counts)


def _draw_text(case: Case, pieces: int = 40) -> tuple[str, list[str]]:
    """Draw a text and special tokens, and record them."""
    specials = nasty_specials(case.rng)
    text = with_specials(case.rng, nasty_text(case.rng, pieces), specials)
    case.note(text=text, specials=specials)
    return text, specials


def _split(rng: random.Random, text: Text) -> list[Text]:
    """Split a text into random parts. Parts may be empty."""
    boundaries = sorted(rng.choices(range(len(text) + 1), k=rng.choice([0, 1, 5, 30])))
    return [text[start:stop] for start, stop in pairwise([0, *boundaries, len(text)])]


def _small_parts(case: Case, least: int = 1) -> tuple[int, int]:
    """Draw the sizes of the tasks and blocks in which files are read."""
    task, block = (max(least, case.rng.choice([1, 7, 60, 1000, 1 << 20])) for _ in range(2))
    case.note(task_bytes=task, block_bytes=block)
    return task, block


def count_pretokens(source: TextInput, specials: list[str], sizes: tuple[int, int]) -> dict[bytes, int]:
    """Count in tasks and blocks of given sizes."""
    task, block = sizes
    encoded = encode_specials(specials)
    return count_corpus(Corpus(source), encoded, num_workers=1, largest_part=task, block_bytes=block)


def encode_files(tokenizer: Tokenizer, source: TextInput, output: Path, sizes: tuple[int, int]) -> TokenFile:
    """Encode in tasks and blocks of given sizes."""
    task, block = sizes
    return encode_corpus(tokenizer, Corpus(source), output, num_workers=1, task_bytes=task, block_bytes=block)


@contextmanager
def _other_ways_to_merge(case: Case) -> Iterator[None]:
    """Perhaps merge short words by the heap, and blocks and vocabularies of any size in C."""
    short, block, merges = (case.rng.choice(pair) for pair in ((0, 32), (0, 1 << 12), (0, 1000)))
    case.note(short=short, block=block, merges=merges)
    with (
        mock.patch.multiple(encode_words, _SHORT=short, LARGE_VOCABULARY=merges),
        mock.patch.multiple(encode_blocks, _WORTH_LOADING=block, LARGE_VOCABULARY=merges),
    ):
        yield


def _scanned(data: bytes, specials: list[str]) -> list[str]:
    bounds = pretoken_bounds(data, special_pattern(encode_specials(specials))).tolist()
    return [data[start:stop].decode() for start, stop in pairwise(bounds)]


def _odd(case: Case, text: str, specials: list[str], *, complete: bool = False) -> Tokenizer:
    tokenizer = odd_tokenizer(case.rng, text, specials, complete=complete)
    case.note(vocab=tokenizer.vocab, merges=tokenizer.merges)
    return tokenizer


def _encode_slowly(tokenizer: Tokenizer, text: str) -> list[int] | None:
    """Return the ids by definition, or None if the vocabulary does not contain a token."""
    ids = {token: id_ for id_, token in sorted(tokenizer.vocab.items(), reverse=True)}
    merges = list(dict.fromkeys(tokenizer.merges))  # the first place of a duplicate pair counts
    found: list[int] = []
    for word in slow_pretokens(text, tokenizer.special_tokens):
        special = word in tokenizer.special_ids
        for token in [word.encode()] if special else slow_word(word.encode(), merges):
            if token not in ids:
                return None
            found.append(ids[token])
    return found


def _with_end(
    tokenizer: Tokenizer, document: str, *, is_record: bool = False, allow_special: bool = True
) -> list[int]:
    """Return the ids of a document and of the separator, unless the document ends with the separator."""
    separator = next(iter(tokenizer.special_tokens), None)
    if not allow_special:
        ids = Tokenizer(tokenizer.vocab, tokenizer.merges).encode(document)
        return ids if separator is None else [*ids, tokenizer.special_ids[separator]]
    ids = tokenizer.encode(document)
    if separator is None:
        return ids
    end = tokenizer.special_ids[separator]
    if is_record:
        is_ended = ids[-1:] == [end]
    else:
        is_ended = document.endswith(separator) or document.rstrip("\r\n").endswith(separator)
    return ids if is_ended else [*ids, end]


def _read_slowly(data: bytes) -> tuple[list[str], int | None]:
    """Return the documents of a JSONL file up to the first bad line, and the number of that line or None."""
    documents = []
    for number, line in enumerate(data.split(b"\n"), 1):
        if line.strip():
            try:
                text = json.loads(line.decode())["text"]
                text.encode()
            except (ValueError, TypeError, KeyError, AttributeError):
                return documents, number
            documents.append(text)
    return documents, None


if __name__ == "__main__":
    sys.exit(main())
