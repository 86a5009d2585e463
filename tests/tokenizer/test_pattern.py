"""The pattern of pre-tokens as a setting, against `regex` and tiktoken."""

import json
import random

import pytest
import regex
import tiktoken
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiktoken_ext import openai_public

from tests.tokenizer.reference import TRICKY, slow_word, tricky_text
from tslm import Tokenizer, count_pretokens, encode_files, fast, train_bpe
from tslm.commands import train_tokenizer
from tslm.errors import UserError
from tslm.tokenizer import encode as encode_module
from tslm.tokenizer import pretokenize
from tslm.tokenizer.chunking import cut_blocks, overlapping_blocks, safe_cuts, usable_cuts
from tslm.tokenizer.corpus import Corpus
from tslm.tokenizer.pretokenize import find_pretokens, special_pattern, split_specials
from tslm.tokenizer.serialization import tokenizer_from_texts, tokenizer_texts
from tslm.tokenizer.train import count_corpus

OWN = r"(?<=x)\w+|\w+|\s+(?=x)|[^\w\s]*$|\W"  # looks behind, ahead and at the end: no cut within a text is safe
PATTERNS = ["gpt2", "cl100k", "none", OWN]
SPECIALS = ["<|e|>", "<|e|><|e|>", "a b", "e ", "\n\n"]
CL100K = pretokenize.compiled("cl100k").pattern
anything = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
# The tables of `regex` and tiktoken differ for code points that Unicode has not assigned.
assigned = st.text(st.characters(exclude_categories=["Cs", "Cn"]), max_size=40)
tricky = st.lists(st.sampled_from([*TRICKY, "ſ", "K", "\n\n", "  "]), max_size=30).map("".join)


def whole(text, pattern, specials=()):
    """Return the pre-tokens of a text and the special tokens by the definition."""
    found = []
    for piece, is_special in split_specials(text.encode(), special_pattern([each.encode() for each in specials])):
        found += [piece.decode()] if is_special else find_pretokens(piece.decode(), pattern)
    return found


def random_text(rng, length=60):
    return tricky_text(rng, length, [*TRICKY, *SPECIALS, "word", "123", "x", "\r\n"])


@settings(max_examples=500, deadline=None)
@given(assigned | tricky | st.text(st.characters(max_codepoint=127), max_size=40))
@example("I'll CAN'T we'Ve 's''s '' 'll 1234567 x\r\n\n!\r\n \n  \n \xa0 y'ſ")
@example("a  \n  ")
def test_pretokens_of_cl100k_are_those_of_tiktoken(text):
    words = find_pretokens(text, "cl100k")
    assert "".join(words) == text
    ranks = {bytes([n]): n for n in range(256)}
    for word in words:
        for end in range(2, len(word.encode()) + 1):
            ranks.setdefault(word.encode()[:end], len(ranks))
    encoding = tiktoken.Encoding("words", pat_str=CL100K, mergeable_ranks=ranks, special_tokens={})
    # tiktoken takes a pre-token that is in its table as one token. Where it split differently, a pre-token would be
    # none of ours, or shorter.
    assert [encoding.decode_bytes([id_]).decode() for id_ in encoding.encode(text)] == words


def test_cl100k_is_the_pattern_that_tiktoken_ships():
    source = openai_public.__file__
    with open(source, encoding="utf-8") as file:
        assert f'r"""{CL100K}"""' in file.read()


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["gpt2", "cl100k"]), anything | tricky)
@example("cl100k", "a!\n b\r\n12345 \n !?x")
def test_safe_cuts_change_no_pretoken(pattern, text):
    data = text.encode()
    for cut in [cut for cuts in safe_cuts(text, pattern) for cut in cuts]:
        assert 0 < cut < len(data)
        parts = data[:cut].decode(), data[cut:].decode()
        assert [word for part in parts for word in find_pretokens(part, pattern)] == find_pretokens(text, pattern)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_blocks_have_the_pretokens_of_the_whole_text(pattern):
    rng = random.Random(2)
    for round_ in range(300):
        text = random_text(rng)
        specials = [] if round_ % 5 == 0 else SPECIALS
        data = text.encode()
        borders = sorted(rng.sample(range(len(data)), 6))
        pieces = [data[a:b] for a, b in zip([0, *borders], [*borders, len(data)], strict=True)]
        encoded = [token.encode() for token in specials]
        blocks = list(cut_blocks(pieces, encoded, size=1 + round_ % 40, pattern=pattern))
        assert b"".join(blocks) == data
        assert [word for block in blocks for word in whole(block.decode(), pattern, specials)] == whole(
            text, pattern, specials), (text, blocks)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_usable_cuts_hold_whatever_surrounds_the_text(pattern):
    rng, found = random.Random(3), 0
    for _ in range(300):
        text = random_text(rng).encode()
        first, last = sorted(rng.sample([at for at in range(len(text) + 1) if not text[at:at + 1] or
                                         text[at] & 0xC0 != 0x80], 2))
        for cut in usable_cuts(text[first:last], [token.encode() for token in SPECIALS], pattern=pattern):
            parts = text[: first + cut].decode(), text[first + cut :].decode()
            found += 1
            assert [word for part in parts for word in whole(part, pattern, SPECIALS)] == whole(
                text.decode(), pattern, SPECIALS)
    assert found > 50


@pytest.mark.parametrize("pattern", PATTERNS)
def test_ids_are_those_of_the_whole_text_for_all_sizes_and_workers(tmp_path, pattern):
    rng = random.Random(4)
    text = "".join(random_text(rng, 40) + rng.choice(["", "<|e|>", "ab" * 60, "7" * 99, "!" * 70, " " * 50])
                   for _ in range(60))
    path = tmp_path / "text.txt"
    path.write_bytes(text.encode())
    words = [word for word in whole(text, pattern, SPECIALS) if word not in SPECIALS]
    expected = {word.encode(): words.count(word) for word in words}
    assert count_pretokens(path, SPECIALS, pattern=pattern) == expected
    with fast.shut():
        assert count_pretokens(path, SPECIALS, pattern=pattern) == expected
    encoded = [token.encode() for token in SPECIALS]
    for size in (1, 50, 700):
        assert count_corpus(Corpus(path), encoded, num_workers=1, largest_part=size, block_bytes=size,
                            pattern=pattern) == expected
    vocab, merges = train_bpe(path, 420, SPECIALS, pattern=pattern)
    tokenizer = Tokenizer(vocab, merges, SPECIALS, pattern=pattern)
    ids = [id_ for word in whole(text, pattern, SPECIALS)
           for id_ in ([tokenizer.special_ids[word]] if word in SPECIALS else
                       [tokenizer._vocabulary.ids[token] for token in slow_word(word.encode(), merges)])]
    assert tokenizer.encode(text) == ids
    assert list(tokenizer.encode_iterable(text[n : n + 7] for n in range(0, len(text), 7))) == ids
    for task_bytes, block_bytes, overlap in ((1, 1, 8), (200, 64, 8), (1 << 20, 64, 16), (1 << 20, 1 << 20, 64)):
        tokens = encode_module.encode_corpus(tokenizer, Corpus(path), tmp_path / "ids.bin", num_workers=1,
                                             task_bytes=task_bytes, block_bytes=block_bytes, overlap=overlap)
        assert tokens.ids.tolist() == ids, (task_bytes, block_bytes, overlap)
    assert encode_module.encode_corpus(tokenizer, Corpus(path), tmp_path / "ids.bin", num_workers=2, task_bytes=3000,
                                       pool_bytes=0).ids.tolist() == ids


def test_a_text_without_a_cut_overlaps_where_all_of_it_is_one_pretoken():
    for text, pattern, overlaps in (
        ("word " * 400, "none", True), ("é" * 2000, "cl100k", True), ("!" * 2000, "cl100k", True),
        ("7" * 2000, "cl100k", False), (" \n" * 999, "cl100k", False), ("word" * 400, OWN, False),
    ):
        blocks = list(overlapping_blocks([text.encode()], [], size=50, overlap=8, pattern=pattern))
        assert any(block.overlap for block in blocks) == overlaps, (text[:9], pattern)


def test_ids_of_cl100k_are_those_of_tiktoken(tmp_path):
    rng = random.Random(5)
    text = "".join(random_text(rng, 50) for _ in range(200))
    (tmp_path / "text.txt").write_bytes(text.encode())
    vocab, merges = train_bpe(tmp_path / "text.txt", 500, ["<|e|>"], pattern="cl100k")
    tokenizer = Tokenizer(vocab, merges, ["<|e|>"], pattern="cl100k")
    ranks = {token: id_ for id_, token in vocab.items() if token != b"<|e|>"}
    encoding = tiktoken.Encoding("ours", pat_str=CL100K, mergeable_ranks=ranks, special_tokens={"<|e|>": 0})
    for part in (text, *(random_text(rng) for _ in range(300))):
        assert tokenizer.encode(part) == encoding.encode(part, allowed_special="all")
    gpt2 = encode_files(Tokenizer(vocab, merges, ["<|e|>"]), tmp_path / "text.txt", tmp_path / "ids.bin")
    assert gpt2.ids.tolist() != tokenizer.encode(text)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_pattern_is_kept_with_the_tokenizer(tmp_path, pattern):
    (tmp_path / "text.txt").write_text("one x two, don't 12345 x  y " * 20)
    train_tokenizer.main(["--input", str(tmp_path / "text.txt"), "--vocab_size", "300", "--pattern", pattern,
                          "--output", str(tmp_path / "tokenizer")])
    tokenizer = Tokenizer.from_dir(tmp_path / "tokenizer")
    assert tokenizer.pattern == pattern
    again = tokenizer_from_texts(tokenizer_texts(tokenizer))
    assert (again.pattern, again.hash) == (pattern, tokenizer.hash)
    plain = Tokenizer(tokenizer.vocab, tokenizer.merges, tokenizer.special_tokens)
    assert (plain.hash == tokenizer.hash) == (pattern == "gpt2")
    files = [tmp_path / "tokenizer" / name for name in ("vocab.json", "merges.txt")]
    assert Tokenizer.from_files(*files, tokenizer.special_tokens, pattern=pattern).hash == tokenizer.hash


@pytest.mark.parametrize(("pattern", "message"), [
    ("(", "is no regular expression"),
    ("", "is not a text of 1 to 2,048 characters"),
    ("a" * 3000, "is not a text of 1 to 2,048 characters"),
    (["gpt2"], "is not a text of 1 to 2,048 characters"),
    ("((a{1000}){1000}){1000}", "repeats too often"),  # compiling it would fill the memory
    ("(?x)((a{ 1000 }){#\n1000}){1000,}", "repeats too often"),
    ("(" * 900 + ")" * 900, "is no regular expression"),
])
def test_an_invalid_pattern_is_a_sentence(tmp_path, pattern, message):
    texts = tokenizer_texts(Tokenizer({n: bytes([n]) for n in range(256)}, [], pattern="none"))
    (tmp_path / "text.txt").write_text("a text")
    for use in (
        lambda: Tokenizer({0: b"a"}, [], pattern=pattern),
        lambda: train_bpe(tmp_path / "text.txt", 300, [], pattern=pattern),
        lambda: tokenizer_from_texts(texts | {"tokenizer_config.json": json.dumps({"pattern": pattern})}),
    ):
        with pytest.raises(UserError, match=regex.escape(message)):
            use()


def test_a_pattern_that_leaves_out_characters_is_a_sentence(tmp_path):
    (tmp_path / "text.txt").write_text("words and, more")
    with pytest.raises(UserError, match="leaves out ', more' at character 9 of a text"):
        train_bpe(tmp_path / "text.txt", 300, [], pattern=r"\w+| ")
    tokenizer = Tokenizer({n: bytes([n]) for n in range(256)}, [], pattern="(?r)[a-z]+| ")
    for text in ("a b", "aba", "a a"):  # also a text that reads the same in reverse order
        with pytest.raises(UserError, match="leaves out"):
            find_pretokens(text, "(?r)[a-z ]")
    with pytest.raises(UserError, match="leaves out"):
        tokenizer.encode("a b")
    with pytest.raises(UserError, match="leaves out 'aac' at character 1 "):  # the a that is skipped, not the last one
        find_pretokens(" aac", r"[a-c]\K[a-c]|.")
    assert find_pretokens("ab1", r"(a)|\d*|.") == ["a", "b", "1"]  # groups, and matches of no character


def test_a_pattern_of_exponential_time_is_a_sentence(monkeypatch):
    monkeypatch.setattr(pretokenize, "_SECONDS", 0.05)
    tokenizer = Tokenizer({n: bytes([n]) for n in range(256)}, [], pattern="(?:a|aa)+$|.")
    with pytest.raises(UserError, match="took more than 0 seconds, or all memory, for a text of 4,001 characters"):
        tokenizer.encode("a" * 4000 + "b")
