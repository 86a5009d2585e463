import random
from itertools import pairwise

import numpy as np
import pytest
import regex
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.tokenizer.reference import TRICKY, slow_pretokens, tricky_text
from tslm.tokenizer import pretokenize
from tslm.tokenizer.pretokenize import (
    PATTERN,
    encode_specials,
    find_pretokens,
    is_utf8,
    pretoken_starts,
    safe_cuts,
    special_pattern,
)

SPECIALS = ["<|e|>", "<|e|><|e|>", "a b", " .", "\n\n", "é", "ll"]
anything = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
tricky = st.lists(st.sampled_from(TRICKY), max_size=30).map("".join)


def scanned(text: str, special_tokens: list[str] = []) -> list[str]:  # noqa: B006
    data = text.encode()
    starts = pretoken_starts(data, special_pattern(encode_specials(special_tokens))).tolist()
    return [data[start:stop].decode() for start, stop in pairwise([*starts, len(data)])]


@settings(max_examples=600, deadline=None)
@given(anything | tricky)
@example("I'll can't we'VE 's''s '' 'll")
@example("  two\t tabs \n\n ")
@example("'")
@example("x'")
@example("x'l")
@example("\xa0a \xa0 b\u3000\u3000c")
def test_tokenizer_scanner_equals_the_pattern(text):
    assert scanned(text) == PATTERN.findall(text) == find_pretokens(text)


def test_tokenizer_scanner_equals_the_pattern_on_many_tricky_texts():
    rng = random.Random(1)
    for _ in range(4000):
        text = tricky_text(rng, rng.randrange(12))
        assert scanned(text) == PATTERN.findall(text), repr(text)
        assert find_pretokens(text) == PATTERN.findall(text), repr(text)


def test_tokenizer_scanner_equals_the_pattern_on_all_of_unicode():
    # In an order that mixes the kinds: alphabets alone would be a few very long words.
    code_points = [*range(0xD800), *range(0xE000, 0x110000)]
    text = "".join(chr(code_points[n * 99_991 % len(code_points)]) for n in range(len(code_points)))
    expected = PATTERN.findall(text)
    assert len(expected) > 200_000
    assert scanned(text) == expected


def test_tokenizer_scanner_takes_all_white_space_of_the_pattern():
    white = regex.findall(r"\s", "".join(map(chr, range(0x110000))))
    assert len(white) == 25
    for first in white:
        for second in white:
            for text in (f"a{first}b", f"a{first}{second}b", f"a{first}{second}", f"{first}'s{second}"):
                assert scanned(text) == PATTERN.findall(text), repr(text)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([*TRICKY, *SPECIALS, "<|e|>"]), max_size=20).map("".join))
@example("x  <|e|><|e|><|e|> a b'll  \n\n\n")
def test_tokenizer_scanner_keeps_special_tokens_whole(text):
    assert scanned(text, SPECIALS) == slow_pretokens(text, SPECIALS)


@settings(max_examples=200, deadline=None)
@given(anything | tricky)
def test_tokenizer_safe_cuts_change_nothing(text):
    data = text.encode()
    for cut in np.concatenate(safe_cuts(data)).tolist():
        assert PATTERN.findall(data[:cut].decode()) + PATTERN.findall(data[cut:].decode()) == PATTERN.findall(text)


def test_tokenizer_safe_cuts_are_found_in_any_language():
    for text in ("one two", "don't", "x=1;y", "字。字", "слово, слово", "12%"):
        assert len(np.concatenate(safe_cuts(text.encode())))


def test_tokenizer_safe_cuts_in_front_of_white_space_come_first():
    in_front_of_white, others = safe_cuts(b"say, ten12 x\xc2\xa0 \n\n\xe2\x80\x9cyes\xe2\x80\x9d no")
    assert in_front_of_white.tolist() == [4, 10, 26]
    assert others.tolist() == [3, 8, 12, 23]


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=12) | anything.map(str.encode))
@example("é".encode() + b"\xc3")
@example(b"\xe2a\x80\x99 and so on, in ASCII")
@example(b"\xe2\x80 \x99 and so on, in ASCII")
def test_tokenizer_utf8_is_told_as_decode_tells_it(text):
    for data in (text, text + 100 * b" ASCII", 100 * b"ASCII " + text):
        try:
            data.decode()
        except UnicodeDecodeError:
            assert not is_utf8(data)
        else:
            assert is_utf8(data)

def test_tokenizer_scanner_rejects_what_is_not_utf8():
    with pytest.raises(UnicodeDecodeError):
        pretoken_starts(b"a\xc3(b")


def test_tokenizer_scanner_of_nothing_is_nothing():
    assert pretoken_starts(b"").tolist() == []
    assert pretoken_starts(b"").dtype == np.intp


def test_tokenizer_special_tokens_are_checked():
    assert encode_specials(["b", "a", "b"]) == [b"b", b"a"]
    with pytest.raises(ValueError, match="empty string"):
        encode_specials(["a", ""])
    with pytest.raises(ValueError, match="give a list"):
        encode_specials("<|endoftext|>")


def test_tokenizer_code_point_table_agrees_with_the_ascii_one():
    assert pretokenize._kinds_of(np.arange(128, dtype=np.uint32)).tolist() == list(pretokenize._ASCII_KINDS[:128])
