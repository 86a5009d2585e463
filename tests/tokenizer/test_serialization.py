import errno
import json
import os
import random

import pytest

from tslm import Tokenizer, merge_pretokens
from tslm.errors import MissingFileError, UserError
from tslm.tokenizer import serialization, tokenizer_from_texts, tokenizer_texts
from tslm.tokenizer.serialization import byte_to_unicode

SPECIALS = ["<|endoftext|>", "a b", "é", "\n"]
TEXT = "low lower\n\n\tlöwest #version: 0.2 字字\x00\x00 <|endoftext|>a bé"


@pytest.fixture
def tokenizer():
    counts = {word.encode(): 2 for word in (" lower", " low", "löwest", "#version", "字字", "\0\0", "\n\n", "# #")}
    return Tokenizer(*merge_pretokens(counts, 300, SPECIALS), SPECIALS)


def test_tokenizer_bytes_have_the_characters_of_gpt2():
    names = byte_to_unicode()
    assert [names[byte] for byte in b" \n\tA~\x7f\xa0\xad\xff"] == list("ĠĊĉA~ġłŃÿ")
    assert len(set(names.values())) == 256
    assert not any(name.isspace() for name in names.values())


def test_tokenizer_survives_saving_and_loading(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tok")
    loaded = Tokenizer.from_dir(tmp_path / "tok")
    for name in ("vocab", "merges", "special_ids"):
        assert getattr(loaded, name) == getattr(tokenizer, name)
    assert loaded.hash == tokenizer.hash
    assert loaded.encode(TEXT) == tokenizer.encode(TEXT)
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "merges.txt", "tok", "tokenizer_config.json", "vocab.json"
    ]  # fmt: skip


def test_tokenizer_files_are_those_of_gpt2(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    vocab = json.loads((tmp_path / "vocab.json").read_text(encoding="utf-8"))
    merges = (tmp_path / "merges.txt").read_text(encoding="utf-8").splitlines()
    assert list(vocab)[:2] == ["<|endoftext|>", "aĠb"]
    assert vocab["Ġ"] == len(SPECIALS) + 32
    assert merges[0] == "#version: 0.2"
    assert "Ġ lo" in merges
    loaded = Tokenizer.from_files(tmp_path / "vocab.json", tmp_path / "merges.txt", SPECIALS)
    assert loaded.encode(TEXT) == tokenizer.encode(TEXT)
    paths = str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt")
    assert Tokenizer.from_files(*paths, ["é"]).special_tokens == ["é"]
    with pytest.raises(UserError, match=r"no merge .* makes the token b'\\xc3\\xa9' .* is a special one"):
        Tokenizer.from_files(*paths)


def test_tokenizer_reads_special_tokens_as_other_programs_write_them(tmp_path):
    (tmp_path / "vocab.json").write_text('{"a": 0, "a b": 1}', encoding="utf-8")
    (tmp_path / "merges.txt").write_bytes(b"")
    assert Tokenizer.from_files(tmp_path / "vocab.json", tmp_path / "merges.txt", ["a b"]).encode("aa ba") == [0, 1, 0]


def test_tokenizer_saving_replaces_an_older_one(tokenizer, tmp_path):
    Tokenizer({0: b"a"}, []).save(tmp_path / "tok")
    (tmp_path / "tok" / "notes.txt").write_text("kept")
    tokenizer.save(tmp_path / "tok")
    assert Tokenizer.from_dir(tmp_path / "tok").hash == tokenizer.hash
    assert (tmp_path / "tok" / "notes.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["tok"]


def test_tokenizer_failed_saving_leaves_nothing(tokenizer, tmp_path, monkeypatch):
    def fail(_file):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match=r"No space left on device: '.*vocab\.json'"):
        tokenizer.save(tmp_path / "tok")
    assert list(tmp_path.iterdir()) == []


def test_tokenizer_saving_refuses_a_file_or_a_device_in_its_place(tokenizer, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file is a file; give a folder for vocab\.json and merges\.txt"):
        tokenizer.save(tmp_path / "file")
    (tmp_path / "merges.txt").symlink_to(os.devnull)
    with pytest.raises(UserError, match=r"merges\.txt is no regular file"):
        tokenizer.save(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_tokenizer_texts_can_be_embedded(tokenizer):
    texts = tokenizer_texts(tokenizer)
    assert list(texts) == ["vocab.json", "merges.txt", "tokenizer_config.json"]
    assert tokenizer_from_texts(json.loads(json.dumps(texts))).hash == tokenizer.hash
    texts = tokenizer_texts(Tokenizer(dict(enumerate([b"a", b"<|e|>"])), [], ["<|e|>"]))
    without_config = {name: texts[name] for name in (serialization.VOCAB, serialization.MERGES)}
    assert tokenizer_from_texts(without_config).special_tokens == []


def test_tokenizer_broken_files_are_named(tokenizer, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"vocab\.json does not exist"):
        Tokenizer.from_dir(tmp_path / "nowhere")
    tokenizer.save(tmp_path)
    for name, text, sentence in [
        ("tokenizer_config.json", '{"added_tokens_decoder": [3]}', r"config\.json of .* is not in the expected form"),
        ("merges.txt", "#version: 0.2\na b\na b c\n", r"line 3 of merges\.txt of .* is 'a b c'"),
        ("merges.txt", "ab\n", r"line 1 of merges\.txt"),
        ("vocab.json", '{"a": "b"}', r"vocab\.json of .* is not a JSON object of tokens and their ids"),
        ("vocab.json", "{", r"vocab\.json of .* is not a JSON object"),
        ("vocab.json", "[]", r"vocab\.json of .* is not a JSON object"),
        ("vocab.json", '{"a": 1, "b": 1}', r"the tokens b'a' and b'b' have the same id 1"),
        ("vocab.json", '{"a": Infinity}', r"vocab\.json of .* is not a JSON object"),
        ("vocab.json", "[" * 100_000, r"vocab\.json of .* is not a JSON object"),
    ]:
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=sentence):
            Tokenizer.from_dir(tmp_path)
    (tmp_path / "vocab.json").write_bytes(b"{\xff}")
    with pytest.raises(ValueError, match="not UTF-8: byte 0xff at offset 1"):
        Tokenizer.from_dir(tmp_path)
    with pytest.raises(ValueError, match="under the ids 0 and 1"):
        tokenizer_texts(Tokenizer({0: b"a", 1: b"a"}, []))


def test_tokenizer_with_cut_merges_is_refused(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    lines = (tmp_path / "merges.txt").read_text(encoding="utf-8").splitlines(keepends=True)
    for config in (True, False):
        if not config:
            (tmp_path / "tokenizer_config.json").unlink()
        for kept in range(len(lines) - 1):
            (tmp_path / "merges.txt").write_text("".join(lines[: kept + 1]), encoding="utf-8")
            with pytest.raises(UserError, match=r"no merge of .* makes the token b'.*' \(id \d+\) of its vocabulary"):
                Tokenizer.from_dir(tmp_path)
            with pytest.raises(UserError, match=r"no merge of .*merges\.txt makes the token"):
                Tokenizer.from_files(tmp_path / "vocab.json", tmp_path / "merges.txt", SPECIALS)


def test_tokenizer_whose_vocabulary_lacks_a_token_of_a_merge_is_refused(tmp_path):
    (tmp_path / "merges.txt").write_text("a b\nab c\n")
    for vocab in ('{"a": 0, "b": 1, "ab": 2, "abc": 3}', '{"a": 0, "b": 1, "c": 2, "abc": 3}',
                  '{"a": 0, "b": 1, "c": 2, "ab": 3}'):
        (tmp_path / "vocab.json").write_text(vocab)
        with pytest.raises(UserError, match=r"lacks the token b'\w+' of the merge b'\w+' \+ b'\w'"):
            Tokenizer.from_dir(tmp_path)


def test_tokenizer_needs_no_merge_for_an_entry_of_several_pretokens(tmp_path):
    (tmp_path / "merges.txt").write_text("a b\n")
    (tmp_path / "vocab.json").write_text('{"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3}')
    assert Tokenizer.from_dir(tmp_path).encode("abab") == [2, 2]


@pytest.mark.parametrize("name", [serialization.VOCAB, serialization.MERGES, serialization.CONFIG])
def test_tokenizer_folder_with_a_named_pipe_or_a_link_to_nothing_is_refused_at_once(tokenizer, tmp_path, name):
    tokenizer.save(tmp_path)
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match=f"{name} is not a regular file"):
        Tokenizer.from_dir(tmp_path)
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("nothing")
    with pytest.raises(MissingFileError, match=f"{name} does not exist"):  # without its special tokens, it would differ
        Tokenizer.from_dir(tmp_path)


def test_tokenizer_folder_with_any_damaged_byte_is_refused_or_the_same(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    rng, refused = random.Random(0), 0
    for path in [tmp_path / name for name in (serialization.VOCAB, serialization.MERGES, serialization.CONFIG)]:
        data = path.read_bytes()
        for _ in range(100):
            at = rng.randrange(len(data))
            path.write_bytes(rng.choice([data[:at], data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]]))
            try:
                loaded = Tokenizer.from_dir(tmp_path)
            except UserError:
                refused += 1
            else:
                assert loaded.hash == tokenizer.hash
        path.write_bytes(data)
    assert refused > 200
