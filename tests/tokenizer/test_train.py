import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.tokenizer.reference import TRICKY, slow_counts, slow_merges, tricky_text
from tslm import count_pretokens, merge_pretokens, train_bpe
from tslm.tokenizer import Span
from tslm.tokenizer.corpus import Corpus
from tslm.tokenizer.train import count_corpus


@pytest.mark.parametrize("merge", [merge_pretokens, slow_merges])
def test_train_bpe_makes_the_merges_of_the_hand_example(merge):
    counts = {b"low": 5, b"lower": 2, b"widest": 3, b"newest": 6}
    vocab, merges = merge(counts, 256 + 1 + 12, ["<|endoftext|>"])
    expected = "s t, e st, o w, l ow, w est, n e, ne west, w i, wi d, wid est, low e, lowe r"
    assert merges == [tuple(pair.encode().split()) for pair in expected.split(", ")]
    assert [vocab[n] for n in (0, 1, 256, 257, 268)] == [b"<|endoftext|>", b"\0", b"\xff", b"st", b"lower"]
    assert merge(counts, 256 + 1 + 6, ["<|endoftext|>"])[1] == merges[:6]


def test_train_bpe_ends_when_no_pair_is_left():
    vocab, merges = merge_pretokens({b"aaaa": 1, b"b": 7}, 10_000, ["<|e|>"])
    assert merges == [(b"a", b"a"), (b"aa", b"aa")]
    assert len(vocab) == 1 + 256 + 2
    assert merge_pretokens({}, 300, [])[1] == []


def test_train_bpe_compares_the_strings_of_a_tie_element_by_element():
    # ("a", "bc") and ("ab", "c") both occur once; b"ab" is greater than its own beginning b"a".
    counts = {b"xab": 3, b"ybc": 2, b"aZ": 1, b"abZ": 1}
    assert merge_pretokens(counts, 256 + 5, []) == slow_merges(counts, 256 + 5, [])


def test_train_bpe_equals_its_definition_on_files(tmp_path):
    rng = random.Random(2)
    specials = ["<|endoftext|>", "a b"]
    for round_ in range(12):
        text = tricky_text(rng, 400, [*TRICKY, *"   ", *specials, "low", "lower"])
        (tmp_path / "a.txt").write_bytes(text.encode())
        vocab_size = 256 + 2 + 5 * round_
        vocab, merges = train_bpe(tmp_path / "a.txt", vocab_size, specials)
        assert (vocab, merges) == slow_merges(slow_counts(text, specials), vocab_size, specials)
        assert list(vocab.values())[:2] == [b"<|endoftext|>", b"a b"]
        assert list(vocab.values())[258:] == [left + right for left, right in merges]
        assert list(vocab) == list(range(len(vocab)))


def test_train_bpe_counts_words_of_every_length(tmp_path):
    words = [letter * length for length in (*range(1, 40), 1000) for letter in ("x", "y", "\0", "x\0")]
    text = "\n".join(words * 3 + ["\0\0", "\0", "a\0", "a"])
    (tmp_path / "a.txt").write_text(text, newline="")
    assert count_pretokens(tmp_path / "a.txt", []) == slow_counts(text, [])


def test_train_bpe_does_not_depend_on_workers_parts_and_files(tmp_path):
    rng = random.Random(3)
    specials = ["<|e|>", "<|e|><|e|>", "a b"]
    text = tricky_text(rng, 20_000, [*TRICKY, *"    ", *specials, "low", "lower"])
    data = text.encode()
    (tmp_path / "whole.txt").write_bytes(data)
    parts = []
    for n, (start, stop) in enumerate([(0, 5001), (5001, 5003), (5003, len(data))]):
        while data[stop : stop + 1] and data[stop] & 0xC0 == 0x80:
            stop += 1
        start = parts[-1].stop if parts else 0
        parts.append(Span(tmp_path / "whole.txt", start, stop))
        (tmp_path / f"{n}.txt").write_bytes(data[start:stop])
    expected = slow_counts(text, specials)
    assert count_pretokens(tmp_path / "whole.txt", specials, num_workers=1) == expected
    sizes = {"largest_part": 900, "pool_bytes": 0}
    encoded = [token.encode() for token in specials]
    assert count_corpus(Corpus(parts), encoded, num_workers=1, **sizes) == expected
    files = Corpus([tmp_path / f"{n}.txt" for n in range(3)])
    assert count_corpus(files, encoded, num_workers=2, **sizes) == expected
    with ThreadPoolExecutor(3) as executor:
        assert count_corpus(Corpus(tmp_path / "whole.txt"), encoded, executor=executor, **sizes) == expected


def test_train_bpe_keeps_line_ends_as_they_are(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"a\r\nb\r\n")
    assert count_pretokens(tmp_path / "a.txt", []) == {b"a": 1, b"b": 1, b"\r": 1, b"\n": 1, b"\r\n": 1}


def test_train_bpe_takes_doubled_specials_once(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    assert len(train_bpe(str(tmp_path / "a.txt"), 300, ["<|e|>", "<|e|>"])[0]) == 257


def test_train_bpe_names_what_is_wrong(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"a\xff")
    with pytest.raises(ValueError, match=r"vocab_size is 257, but the 256 bytes and 2 special tokens alone take 258"):
        train_bpe(tmp_path / "a.txt", 257, ["<|a|>", "<|b|>"])
    with pytest.raises(ValueError, match=r"a\.txt is not UTF-8: byte 0xff at offset 1"):
        train_bpe(tmp_path / "a.txt", 300, [])
    with pytest.raises(FileNotFoundError, match=r"b\.txt does not exist"):
        train_bpe(tmp_path / "b.txt", 300, [])
    with pytest.raises(ValueError, match="num_workers is 0"):
        train_bpe(tmp_path / "a.txt", 300, [], num_workers=0)


def test_train_bpe_shows_its_progress(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("low lower lowest " * 9)
    train_bpe(tmp_path / "a.txt", 260, [], progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "counting: 100%" in shown.err
    assert "B/s" in shown.err
    assert "merging: 100%" in shown.err
    assert "b' low' + b'e'" in shown.err
