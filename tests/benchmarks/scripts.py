"""Texts in scripts without spaces, drawn with a seed: words from a Zipf law, and what has no words at all."""

import base64
import random
from collections.abc import Callable, Iterator
from itertools import accumulate

_WORDS = 5_000  # distinct words of a script


class _Words:
    """Distinct random words. The word of rank r is drawn with a probability proportional to 1/r (Zipf's law)."""

    def __init__(self, rng: random.Random, make: Callable[[], str], count: int = _WORDS) -> None:
        words: dict[str, None] = {}
        while len(words) < count:
            words[make()] = None
        self._rng, self._words = rng, [*words]
        self._weights = [*accumulate(1 / rank for rank in range(1, count + 1))]

    def draw(self, count: int) -> list[str]:
        return self._rng.choices(self._words, cum_weights=self._weights, k=count)


def _letters(first: int, last: int) -> str:
    return "".join(map(chr, range(first, last + 1)))


def _sentences(rng: random.Random, words: _Words, comma: str, stop: str, space: str = "") -> Iterator[str]:
    while True:
        clauses = [space.join(words.draw(rng.randint(3, 12))) for _ in range(rng.randint(1, 4))]
        yield comma.join(clauses) + stop + ("\n" if rng.random() < 0.1 else "")


def chinese(rng: random.Random) -> Iterator[str]:
    """Words of one to four characters out of 3,000."""
    words = _Words(rng, lambda: "".join(rng.choices(_letters(0x4E00, 0x4E00 + 2999), k=rng.choice([1, 2, 2, 2, 3, 4]))))
    return _sentences(rng, words, "，", "。")


def japanese(rng: random.Random) -> Iterator[str]:
    """Kanji with hiragana endings, and katakana words."""
    hiragana, katakana, kanji = _letters(0x3041, 0x3093), _letters(0x30A1, 0x30F3) + "ー", _letters(0x5000, 0x57CF)

    def word() -> str:
        kind = rng.random()
        if kind < 0.2:
            return "".join(rng.choices(katakana, k=rng.randint(2, 6)))
        stem = "".join(rng.choices(kanji, k=rng.randint(1, 2))) if kind < 0.8 else ""
        return stem + "".join(rng.choices(hiragana, k=rng.randint(0 if stem else 1, 3)))

    return _sentences(rng, _Words(rng, word), "、", "。")


def thai(rng: random.Random) -> Iterator[str]:
    """Syllables of consonants, vowels and tone marks; a space only ends a clause."""
    consonants, marks, vowels = _letters(0x0E01, 0x0E2E), "\u0e31\u0e34\u0e35\u0e38\u0e48\u0e49\u0e4c", "ะาเแโใไ"

    def word() -> str:
        return "".join(
            rng.choice(consonants) + rng.choice([rng.choice(marks), rng.choice(vowels), rng.choice(consonants), ""])
            for _ in range(rng.randint(1, 4))
        )

    return _sentences(rng, _Words(rng, word), " ", " ")


def encoded(rng: random.Random) -> Iterator[str]:
    """Base64 of random bytes, in lines of 76 characters."""
    while True:
        yield base64.encodebytes(rng.randbytes(5700)).decode()


def minified(rng: random.Random) -> Iterator[str]:
    """Code without white space."""
    names = _Words(rng, lambda: "".join(rng.choices("etaoinshrdluETAOINSHRDLU_$", k=rng.randint(1, 9))), 2000)
    forms = [
        "function {}({},{}){{return {}.{}({})}}", "var {}={},{}=!{};", "if({}){{{}.{}={}}}",
        "{}.{}(function({}){{{}()}});", '{}["{}"]={}?{}:{};', "for(var {}=0;{}<{};{}++){}[{}]={};",
    ]
    while True:
        form = rng.choice(forms)
        yield form.format(*names.draw(form.count("{}")))


def dna(rng: random.Random) -> Iterator[str]:
    """The letters A, C, G and T in one line."""
    while True:
        yield "".join(rng.choices("ACGT", k=1 << 16))


def mixed(rng: random.Random) -> Iterator[str]:
    """Articles in many scripts with markup, numbers and names, as in an encyclopedia."""
    devanagari = "".join(map(chr, [*range(0x0915, 0x0939), 0x093E, 0x093F, 0x0947]))
    alphabets = [
        _letters(ord("a"), ord("z")) + "eeeeaaiioonnrrtt", _letters(0x0430, 0x044F), _letters(0x03B1, 0x03C9),
        _letters(0x0627, 0x064A), _letters(0x05D0, 0x05EA), devanagari,
    ]
    texts = [
        _sentences(rng, _Words(rng, lambda a=alphabet: "".join(rng.choices(a, k=rng.randint(1, 9)))), ", ", ". ", " ")
        for alphabet in alphabets
    ]
    texts += [chinese(rng), japanese(rng), thai(rng)]
    while True:
        text = rng.choice([texts[0], *texts])
        yield f"== {next(text).strip()[:20]} ==\n"
        for _ in range(rng.randint(2, 12)):
            yield next(text) + rng.choice(["", "", f"[[{rng.randint(1000, 2026)}]] ", "<ref name=\"a\">", " (1.5%) "])
        yield "\n\n"


SCRIPTS: dict[str, Callable[[random.Random], Iterator[str]]] = {
    "chinese": chinese, "japanese": japanese, "thai": thai, "base64": encoded, "minified": minified, "dna": dna,
    "mixed_scripts": mixed,
}


def draw_text(name: str, size: int, seed: int) -> str:
    """Return a text of about `size` bytes."""
    parts, total = [], 0
    for part in SCRIPTS[name](random.Random(f"{name} {seed}")):
        parts.append(part)
        total += len(part.encode())
        if total >= size:
            break
    return "".join(parts).encode()[:size].decode(errors="ignore")
