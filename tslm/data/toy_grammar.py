"""The story grammar: reads toy_words.txt and toy_plots.txt and compiles them to rules with exact probabilities.

It is a context-free grammar with memory (an attribute grammar). The alternatives of a rule have fixed probabilities. A
word drawn from a list may be stored in a named slot, so that the story can repeat it later.

In toy_plots.txt, a line without indentation names a rule. The indented lines below it are its alternatives, the most
probable first. In an alternative,

    {rule}           expands a rule, or draws a word from a list of toy_words.txt
    {rule?60}        does so with probability 60%; otherwise it and the space before it are left out
    {hero=girl}      draws a word from the list `girl` and stores it in the slot `hero`
    {kin?=relative}  does so if the slot `kin` is empty; otherwise repeats the word in `kin`
    [hero]           repeats the word in `hero`: certain for a reader with memory, improbable for a 5-gram model
    {look.a} [hero.he]   writes a form of the word: with its article ("an old"), or the pronoun that agrees

Every word has the forms `a` and `A`: the word with its indefinite article, in the middle or at the start of a sentence.
The names in the lists `girl` and `boy` also have the pronouns `he`, `him`, `his`, `He`, `His`, and the form `girl`, the
noun that agrees: `[hero.girl]` writes "boy" if the hero's name comes from the list `boy`.

Probabilities follow from the rank r, counted from 0. An alternative of a rule has the weight 1/(r + 4). A word of a
list has the weight 1/(r + s), where s is the number after the list's name. A small s makes a few words common and the
others rare.

An edit of the plots must keep two properties, which the tests check: no two derivations give the same text, and no
word is repeated before it is drawn.
"""

import hashlib
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from itertools import accumulate

RULE_SHIFT = 4
PRONOUNS = {
    "girl": {"he": "she", "him": "her", "his": "her", "He": "She", "His": "Her", "girl": "girl"},
    "boy": {"he": "he", "him": "him", "his": "his", "He": "He", "His": "His", "girl": "boy"},
}
VOWEL_BUT_A, SILENT_H = ("uni", "uku", "use", "one"), ("hour", "honest")  # a unicorn, an honest boy


@dataclass(frozen=True, eq=False)
class Word:
    """A word of a list; `forms` maps the name of a form ("" for the word itself, "a", "A", "he", …) to its text."""

    forms: dict[str, str]


@dataclass(frozen=True, eq=False)
class Backreference:
    """The word stored in `slot`, written in `form`."""

    slot: int
    form: str


@dataclass(frozen=True, eq=False)
class Draw:
    """A word drawn from a list, written in `form`, and stored in `slot` (-1: not stored)."""

    words: tuple[Word, ...]
    texts: tuple[str, ...]
    log_probs: tuple[float, ...]
    cumulative: tuple[float, ...]
    slot: int
    form: str
    only_once: bool  # if the slot is not empty, repeat its word instead
    by_text: dict[str, int]
    lengths: tuple[int, ...]  # the distinct lengths of `texts`, for the parser


@dataclass(eq=False)
class Rule:
    """A choice between `alternatives`; each is a sequence of parts."""

    name: str
    alternatives: list[tuple["Part", ...]] = field(default_factory=list)
    log_probs: tuple[float, ...] = ()
    cumulative: tuple[float, ...] = ()


Part = str | Backreference | Draw | Rule


@dataclass(frozen=True)
class Grammar:
    """The compiled grammar.

    Attributes:
        start: the start symbol.
        rules: every rule by name.
        num_slots: number of slots for stored words.
        fingerprint: a hash that changes whenever a story of some seed could change; it keys the cached corpus.
    """

    start: Rule
    rules: dict[str, Rule]
    num_slots: int
    fingerprint: str


@cache
def load_grammar() -> Grammar:
    """Compile toy_words.txt and toy_plots.txt, once per process."""
    folder = resources.files(__package__)
    words, plots = (folder.joinpath(name).read_text("utf-8") for name in ("toy_words.txt", "toy_plots.txt"))
    return _Compiler(words, plots).compile()


def zipf(count: int, shift: int) -> list[float]:
    """Return the probabilities p_r ∝ 1/(r + shift) for the ranks r = 0 … count - 1 (Zipf's law with an offset)."""
    weights = [1 / (rank + shift) for rank in range(count)]
    total = sum(weights)
    return [weight / total for weight in weights]


class _Compiler:
    """Compiles the notation to rules; all rule objects exist before the first is filled, so rules can be recursive."""

    PART = re.compile(r" ?\{\w+\?\d+\}|\{[^}]+\}|\[[^\]]+\]|[^{\[ ]+| ")

    def __init__(self, words: str, plots: str) -> None:
        self.lists: dict[str, tuple[tuple[Word, ...], int]] = {}
        for header, lines in _blocks(words):
            name, shift = header.split()
            self.lists[name] = _make_words(name, " ".join(lines).split(", ")), int(shift)
        self.lines = dict(_blocks(plots))
        self.rules = {name: Rule(name) for name in self.lines}
        self.slots: dict[str, int] = {}
        code = repr((RULE_SHIFT, PRONOUNS, VOWEL_BUT_A, SILENT_H))
        self.fingerprint = hashlib.sha256("\0".join((words, plots, code)).encode()).hexdigest()

    def compile(self) -> Grammar:
        """Fill the rules and return the grammar."""
        for name, lines in self.lines.items():
            self._fill(self.rules[name], [self._parse_line(line) for line in lines], zipf(len(lines), RULE_SHIFT))
        return Grammar(self.rules["story"], self.rules, len(self.slots), self.fingerprint)

    def _fill(self, rule: Rule, alternatives: list[tuple[Part, ...]], probs: Sequence[float]) -> Rule:
        rule.alternatives, rule.log_probs, rule.cumulative = alternatives, *_tables(probs)
        return rule

    def _parse_line(self, line: str) -> tuple[Part, ...]:
        parts: list[Part] = []
        for piece in self.PART.findall(line):
            part = self._parse_part(piece)
            if isinstance(part, str) and parts and isinstance(parts[-1], str):
                parts[-1] += part
            else:
                parts.append(part)
        return tuple(parts)

    def _parse_part(self, piece: str) -> Part:
        if optional := re.fullmatch(r"( ?)\{(\w+)\?(\d+)\}", piece):
            space, name, percent = optional.groups()
            prob = int(percent) / 100
            body = (space, self._parse_part(f"{{{name}}}")) if space else (self._parse_part(f"{{{name}}}"),)
            return self._fill(self.rules.setdefault(piece, Rule(piece)), [body, ()], (prob, 1 - prob))
        if backreference := re.fullmatch(r"\[(\w+)(?:\.(\w+))?\]", piece):
            return Backreference(self._slot(backreference[1]), backreference[2] or "")
        if choice := re.fullmatch(r"\{(?:(\w+)(\??)=)?(\w+)(?:\.(\w+))?\}", piece):
            slot, once, name, form = choice.groups()
            if name in self.rules:
                return self.rules[name]
            return _draw(*self.lists[name], self._slot(slot) if slot else -1, form or "", bool(once))
        return piece

    def _slot(self, name: str) -> int:
        return self.slots.setdefault(name, len(self.slots))


def _blocks(text: str) -> Iterator[tuple[str, list[str]]]:
    """Yield each unindented line with the indented lines below it; a line that starts with `#` is a comment."""
    name, lines = "", list[str]()
    for line in text.splitlines():
        if line.startswith("    "):
            lines.append(line[4:])
        elif line and not line.startswith("#"):
            if name:
                yield name, lines
            name, lines = line, []
    yield name, lines


def _make_words(list_name: str, texts: list[str]) -> tuple[Word, ...]:
    return tuple(Word({"": text, **_articles(text), **PRONOUNS.get(list_name, {})}) for text in texts)


def _articles(text: str) -> dict[str, str]:
    vowel = (text[0] in "aeiou" and not text.startswith(VOWEL_BUT_A)) or text.startswith(SILENT_H)
    with_article = f"{'an' if vowel else 'a'} {text}"
    return {"a": with_article, "A": "A" + with_article[1:]}


def _draw(words: tuple[Word, ...], shift: int, slot: int, form: str, only_once: bool) -> Draw:
    texts = tuple(word.forms[form] for word in words)
    by_text = {text: index for index, text in enumerate(texts)}
    lengths = tuple(sorted({len(text) for text in texts}))
    return Draw(words, texts, *_tables(zipf(len(words), shift)), slot, form, only_once, by_text, lengths)


def _tables(probs: Sequence[float]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return log-probabilities, and the cumulative sums without the last: `bisect(sums, uniform())` draws an index."""
    return tuple(math.log(p) for p in probs), tuple(accumulate(probs))[:-1]
