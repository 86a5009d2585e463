"""tokenizer.json and .tiktoken against `tokenizers` and tiktoken, in both directions, and what they cannot express."""

import base64
import json
import random
from functools import cache

import pytest
import tiktoken
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.tokenizer.reference import TRICKY, tricky_text
from tslm import Tokenizer, encode_files, merge_pretokens
from tslm.__main__ import main
from tslm.errors import MissingFileError, UserError
from tslm.tokenizer import tokenizer_texts
from tslm.tokenizer.pretokenize import find_pretokens
from tslm.tokenizer.tiktoken_file import merges_of_ranks, tiktoken_texts
from tslm.tokenizer.tokenizer_json import tokenizer_json

SPECIALS = ["<|end of text|>", "«fin»", "a b", "\n\n", "字 x", "<|e|>", "<|e|><|e|>", "Ω", " "]
OWN = r"(?<=x)\p{L}+|[a-zA-Z]?\p{L}+|\p{N}{1,3}|\s+(?=x)|[^\r\n\p{L}\p{N}]{2}|(?i:'s)|\s|[^\s\p{L}\p{N}]"
PATTERNS = ["gpt2", "cl100k", "none", OWN]
WORDS = ["the", "then", "low", "lower", "öwest", "字字", "x's", "1234567", "\t\t", "\r\n\n!?", "«fin", "«»", "a", "b",
         "Ωω"]
# The tables of the three engines differ for code points that Unicode has not assigned, or only lately.
assigned = st.text(st.characters(exclude_categories=["Cs", "Cn"], max_codepoint=0x2FFF), max_size=30)
texts = st.lists(assigned | st.sampled_from([*TRICKY, *SPECIALS, *WORDS, "ſ", "\n"]), max_size=12).map("".join)


@cache
def make(pattern="gpt2", specials=tuple(SPECIALS)):
    rng = random.Random(1)
    counts = {}
    for _ in range(300):
        for each in find_pretokens(tricky_text(rng, 30, [*TRICKY, *WORDS, " "]), pattern):
            counts[each.encode()] = counts.get(each.encode(), 0) + 1
    return Tokenizer(*merge_pretokens(counts, 600, list(specials)), list(specials), pattern=pattern)


@cache
def theirs(pattern="gpt2"):
    return tokenizers.Tokenizer.from_str(tokenizer_json(make(pattern)))


@cache
def of_tiktoken(pattern="gpt2"):
    files = tiktoken_texts(make(pattern))
    ranks = {base64.b64decode(token): int(rank) for token, rank in map(str.split, files[".tiktoken"].splitlines())}
    return tiktoken.Encoding("ours", mergeable_ranks=ranks, **json.loads(files[".tiktoken.json"]))


@pytest.mark.parametrize("pattern", PATTERNS)
@settings(max_examples=300)
@given(texts)
@example("  \n  \n ")
@example("I'll CAN'T 's''s  \r\n x  1234 a b\n\n «fin»字 xΩ<|e|><|e|><|e|>")
def test_ids_are_those_of_tokenizers_and_tiktoken(pattern, text):
    tokenizer = make(pattern)
    ids = tokenizer.encode(text)
    assert theirs(pattern).encode(text).ids == ids
    assert of_tiktoken(pattern).encode(text, allowed_special="all") == ids
    assert of_tiktoken(pattern).decode(ids) == text
    ordinary = [id_ for id_ in ids if id_ not in tokenizer.special_ids.values()]
    assert theirs(pattern).decode(ids) == tokenizer.decode(ordinary)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("specials", [tuple(SPECIALS), (), ("<|endoftext|>",)])
def test_both_forms_come_back_as_the_same_tokenizer(tmp_path, pattern, specials):
    tokenizer = make(pattern, specials)
    files = tiktoken_texts(tokenizer) | {".json": tokenizer_json(tokenizer)}
    for ending, text in files.items():
        (tmp_path / f"tokenizer{ending}").write_text(text, encoding="utf-8")
    shadowed = json.loads(tokenizer_texts(tokenizer)["tokenizer_config.json"])["shadowed_tokens"]
    assert bool(shadowed) == (len(specials) > 1)
    config = {"shadowed_tokens": shadowed, "eos_token": specials[0] if specials else None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer.tiktoken", "."):
        loaded = Tokenizer.from_dir(tmp_path / name)
        assert loaded.hash == tokenizer.hash
        assert loaded.special_tokens == tokenizer.special_tokens
    (tmp_path / "tokenizer.json").unlink()
    assert Tokenizer.from_dir(tmp_path).hash == tokenizer.hash  # a folder with one .tiktoken file


def test_tokenizer_json_that_tokenizers_has_trained(tmp_path):
    """A special token keeps the id that `tokenizers` gives it, in tokenizer.json and in its vocab.json."""
    trained = tokenizers.Tokenizer(tokenizers.models.BPE())
    trained.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(special_tokens=["«fin»", "a b", "<|e|>"], initial_alphabet=alphabet,
                                             vocab_size=320, show_progress=False)
    text = "low lower lowest «fin» newer wider 字字字 \n\n" * 5
    trained.train_from_iterator([text], trainer)
    trained.save(str(tmp_path / "tokenizer.json"))
    trained.model.save(str(tmp_path))
    from_json = Tokenizer.from_dir(tmp_path)  # where vocab.json and merges.txt lie too
    from_vocab = Tokenizer.from_files(tmp_path / "vocab.json", tmp_path / "merges.txt", ["«fin»", "a b", "<|e|>"])
    for tokenizer in (from_json, from_vocab):
        assert tokenizer.special_ids == {"«fin»": 0, "a b": 1, "<|e|>": 2}
        assert tokenizer.vocab_size == trained.get_vocab_size()
        for each in (text, "«fin»a b lower«fin", "é è 陈"):
            assert tokenizer.encode(each) == trained.encode(each).ids


def test_a_special_token_with_the_name_of_a_byte_is_refused():
    tokenizer = make(specials=("<|e|>", "é"))
    with pytest.raises(UserError, match=r"ids 1 and \d+ both have the name 'é' in tokenizer\.json and in GGUF"):
        tokenizer_json(tokenizer)
    assert len(tiktoken_texts(tokenizer)) == 2


def test_merges_may_name_tokens_that_are_special_too():
    """As in GPT-2's vocabulary with a line feed as a special token."""
    vocab = {byte: bytes([byte]) for byte in range(256)} | {256: b"\n\n", 257: b"th", 258: b"the"}
    tokenizer = Tokenizer(vocab, [(b"\n", b"\n"), (b"t", b"h"), (b"th", b"e")], ["\n", "the"])
    other = tokenizers.Tokenizer.from_str(tokenizer_json(tokenizer))
    for text in ("a\n\nb the then th\n", "\n", "these"):
        assert other.encode(text).ids == tokenizer.encode(text)
    assert other.token_to_id("\n") == 10
    files = tiktoken_texts(tokenizer)
    assert "Cg== 10\n" in files[".tiktoken"]
    assert json.loads(files[".tiktoken.json"])["special_tokens"] == {"\n": 10, "the": 258}


def test_gpt2_files_with_the_marks_of_other_editors(tmp_path):
    tokenizer = make()
    tokenizer.save(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    for name in ("vocab.json", "merges.txt"):
        path = tmp_path / name
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert (tmp_path / "merges.txt").read_bytes().startswith(b"\xef\xbb\xbf#version")
    loaded = Tokenizer.from_files(tmp_path / "vocab.json", tmp_path / "merges.txt", [t for t in SPECIALS if t != " "])
    assert loaded.merges == tokenizer.merges
    assert loaded.encode("lower a b«fin»") == make().encode("lower a b«fin»")


def test_merges_are_recovered_as_tiktoken_makes_them():
    ranks = {b"a": 0, b"b": 1, b"c": 2, b"bc": 3, b"abc": 4, b"abcabc": 5}
    assert merges_of_ranks(ranks, "x") == [(b"b", b"c"), (b"a", b"bc"), (b"abc", b"abc")]
    with pytest.raises(UserError, match=r"no two tokens of lower ranks make the token b'abc' of rank 3 of x"):
        merges_of_ranks({b"a": 0, b"b": 1, b"c": 2, b"abc": 3}, "x")


def test_what_tiktoken_cannot_express_is_refused():
    vocab = {byte: bytes([byte]) for byte in range(256)}
    with pytest.raises(UserError, match="not numbered in the order of its merges"):
        tiktoken_texts(Tokenizer(vocab | {256: b"cd", 257: b"ab"}, [(b"a", b"b"), (b"c", b"d")]))
    with pytest.raises(UserError, match="lacks the byte 0x61"):
        tiktoken_texts(Tokenizer({id_: token for id_, token in vocab.items() if token != b"a"}, []))


@pytest.mark.parametrize("pattern", [r"\w+|\W", r"(?s:.)", r"^a|\s|\S", r"\s+$|\s|\S", r"\p{N}{1,3}+|\s|\S",
                                     r"[[:alpha:]]|.", r"[a&&b]|.", r"(?<n>\s)|.", r"\bx|.", r"\d|\s|\S"])
def test_a_pattern_that_other_programs_may_read_otherwise_is_refused(pattern):
    tokenizer = Tokenizer({byte: bytes([byte]) for byte in range(256)}, [], pattern=pattern)
    for write in (tokenizer_json, tiktoken_texts):
        with pytest.raises(UserError, match=r"contains .*, which may have another meaning in other programs"):
            write(tokenizer)


@pytest.mark.parametrize(("change", "sentence"), [
    (lambda spec: spec["model"].update(byte_fallback=True), r"model\.byte_fallback is true, .* must be false"),
    (lambda spec: spec["model"].update(type="Unigram"), r'model\.type is "Unigram"'),
    (lambda spec: spec["model"].update(ignore_merges=True), r"model\.ignore_merges is true"),
    (lambda spec: spec["model"].update(dropout=0.1), r"model\.dropout is 0\.1"),
    (lambda spec: spec["model"].update(end_of_word_suffix="</w>"), r"model\.end_of_word_suffix"),
    (lambda spec: spec.update(normalizer={"type": "NFC"}), r'normalizer is {"type": "NFC"}'),
    (lambda spec: spec.update(pre_tokenizer={"type": "Metaspace"}), r'pre_tokenizer is \["Metaspace"\]'),
    (lambda spec: spec.update(pre_tokenizer=None), r"pre_tokenizer is \[null\]"),
    (lambda spec: spec["pre_tokenizer"].update(add_prefix_space=True), r"add_prefix_space is true"),
    (lambda spec: spec["added_tokens"][0].update(lstrip=True), r"the flag lstrip of the added token '<|end"),
    (lambda spec: spec["model"].update(vocab=3), r"is not in the form of `tokenizers`"),
    (lambda spec: spec["model"]["merges"].append("x y"), r"lacks the token b'xy'"),
    (lambda spec: spec.clear(), r"is not in the form of `tokenizers` \(KeyError\('model'\)\)"),
])
def test_a_tokenizer_json_that_cannot_be_expressed_is_refused_by_field(tmp_path, change, sentence):
    spec = json.loads(tokenizer_json(make()))
    change(spec)
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(UserError, match=sentence):
        Tokenizer.from_dir(tmp_path)


@pytest.mark.parametrize(("lines", "beside", "sentence"), [
    ("YQ== 0\nYg== x\n", "{}", r"line 2 of .*t\.tiktoken is 'Yg== x'"),
    ("YQ== 0\nYQ== 1\n", "{}", r"line 2 of .*t\.tiktoken"),
    ("YQ== 0\nYg== 0\n", "{}", r"one rank to two tokens"),
    ("YQ== 0\n", "{}", r"t\.tiktoken\.json should hold"),
    ("YQ== 0\n", '{"pat_str": "(.", "special_tokens": {}}', r"t\.tiktoken\.json: the pattern"),
    ("YQ== 0\nCg== 1\n", '{"pat_str": ".+|\\\\s", "special_tokens": {"a": 7}}', r"special token 'a' the id 7"),
])
def test_a_damaged_tiktoken_file_is_named(tmp_path, lines, beside, sentence):
    (tmp_path / "t.tiktoken").write_text(lines)
    (tmp_path / "t.tiktoken.json").write_text(beside)
    with pytest.raises(UserError, match=sentence):
        Tokenizer.from_dir(tmp_path / "t.tiktoken")


def test_commands_take_tokenizers_of_other_programs(tmp_path, story_file, capsys):
    tokenizer = make(specials=("<|endoftext|>",))
    (tmp_path / "tokenizer.json").write_text(tokenizer_json(tokenizer), encoding="utf-8")
    output = tmp_path / "ids.bin"
    options = ["tokenize", f"--input={story_file}", f"--output={output}", "--num_workers=1"]
    assert main([*options, f"--tokenizer={tmp_path / 'tokenizer.json'}"]) == 0
    expected = encode_files(tokenizer, story_file, tmp_path / "ours.bin", num_workers=1)
    assert output.read_bytes() == (tmp_path / "ours.bin").read_bytes()
    assert len(expected) > 1000
    for name, sentence in [("ours.bin", "is a file of another kind"), ("none.json", "does not exist"),
                           ("lone.tiktoken", "needs lone.tiktoken.json beside it")]:
        (tmp_path / "lone.tiktoken").write_text("YQ== 0\n")
        output.unlink(missing_ok=True)
        assert main([*options, f"--tokenizer={tmp_path / name}"]) == 2
        assert sentence in capsys.readouterr().err
        assert not output.exists()
    with pytest.raises(MissingFileError, match="does not say how text is split"):
        Tokenizer.from_dir(tmp_path / "lone.tiktoken")
    assert main(["tokenize", f"--input={story_file}", f"--output={tmp_path / 'tokenizer.json'}",
                 f"--tokenizer={tmp_path}"]) == 2
    assert "is also an input" in capsys.readouterr().err
