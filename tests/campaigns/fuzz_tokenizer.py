"""Holds the tokenizer against slow references on random nasty inputs, for as long as one likes.

A seed and a time come in; one JSON line per family of checks goes out, and on stderr each failing case with its inputs
and the options that repeat it. Exit code 1 says that there was one.

    python -m tests.campaigns.fuzz_tokenizer --seconds 300 --seed 7
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

from tests.campaigns.campaign import Case, fails, run_campaign, same
from tests.campaigns.fuzz_inputs import broken_bytes, broken_lines, nasty_specials, nasty_text, odd_tokenizer, salted
from tests.tokenizer.reference import slow_counts, slow_merges, slow_pretokens, slow_word
from tslm.fast.tokenizer import encode_words
from tslm.fast.tokenizer.scanner import pretoken_bounds, special_pattern
from tslm.tokenizer import END_OF_TEXT, TokenFile, Tokenizer, merge_pretokens
from tslm.tokenizer import tokenizer as tokenizer_module
from tslm.tokenizer.chunking import cut_blocks, usable_cuts
from tslm.tokenizer.corpus import Corpus, TextInput
from tslm.tokenizer.encode import encode_corpus
from tslm.tokenizer.pretokenize import PATTERN, encode_specials, find_pretokens
from tslm.tokenizer.train import count_corpus

Text = TypeVar("Text", str, bytes)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the campaign; return the exit code."""
    families = [scanner, cuts, vocabularies, streams, training, damaged_bytes, json_lines]
    description = "Hold the tokenizer against slow references on random nasty inputs."
    return run_campaign("tests.campaigns.fuzz_tokenizer", families, description, arguments)


def scanner(case: Case) -> None:
    """The scanner's starts, with and without special tokens, and the cuts, against `regex`."""
    text, specials = _draw_text(case)
    data = text.encode()
    words = PATTERN.findall(text)
    same(find_pretokens(text), words)
    same(_scanned(data, []), words)
    same(_scanned(data, specials), slow_pretokens(text, specials))
    for cut in usable_cuts(data, encode_specials(specials)):
        apart = [word for part in (data[:cut], data[cut:]) for word in slow_pretokens(part.decode(), specials)]
        same(apart, slow_pretokens(text, specials))


def cuts(case: Case) -> None:
    """The words of blocks, cut from pieces of any kind, against those of the whole text."""
    text, specials = _draw_text(case)
    size = case.rng.choice([1, 5, 60, 1000])
    case.note(size=size)
    blocks = list(cut_blocks(_parted(case.rng, text.encode()), encode_specials(specials), size))
    same(b"".join(blocks), text.encode())
    words = [word for block in blocks for word in slow_pretokens(block.decode(), specials)]
    same(words, slow_pretokens(text, specials))


def vocabularies(case: Case) -> None:
    """Encoding by words and by blocks, with odd vocabularies, against merging by the definition."""
    text, specials = _draw_text(case)
    with _other_ways_to_merge(case):
        tokenizer = _odd(case, text, specials)
        expected = _encode_slowly(tokenizer, text)
        for encode_it in (tokenizer.encode, lambda text: list(tokenizer.encode_iterable([text])),
                          lambda text: tokenizer.encode_bytes(text.encode()).tolist()):  # fmt: skip
            for _ in range(2):  # the second time from tables
                if expected is None:
                    fails(partial(encode_it, text), "the vocabulary lacks the ")
                else:
                    same(encode_it(text), expected)
    if expected is not None:
        same(tokenizer.decode(expected), text)


def streams(case: Case) -> None:
    """`encode`, `encode_iterable` in random parts and `encode_files` in random parts, blocks and tasks are one."""
    length, least = case.rng.choice([(40, 1), (40, 1), (3000, 60)])  # long texts not byte by byte
    text, specials = _draw_text(case, length)
    tokenizer = _odd(case, text, specials, complete=True)
    ids = tokenizer.encode(text)
    same(tokenizer.decode(ids), text)
    with mock.patch.object(tokenizer_module, "_STREAM_BYTES", max(least, case.rng.choice([1, 64, 1 << 13]))):
        same(list(tokenizer.encode_iterable(_parted(case.rng, text))), ids)
    parts = [part for part in _parted(case.rng, text) if part]
    if parts:
        sizes = _small_parts(case, least)
        paths = [case.write(f"{n}.txt", part.encode()) for n, part in enumerate(parts)]
        file = encode_files(tokenizer, paths, case.folder / "ids.bin", sizes)
        same((file.ids.tolist(), file.source_bytes), (ids, len(text.encode())))
        same(count_pretokens(paths, specials, sizes), slow_counts(text, specials))


def training(case: Case) -> None:
    """`merge_pretokens` against counting all pairs anew."""
    rng = case.rng
    letters = rng.choice(["a", "ab", "abc", "abcdefgh", "aé字\0"])
    words = {"".join(rng.choices(letters, k=rng.randint(1, 14))).encode() for _ in range(rng.randint(0, 12))}
    if rng.random() < 0.3:
        words |= {rng.randbytes(rng.randint(1, 6)) for _ in range(5)}
    counts = {word: rng.choice([0, 1, 1, 2, 3, 1000, 1 << 40]) for word in sorted(words)}
    specials = nasty_specials(rng)
    size = 256 + len(specials) + rng.choice([0, 1, 10, 100])
    case.note(counts=counts, vocab_size=size, specials=specials)
    same(merge_pretokens(counts, size, specials), slow_merges(counts, size, specials))


def damaged_bytes(case: Case) -> None:
    """Files of any bytes: counted exactly, or one sentence that names the first bad byte as Python's decoder does."""
    text, specials = _draw_text(case, case.rng.choice([5, 100]))
    data = broken_bytes(case.rng, text) or b"\x80"
    case.note(data=data)
    path = case.write("a.txt", data)
    call = partial(count_pretokens, path, specials, _small_parts(case))
    try:
        readable = data.decode()
    except UnicodeDecodeError as error:
        fails(call, f"{path} is not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start};")
    else:
        same(call(), slow_counts(readable, specials))


def json_lines(case: Case) -> None:
    """JSONL, damaged or not: each record's own ids and counts, or one sentence that names the first bad line.

    A plain file may stand in front of it and another one behind; they are texts as they are.
    """
    rng = case.rng
    specials = rng.choice([[], [END_OF_TEXT], sorted({END_OF_TEXT, *nasty_specials(rng)}), nasty_specials(rng)])
    texts = [salted(rng, nasty_text(rng, rng.choice([0, 3, 40])), specials) for _ in range(rng.randint(1, 12))]
    plain = [rng.choice(["", "", nasty_text(rng, 9)]) for _ in range(2)]
    data = broken_lines(rng, texts) or b"\n"
    case.note(data=data, plain=plain, specials=specials)
    path = case.write("a.jsonl", data)
    before, after = ([case.write(f"{n}.txt", text.encode())] if text else [] for n, text in enumerate(plain))
    sources = [*before, path, *after]
    tokenizer = _odd(case, "".join(texts + plain), specials, complete=True)
    documents, bad_line = _read_slowly(data)
    sizes = _small_parts(case)
    counted = partial(count_pretokens, sources, specials, sizes)
    encoded = partial(encode_files, tokenizer, sources, case.folder / "ids.bin", sizes)
    if bad_line is not None or not documents:
        part = f"{path} holds no record" if not data.strip() else f"{path}, line {bad_line}, "
        fails(counted, part)
        fails(encoded, part)
        return
    file, found = encoded(), counted()
    texts = [plain[0], *documents, plain[1]]
    inner = chain.from_iterable(_with_end(tokenizer, text) for text in documents)
    ids = [*tokenizer.encode(plain[0]), *inner, *tokenizer.encode(plain[1])]
    same((file.ids.tolist(), file.source_bytes), (ids, sum(len(text.encode()) for text in texts)))
    counts = Counter[bytes]()
    for text in texts:
        counts.update(slow_counts(text, specials))
    same(found, dict(counts))


def _draw_text(case: Case, pieces: int = 40) -> tuple[str, list[str]]:
    """Draw a text and special tokens."""
    specials = nasty_specials(case.rng)
    text = salted(case.rng, nasty_text(case.rng, pieces), specials)
    case.note(text=text, specials=specials)
    return text, specials


def _parted(rng: random.Random, text: Text) -> list[Text]:
    """Cut a text in parts, some of them empty."""
    borders = sorted(rng.choices(range(len(text) + 1), k=rng.choice([0, 1, 5, 30])))
    return [text[start:stop] for start, stop in pairwise([0, *borders, len(text)])]


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
    """Perhaps merge few words as a batch, and short ones in rounds and by the heap."""
    many, short, very_long, poor = (case.rng.choice(pair) for pair in ((0, 256), (0, 32), (0, 4096), (8, 1 << 20)))
    case.note(many=many, short=short, very_long=very_long, poor=poor)
    with (
        mock.patch.multiple(encode_words, _SHORT=short, _VERY_LONG=very_long),
        mock.patch.object(encode_words.WordEncoder.__init__, "__defaults__", (many,)),
        mock.patch.object(encode_words.merge_rounds, "__defaults__", (64, poor)),
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
    """Return the ids by the definition; None where the vocabulary lacks one."""
    ids = {token: id_ for id_, token in sorted(tokenizer.vocab.items(), reverse=True)}
    merges = list(dict.fromkeys(tokenizer.merges))  # of a pair that is listed twice the first place counts
    found: list[int] = []
    for word in slow_pretokens(text, tokenizer.special_tokens):
        special = word in tokenizer.special_ids
        for token in [word.encode()] if special else slow_word(word.encode(), merges):
            if token not in ids:
                return None
            found.append(ids[token])
    return found


def _with_end(tokenizer: Tokenizer, document: str) -> list[int]:
    """Return a document's ids and behind them, if there is such a token, that of its end, but not twice."""
    end = tokenizer.special_ids.get(END_OF_TEXT)
    ids = tokenizer.encode(document)
    return ids if end is None or ids[-1:] == [end] else [*ids, end]


def _read_slowly(data: bytes) -> tuple[list[str], int | None]:
    """Return the documents of a JSONL file, and the number of the first line that is no record."""
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
