import subprocess
import sys

import pytest

from tests.tokenizer.reference import slow_counts, slow_encode
from tslm import Tokenizer, train_bpe
from tslm.tokenizer import report
from tslm.tokenizer.report import bytes_per_token, longest_tokens, peak_memory, train_with_report

SPECIALS = ["<|e|>", " a b"]
TEXT = "The cat sat on the mat.\n  A café, a b and 12 wide 字字 😀.<|e|>It's the cat's cathedral a b!  " * 30


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def test_a_report_holds_what_train_bpe_makes(path):
    made = train_with_report(path, 300, SPECIALS, num_workers=1)
    vocab, merges = train_bpe(path, 300, SPECIALS)
    assert (made.tokenizer.vocab, made.tokenizer.merges, made.tokenizer.special_tokens) == (vocab, merges, SPECIALS)
    assert made.counts == slow_counts(TEXT, SPECIALS)
    assert made.counting_seconds > 0 < made.merging_seconds
    assert made.seconds == made.counting_seconds + made.merging_seconds


def test_compression_equals_that_of_the_encoded_text(path):
    made = train_with_report(path, 320, SPECIALS, num_workers=1)
    ids = {token: id_ for id_, token in made.tokenizer.vocab.items()}
    specials = {ids[token.encode()] for token in SPECIALS}
    tokens = [id_ for id_ in slow_encode(TEXT, ids, made.tokenizer.merges, SPECIALS) if id_ not in specials]
    size = len(TEXT.replace("<|e|>", "").replace(" a b", "").encode())
    assert bytes_per_token(made.tokenizer, made.counts) == size / len(tokens)
    assert f"compression    {size / len(tokens):.2f} bytes per token" in made.lines()


def test_the_longest_tokens_leave_out_special_ones():
    vocab = dict(enumerate([b"<|special|>", b"a", b"bc", b"abc", b"de", b"<|later|>"]))
    tokenizer = Tokenizer(vocab, [], ["<|special|>", "<|later|>", "<|appended|>"])
    assert longest_tokens(tokenizer, 3) == [b"abc", b"bc", b"de"]
    assert longest_tokens(tokenizer, 10) == [b"abc", b"bc", b"de", b"a"]


def test_a_report_of_a_text_without_words_says_so(tmp_path):
    (tmp_path / "a.txt").write_text("<|e|><|e|>")
    lines = train_with_report(tmp_path / "a.txt", 300, ["<|e|>"]).lines()
    assert "compression    unknown: the text holds nothing but special tokens" in lines
    assert r"longest token  '\x00' (1 bytes)" in lines


# A process of its own, because the peak of this one is that of all tests before; started by a shell, because on Linux a
# new process has the peak of the one that started it.
GROWS = """
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from tslm.tokenizer.report import peak_memory
def grow(megabytes):
    return len(bytearray(megabytes << 20))
if __name__ == "__main__":
    before = peak_memory(3)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        pool.submit(grow, 100).result()
    between = peak_memory(3)
    grow(300)
    print(before, between - before, peak_memory(3) - between)
"""


def test_peak_memory_counts_the_largest_child_for_each_other_worker(tmp_path):
    (tmp_path / "grows.py").write_text(GROWS)
    shell = ["sh", "-c", '"$0" "$1" || exit 1', sys.executable, tmp_path / "grows.py"]
    done = subprocess.run(shell, capture_output=True, text=True, check=True)
    before, workers_bytes, own_bytes = map(int, done.stdout.split())
    assert 10e6 < before < 1e9
    # Of three processes one is this one: twice the array and the interpreter.
    assert 2 * (100 << 20) < workers_bytes < 2 * (300 << 20)
    assert 200 << 20 < own_bytes < 310 << 20


def test_a_report_omits_memory_where_the_system_does_not_report_it(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows
    assert peak_memory(1) is None
    assert "peak memory    not known on this system" in train_with_report(path, 300, SPECIALS).lines()


def test_a_vocabulary_that_is_too_small_is_refused_before_counting(path, monkeypatch):
    monkeypatch.setattr(report, "count_pretokens", None)
    with pytest.raises(ValueError, match="vocab_size is 257, but the 256 bytes and 2 special tokens alone take 258"):
        train_with_report(path, 257, SPECIALS)
