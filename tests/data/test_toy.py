"""The embedded corpus: exact probabilities, one derivation per story, and dependencies longer than a 5-gram's."""

import math
import re
from collections import Counter

import numpy as np
import pytest

from tslm.data import toy
from tslm.data.ngram import KneserNey
from tslm.data.toy_grammar import Backreference, Draw, _Compiler, load_grammar
from tslm.data.toy_parser import boundary_log_probs, story_log_prob
from tslm.tokenizer import END_OF_TEXT

PIECES = re.compile(r"\w+|[^\w\s]+")  # approximately the tokens of a story


@pytest.fixture(scope="module")
def stories():
    return toy.sample_stories(5000, seed=1)


def test_the_inside_probability_equals_the_samplers_so_each_story_has_one_derivation(stories):
    for story in stories[:1000]:
        assert story_log_prob(story.text) == pytest.approx(story.log_prob, abs=1e-9), story.text


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[:-1],
        lambda text: text + " ",
        lambda text: text + "\n",
        lambda text: text.replace(" ", "  ", 1),
        lambda text: text.lower(),
        lambda text: "",
    ],
)
def test_a_text_that_the_grammar_cannot_write_has_probability_zero(stories, change):
    for story in stories[:20]:
        assert story_log_prob(change(story.text)) == -math.inf


def test_a_story_with_another_name_in_place_of_the_repeated_one_has_probability_zero(stories):
    changed = 0
    for story in stories[:50]:
        hero = re.search(r"(?:girl|boy) (?:named|called) ([A-Z]\w+)", story.text)
        if hero and len(re.findall(rf"\b{hero[1]}\b", story.text)) > 1:
            head, tail = story.text[: hero.end()], story.text[hero.end() :]
            assert story_log_prob(head + re.sub(rf"\b{hero[1]}\b", "Ebenezer", tail, count=1)) == -math.inf
            changed += 1
    assert changed > 20


UNITS = re.compile(r"\w+|[^\w\s]+|\s+")


def test_the_probability_of_each_beginning_is_its_frequency(stories):
    beginnings = Counter()
    for story in stories:
        ends = [match.end() for match in UNITS.finditer(story.text)]
        beginnings.update(story.text[:end] for end in ends[:-1])
    compared = 0
    for story in stories[:30]:
        found = boundary_log_probs(story.text)
        assert found[0] == 0
        assert found[-1] == pytest.approx(story.log_prob, abs=1e-9)
        ends = [match.end() for match in UNITS.finditer(story.text)]
        steps = np.diff([found[end] for end in [0, *ends]])
        assert max(steps) < 1e-9  # each unit has a probability of at most 1
        for end in ends[:-1]:
            prob, count = math.exp(found[end]), beginnings[story.text[:end]]
            if prob > 0.004:
                assert abs(count - 5000 * prob) < 5 * math.sqrt(5000 * prob), story.text[:end]
                compared += 1
    assert compared > 200


def test_a_word_is_not_the_beginning_of_a_longer_one(stories):
    """After "This is the story of" comes "a" or "an", and the probability of "a" has no part of that of "an"."""
    start, share = "This is the story of", {}
    for word in (" a", " an"):
        text = next(story.text for story in stories if story.text.startswith(f"{start}{word} "))
        found = boundary_log_probs(text)
        share[word] = math.exp(found[len(start + word)] - found[len(start)])
    assert 0.01 < share[" an"] < 0.1
    assert share[" a"] + share[" an"] == pytest.approx(1)


def test_a_beginning_that_the_grammar_cannot_write_has_probability_zero(stories):
    text = stories[0].text
    place = text.index(" ", 20)
    found = boundary_log_probs(text[:place] + "zz" + text[place:])
    assert found[place - 1 : place + 3].count(-math.inf) >= 2
    assert set(found[place + 1 :]) == {-math.inf}
    assert boundary_log_probs("") == [-math.inf]
    assert boundary_log_probs("xyz") == [0.0, -math.inf, -math.inf, -math.inf]


def test_a_seed_determines_the_stories(stories):
    assert toy.sample_stories(50, seed=1) == stories[:50]
    others = {story.text for story in toy.sample_stories(1000, seed=2)}
    assert not others & {story.text for story in stories}
    assert len({story.text for story in stories}) == len(stories)


def test_probabilities_of_every_rule_and_every_list_sum_to_one():
    rules = load_grammar().rules.values()
    draws = [part for rule in rules for parts in rule.alternatives for part in parts if isinstance(part, Draw)]
    for choice in [*rules, *draws]:
        assert math.fsum(map(math.exp, choice.log_probs)) == pytest.approx(1, abs=1e-12)
        assert np.allclose(np.cumsum(np.exp(choice.log_probs))[:-1], choice.cumulative, atol=1e-12)
        assert len(choice.cumulative) == len(choice.log_probs) - 1


def test_no_list_and_no_rule_has_duplicates():
    grammar = load_grammar()
    for rule in grammar.rules.values():
        assert len(set(rule.alternatives)) == len(rule.alternatives), rule.name
        for part in (part for parts in rule.alternatives for part in parts if isinstance(part, Draw)):
            assert len(part.by_text) == len(part.texts), rule.name


def test_every_word_is_drawn_before_it_is_repeated():
    """On all paths through the grammar, keep the set of slots that are certainly filled."""
    grammar = load_grammar()

    def filled_after(part, filled):
        if isinstance(part, Draw):
            return filled | {part.slot}
        if isinstance(part, Backreference):
            assert part.slot in filled
        if isinstance(part, str | Backreference):
            return filled
        ends = []
        for parts in part.alternatives:
            reached = filled
            for inner in parts:
                reached = filled_after(inner, reached)
            ends.append(reached)
        return frozenset.intersection(*ends)

    filled_after(grammar.start, frozenset())


def test_the_frequency_of_a_choice_is_its_probability(stories):
    plots = load_grammar().rules["opening"]
    expected = math.exp(plots.log_probs[0])  # "Once upon a time, there was ..."
    count = sum(story.text.startswith("Once upon a time, there was") for story in stories)
    assert abs(count / len(stories) - expected) < 4 * math.sqrt(expected * (1 - expected) / len(stories))


def test_the_mean_log_probability_does_not_depend_on_the_seed(stories):
    other = toy.sample_stories(2000, seed=9)
    means = [np.mean([story.log_prob for story in sample]) for sample in (stories, other)]
    error = np.std([story.log_prob for story in stories]) * math.sqrt(1 / len(stories) + 1 / len(other))
    assert abs(means[0] - means[1]) < 4 * error
    assert 65 < -means[0] < 160


def test_a_story_has_50_to_170_pieces(stories):
    lengths = np.array([len(PIECES.findall(story.text)) for story in stories])
    assert lengths.min() >= 50
    assert np.percentile(lengths, 99) <= 140
    assert lengths.max() < 170


def test_the_vocabulary_has_over_1650_words():
    stories = toy.sample_stories(20_000, seed=3)
    assert len({word for story in stories for word in re.findall(r"[a-z'-]+", story.text.lower())}) > 1650


def test_stored_words_are_repeated_30_and_more_pieces_later(stories):
    rules = load_grammar().rules.values()
    parts = [part for rule in rules for parts in rule.alternatives for part in parts]
    stored = {text for part in parts if isinstance(part, Draw) and part.slot >= 0 for text in part.texts}
    distant = []
    for story in stories:
        first, far = {}, 0
        for position, piece in enumerate(PIECES.findall(story.text)):
            if piece in stored:
                far += position - first.setdefault(piece, position) >= 30
        distant.append(far)
    assert np.mean(np.array(distant) >= 3) > 0.8
    assert np.mean(distant) > 5


def test_stories_begin_with_a_capital_and_end_with_a_full_stop(stories):
    for story in stories:
        assert re.fullmatch(r'[A-Z][ -~]*[.!?]"?', story.text)
        assert "  " not in story.text
        assert " a a" not in story.text
        assert not re.search(r"\b[Aa] [aeio]", story.text), story.text
        assert story.text.count('"') % 2 == 0


def test_a_5_gram_model_is_at_least_30_percent_above_the_floor(stories):
    held_out = toy.sample_stories(300, seed=2)
    texts = [[*re.findall(r" ?\w+|[^\w]", story.text), END_OF_TEXT] for story in (*stories, *held_out)]
    number = {word: index for index, word in enumerate(sorted({word for words in texts for word in words}))}
    ids = [np.array([number[word] for word in words]) for words in texts]
    model = KneserNey.fit(np.concatenate(ids[: len(stories)]), len(number))
    nats = -model.log_probs(np.concatenate(ids[len(stories) :])).sum()
    floor = -sum(story.log_prob for story in held_out)
    assert nats >= 1.3 * floor


def test_write_corpus_adds_a_separator_line_after_every_story(tmp_path, stories):
    path = tmp_path / "corpus.txt"
    toy.write_corpus(path, 100, seed=1)
    expected = "".join(f"{story.text}\n<|endoftext|>\n" for story in stories[:100])
    assert path.read_bytes() == expected.encode()
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_write_leaves_only_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "corpus.txt"
    path.write_text("old")

    def interrupted(seed):
        yield toy.Story("Once upon a time, nothing happened.", -1.0)
        raise KeyboardInterrupt

    monkeypatch.setattr(toy, "iter_stories", interrupted)
    with pytest.raises(KeyboardInterrupt):
        toy.write_corpus(path, 10, seed=1)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_changed_word_changes_the_fingerprint():
    grammar = {"words": "pet 2\n    cat, dog\n", "plots": "story\n    A {pet}.\n"}
    compiled = _Compiler(**grammar).compile()
    assert compiled.fingerprint == _Compiler(**grammar).compile().fingerprint
    assert compiled.fingerprint != _Compiler(**(grammar | {"words": "pet 2\n    cat, fox\n"})).compile().fingerprint
