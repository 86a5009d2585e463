"""Reads the story grammar: toy_words.txt and toy_plots.txt come in, rules with exact probabilities go out.

It is a context-free grammar with a memory: a rule's alternatives are chosen with fixed probabilities, and a word drawn
from a list may be remembered under a name, so that it can return later in the story (an attribute grammar).

The notation of toy_plots.txt: a line at the margin names a rule, the indented lines below it are its alternatives, the
commonest first. In them

    {rule}           expands a rule, or draws a word from a list of toy_words.txt
    {rule?60}        does so with probability 60 %; else it is left out, together with the space before it
    {hero=girl}      draws a word and remembers it as `hero`
    {kin?=relative}  draws and remembers it only if `kin` is not known yet, else repeats `kin`
    [hero]           repeats the remembered word: free for a reader with a memory, dear for one who sees 4 tokens back
    {look.a} [hero.he]   a form of the word: with its article ("an old"), or the pronoun that agrees

The forms are `a` and `A` (the word behind its article, in the middle or at the beginning of a sentence) for every word,
and for the names in the lists `girl` and `boy` also `he`, `him`, `his`, `He`, `His`, and `girl`: the noun that agrees,
so that `[hero.girl]` writes "boy" where the hero's name was drawn from the boys' list.

Rank makes probability: the r-th alternative of a rule (from 0) weighs 1/(r + 4), and the r-th word of a list 1/(r + s)
with the number s that stands beside the list's name. A small s makes a few words common and the others rare. Whoever
edits the plots keeps to two rules: no two derivations give the same text, and no word is repeated before it is drawn.
The tests hold both.
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
    """A word of a list; `forms` maps a form's name ("" for the word itself, "a", "A", "he", ...) to its text."""

    forms: dict[str, str]


@dataclass(frozen=True, eq=False)
class Recall:
    """The word remembered in `slot`, in `form`."""

    slot: int
    form: str


@dataclass(frozen=True, eq=False)
class Draw:
    """A word of a list, in `form`, remembered in `slot` (-1: nowhere)."""

    words: tuple[Word, ...]
    texts: tuple[str, ...]
    log_probs: tuple[float, ...]
    cumulative: tuple[float, ...]
    slot: int
    form: str
    only_once: bool  # if the slot is taken already, repeat its word instead
    by_text: dict[str, int]
    lengths: tuple[int, ...]  # the distinct lengths of `texts`: what a parser has to try


@dataclass(eq=False)
class Rule:
    """A choice between `alternatives`, each a sequence of parts that are written one after the other."""

    name: str
    alternatives: list[tuple["Part", ...]] = field(default_factory=list)
    log_probs: tuple[float, ...] = ()
    cumulative: tuple[float, ...] = ()


Part = str | Recall | Draw | Rule


@dataclass(frozen=True)
class Grammar:
    """The compiled grammar: its start symbol, every rule by name, and how many words a story may remember."""

    start: Rule
    rules: dict[str, Rule]
    num_slots: int
    fingerprint: str


@cache
def load_grammar() -> Grammar:
    """Compile the two text files that lie beside this module, once per process."""
    folder = resources.files(__package__)
    words, plots = (folder.joinpath(name).read_text("utf-8") for name in ("toy_words.txt", "toy_plots.txt"))
    return _Compiler(words, plots).compile()


def zipf(count: int, shift: int) -> list[float]:
    """Probabilities that fall with rank r as 1/(r + shift)."""
    weights = [1 / (rank + shift) for rank in range(count)]
    total = sum(weights)
    return [weight / total for weight in weights]


class _Compiler:
    """Turns the notation into parts; one pass over the rules, each rule object being made before it is filled."""

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
        """Fill the rules, and return the grammar that they make."""
        for name, lines in self.lines.items():
            self._fill(self.rules[name], [self._parts(line) for line in lines], zipf(len(lines), RULE_SHIFT))
        return Grammar(self.rules["story"], self.rules, len(self.slots), self.fingerprint)

    def _fill(self, rule: Rule, alternatives: list[tuple[Part, ...]], probs: Sequence[float]) -> Rule:
        rule.alternatives, rule.log_probs, rule.cumulative = alternatives, *_tables(probs)
        return rule

    def _parts(self, line: str) -> tuple[Part, ...]:
        parts: list[Part] = []
        for piece in self.PART.findall(line):
            part = self._part(piece)
            if isinstance(part, str) and parts and isinstance(parts[-1], str):
                parts[-1] += part
            else:
                parts.append(part)
        return tuple(parts)

    def _part(self, piece: str) -> Part:
        if optional := re.fullmatch(r"( ?)\{(\w+)\?(\d+)\}", piece):
            space, name, percent = optional.groups()
            chance = int(percent) / 100
            body = (space, self._part(f"{{{name}}}")) if space else (self._part(f"{{{name}}}"),)
            return self._fill(self.rules.setdefault(piece, Rule(piece)), [body, ()], (chance, 1 - chance))
        if recall := re.fullmatch(r"\[(\w+)(?:\.(\w+))?\]", piece):
            return Recall(self._slot(recall[1]), recall[2] or "")
        if choice := re.fullmatch(r"\{(?:(\w+)(\??)=)?(\w+)(?:\.(\w+))?\}", piece):
            variable, once, name, form = choice.groups()
            if name in self.rules:
                return self.rules[name]
            return _draw(*self.lists[name], self._slot(variable) if variable else -1, form or "", bool(once))
        return piece

    def _slot(self, variable: str) -> int:
        return self.slots.setdefault(variable, len(self.slots))


def _blocks(text: str) -> Iterator[tuple[str, list[str]]]:
    """Yield (name, indented lines below it); `#` starts a comment line."""
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
    """(log-probabilities, cumulative sums but the last): bisecting the sums with a uniform number draws an index."""
    return tuple(math.log(p) for p in probs), tuple(accumulate(probs))[:-1]
