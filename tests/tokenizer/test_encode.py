import os
import random
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.conftest import hear_ctrl_c
from tests.tokenizer.reference import TRICKY, slow_counts, tricky_text
from tslm import TokenFile, Tokenizer, encode_files, merge_pretokens
from tslm.errors import UserError
from tslm.tokenizer import Span
from tslm.tokenizer.corpus import Corpus
from tslm.tokenizer.encode import encode_corpus
from tslm.tokenizer.train import count_corpus

SPECIALS = ["<|e|>", "<|e|><|e|>", "a b", " .", "low er", "\n\n"]
PIECES = [*TRICKY, *"     ", *SPECIALS, "low", "lower", "lowest"]


@pytest.fixture(scope="module")
def text():
    return tricky_text(random.Random(1), 30_000, PIECES)


@pytest.fixture(scope="module")
def tokenizer(text):
    return Tokenizer(*merge_pretokens(slow_counts(text, SPECIALS), 400, SPECIALS), SPECIALS)


@pytest.fixture
def paths(text, tmp_path):
    """The text in files that end in the middle of words and special tokens, and a span of a file."""
    parts = []
    rng = random.Random(2)
    while text:
        size = rng.choice([1, 2, 3, 5, 8, 3000])
        path = tmp_path / f"{len(parts)}.txt"
        path.write_bytes(b"not this " + text[:size].encode())
        parts.append(Span(path, 9, path.stat().st_size))
        text = text[size:]
    return parts


@pytest.mark.parametrize("way", ["one process", "two processes", "threads"])
def test_tokenizer_encode_files_equals_encode_of_the_whole(tokenizer, text, paths, tmp_path, way):
    sizes = {"task_bytes": 2000, "block_bytes": 600, "pool_bytes": 0}
    output = tmp_path / "out" / "ids.bin"
    if way == "threads":
        with ThreadPoolExecutor(3) as executor:
            file = encode_corpus(tokenizer, Corpus(paths, joined=True), output, executor=executor, **sizes)
    else:
        num_workers = 1 + (way == "two processes")
        file = encode_corpus(tokenizer, Corpus(paths, joined=True), output, num_workers=num_workers, **sizes)
    assert file.ids.tolist() == tokenizer.encode(text)
    assert (file.vocab_size, file.tokenizer_hash) == (400, tokenizer.hash)
    assert file.source_bytes == len(text.encode())
    assert file.dtype == np.uint16
    assert sorted(path.name for path in output.parent.iterdir()) == ["ids.bin", "ids.bin.json"]


@pytest.mark.parametrize("task_bytes", [1, 5, 12, 14, 100])
def test_tokenizer_encode_files_adds_no_separator_to_a_document_that_has_one(tmp_path, task_bytes):
    """A part that began with the line breaks after the separator did not see it."""
    tokenizer, text = Tokenizer(*merge_pretokens({}, 257, ["<|e|>"]), ["<|e|>"]), "low lower<|e|>" + "\n" * 6
    paths = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for path in paths:
        path.write_bytes(text.encode())
    file = encode_corpus(tokenizer, Corpus(paths), tmp_path / "ids.bin", num_workers=1, task_bytes=task_bytes)
    assert file.ids.tolist() == 2 * tokenizer.encode(text)


def test_tokenizer_encode_files_shows_its_progress_and_takes_one_path(tokenizer, tmp_path, capsys):
    (tmp_path / "a.txt").write_text("low lower lowest<|e|>\n" * 20)
    encode_files(tokenizer, str(tmp_path / "a.txt"), tmp_path / "ids.bin", progress=True)
    shown = capsys.readouterr()
    assert "encoding: 100%" in shown.err
    assert "B/s" in shown.err
    assert shown.out == ""
    assert tokenizer.decode(TokenFile.open(tmp_path / "ids.bin").ids) == "low lower lowest<|e|>\n" * 20


def test_tokenizer_encode_files_that_fails_leaves_nothing(tokenizer, tmp_path):
    bad, output = tmp_path / "bad.txt", tmp_path / "out" / "ids.bin"
    bad.write_bytes(b"low lower " * 300 + b"\xe9" + b" low" * 100)
    for num_workers in (1, 2):
        with pytest.raises(ValueError, match=r"bad\.txt is not UTF-8: byte 0xe9 at offset 3000;"):
            encode_corpus(
                tokenizer, Corpus(bad), output, num_workers=num_workers, task_bytes=500, pool_bytes=0
            )
        assert list(output.parent.iterdir()) == []
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        encode_files(tokenizer, [tmp_path / "nowhere"], output)
    with pytest.raises(ValueError, match="lacks the byte 0xc3"):
        encode_files(Tokenizer({97: b"a"}, []), _written(tmp_path / "e.txt", "aé"), output)
    assert list(output.parent.iterdir()) == []


def test_tokenizer_encode_files_refuses_an_output_that_is_an_input_or_no_regular_file(tokenizer, tmp_path):
    text = "low lower lowest"
    for name in ("t.txt", "ids.bin.json"):
        _written(tmp_path / name, text)
    (tmp_path / "link").symlink_to("t.txt")
    (tmp_path / "hard").hardlink_to(tmp_path / "t.txt")
    (tmp_path / "null").symlink_to(os.devnull)
    os.mkfifo(tmp_path / "pipe")
    for source, output, sentence in [
        ("t.txt", "t.txt", r"t\.txt is also an input"),
        ("t.txt", "link", "link is also an input"),
        ("t.txt", "hard", "hard is also an input"),
        ("link", "t.txt", r"t\.txt is also an input"),
        ("ids.bin.json", "ids.bin", r"ids\.bin\.json is also an input"),
        ("t.txt", "null", "null is no regular file"),
        ("t.txt", "pipe", "pipe is no regular file"),
        ("t.txt", ".", "is a folder"),
    ]:
        before = sorted(tmp_path.iterdir())
        with pytest.raises(UserError, match=sentence):
            encode_files(tokenizer, tmp_path / source, tmp_path / output)
        assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "t.txt").read_text() == (tmp_path / "ids.bin.json").read_text() == text
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize("character", ["a", "!", " ", "é"])
def test_tokenizer_encode_files_joins_the_parts_of_a_text_without_a_cut(tokenizer, tmp_path, character):
    letters = random.Random(4).choices("lower" if character == "a" else character, k=300)
    long = f"low lower{character * 700}{''.join(letters)}"
    source = tmp_path / "a.txt", tmp_path / "b.jsonl"
    _written(source[0], f"{long} low {long}")
    _written(source[1], "".join(f'{{"text": "{text}"}}\n' for text in (long, "low", f"{long}<|e|>")))
    file = encode_corpus(tokenizer, Corpus(source), tmp_path / "ids.bin", num_workers=1, block_bytes=100, overlap=8)
    expected = [f"{long} low {long}", long, "low", f"{long}<|e|>"]
    plain = Tokenizer(tokenizer.vocab, tokenizer.merges)
    ids = [[*(tokenizer if text == expected[0] else plain).encode(text), tokenizer.separator] for text in expected]
    assert file.ids.tolist() == [id_ for text_ids in ids for id_ in text_ids]
    assert file.source_bytes == sum(len(text.encode()) for text in expected)


class ExecutorThatInterferes(ThreadPoolExecutor):
    """Runs `interfere` before the third task."""

    def __init__(self, interfere):
        super().__init__(1)
        self._interfere, self._tasks = interfere, 0

    def submit(self, *task):
        self._tasks += 1
        if self._tasks == 3:
            self._interfere()
        return super().submit(*task)


@pytest.mark.parametrize("change", ["replaced", "overwritten", "appended to", "removed"])
def test_tokenizer_text_that_changes_while_it_is_read_is_refused(tokenizer, tmp_path, change):
    path, other, output = tmp_path / "a.txt", tmp_path / "b.txt", tmp_path / "out" / "ids.bin"

    def interfere():
        _written(other, "lowest low" * 500)
        os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
        if change == "replaced":
            other.replace(path)
        elif change == "overwritten":
            path.write_bytes(other.read_bytes())
        elif change == "appended to":
            path.write_bytes(path.read_bytes() + b"low")
        else:
            path.unlink()

    for run in (
        lambda executor: encode_corpus(tokenizer, Corpus(path), output, executor=executor, task_bytes=500),
        lambda executor: count_corpus(Corpus(path), [], executor=executor, largest_part=500),
    ):
        _written(path, "low lower " * 500)
        with ExecutorThatInterferes(interfere) as executor, pytest.raises((UserError, FileNotFoundError)) as error:
            run(executor)
        assert str(path) in str(error.value)
        assert change == "removed" or re.search("(was changed or replaced|became shorter) while", str(error.value))
    assert list(output.parent.iterdir()) == []


def _written(path, text):
    path.write_text(text, encoding="utf-8")
    return path


# No `if __name__ == "__main__"`: the workers must not run the caller's script again.
SCRIPT = """
import sys
from tslm import Tokenizer, encode_files
print("started", flush=True)
encode_files(Tokenizer({n: bytes([n]) for n in range(256)}, []), sys.argv[1], sys.argv[2], num_workers=2)
"""


def test_tokenizer_encode_files_ends_cleanly_at_ctrl_c(tmp_path):
    rng = random.Random(3)
    (tmp_path / "a.txt").write_text(" ".join(f"{rng.getrandbits(160):x}" for _ in range(250_000)))
    output = tmp_path / "out" / "ids.bin"
    (tmp_path / "script.py").write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, tmp_path / "script.py", tmp_path / "a.txt", output],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=hear_ctrl_c,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not (output.parent.exists() and any(path.stat().st_size for path in output.parent.iterdir())):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert out == "started\n"
    assert err.count("Traceback") == 1
    assert "KeyboardInterrupt" in err
    assert list(output.parent.iterdir()) == []
    while _group_lives(process.pid):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _group_lives(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
