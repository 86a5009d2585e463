import pytest

from tests.tokenizer.test_corpus import write
from tslm.tokenizer import split_tail
from tslm.tokenizer.corpus import read_pieces


@pytest.mark.parametrize(
    ("text", "fraction", "max_bytes", "tail"),
    [
        ("one<|e|>\ntwo<|e|>\nthree<|e|>\n", 0.5, 100, "three<|e|>\n"),
        ("one<|e|>two<|e|>three", 0.7, 100, "two<|e|>three"),
        ("one<|e|>two<|e|>three", 0.7, 8, "three"),
        ("one<|e|>two\nthree\nfour", 0.5, 100, "three\nfour"),
        ("字字字字", 0.4, 100, "字"),
    ],
)
def test_tokenizer_tail_starts_with_a_document(tmp_path, text, fraction, max_bytes, tail):
    path = write(tmp_path / "a.txt", text)
    first, last = split_tail(path, b"<|e|>", fraction, max_bytes)
    assert b"".join(read_pieces([last])).decode() == tail
    assert b"".join(read_pieces([first, last])).decode() == text


@pytest.mark.parametrize(("text", "fraction"), [("a", 0.5), ("long enough", 0.0), ("é", 0.5)])
def test_tokenizer_empty_tail_is_an_error(tmp_path, text, fraction):
    with pytest.raises(ValueError, match="leaves nothing to hold out"):
        split_tail(write(tmp_path / "a.txt", text), b"<|e|>", fraction, 1 << 20)
