"""The surprise page of `score --html`: one HTML file that shows each token in the colour of its surprise, -log2 p.

The page needs no other file and no network. What the pointer or the keyboard selects is explained beside it: the
likeliest alternatives and, in stories of the embedded corpus, the grammar's true probability of the word.
"""

from __future__ import annotations

import codecs
import json
import math
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from html import escape
from importlib import resources
from typing import Any, NamedTuple

from tslm.data.toy_parser import boundary_log_probs, kind
from tslm.errors import UserError
from tslm.training.runs import LoadedModel
from tslm.training.scoring import Scores

ALTERNATIVES = 5
LARGEST_TEXT = 500_000  # bytes; the page of a longer text would be too large for a browser
# The lower limits of the colours, in bits; page.html has a class `s0`, `s1`, … for each.
LIMITS = (0, 1, 2, 3, 4, 6, 8, 11)
# HTML cannot hold control characters except tab and line feed, so Unicode's pictures of them are shown. Invisible
# characters, such as a mark that changes the direction of writing, are shown as their code point: [U+202E].
PICTURES: dict[int, int | str] = {
    **{code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"}, 127: 0x2421,
    **{code: f"[U+{code:04X}]" for code in (*range(0x80, 0xA0), 0x61C, 0x200B, 0x200E, 0x200F, *range(0x2028, 0x202F),
                                            *range(0x2060, 0x2070), 0xFEFF)},
}


class Word(NamedTuple):
    """A word of a story of the embedded corpus, with both log-probabilities in nats.

    `first` and `stop` are the range of its tokens.
    """

    text: str
    first: int
    stop: int
    model: float
    grammar: float


class SurprisePage:
    """Collects scored documents and writes them as a page."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._vocab, self._loaded = loaded.tokenizer.vocab, loaded
        self._sections: list[str] = []
        self._data: list[dict[str, Any]] = []
        self._scores: list[Scores] = []
        self._shown: set[int] = set()

    def check(self, num_bytes: int) -> None:
        """Refuse a text that is too long.

        Raises:
            UserError: its page would be too large for a browser.
        """
        if num_bytes > LARGEST_TEXT:
            raise UserError(f"the text has {num_bytes:,} bytes, but --html makes a page of at most {LARGEST_TEXT:,}: "
                            "give a part of it")

    def add(self, name: str, texts: Sequence[str], scored: Sequence[Scores]) -> None:
        """Add the documents of a file, scored with their alternatives."""
        for number, (text, scores) in enumerate(zip(texts, scored, strict=True), 1):
            words = grammar_words(text, scores, self._vocab)
            index = len(self._sections)
            spans = "".join(_span(place, shown, value) for place, (shown, value)
                            in enumerate(zip(_texts(scores.ids, self._vocab), scores.log_probs, strict=True)))
            self._sections.append(
                f'<section aria-labelledby="d{index}"><h2 id="d{index}">{_text(name)}, document {number}</h2>\n'
                f"<p>{_figures(scores)}</p>\n"
                f'<div class="text" data-document="{index}" role="group" aria-labelledby="d{index} keys" dir="auto" '
                f'lang="">{spans}</div>\n{_table(words)}</section>'
            )
            self._shown.update(scores.ids, (id_ for each in scores.alternatives for id_, _ in each))
            self._scores.append(scores)
            tokens = zip(scores.ids, scores.log_probs, scores.alternatives, strict=True)
            self._data.append({
                "tokens": [[id_, round(value, 4), [[other, round(log_prob, 4)] for other, log_prob in others]]
                           for id_, value, others in tokens],
                "words": [[*word[:3], round(word.model, 4), round(word.grammar, 4)] for word in words],
            })

    def html(self) -> str:
        """Return the page."""
        names = {id_: printable(self._vocab[id_]) for id_ in sorted(self._shown)}
        data = json.dumps({"names": names, "documents": self._data}, ensure_ascii=False, separators=(",", ":"))
        uppers = [*(f"to {limit}" for limit in LIMITS[1:]), "and more"]
        parts = {
            "model": f"{_text(self._loaded.path)}, step {self._loaded.step:,}",
            "figures": _figures(Scores.joined(self._scores)),
            "legend": "".join(f'<li class="s{level}">{lower} {upper}'
                              for level, (lower, upper) in enumerate(zip(LIMITS, uppers, strict=True))),
            "sections": "\n".join(self._sections),
            "data": data.translate({ord(char): f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"}),
        }
        page = resources.files(__package__).joinpath("surprise_page.html").read_text("utf-8")
        return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], page)


def grammar_words(text: str, scores: Scores, vocab: dict[int, bytes]) -> list[Word]:
    """Return the words of a story of the embedded corpus with their true probabilities; nothing for another text.

    A word ends where a token ends and `toy_parser.kind` changes; its space is in front of it. The last one includes
    that the story ends.
    """
    start = len(text) - len(text.lstrip("\n"))
    story = text.strip("\n")
    boundaries = boundary_log_probs(story)
    if boundaries[-1] == -math.inf:
        return []
    characters = {size: index for index, size in enumerate(_sizes(text))}  # by the bytes before them
    size = len(text.encode()) - scores.num_bytes
    words, first, begin, total = list[Word](), 0, characters.get(size, -1) - start, 0.0
    for place, (id_, value) in enumerate(zip(scores.ids, scores.log_probs, strict=True)):
        size, total = size + len(vocab[id_]), total + value
        end = characters.get(size, -1) - start
        if begin < 0:  # the line breaks in front
            first, begin, total = place + 1, end, 0.0
        elif 0 < end <= len(story) and (end == len(story) or kind(story[end - 1]) != kind(story[end])):
            grammar = boundaries[end] - boundaries[begin]
            if math.isfinite(grammar):
                words.append(Word(story[begin:end], first, place + 1, total, grammar))
            first, begin, total = place + 1, end, 0.0
    return words


def _sizes(text: str) -> Iterator[int]:
    """Yield the number of bytes before each character of a text, and that of all."""
    size = 0
    for char in text:
        yield size
        size += len(char.encode())
    yield size


def _texts(ids: Sequence[int], vocab: dict[int, bytes]) -> Iterator[str]:
    """Yield the text that each token completes: a character of several tokens comes with the last of them."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for place, id_ in enumerate(ids):
        yield decoder.decode(vocab[id_], final=place == len(ids) - 1)


def _span(place: int, shown: str, log_prob: float) -> str:
    level = bisect_right(LIMITS, max(-log_prob / math.log(2), 0)) - 1
    part = "" if shown else " part"  # of a character
    return f'<span class="s{level}{part}" tabindex="{-1 if place else 0}">{_text(shown)}</span>'


def _table(words: Sequence[Word]) -> str:
    if not words:
        return ""
    model, grammar = (-sum(getattr(word, name) for word in words) / math.log(2) for name in ("model", "grammar"))
    rows = "".join(
        f"<tr><th scope=row>{_text(printable(word.text.encode()))}<td>{math.exp(word.model):.2%}"
        f"<td>{math.exp(word.grammar):.2%}<td>{_signed((word.grammar - word.model) / math.log(2))}" for word in words
    )
    return ("<p>This is a story of the embedded corpus, whose grammar has known probabilities. The grammar needs "
            f"{grammar:.1f} bits for it, and the model {model:.1f}.</p>\n"
            "<details><summary>Words: the model beside the grammar</summary>"
            "<table><caption>Probability of each word after what precedes it</caption><thead><tr><th scope=col>word"
            "<th scope=col>model<th scope=col>grammar<th scope=col>surprise above the grammar's, in bits</thead><tbody>"
            f"{rows}</tbody></table></details>\n")


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−") if abs(value) >= 0.005 else "0.00"


def _figures(scores: Scores) -> str:
    if not scores.ids:
        return "no token is scored"
    return (f"{len(scores.ids):,} tokens, {-scores.total / math.log(2):,.1f} bits: {scores.bits_per_byte:.3f} bits per "
            f"byte, perplexity {scores.perplexity:,.2f}")


def _text(value: object) -> str:
    return escape(str(value).translate(PICTURES))


def printable(token: bytes) -> str:
    """Return a token with a space as ·, a line break as ↵, a tab as →, and bytes that are no text as escapes."""
    text = token.decode(errors="backslashreplace")
    return text.translate(PICTURES | {ord(" "): "·", ord("\n"): "↵", ord("\t"): "→"})
