import os
import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tslm.__main__ import main
from tslm.data.datamodule import TextDataModule
from tslm.errors import UserError
from tslm.tokenizer import TokenFile, Tokenizer

TEXT = "The cat sat on the mat.\nThe mat was flat.<|endoftext|>\nA café at the end.\n" * 20


@pytest.fixture
def text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text(TEXT, encoding="utf-8")
    (tmp_path / "b.txt").write_text("Another file.\n" * 30, encoding="utf-8")


def train(*words):
    return main(["train-tokenizer", "--input", "a.txt", "b.txt", "--num_workers", "1", *words])


def tokenize(*words):
    return main(["tokenize", "--input", "a.txt", "b.txt", "--num_workers", "1", *words])


def test_commands_make_a_tokenizer_and_a_token_file(text, capsys, tmp_path):
    assert train("--vocab_size", "280", "--output", "new/tokenizer") == 0
    report = capsys.readouterr().out
    assert re.fullmatch(r"""new/tokenizer: 280 tokens
time           \d+\.\d s: counting \d+\.\d s, merging \d+\.\d s
peak memory    at most [\d,]+ MB over all processes
longest token  '.+' \(\d+ bytes\)
compression    \d+\.\d\d bytes per token
""", report)
    tokenizer = Tokenizer.from_dir("new/tokenizer")
    assert tokenizer.vocab_size == 280
    assert len(tokenizer.encode("<|endoftext|>")) == 1

    assert tokenize("--tokenizer", "new/tokenizer", "--output", "ids/all.bin") == 0
    tokens = TokenFile.open("ids/all.bin")
    texts = [tokenizer.encode(text) for text in (TEXT, "Another file.\n" * 30)]
    assert tokens.ids.tolist() == [id_ for text in texts for id_ in [*text, tokenizer.separator]]
    printed = re.search(r"^ids/all.bin: ([\d,]+) tokens \(uint16\), (\d+\.\d\d) bytes each, in \d+\.\d s$",
                        capsys.readouterr().out, re.M)
    assert int(printed[1].replace(",", "")) == len(tokens)
    assert float(printed[2]) == pytest.approx(tokens.source_bytes / len(tokens), abs=0.006)


def test_commands_replace_what_they_made_before(text):
    for size in (270, 280):
        assert train("--vocab_size", str(size), "--output", "tokenizer") == 0
        assert tokenize("--tokenizer", "tokenizer", "--output", "ids.bin") == 0
        assert Tokenizer.from_dir("tokenizer").vocab_size == TokenFile.open("ids.bin").vocab_size == size


def test_commands_refuse_an_output_that_is_an_input(text, capsys, tmp_path):
    assert train("--vocab_size", "270", "--output", "t") == 0
    os.link("b.txt", tmp_path / "merges.txt")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    capsys.readouterr()
    for command, output, named in [
        (train, ".", "merges.txt"), (train, "a.txt", "a.txt"), (tokenize, "b.txt", "b.txt"),
        (tokenize, "t/vocab.json", "t/vocab.json"),
    ]:
        options = ["--vocab_size", "270"] if command is train else ["--tokenizer", "t"]
        assert command(*options, "--output", output) == 2
        assert f"the output {named} is " in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before


def test_commands_take_other_special_tokens(text):
    assert train("--vocab_size", "270", "--output", "t", "--special_tokens", '["<|pad|>", "<|endoftext|>"]') == 0
    assert [Tokenizer.from_dir("t").encode(special) for special in ("<|pad|>", "<|endoftext|>")] == [[0], [1]]
    assert train("--vocab_size", "270", "--output", "none", "--special_tokens", "[]") == 0
    assert len(Tokenizer.from_dir("none").encode("<|endoftext|>")) > 1


@pytest.mark.parametrize(("words", "parts"), [
    (["train-tokenizer", "--input", "missing.txt", "--output", "out"], ["missing.txt"]),
    (["train-tokenizer", "--input", "latin1.txt", "--output", "out"], ["latin1.txt", "UTF-8"]),
    (["train-tokenizer", "--input", "a.txt", "--vocab_size", "256", "--output", "out"], ["vocab_size", "256"]),
    (["train-tokenizer", "--input", "a.txt", "--vocab-size", "300", "--output", "out"], ["--vocab_size"]),
    (["train-tokenizer", "--input", "a.txt"], ["--output must be given"]),
    (["train-tokenizer", "--input", "a.txt", "--special_tokens", "a", "--output", "out"], ["--special_tokens", "list"]),
    (["tokenize", "--input", "a.txt", "--tokenizer", "nowhere", "--output", "out"], ["nowhere"]),
    (["tokenize", "--input", "missing.txt", "--tokenizer", "tokenizer", "--output", "out"], ["missing.txt"]),
    (["tokenize", "--input", "latin1.txt", "--tokenizer", "tokenizer", "--output", "out"], ["latin1.txt", "UTF-8"]),
    (["tokenize", "--input", "a.txt", "--tokenizer", "tokenizer", "--output", "a.txt/out"], ["a.txt"]),
])
def test_commands_answer_mistakes_in_one_sentence(words, parts, text, tmp_path, capsys):
    (tmp_path / "latin1.txt").write_bytes("café ".encode("latin-1") * 50)
    assert train("--vocab_size", "270", "--output", "tokenizer") == 0
    before = sorted(os.listdir())
    capsys.readouterr()
    assert main(words) == 2
    err = capsys.readouterr().err
    sentence = re.sub(r"[^\n]*\r", "", err)  # without progress bars
    assert [line for line in sentence.splitlines() if line.startswith("tslm: ")] == sentence.splitlines()[-1:]
    for part in parts:
        assert part in sentence
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize("letter", ["a", "[", "x/"])
def test_a_very_long_name_is_cut_in_the_sentence(text, capsys, letter):
    assert train("--output", "t") == 0
    capsys.readouterr()
    assert main(["tokenize", "--tokenizer", "t", "--input", letter * 2000, "--output", "ids"]) == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    assert sentence.startswith("tslm: ")
    assert f"{letter * 100}" in sentence
    assert len(sentence) < 700


@pytest.mark.parametrize("workers", ["1", "3"])
def test_a_missing_compiler_is_one_sentence(workers, tmp_path):
    """Also with worker processes, each of which looks for the compiler."""
    words = " ".join(f"word{n % 9000}" for n in range(100_000))
    (tmp_path / "text.txt").write_text((words + "\n") * (18 if workers == "3" else 1))
    environment = os.environ | {"CC": "there-is-no-compiler", "PYTHONPATH": str(ROOT)}
    for command in (["train-tokenizer", "--vocab_size", "300", "--output", "t"],
                    ["tokenize", "--tokenizer", "t", "--output", "ids.bin"]):
        done = subprocess.run(
            [sys.executable, "-m", "tslm", *command, "--input", "text.txt", "--num_workers", workers],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        assert done.stderr.count("because the C kernels are missing (no C compiler: there-is-no-compiler") == 1
        assert "Warning" not in done.stderr
        assert "\ntslm: functions run" in f"\n{done.stderr}"  # at the start of a line


def test_a_special_token_that_is_lost_with_the_configuration_is_named(text, capsys, tmp_path):
    train("--vocab_size", "280", "--output", "t")
    (tmp_path / "t" / "tokenizer_config.json").unlink()
    capsys.readouterr()
    assert tokenize("--tokenizer", "t", "--output", "ids.bin") == 0
    assert "t has the token <|endoftext|>, but its tokenizer_config.json does not name it" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"data\.tokenizer is t, whose vocabulary has the token '<\|endoftext\|>', but"):
        TextDataModule(tokenizer="t")
    assert TextDataModule(tokenizer="t", special_tokens=[]).tokenizer.special_tokens == []


def test_a_token_of_a_megabyte_is_not_printed_whole(text, capsys, tmp_path):
    (tmp_path / "long.txt").write_text("a" * 2**20)
    assert main(["train-tokenizer", "--input", "long.txt", "--vocab_size", "300", "--output", "t"]) == 0
    out, err = capsys.readouterr()
    assert f"longest token  '{'a' * 100}' … (1048576 bytes)" in out
    assert "merging" in err
    assert len(err) < 20_000
