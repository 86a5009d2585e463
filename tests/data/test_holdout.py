import json
import random

import pytest

from tslm.data.holdout import hold_out
from tslm.errors import UserError
from tslm.tokenizer import Span

SEPARATOR = b"<|e|>"
SIZES = {"share": 0.05, "most": 10_000_000, "least": 0}


def span_of(path):
    return Span(path, 0, path.stat().st_size)


def texts_of(spans):
    return ["".join(span.path.read_bytes()[span.start : span.stop].decode()) for span in spans]


def write(folder, texts):
    paths = []
    for name, text in texts.items():
        paths.append(folder / name)
        paths[-1].write_text(text, newline="")
    return [span_of(path) for path in paths]


def test_held_out_documents_are_whole_and_spread_over_one_file(tmp_path):
    stories = [f"story {n} {'word ' * (n % 7)}" for n in range(2000)]
    (span,) = write(tmp_path, {"a.txt": "".join(f"{story}<|e|>\n" for story in stories)})
    train, valid, notice = hold_out([span], SEPARATOR, **SIZES)
    documents = "".join(texts_of(valid)).split("<|e|>\n")[:-1]
    assert notice == ""
    assert 0.045 < sum(len(text) for text in texts_of(valid)) / span.stop < 0.06
    places = [stories.index(document) for document in documents]
    assert places == sorted(places)
    assert all(sum(quarter * 500 <= place < (quarter + 1) * 500 for place in places) > 10 for quarter in range(4))
    rest = "".join(texts_of(train)).split("<|e|>\n")[:-1]
    assert sorted(documents + rest) == sorted(stories)
    assert hold_out([span], SEPARATOR, **SIZES) == (train, valid, notice)


def test_two_hundred_small_files_give_whole_files(tmp_path):
    spans = write(tmp_path, {f"{n:03}.txt": f"file {n} " + "word " * 24 for n in range(200)})
    train, valid, _ = hold_out(spans, SEPARATOR, 0.05, 10_000_000, least=4 * 257)
    assert 9 <= len(valid) <= 12
    assert sorted(train + valid) == sorted(spans)
    shuffled = random.Random(0).sample(spans, len(spans))
    assert set(hold_out(shuffled, SEPARATOR, 0.05, 10_000_000, least=4 * 257)[1]) == set(valid)


def test_the_same_documents_are_held_out_of_a_jsonl_file_with_blank_lines(tmp_path):
    lines = [json.dumps({"text": f"{n} <|e|> {'x' * (n % 50)}"}) for n in range(400)]
    (span,) = write(tmp_path, {"a.jsonl": "\n\n \n".join(lines) + "\n"})
    train, valid, _ = hold_out([span], SEPARATOR, **SIZES)
    held_out, kept = (
        [json.loads(line)["text"] for text in texts_of(side) for line in text.splitlines() if line.strip()]
        for side in (valid, train)
    )
    assert sorted(held_out + kept) == sorted(json.loads(line)["text"] for line in lines)
    assert 10 < len(held_out) < 40


def test_copies_of_a_document_are_on_one_side(tmp_path):
    stories = [f"story {n % 100}" for n in range(1000)]
    (span,) = write(tmp_path, {"a.txt": "<|e|>".join(stories)})
    train, valid, _ = hold_out([span], SEPARATOR, **SIZES)
    kept, held_out = ({text for part in texts_of(side) for text in part.split("<|e|>")} for side in (train, valid))
    assert kept & held_out == {""}


def test_the_held_out_part_has_limits(tmp_path):
    (span,) = write(tmp_path, {"a.txt": "".join(f"story {n:05}<|e|>" for n in range(5000))})
    for most, least, expected in [(1000, 0, 1000), (10**7, 20_000, 20_000), (10**7, 10**9, span.stop // 2)]:
        _, valid, _ = hold_out([span], SEPARATOR, 0.05, most, least)
        assert expected <= sum(len(text) for text in texts_of(valid)) < expected + 17


def test_a_document_of_more_than_half_is_kept(tmp_path):
    spans = write(tmp_path, {"a.txt": "large " * 1000, "b.txt": "small " * 9})
    for given in (spans, spans[::-1]):
        train, valid, _ = hold_out(given, SEPARATOR, **SIZES)
        assert ([span.path.name for span in train], [span.path.name for span in valid]) == (["a.txt"], ["b.txt"])


@pytest.mark.parametrize(
    ("text", "end"),
    [("one book\n" * 100, "one book\n" * 6), ("字" * 100, "字" * 5), ("a" * 100, "a" * 5)],
)
def test_the_end_of_a_single_document_is_held_out_with_a_notice(tmp_path, text, end):
    (span,) = write(tmp_path, {"a.txt": text})
    train, valid, notice = hold_out([span], SEPARATOR, **SIZES)
    assert "".join(texts_of(train + valid)) == text
    assert abs(len(texts_of(valid)[0]) - len(end)) <= 9
    assert notice.endswith(f"a.txt is a single document, so its end is held out for validation: "
                           f"{len(texts_of(valid)[0].encode()):,} bytes.")


@pytest.mark.parametrize(("name", "text"), [("a.txt", "a"), ("b.txt", "é"), ("c.jsonl", '\n{"text": "one"}\n\n')])
def test_nothing_to_hold_out_is_an_error(tmp_path, name, text):
    with pytest.raises(UserError, match=r"is a single document, and its \d+ bytes leave nothing to hold out"):
        hold_out(write(tmp_path, {name: text}), SEPARATOR, **SIZES)


def test_the_end_of_a_single_document_has_a_window_if_half_of_the_text_suffices(tmp_path):
    (span,) = write(tmp_path, {"a.txt": "one book " * 100})
    for least, expected in [(0, 45), (200, 200), (10**6, 450)]:
        _, (valid,), _ = hold_out([span], SEPARATOR, 0.05, 10**6, least)
        assert valid.stop - valid.start == expected


def test_copies_of_one_document_are_not_called_a_single_document(tmp_path):
    record = '{"text": "the same story"}\n' * 40
    with pytest.raises(UserError, match=r"repeats or dwarfs all other documents, and its 1,080 bytes leave nothing"):
        hold_out(write(tmp_path, {"b.jsonl": record}), SEPARATOR, **SIZES)
    (span,) = write(tmp_path, {"a.txt": "the same story<|e|>\n" * 400})
    _, valid, notice = hold_out([span], SEPARATOR, **SIZES)
    assert len(valid) == 1
    assert "a.txt repeats or dwarfs all other documents, so its end is held out" in notice
