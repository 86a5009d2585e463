import random

import pytest

from tests.tokenizer.reference import TRICKY, slow_pretokens, tricky_text
from tslm.tokenizer import Span
from tslm.tokenizer.blocks import read_pieces
from tslm.tokenizer.corpus import Corpus

SPECIALS = ["<|e|>", "<|e|><|e|>", "a b", "e ", "\n\n"]
BYTES = [token.encode() for token in SPECIALS]


def write(path, data):
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def test_tokenizer_corpus_is_split_at_safe_places_across_files(tmp_path):
    rng = random.Random(2)
    for _ in range(60):
        texts = [tricky_text(rng, rng.randrange(1, 60), [*TRICKY, *SPECIALS, "word"]) for _ in range(4)]
        whole = "".join(texts)
        both = Corpus([write(tmp_path / f"{n}.txt", text) for n, text in enumerate(texts)], joined=True)
        assert both.size == len(whole.encode())
        split = both.split(rng.randrange(1, 90), BYTES, window=4)
        parts = [b"".join(read_pieces(spans, 7)).decode() for spans in split]
        assert "".join(parts) == whole
        assert [word for part in parts for word in slow_pretokens(part, SPECIALS)] == slow_pretokens(whole, SPECIALS)


def test_tokenizer_corpus_takes_spans(tmp_path):
    path = write(tmp_path / "a.txt", "0123456789")
    spans = Corpus([Span(path, 2, 5), path]).between(1, 6)
    assert spans == [Span(path, 3, 5, ends=True), Span(path, 0, 3)]


def test_tokenizer_bad_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.txt does not exist"):
        Corpus(tmp_path / "nowhere.txt")
    with pytest.raises(ValueError, match=r"empty\.txt is empty"):
        Corpus([write(tmp_path / "empty.txt", "")])
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="folder holds no file with a known ending"):
        Corpus(tmp_path / "folder")
    with pytest.raises(FileNotFoundError, match=r"no file matches .*\.text"):
        Corpus(f"{tmp_path}/*.text")
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


def test_tokenizer_character_cut_by_a_file_boundary_is_not_utf8(tmp_path):
    first, second = write(tmp_path / "1.txt", b"a\xc3"), write(tmp_path / "2.txt", b"\xa9b")
    with pytest.raises(ValueError, match=r"1\.txt is not UTF-8: byte 0xc3 at offset 1"):
        list(read_pieces(Corpus([first, second]).spans))
