"""`study tokenizer`: the measurements against slow definitions, and the printed page."""

import dataclasses
import json
import re

import pytest

from tests.tokenizer.reference import slow_encode
from tslm import Tokenizer, train_bpe
from tslm.data.toy import sample_stories
from tslm.errors import UserError
from tslm.studies.tokenizer import (
    Speed,
    check_word,
    count_common_merges,
    is_word,
    iter_documents,
    pick_word,
    read_document,
    sample_documents,
    study_tokenizer,
)
from tslm.studies.tokenizer_page import print_page, show
from tslm.tokenizer.corpus import Corpus

END = "<|endoftext|>"
STORIES = [story.text for story in sample_stories(60, seed=3)] + ["Un café été 字字 😀 " * 3]
TEXT = f"\n{END}\n".join(STORIES)
DOCUMENTS = re.split(re.escape(END) + "\n*", TEXT)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("study") / "stories.txt"
    path.write_text(TEXT, encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def study(path):
    return study_tokenizer([path], vocab_size=600, num_workers=1, seed=5)


def test_the_studied_tokenizer_is_the_trained_one(study, path):
    vocab, merges = train_bpe(path, 600, [END])
    assert (study.tokenizer.vocab, study.tokenizer.merges) == (vocab, merges)
    assert study.tokenizer is study.training.tokenizer
    assert (study.vocab_size, study.common_merges) == (600, None)


def test_token_counts_equal_those_of_the_slow_encoder(study):
    ids = {token: id_ for id_, token in study.tokenizer.vocab.items()}
    assert study.num_bytes == len(TEXT.encode())
    assert study.num_tokens == len(slow_encode(TEXT, ids, study.tokenizer.merges, [END]))
    documents = {text[:50]: text for text in DOCUMENTS}
    assert len(study.documents) == 10
    for document in study.documents:
        text = documents[document.text]
        assert document.num_bytes == len(text.encode())
        assert document.num_tokens == len(slow_encode(text, ids, study.tokenizer.merges, [END]))


def test_speeds_are_measured_on_the_whole_text(study):
    in_files, as_strings = study.speeds
    assert in_files.num_bytes == study.num_bytes
    assert as_strings.num_bytes == len("".join(DOCUMENTS).encode())
    assert in_files.seconds > 0 < as_strings.seconds
    assert Speed("", 30, 2.0).bytes_per_second == 15


@pytest.mark.parametrize("word", [" everything", "xylophone", "été", "😀", "\n", "a"])
def test_the_last_step_of_the_replay_equals_encode(path, word):
    study = study_tokenizer([path], vocab_size=400, num_workers=1, word=word)
    assert study.word == word
    assert study.steps[0].tokens == [bytes([byte]) for byte in word.encode()]
    assert study.steps[-1].tokens == [study.tokenizer.vocab[id_] for id_ in study.tokenizer.encode(word)]


def test_the_picked_word_is_long_and_frequent(study):
    long_words = {word: count for word, count in study.training.counts.items() if is_word(word) and len(word) >= 10}
    assert long_words[study.word.encode()] == max(long_words.values())
    assert pick_word({b"aa": 1, b" bbb": 2, b" ccc": 1, b"-" * 20: 100, b"a": 50}) == " bbb"
    assert pick_word({b"\n": 1, b"--": 1}) == "--"


@pytest.mark.parametrize(("token", "expected"), [
    (b"word", True), (b" word", True), (" été".encode(), True), ("字".encode(), True),
    (b"  word", False), (b"two words", False), (b"don't", False), (b" ", False), (b"", False), (b"12", False),
    (b"\xc3", False),
])
def test_a_word_is_letters_with_at_most_one_space_before_them(token, expected):
    assert is_word(token) is expected


def test_a_given_tokenizer_is_compared_with_a_new_training(path, study, tmp_path):
    study.tokenizer.save(tmp_path / "same")
    again = study_tokenizer([path], tokenizer=str(tmp_path / "same"), num_workers=1)
    assert again.tokenizer.hash == again.training.tokenizer.hash == study.tokenizer.hash
    assert again.common_merges == len(study.tokenizer.merges) == 600 - 257

    first, second, *rest = study.tokenizer.merges[20:]
    merges = [*study.tokenizer.merges[:20], second, first, *rest]
    other = Tokenizer(study.tokenizer.vocab, merges, ["<|pad|>", END])
    other.save(tmp_path / "other")
    measured = study_tokenizer([path], tokenizer=str(tmp_path / "other"), num_workers=1)
    assert measured.tokenizer.hash == other.hash
    assert measured.vocab_size == 601
    assert set(measured.training.tokenizer.special_tokens) == {"<|pad|>", END}
    assert measured.common_merges == 20


def test_a_profile_names_the_functions_that_take_the_time(study, path, monkeypatch, capsys):
    assert 5 <= len(study.profile) <= 10
    assert [each.seconds for each in study.profile] == sorted((each.seconds for each in study.profile), reverse=True)
    merges = len(study.training.tokenizer.merges)
    assert any(each.calls == merges and "merge" in each.name for each in study.profile)
    print_page(study, ["a.txt"])
    assert "functions with most time of their own" in capsys.readouterr().out
    monkeypatch.setattr("tslm.studies.tokenizer.PROFILED_BYTES", 1)
    assert study_tokenizer([path], vocab_size=300, num_workers=1).profile == []


def test_common_merges_are_a_common_prefix():
    pairs = [(b"a", b"b"), (b"ab", b"c"), (b"d", b"e")]
    vocab = dict(enumerate([b"a", b"b", b"c", b"d", b"e", b"ab", b"abc", b"de"]))
    assert count_common_merges(Tokenizer(vocab, pairs), Tokenizer(vocab, pairs[:2])) == 2
    assert count_common_merges(Tokenizer(vocab, pairs), Tokenizer(vocab, pairs[::-1])) == 0
    assert count_common_merges(Tokenizer(vocab, []), Tokenizer(vocab, pairs)) == 0


def test_a_jsonl_file_is_studied_as_its_documents(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in ["", "low lower", "low"]))
    study = study_tokenizer([str(tmp_path / "a.jsonl")], vocab_size=300, num_workers=1)
    assert [document.text for document in study.documents] == ["low lower", "low"]
    assert study.num_bytes == len("low lower" + "low")
    assert study.training.counts == {b"low": 2, b" lower": 1}


def test_the_embedded_corpus_is_the_default_text():
    study = study_tokenizer(num_stories=12, vocab_size=300, num_workers=1, seed=3)
    assert study.num_bytes == sum(len(f"{story.text}\n{END}\n".encode()) for story in sample_stories(12, seed=3))


@pytest.mark.parametrize(("word", "part"), [
    ("two words", "is 2 pre-tokens ['two', ' words']"), ("", "is 0 pre-tokens"), (END, "is a special token"),
])
def test_a_word_must_be_one_pretoken(word, part):
    with pytest.raises(UserError, match=re.escape(part)):
        check_word(word, [END])


@pytest.mark.parametrize("text", [f"{END}{END}\n", f" \n{END}\t"])
def test_a_text_without_words_is_refused(text, tmp_path):
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(UserError, match="only white space and special tokens"):
        study_tokenizer([str(tmp_path / "a.txt")], num_workers=1)


def test_the_page_shows_the_measurements(study, path, capsys):
    print_page(study, [path])
    page = capsys.readouterr().out
    rows = [line.split() for line in page.splitlines()]
    assert f"text       {path}: {study.num_bytes:,} bytes\ntokenizer  trained on this text: 600 tokens\n" in page
    assert f"{study.num_bytes:,} bytes of text, {len(study.training.counts):,} distinct pre-tokens" in page
    assert "343 merges" in page
    assert "ended at" not in page
    for bits in (16, 32, 64):
        size = study.num_tokens * bits // 8
        assert ["ids", "of", str(bits), "bits", f"{size:,}", str(bits // 8), f"{size / study.num_bytes:.2f}"] in rows
    assert f"{study.num_bytes / study.num_tokens:.2f}  the whole text, special tokens included" in page
    assert "The largest of 600 ids is below 2^16 = 65,536" in page
    shown = [token.decode().replace(" ", "·") for token in study.steps[-1].tokens]
    assert ["(none)", *shown] in rows
    first = study.tokenizer.merges[study.steps[0].rank]
    assert any(row[:3] == [str(study.steps[0].rank), *(part.decode().replace(" ", "·") for part in first)]
               for row in rows)
    assert max(len(line) for line in page.splitlines() if path not in line) <= 100


def test_the_page_reports_differences_large_vocabularies_and_an_early_end(study, capsys):
    big = Tokenizer(study.tokenizer.vocab | {70_000: b"xyz"}, study.tokenizer.merges, [END])
    speeds = [Speed("fast", 825_000_000, 3.6), Speed("slow", 825_000, 0.36)]
    changed = dataclasses.replace(study, tokenizer=big, vocab_size=1000, common_merges=7, speeds=speeds)
    print_page(changed, tokenizer="folder")
    page = " ".join(capsys.readouterr().out.split())
    assert "tokenizer folder: 601 tokens" in page
    assert "Training ended at 600 of 1,000 tokens" in page
    assert "has 343 merges, and this training made 343. The first 7 agree." in page
    assert "70,001 ids do not fit into 2^16 = 65,536" in page
    assert "fast 825,000,000 3.6 229.2 1.0 hours slow 825,000 0.36 2.3 4.2 days" in page


@pytest.mark.parametrize(("token", "shown"), [
    (b" the", "·the"), (b"\n\n", r"\n\n"), (b" \xc3", r"·\xc3"), ("é".encode(), "é"), (b"\x00", r"\x00"),
])
def test_tokens_are_shown_in_printable_characters(token, shown):
    assert show(token) == shown


def test_documents_end_at_separators_and_at_the_end_of_a_file(tmp_path):
    texts = [f"one é{END}\n two\n{END}{END} \n {END}three", f"{END}four{END}", END, "five"]
    paths = []
    for number, text in enumerate(texts):
        paths.append(tmp_path / f"{number}.txt")
        paths[-1].write_text(text, encoding="utf-8")
    found = [read_document(document) for document in iter_documents(Corpus(paths), END.encode())]
    assert found == ["one é", " two\n", "three", "four", "five"]


def test_a_sample_is_in_order_and_determined_by_its_seed(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(END.join(f"document {number:03}" for number in range(200)))
    documents = list(iter_documents(Corpus(path), END.encode()))
    samples = [[read_document(document) for document in sample_documents(documents, 10, seed)] for seed in (1, 1, 2)]
    assert samples[0] == samples[1] != samples[2]
    assert all(sample == sorted(set(sample)) and len(sample) == 10 for sample in samples)
    sampled = {read_document(each) for seed in range(200) for each in sample_documents(documents, 10, seed)}
    assert sampled == {f"document {number:03}" for number in range(200)}
    assert len(sample_documents(documents, 500, 0)) == 200


def test_a_very_long_document_is_truncated_to_whole_characters(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("x" + "é" * (1 << 19), encoding="utf-8")
    (document,) = iter_documents(Corpus(path), END.encode())
    assert read_document(document) == "x" + "é" * ((1 << 19) - 1)


def test_each_line_of_jsonl_is_a_document(tmp_path):
    texts = ["one\ntwo", f"é{END}", "", "x" * (1 << 20) + "y"]
    path = tmp_path / "a.jsonl"
    path.write_text("\n\n".join(json.dumps({"text": text}) for text in texts))
    found = [read_document(document) for document in iter_documents(Corpus(path), END.encode())]
    assert found == [*texts[:3], "x" * (1 << 20)]
