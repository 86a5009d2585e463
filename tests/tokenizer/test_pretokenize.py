import doctest

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.tokenizer.reference import TRICKY, slow_pretokens
from tslm.tokenizer import pretokenize
from tslm.tokenizer.pretokenize import PATTERN, encode_specials, find_pretokens, special_pattern, split_specials

GPT2 = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
SPECIALS = ["<|e|>", "<|e|><|e|>", "a b", " .", "\n\n", "é", "ll"]
anything = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
tricky = st.lists(st.sampled_from(TRICKY), max_size=30).map("".join)


@settings(max_examples=600, deadline=None)
@given(anything | tricky | st.text(st.characters(max_codepoint=127), max_size=40))
@example("I'll can't we'VE 's''s '' 'll")
@example("  two\t tabs \n\n \x1c\x1f ")
def test_pretokens_are_those_of_gpt2s_pattern(text):
    assert find_pretokens(text) == PATTERN.findall(text) == pretokenize.regex.findall(GPT2, text)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([*TRICKY, *SPECIALS, "<|e|>"]), max_size=20).map("".join))
@example("x  <|e|><|e|><|e|> a b'll  \n\n\n")
def test_special_tokens_are_split_off_first(text):
    words = []
    for piece, is_special in split_specials(text.encode(), special_pattern(encode_specials(SPECIALS))):
        words += [piece.decode()] if is_special else find_pretokens(piece.decode())
    assert words == slow_pretokens(text, SPECIALS)


def test_special_tokens_are_checked():
    assert encode_specials(["b", "a", "b"]) == [b"b", b"a"]
    with pytest.raises(ValueError, match="empty string"):
        encode_specials(["a", ""])
    with pytest.raises(ValueError, match="give a list"):
        encode_specials("<|endoftext|>")


def test_the_examples_of_the_docstrings_are_true():
    result = doctest.testmod(pretokenize)
    assert (result.failed, result.attempted > 1) == (0, True)


def test_the_hash_of_the_unicode_tables_changes_with_the_class_of_one_character(monkeypatch):
    before = pretokenize.unicode_hash()
    real = pretokenize.regex.finditer
    monkeypatch.setattr(pretokenize.regex, "finditer",
                        lambda pattern, text: real(pattern, text.replace("\N{LATIN SMALL LETTER E WITH ACUTE}", "-")))
    assert pretokenize.unicode_hash.__wrapped__() != before
    assert pretokenize.unicode_hash() == before
