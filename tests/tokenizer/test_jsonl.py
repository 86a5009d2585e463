import json
import random
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tokenizer.reference import TRICKY, slow_counts, tricky_text
from tslm import Tokenizer, merge_pretokens
from tslm.tokenizer import END_OF_TEXT, Span
from tslm.tokenizer.blocks import read_blocks
from tslm.tokenizer.corpus import Corpus
from tslm.tokenizer.encode import encode_corpus
from tslm.tokenizer.jsonl import DOCUMENT_END, read_documents
from tslm.tokenizer.sources import is_jsonl
from tslm.tokenizer.train import count_corpus

SPECIALS = [END_OF_TEXT, "a b", "\n\n"]
# Two of these begin or end like the token between documents.
OVERLAPPING = [END_OF_TEXT, END_OF_TEXT * 2, f"x{END_OF_TEXT}", f"{END_OF_TEXT}\n", " ", "é"]
PIECES = [*TRICKY, *"    ", END_OF_TEXT, "a b", "low", "lower", *"\\\"\ud7ff\ue000\U0010ffff", "\\n", "👩\u200d👧"]
anything = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
tricky = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)
documents = st.lists(anything | tricky, min_size=1, max_size=12)


def write_jsonl(path, texts, rng=None):
    """Write records with other fields, blank lines and line ends of both kinds among them."""
    rng = rng or random.Random(len(texts))
    lines = []
    for text in texts:
        fields = [("text", text), ("id", 7), ("meta", {"text": "not this"})]
        rng.shuffle(fields)
        line = json.dumps(dict(fields), ensure_ascii=rng.random() < 0.5)
        lines += [line + rng.choice(["\n", "\r\n", " \n"]), *rng.choices(["\n", "  \r\n"], k=rng.choice([0, 0, 0, 2]))]
    path.write_bytes("".join(lines).rstrip("\n" if rng.random() < 0.5 else "").encode())
    return path


def make_tokenizer(specials, text="low lower lowest a b lower 1234 é "):
    return Tokenizer(*merge_pretokens(slow_counts(text, []), 290, specials), specials)


def with_ends(tokenizer, texts, allow_special=False):
    """Encode each document alone, followed by the separator; special tokens are text unless they are allowed."""
    plain = Tokenizer(tokenizer.vocab, tokenizer.merges)
    end = tokenizer.separator
    ids = []
    for text in texts:
        own = (tokenizer if allow_special else plain).encode(text)
        ids += own
        if end is not None and not (allow_special and own and own[-1] == end):
            ids.append(end)
    return ids


def count_pretokens(source, specials, task_bytes=150, allow_special=False, **options):
    """Count in many tasks and blocks."""
    sizes = {"largest_part": task_bytes, "block_bytes": 40, "pool_bytes": 0}
    corpus = Corpus(source, allow_special=allow_special)
    return count_corpus(corpus, [token.encode() for token in specials], **sizes | options)


def encode_files(tokenizer, source, output, allow_special=False, **options):
    """Encode in many tasks and blocks."""
    sizes = {"task_bytes": 150, "block_bytes": 40, "pool_bytes": 0}
    return encode_corpus(tokenizer, Corpus(source, allow_special=allow_special), output, **sizes | options)


def test_tokenizer_jsonl_is_known_by_its_name(tmp_path):
    for name in ("a.jsonl", "b.JSONL", "c.NdJson"):
        assert is_jsonl(tmp_path / name)
    for name in ("a.json", "jsonl", "a.jsonl.txt"):
        assert not is_jsonl(name)


@settings(max_examples=150, deadline=None)
@given(documents, st.sampled_from([30, 150, 10_000]), st.sampled_from([1, 40, 10_000]))
def test_tokenizer_jsonl_equals_plain_text_with_end_of_text_between(tmp_path_factory, texts, task_bytes, block_bytes):
    folder = tmp_path_factory.mktemp("jsonl")
    path = write_jsonl(folder / "a.jsonl", texts)
    whole = "".join(text if text.endswith(END_OF_TEXT) else text + END_OF_TEXT for text in texts)
    tokenizer = make_tokenizer(SPECIALS)
    sizes = {"task_bytes": task_bytes, "block_bytes": block_bytes, "allow_special": True}
    file = encode_files(tokenizer, path, folder / "ids.bin", num_workers=1, **sizes)
    assert count_pretokens(path, SPECIALS, num_workers=1, **sizes) == slow_counts(whole, SPECIALS)
    assert file.ids.tolist() == tokenizer.encode(whole)
    assert file.source_bytes == sum(len(text.encode()) for text in texts)


@settings(max_examples=100, deadline=None)
@given(documents, st.sampled_from([[], ["a b"], OVERLAPPING]))
def test_tokenizer_jsonl_records_are_encoded_as_if_each_were_alone(tmp_path_factory, texts, specials):
    folder = tmp_path_factory.mktemp("jsonl")
    path = write_jsonl(folder / "a.ndjson", texts)
    tokenizer = make_tokenizer(specials)
    for allow_special in (False, True):
        file = encode_files(tokenizer, path, folder / "ids.bin", num_workers=1, allow_special=allow_special)
        assert file.ids.tolist() == with_ends(tokenizer, texts, allow_special)
        counts = {}
        for text in texts:
            for word, number in slow_counts(text, specials if allow_special else []).items():
                counts[word] = counts.get(word, 0) + number
        assert count_pretokens(path, specials, num_workers=1, allow_special=allow_special) == counts


def test_tokenizer_jsonl_does_not_depend_on_workers_files_and_kinds(tmp_path):
    rng = random.Random(1)
    tokenizer = make_tokenizer(SPECIALS)
    sources, ids, counts, text_bytes = [], [], {}, 0
    for n in range(12):
        texts = [tricky_text(rng, rng.choice([0, 1, 5, 60]), PIECES) for _ in range(1 + n % 5)]
        if n % 3:
            sources.append(write_jsonl(tmp_path / f"{n}.jsonl", texts, rng))
            ids += with_ends(tokenizer, texts)
        else:  # two text files: the end of each ends a document
            texts = ["plain " + "".join(texts) + " wo", "rds", f"the end{END_OF_TEXT}\n"]
            for part, text in enumerate(texts):
                sources.append(tmp_path / f"{n}-{part}.txt")
                sources[-1].write_bytes(text.encode())
                ids += tokenizer.encode(text) + [tokenizer.separator] * (part < 2)
        for text in texts:
            text_bytes += len(text.encode())
            for word, number in slow_counts(text, SPECIALS if n % 3 == 0 else []).items():
                counts[word] = counts.get(word, 0) + number
    for num_workers in (1, 2):
        file = encode_files(tokenizer, sources, tmp_path / "ids.bin", num_workers=num_workers)
        assert file.ids.tolist() == ids
        assert (file.source_bytes, file.tokenizer_hash) == (text_bytes, tokenizer.hash)
        assert count_pretokens(sources, SPECIALS, num_workers=num_workers) == counts
    with ThreadPoolExecutor(3) as executor:
        assert encode_files(tokenizer, sources, tmp_path / "ids.bin", executor=executor).ids.tolist() == ids
        assert count_pretokens(sources, SPECIALS, executor=executor) == counts


def test_tokenizer_jsonl_needs_nothing_of_a_vocabulary(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", ["ab", "", "", "ba", ""])
    for vocab in ({0: b"a", 1: b"b"}, {0: b"a", 1: b"b", 7: b"\xff", 9: b"\xff\xff"}):
        tokenizer = Tokenizer(vocab, [(b"\xff", b"\xff")] * (9 in vocab))
        file = encode_files(tokenizer, path, tmp_path / "ids.bin")
        assert file.ids.tolist() == [0, 1, 1, 0]
        assert (file.vocab_size, file.tokenizer_hash) == (tokenizer.vocab_size, tokenizer.hash)


def test_tokenizer_jsonl_is_cut_after_line_breaks_only(tmp_path):
    texts = [tricky_text(random.Random(n), n % 50) for n in range(60)]
    path = write_jsonl(tmp_path / "a.jsonl", texts)
    (tmp_path / "b.txt").write_text("some plain words " * 9)
    data = path.read_bytes()
    for size in (1, 7, 100, 100_000):
        parts = list(Corpus([path, tmp_path / "b.txt", path]).split(size))
        assert next(span for part in parts for span in part).path == path
        for part in parts:
            assert len({is_jsonl(span.path) for span in part}) == 1
            assert all(data[: span.stop].endswith(b"\n") or span.stop == len(data)
                       for span in part if is_jsonl(span.path))  # fmt: skip
        read = [text for part in parts for span in part if is_jsonl(span.path) for text in read_documents(span)]
        assert read == [text.encode() for text in texts] * 2


def test_tokenizer_jsonl_blocks_hold_many_short_documents_and_part_of_a_long_one(tmp_path):
    texts = [*["word"] * 1000, "one long document " * 1000, *["!"] * 1000, ""]
    path = write_jsonl(tmp_path / "a.jsonl", texts)
    blocks = [block.text for block in read_blocks(Corpus(path).spans, [], 1 << 10)]
    assert b"".join(blocks) == b"".join(text.encode() + DOCUMENT_END for text in texts)
    assert max(map(len, blocks)) <= 3 << 10
    assert len(blocks) < 50


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{'text': 1}", "is not JSON: Expecting property name enclosed in double quotes at character 2; each line"),
        ('{"text": "a"', "is not JSON: Expecting ',' delimiter at character 13"),
        ('["text"]', "is an array, not an object; each line"),
        ("null", "is null, not an object"),
        ('"text"', "is a string, not an object"),
        ("{}", 'has no field "text" but no field at all'),
        ('{"Text": "a", "id": 1}', "has no field \"text\" but 'Text', 'id'; each line"),
        ('{"text": 1.5}', 'has a number in its field "text", not a string'),
        ('{"text": false}', 'has a truth value in its field "text"'),
        ('{"text": {"text": "a"}}', 'has an object in its field "text"'),
        (r'{"text": "a\ud83dz"}', r"holds the lone surrogate U\+D83D, which UTF-8 cannot express"),
        (b'{"text": "\xe9"}', "is not UTF-8: byte 0xe9 at place 11 of the line; convert the file"),
        (b'{"text": "\xed\xa0\x80"}', "is not UTF-8: byte 0xed"),
        ("[" * 200_000, "is JSON that cannot be read"),
        ('{"n": ' + "1" * 5000 + "}", "is JSON that cannot be read"),
    ],
)
def test_tokenizer_jsonl_errors_name_file_and_line(tmp_path, line, sentence):
    good = b'{"text": "good"}\n\n' * 30
    bad = tmp_path / "bad.jsonl"
    bad.write_bytes(good + (line if isinstance(line, bytes) else line.encode()) + b"\n" + good)
    for call in (
        lambda: count_pretokens(bad, [], num_workers=1),
        lambda: encode_files(make_tokenizer([]), [bad, bad], tmp_path / "ids.bin", num_workers=1),
        lambda: list(read_documents(Span(bad, 36, bad.stat().st_size))),
    ):
        with pytest.raises(ValueError, match=rf"bad\.jsonl, line 61, {sentence}") as caught:
            call()
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "ids.bin").exists()


def test_tokenizer_jsonl_without_a_record_is_named(tmp_path):
    (tmp_path / "blank.jsonl").write_bytes(b" \n\r\n" * 9)
    with pytest.raises(ValueError, match=r"blank\.jsonl holds no record, only white space"):
        count_pretokens(tmp_path / "blank.jsonl", [])
    (tmp_path / "empty.jsonl").write_bytes(b"")
    with pytest.raises(ValueError, match=r"empty\.jsonl is empty"):
        count_pretokens(tmp_path / "empty.jsonl", [])
    with pytest.raises(ValueError, match=r"short\.jsonl became shorter while it was read: 9 bytes are missing"):
        list(read_documents(Span(write_jsonl(tmp_path / "short.jsonl", ["a"]), 100, 109)))


def test_tokenizer_jsonl_takes_spans(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n{"text": "two"}\n{"text": "three"}\n')
    assert count_pretokens(Span(path, 16, 32), [], num_workers=1) == {b"two": 1}
