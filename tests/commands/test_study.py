import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tslm import Tokenizer
from tslm.__main__ import main
from tslm.commands.study import STUDIES

NAMES = ", ".join(STUDIES)
SMALL = ["--num_stories", "30", "--vocab_size", "400", "--num_workers", "1"]


def test_study_lists_the_studies(capsys):
    for words in (["study", "--help"], ["study", "-h"]):
        assert main(words) == 0
        out = capsys.readouterr().out
        for name, (_, description) in STUDIES.items():
            assert any(line.split()[:1] == [name] and line.endswith(description) for line in out.splitlines())


@pytest.mark.parametrize("name", STUDIES)
def test_each_study_explains_its_options(name, capsys):
    assert main(["study", name, "--help"]) == 0
    assert f"usage: python -m tslm study {name}" in capsys.readouterr().out


@pytest.mark.parametrize(("words", "sentence"), [
    ([], f"the name of a study is missing: choose one of {NAMES}"),
    (["unicoed"], "unknown study 'unicoed': did you mean 'unicode'?"),
    (["tokeniser", "--seed", "1"], "unknown study 'tokeniser': did you mean 'tokenizer'?"),
    (["xyz"], f"unknown study 'xyz': choose one of {NAMES}"),
    (["--text", "a"], f"expected the name of a study before --text, one of {NAMES}"),
    (["unicode", "--txt", "a"], "unknown option --txt: did you mean --text?"),
    (["tokenizer", "--vocab_size", "many"], "--vocab_size is 'many', but it must be a whole number"),
])
def test_study_answers_a_wrong_name_or_option(words, sentence, capsys):
    assert main(["study", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"tslm: {sentence}")
    assert err.count("\n") == 1


@pytest.mark.parametrize(("words", "parts"), [
    (["--input", "missing.txt"], ["missing.txt does not exist"]),
    (["--input", "empty.txt"], ["empty.txt is empty"]),
    (["--input", "latin1.txt"], ["latin1.txt is not UTF-8", "0xe9"]),
    (["--tokenizer", "nowhere"], ["nowhere", "does not exist"]),
    (["--tokenizer", "."], ["vocab.json does not exist"]),
    (["--tokenizer", "letters", "--word", "é"], ["the vocabulary lacks the byte 0xc3"]),
    (["--tokenizer", "letters", "--vocab_size", "300"], ["--vocab_size", "--tokenizer", "leave out"]),
    (["--word", "two words"], ["'two words'", "2 pre-tokens"]),
    (["--vocab_size", "256"], ["vocab_size is 256", "give 257 or more"]),
    (["--num_workers", "0"], ["num_workers is 0"]),
    (["--num_stories", "0"], ["num_stories is 0"]),
])
def test_study_tokenizer_answers_mistakes_in_one_sentence(words, parts, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").touch()
    (tmp_path / "latin1.txt").write_bytes(b"caf\xe9 " * 20)
    Tokenizer({0: b"a", 1: b"b"}, []).save(tmp_path / "letters")
    assert main(["study", "tokenizer", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    sentence = err.rpartition("\r")[2].strip().splitlines()[-1]  # after the progress bars
    assert sentence.startswith("tslm: ")
    for part in parts:
        assert part in sentence


def test_study_unicode_prints_its_page(capsys):
    assert main(["study", "unicode", "--text", "naïve"]) == 0
    assert "'naïve'" in capsys.readouterr().out
    assert main(["study", "unicode", "--text", "a\udcff"]) == 2
    assert capsys.readouterr().err.startswith("tslm: --text contains the lone surrogate U+DCFF at position 1")


def test_study_tokenizer_prints_its_page(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["study", "tokenizer", *SMALL]) == 0
    page = capsys.readouterr().out
    assert "text       stories of the embedded corpus: " in page
    assert "tokenizer  trained on this text: 400 tokens\n" in page
    assert list(tmp_path.iterdir()) == []

    (tmp_path / "a.txt").write_text("low lower lowest <|endoftext|> newest widest " * 9)
    (tmp_path / "b.txt").write_text("x |\n" * 9)
    files = ["--input", "a.txt", "b.txt"]
    assert main(["train-tokenizer", *files, "--special_tokens", '["|"]', "--vocab_size", "270", "--output", "t"]) == 0
    capsys.readouterr()
    assert main(["study", "tokenizer", *files, "--tokenizer", "t", "--word", " lowest"]) == 0
    page = capsys.readouterr().out
    assert "text       a.txt, b.txt: 441 bytes\ntokenizer  t: 270 tokens\n" in page
    assert "All 13 merges of the tokenizer and of this training agree.\n" in page
    assert "How is ' lowest' encoded?\n" in page


def test_study_needs_neither_torch_nor_lightning():
    source = """
import sys
from tslm.__main__ import main
assert main(["study", "--help"]) == main(["study"]) - 2 == 0
assert not {"numpy", "jsonargparse", "torch"} & set(sys.modules)
assert main(["study", "unicode"]) == 0
assert main(["study", "tokenizer", "--num_stories", "5", "--vocab_size", "260"]) == 0
assert not {"torch", "lightning"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", source], check=True, cwd=ROOT, timeout=120, capture_output=True)
