import random

import pytest

from tests.tokenizer.reference import TRICKY, slow_pretokens, tricky_text
from tslm.tokenizer import Span, corpus
from tslm.tokenizer.corpus import Corpus, cut_blocks, read_pieces, usable_cuts

SPECIALS = ["<|e|>", "<|e|><|e|>", "a b", "e ", "\n\n"]
BYTES = [token.encode() for token in SPECIALS]


def write(path, data):
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def test_tokenizer_blocks_have_the_pretokens_of_the_whole_text():
    rng = random.Random(1)
    for round_ in range(400):
        text = tricky_text(rng, 60, [*TRICKY, *SPECIALS, "word"])
        data = text.encode()
        borders = sorted(rng.sample(range(len(data)), 6))
        pieces = [data[a:b] for a, b in zip([0, *borders], [*borders, len(data)], strict=True)]
        blocks = list(cut_blocks(pieces, BYTES, size=1 + round_ % 40))
        assert b"".join(blocks) == data
        apart = [word for block in blocks for word in slow_pretokens(block.decode(), SPECIALS)]
        assert apart == slow_pretokens(text, SPECIALS), (text, blocks)


def test_tokenizer_blocks_come_soon_and_stay_small():
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield b"a line of text\n"

    blocks = cut_blocks(endless(), [], size=1 << 12, first=64)
    next(blocks)
    assert taken <= 10
    sizes = [len(next(blocks)) for _ in range(50)]
    assert 3500 < sizes[-1] < 1 << 13


def test_tokenizer_text_without_a_cut_is_one_block():
    assert list(cut_blocks([b"a" * 100] * 50, [], size=64)) == [b"a" * 5000]


def test_tokenizer_cuts_avoid_special_tokens():
    text = b"_" * 10 + b"one a b two<|e|>three three" + b"_" * 10
    cuts = [text[:cut].strip(b"_") for cut in usable_cuts(text, BYTES)]
    # Not inside `a b`, `<|e|>` and `e `.
    assert cuts == [b"one a b", b"one a b two", b"one a b two<|e|>three three"]


def test_tokenizer_corpus_is_split_at_safe_places_across_files(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "_WINDOW", 4)
    rng = random.Random(2)
    for _ in range(60):
        texts = [tricky_text(rng, rng.randrange(1, 60), [*TRICKY, *SPECIALS, "word"]) for _ in range(4)]
        whole = "".join(texts)
        both = Corpus([write(tmp_path / f"{n}.txt", text) for n, text in enumerate(texts)])
        assert both.size == len(whole.encode())
        parts = [b"".join(read_pieces(spans, 7)).decode() for spans in both.split(rng.randrange(1, 90), BYTES)]
        assert "".join(parts) == whole
        assert [word for part in parts for word in slow_pretokens(part, SPECIALS)] == slow_pretokens(whole, SPECIALS)


def test_tokenizer_corpus_takes_spans(tmp_path):
    path = write(tmp_path / "a.txt", "0123456789")
    spans = Corpus([Span(path, 2, 5), path]).between(1, 6)
    assert spans == [Span(path, 3, 5), Span(path, 0, 3)]


def test_tokenizer_bad_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.txt does not exist"):
        Corpus(tmp_path / "nowhere.txt")
    with pytest.raises(ValueError, match=r"empty\.txt is empty"):
        Corpus([write(tmp_path / "empty.txt", "")])
    with pytest.raises(OSError, match="is a folder"):
        Corpus(tmp_path)
    with pytest.raises(ValueError, match="no input file"):
        Corpus([])
    with pytest.raises(ValueError, match="bytes 3 to 9 of"):
        Corpus(Span(write(tmp_path / "short.txt", "abcd"), 3, 9))


@pytest.mark.parametrize(
    ("data", "byte", "offset"),
    [
        (b"a\xff\xfeb", "ff", 1),
        (b"abc\xc3", "c3", 3),
        (b"\xc3\xa9\xe2\x82x", "e2", 2),
        ("é".encode() * 99 + b"\x80", "80", 198),
    ],
)
@pytest.mark.parametrize("size", [2, 5, 1 << 18])
def test_tokenizer_bytes_that_are_not_utf8_are_named(tmp_path, data, byte, offset, size):
    path = write(tmp_path / "bad.txt", data)
    with pytest.raises(ValueError, match=rf"bad\.txt is not UTF-8: byte 0x{byte} at offset {offset};"):
        list(read_pieces([Span(path, 0, len(data))], size))


def test_tokenizer_character_cut_by_a_file_border_is_not_utf8(tmp_path):
    first, second = write(tmp_path / "1.txt", b"a\xc3"), write(tmp_path / "2.txt", b"\xa9b")
    with pytest.raises(ValueError, match=r"1\.txt is not UTF-8: byte 0xc3 at offset 1"):
        list(read_pieces(Corpus([first, second]).spans))
