import numpy as np
import pytest

from tests.benchmarks.corpora import PretokenSource, write_drawn_text, write_mixed_text
from tests.tokenizer.reference import slow_counts, slow_pretokens
from tslm.tokenizer import END_OF_TEXT

# Every class of pre-tokens, with those that could join a neighbour: quotes, dashes, white space, other scripts.
COUNTS = {
    " the": 900, " dog": 300, " 12": 40, " été": 30, "Once": 80, "I": 60, "s": 20, "7": 5, "'s": 50, "'ll": 10,
    ' "': 70, " '": 20, " -": 9, ".": 300, ",": 150, "'": 30, '."': 40, "\u0301": 2, "\n": 120, "\xa0": 4,
    " ": 20, "\n\n": 15, "  ": 6, "\n \n ": 3,
}


def test_the_pattern_splits_a_drawn_text_into_the_pretokens_that_were_drawn():
    drawn = PretokenSource(COUNTS).draw(30_000, np.random.default_rng(1))
    expected = [part for token in drawn for part in (["\n", END_OF_TEXT] if END_OF_TEXT.encode() in token
                                                     else [token.decode()])]
    assert slow_pretokens(b"".join(drawn).decode(), [END_OF_TEXT]) == expected


def test_a_drawn_text_has_the_frequencies_of_the_counts(tmp_path):
    write_drawn_text(tmp_path / "text", COUNTS, 300_000, seed=3)
    text = (tmp_path / "text").read_bytes().decode()
    assert 300_000 <= len(text.encode()) < 310_000
    assert text.endswith(f"\n{END_OF_TEXT}\n")
    found = slow_counts(text, [END_OF_TEXT])
    assert {token.decode() for token in found} == set(COUNTS)
    total, expected_total = sum(found.values()), sum(COUNTS.values())
    for token, count in COUNTS.items():
        share, expected = found[token.encode()] / total, count / expected_total
        assert abs(share - expected) < 0.05 * expected + 5 * (expected / total) ** 0.5, token


def test_the_seed_decides_the_text(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_drawn_text(tmp_path / name, COUNTS, 10_000, seed)
    texts = [(tmp_path / name).read_bytes() for name in "abc"]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize(
    ("counts", "sentence"),
    [({" a b": 1}, "not one pre-token"), ({" a": 0}, "whole numbers from 1"), ({"a": 1}, "leading space")],
)
def test_wrong_counts_are_refused_in_one_sentence(counts, sentence):
    with pytest.raises(ValueError, match=sentence):
        PretokenSource(counts)


def test_a_mixed_text_contains_whole_utf8_documents_up_to_the_size(tmp_path):
    folder = tmp_path / "sources"
    folder.mkdir()
    for number in range(20):
        (folder / f"{number}.py").write_text(f"# file {number}\n" * 10)
    (folder / "latin.txt").write_bytes(b"caf\xe9")
    (folder / "special.md").write_text(f"a {END_OF_TEXT} b")
    (folder / "picture.png").write_bytes(b"png")
    write_mixed_text(tmp_path / "all", 10**6, 0, [folder, folder])
    documents = (tmp_path / "all").read_text().split(f"\n{END_OF_TEXT}\n")
    assert sorted(documents) == sorted(["", *(f"# file {number}\n" * 10 for number in range(20))])
    write_mixed_text(tmp_path / "some", 500, 0, [folder])
    assert (tmp_path / "all").read_bytes().startswith((tmp_path / "some").read_bytes())
    assert 500 <= (tmp_path / "some").stat().st_size < 700
