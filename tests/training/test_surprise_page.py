"""The page of `score --html`, read by a parser: what it shows, what it explains, and that text stays text."""

import json
import math
import unicodedata
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

import tslm
from tests.test_cli import runs  # noqa: F401 (a fixture)
from tests.training.test_scoring import model, tokenizer  # noqa: F401 (fixtures)
from tslm.__main__ import main
from tslm.data.toy import sample_stories
from tslm.training import surprise_page
from tslm.training.surprise_page import LIMITS, grammar_words

END = "<|endoftext|>"
HOSTILE = ("a <script>alert(1)</script> & \"q\" '{{data}}' é 🦔 \x00\x1b[2J \\u003c </div>\u2028\u202e\u2067\x85\ttab "
           "\x7f\r\nend --> <!-- ]]>")


class Page(HTMLParser):
    """The parts of a page: its tags, the tokens of each document with their classes, its tables, and its data."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.attributes, self.documents, self.rows, self.open, self.data = [], [], [], [], [], ""
        self.feed(source)
        self.close()
        self.data = json.loads(self.data)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append(tag)
        self.attributes.append(attributes)
        self.open.append((tag, attributes))
        if attributes.get("class") == "text":
            self.documents.append([])
        if tag == "span" and self.documents and "tabindex" in attributes:
            self.documents[-1].append([attributes["class"].split()[0], "", attributes["tabindex"]])
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        while self.open and self.open.pop()[0] != tag:
            pass

    def handle_data(self, data):
        tag, attributes = self.open[-1] if self.open else ("", {})
        if tag == "span" and "tabindex" in attributes:
            self.documents[-1][-1][1] += data
        if tag in ("th", "td"):
            self.rows[-1][-1] += data
        if attributes.get("id") == "data":
            self.data += data


@pytest.fixture
def page_of(runs, tmp_path, monkeypatch, capsys):  # noqa: F811
    """Write texts to a file, run the command, and return the page and the printed rows."""
    monkeypatch.chdir(runs)

    def make(texts, *options, name="a.txt"):
        (tmp_path / name).write_bytes(f"{END}\n".join(texts).encode())
        arguments = ["--input", str(tmp_path / name), "--html", str(tmp_path / "page.html"), *options]
        assert main(["score", *arguments]) == 0
        return (tmp_path / "page.html").read_bytes().decode(), capsys.readouterr().out

    return make


def test_the_alternatives_are_the_likeliest_tokens_of_each_place(model, tokenizer):  # noqa: F811
    text = "the cat and the hedgehog"
    found = tslm.score(model, tokenizer, text, num_alternatives=3)
    plain = tslm.score(model, tokenizer, text)
    assert (found.ids, plain.alternatives) == (plain.ids, [])
    assert found.log_probs == pytest.approx(plain.log_probs, abs=1e-5)
    ids = [258, 10, *found.ids]
    for place, others in enumerate(found.alternatives):
        stop = place + 2
        start = 0 if stop <= 16 else -(-(stop - 16) // 8) * 8
        with torch.no_grad():
            log_probs = model(torch.tensor([ids[start:stop]]))[0, -1].log_softmax(-1)
        expected = log_probs.topk(3)
        assert [id_ for id_, _ in others] == expected.indices.tolist()
        assert [value for _, value in others] == pytest.approx(expected.values.tolist(), abs=2e-4)
        assert found.log_probs[place] == pytest.approx(float(log_probs[found.ids[place]]), abs=2e-4)
    assert len(tslm.score(model, tokenizer, "ab", num_alternatives=1000).alternatives[0]) == tokenizer.vocab_size
    with pytest.raises(tslm.errors.UserError, match="text is a list, but it must be a text"):
        tslm.score(model, tokenizer, ["a"])


def test_the_page_shows_each_token_in_the_colour_of_its_surprise(page_of):
    texts = ["One day\nthere was a cat.\n", "Ein Igel saß 🦔 字.\n", HOSTILE]
    source, out = page_of(texts)
    run, page = tslm.load_run("best"), Page(source)
    assert json.loads(out)["tokens"] == sum(map(len, page.documents))
    assert len(page.documents) == 3
    for text, spans, data in zip(texts, page.documents, page.data["documents"], strict=True):
        scores = tslm.score(run.model, run.tokenizer, text, prefix=run.prefix, num_alternatives=5)
        assert "".join(shown for _, shown, _ in spans) == text.translate(surprise_page.PICTURES)
        assert [tab for *_, tab in spans] == ["0"] + ["-1"] * (len(spans) - 1)  # one stop of the Tab key a document
        for (level, *_), (id_, value, others), expected in zip(spans, data["tokens"], scores.log_probs, strict=True):
            assert value == pytest.approx(expected, abs=1e-3)
            number = int(level[1:])
            upper = LIMITS[number + 1] if number + 1 < len(LIMITS) else math.inf
            assert LIMITS[number] - 1e-3 <= -expected / math.log(2) <= upper + 1e-3
            assert page.data["names"][str(id_)] == surprise_page.printable(run.tokenizer.vocab[id_])
            assert len(others) == 5
            assert [value for _, value in others] == sorted((value for _, value in others), reverse=True)
            assert all(str(other) in page.data["names"] for other, _ in others)
        assert data["words"] == []
    assert len({level for spans in page.documents for level, *_ in spans}) > 1


def test_text_and_names_stay_text_and_nothing_is_fetched(page_of):
    name = "<b onmouseover=alert(1)> & '\".txt"
    source, _ = page_of([HOSTILE, "plain"], name=name)
    page, plain = Page(source), Page(page_of(["plain", "plain"])[0])
    assert sorted(set(page.tags)) == sorted(set(plain.tags))  # the text has added none
    assert page.tags.count("script") == 2
    assert not any({"src", "href", "onmouseover", "style"} & set(attributes) for attributes in page.attributes)
    assert "://" not in source
    assert "url(" not in source
    assert "@import" not in source
    assert source.count("</script>") == 2
    assert not set(map(ord, source)) & (set(range(32)) - {9, 10} | {127})
    assert "{{" not in source.replace("{{data}}", "", 2)  # those of the text


def test_words_of_the_embedded_corpus_have_their_true_probabilities(page_of):
    stories = sample_stories(6, seed=123)
    source, _ = page_of([f"{story.text}\n" for story in stories])
    run, page = tslm.load_run("best"), Page(source)
    rows = [row for row in page.rows if row[0] != "word"]
    for story, data in zip(stories, page.data["documents"], strict=True):
        words = data["words"]
        assert "".join(text for text, *_ in words) == story.text
        assert sum(grammar for *_, grammar in words) == pytest.approx(story.log_prob, abs=0.01)
        assert [first for _, first, *_ in words[1:]] == [stop for _, _, stop, *_ in words[:-1]]
        scores = tslm.score(run.model, run.tokenizer, f"{story.text}\n", prefix=run.prefix)
        for text, first, stop, ours, grammar in words:
            assert run.tokenizer.decode(scores.ids[first:stop]) == text
            assert ours == pytest.approx(sum(scores.log_probs[first:stop]), abs=1e-3)
            row, rows = rows[0], rows[1:]
            assert row[0] == text.replace(" ", "·")
            shares = [float(cell.rstrip("%")) / 100 for cell in row[1:3]]
            assert shares == pytest.approx(np.exp([ours, grammar]), abs=1e-4)
            assert float(row[3].replace("−", "-")) == pytest.approx((grammar - ours) / math.log(2), abs=0.01)
        assert f"The grammar needs {-story.log_prob / math.log(2):.1f}" in source
    assert rows == []


def test_a_first_token_without_probability_leaves_the_words_after_it(model, tokenizer):  # noqa: F811
    (story,) = sample_stories(1, seed=5)
    whole = tslm.score(model, tokenizer, story.text)
    without = tslm.score(model, tokenizer, story.text, prefix=[])

    def true_ones(text, scores):
        return [(word.text, word.grammar) for word in grammar_words(text, scores, tokenizer.vocab)]

    words, later = true_ones(story.text, whole), true_ones(story.text, without)
    assert len(later) >= len(words) - 2
    assert later[1:] == words[-len(later) + 1 :]
    assert grammar_words(story.text + "x", tslm.score(model, tokenizer, story.text + "x"), tokenizer.vocab) == []
    for text in (f"\n{story.text}\n\n", f"{story.text}\n"):
        assert true_ones(text, tslm.score(model, tokenizer, text)) == words


def test_a_page_that_cannot_be_made_is_a_sentence_and_leaves_no_file(runs, tmp_path, monkeypatch, capsys):  # noqa: F811
    monkeypatch.chdir(runs)
    text, page = tmp_path / "a.txt", tmp_path / "page.html"
    text.write_bytes(b"One day there was a cat.")
    (tmp_path / "bad.txt").write_bytes(b"One day \xff")
    (tmp_path / "big.txt").write_bytes(b"One day.\n" * 60_000)
    for options, sentence in [
        ([str(text), "--html", str(text)], "is also an input"),
        ([str(text), "--html", str(tmp_path)], "is a folder"),
        ([str(text), "--html", str(tmp_path / "none" / "page.html")], "No such file or directory"),
        ([str(text), "--html", str(page), "--output", str(page)], "--output and --html are both"),
        ([str(tmp_path / "bad.txt"), "--html", str(page)], "bad.txt is not UTF-8"),
        ([str(tmp_path / "big.txt"), "--html", str(page)], "the text has 540,000 bytes, but --html makes a page of"),
    ]:
        assert main(["score", "--input", *options]) == 2
        err = capsys.readouterr().err
        assert "Traceback" not in err
        assert sentence in err
        assert {path.name for path in tmp_path.iterdir()} == {"a.txt", "bad.txt", "big.txt"}


def test_no_character_is_invisible_or_turns_the_direction_of_the_page():
    assert surprise_page.printable("a\u202eb\u2066\u200f\ufeff\x85".encode()) == (
        "a[U+202E]b[U+2066][U+200F][U+FEFF][U+0085]")
    assert not [char for char in HOSTILE.translate(surprise_page.PICTURES)
                if unicodedata.category(char) in ("Cc", "Cf") and char not in "\t\n"]
    assert "👩‍🚀".translate(surprise_page.PICTURES) == "👩‍🚀"  # a joiner is part of what is seen
