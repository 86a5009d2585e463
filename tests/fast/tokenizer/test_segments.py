from itertools import pairwise

import hypothesis.strategies as st
import regex
from hypothesis import example, given, settings

from tslm.fast.tokenizer.scanner import pretoken_bounds, special_pattern
from tslm.fast.tokenizer.segments import divide_specials, segment_bounds

WHITE = regex.findall(r"\s", "".join(chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000))
PIECES = [*WHITE, "", "a", "b2", "'s", "'", "!", "the", "\x1c", "\0", "é", "\u3000 ", "字", "<|e|>", "<|a b|>"]
PIECES += ["<|a", "b|>", *(" " + piece for piece in PIECES)]
SPECIALS = [b"<|e|>", b"<|a b|>"]
WITHIN, ACROSS = divide_specials(SPECIALS)


def segments_of(text, across=None):
    bounds = segment_bounds(text, across)
    return None if bounds is None else cut(text, bounds)


def pretokens_of(text, specials):
    return cut(text, pretoken_bounds(text, specials))


def cut(text, bounds):
    return [text[start:stop] for start, stop in pairwise(bounds.tolist())]


@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=30).map("".join))
@example(" a\u2028\tb")
@example(" a \u2028 b \u2028")
@example(" \xa0 b \xa0\tc")
@example(" <|a b|> c <|a b")
@example(" b|> <|a")
def test_segments_have_the_pretokens_of_their_text(text):
    data = (" " + text + "x").encode()
    segments = segments_of(data, ACROSS)
    if segments is not None:
        expected = pretokens_of(data, special_pattern(SPECIALS))
        separate = [pretokens_of(segment, WITHIN) for segment in segments]
        assert [pretoken for pretokens in separate for pretoken in pretokens] == expected
        # The distinct segments of a text are joined in another order and then cut into pre-tokens.
        backwards = pretokens_of(b"".join(reversed(segments)), WITHIN)
        assert backwards == [pretoken for pretokens in reversed(separate) for pretoken in pretokens]


def test_segments_start_with_white_space():
    assert segments_of(b" I'll  wait,\n\nhe said") == [b" I'll", b"  wait,", b"\n\nhe", b" said"]


def test_segments_are_not_used_where_they_do_not_help():
    for text in ("", "word", "starts with a letter", " ends with space ", " ends with \u3000", " " + 90 * "x"):
        assert segments_of(text.encode()) is None
    assert segments_of(b" one <|e|> two", ACROSS) is not None
    assert segments_of(b" one <|a b|> two", ACROSS) is None
