import random

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tokenizer.reference import TRICKY, slow_pretokens, tricky_text
from tslm.tokenizer.chunking import cut_blocks, overlapping_blocks, safe_cuts, usable_cuts
from tslm.tokenizer.pretokenize import PATTERN, special_pattern, split_specials

SPECIALS = ["<|e|>", "<|e|><|e|>", "a b", "e ", "\n\n"]
BYTES = [token.encode() for token in SPECIALS]


def test_tokenizer_blocks_have_the_pretokens_of_the_whole_text():
    rng = random.Random(1)
    for round_ in range(400):
        text = tricky_text(rng, 60, [*TRICKY, *SPECIALS, "word"])
        data = text.encode()
        borders = sorted(rng.sample(range(len(data)), 6))
        pieces = [data[a:b] for a, b in zip([0, *borders], [*borders, len(data)], strict=True)]
        blocks = list(cut_blocks(pieces, BYTES, size=1 + round_ % 40))
        assert b"".join(blocks) == data
        apart = [word for block in blocks for word in slow_pretokens(block.decode(), SPECIALS)]
        assert apart == slow_pretokens(text, SPECIALS), (text, blocks)


def test_tokenizer_first_block_is_early_and_blocks_stay_small():
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield b"a line of text\n"

    blocks = cut_blocks(endless(), [], size=1 << 12, first=64)
    next(blocks)
    assert taken <= 10
    sizes = [len(next(blocks)) for _ in range(50)]
    assert 3500 < sizes[-1] < 1 << 13


def test_tokenizer_text_without_a_cut_is_one_block():
    assert list(cut_blocks([b"a" * 100] * 50, [], size=64)) == [b"a" * 5000]


def test_tokenizer_text_without_a_cut_has_blocks_that_overlap():
    blocks = list(overlapping_blocks([b"say " + "é".encode() * 999 + b"!"], [], size=50, overlap=8))
    assert max(len(block.text) for block in blocks) < 300
    whole, last = bytearray(), 0
    for block in blocks:
        assert whole.endswith(block.text[:last])
        whole += block.text[last:]
        last = block.overlap
        block.text.decode()
    assert (bytes(whole), last) == (b"say " + "é".encode() * 999 + b"!", 0)
    assert sum(block.overlap > 0 for block in blocks) > 5


def test_tokenizer_text_of_special_tokens_is_cut_between_them():
    blocks = list(cut_blocks([b"<|e|>" * 1000], BYTES, size=64))
    assert b"".join(blocks) == b"<|e|>" * 1000
    assert max(map(len, blocks)) < 150
    apart = [each for block in blocks for each in split_specials(block, special_pattern(BYTES)) if each[0]]
    assert apart == [each for each in split_specials(b"<|e|>" * 1000, special_pattern(BYTES)) if each[0]]


def test_tokenizer_cuts_avoid_special_tokens():
    text = b"_" * 10 + b"one a b two<|e|>three three" + b"_" * 10
    cuts = [text[:cut].strip(b"_") for cut in usable_cuts(text, BYTES)]
    # Not inside `a b`, `<|e|>` and `e `.
    assert cuts == [b"one a b", b"one a b two", b"one a b two<|e|>three three"]


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40) | st.lists(st.sampled_from(TRICKY)).map("".join))
def test_tokenizer_safe_cuts_change_no_pretoken(text):
    data = text.encode()
    for cut in [cut for cuts in safe_cuts(text) for cut in cuts]:
        assert 0 < cut < len(data)
        assert PATTERN.findall(data[:cut].decode()) + PATTERN.findall(data[cut:].decode()) == PATTERN.findall(text)


def test_tokenizer_safe_cuts_are_found_in_any_language():
    for text in ("one two", "don't", "x=1;y", "字。字", "слово, слово", "12%"):
        assert any(safe_cuts(text))


def test_tokenizer_safe_cuts_before_white_space_come_first():
    before_white, others = safe_cuts("say, ten12 x\xa0 \n\n“yes” no")
    assert before_white == [4, 10, 12, 26]
    assert others == [3, 8, 23]
