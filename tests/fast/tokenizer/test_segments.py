from itertools import pairwise

import hypothesis.strategies as st
import regex
from hypothesis import example, given, settings

from tslm.tokenizer.pretokenize import pretoken_borders, special_pattern
from tslm.tokenizer.stretches import divide_specials, stretch_borders

WHITE = regex.findall(r"\s", "".join(chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000))
PIECES = [*WHITE, "", "a", "b2", "'s", "'", "!", "the", "\x1c", "\0", "é", "\u3000 ", "字", "<|e|>", "<|a b|>"]
PIECES += ["<|a", "b|>", *(" " + piece for piece in PIECES)]
SPECIALS = [b"<|e|>", b"<|a b|>"]
WITHIN, ACROSS = divide_specials(SPECIALS)


def stretches_of(text, across=None):
    borders = stretch_borders(text, across)
    return None if borders is None else cut(text, borders)


def pretokens_of(text, specials):
    return cut(text, pretoken_borders(text, specials))


def cut(text, borders):
    return [text[start:stop] for start, stop in pairwise(borders.tolist())]


@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=30).map("".join))
@example(" a\u2028\tb")
@example(" a \u2028 b \u2028")
@example(" \xa0 b \xa0\tc")
@example(" <|a b|> c <|a b")
@example(" b|> <|a")
def test_tokenizer_stretches_have_the_pretokens_of_their_text(text):
    data = (" " + text + "x").encode()
    stretches = stretches_of(data, ACROSS)
    if stretches is not None:
        expected = pretokens_of(data, special_pattern(SPECIALS))
        apart = [pretokens_of(stretch, WITHIN) for stretch in stretches]
        assert [pretoken for pretokens in apart for pretoken in pretokens] == expected
        # The same put together in any other order: so are the distinct stretches of a text cut into pre-tokens.
        backwards = pretokens_of(b"".join(reversed(stretches)), WITHIN)
        assert backwards == [pretoken for pretokens in reversed(apart) for pretoken in pretokens]


def test_tokenizer_stretches_begin_with_white_space():
    assert stretches_of(b" I'll  wait,\n\nhe said") == [b" I'll", b"  wait,", b"\n\nhe", b" said"]


def test_tokenizer_stretches_are_not_found_in_text_that_is_better_cut_at_once():
    for text in ("", "word", "begins with a letter", " ends with space ", " ends with \u3000", " " + 90 * "x"):
        assert stretches_of(text.encode()) is None
    assert stretches_of(b" one <|e|> two", ACROSS) is not None
    assert stretches_of(b" one <|a b|> two", ACROSS) is None
