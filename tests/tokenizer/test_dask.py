"""Counting and encoding on Dask's workers, as on a cluster: here two processes, reached over the loopback address."""

import os
import random
import time

import pytest
from distributed import Client, LocalCluster

from tests.tokenizer.reference import TRICKY, tricky_text
from tslm import Tokenizer, merge_pretokens
from tslm.tokenizer import END_OF_TEXT
from tslm.tokenizer.corpus import Corpus
from tslm.tokenizer.encode import encode_corpus
from tslm.tokenizer.train import count_corpus

SPECIALS = [END_OF_TEXT, "a b"]


@pytest.fixture(scope="module")
def client():
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, host="127.0.0.1", dashboard_address="127.0.0.1:0"
        ) as cluster,  # on ports that are free, also for the dashboard
        Client(cluster) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    rng = random.Random(1)
    words = [tricky_text(rng, rng.randrange(1, 9)) for _ in range(5000)] + [*TRICKY, *SPECIALS, " lower"] * 70
    path = tmp_path_factory.mktemp("text") / "a.txt"
    path.write_bytes("".join(rng.choices(words, k=800_000)).encode())
    assert path.stat().st_size > 3_000_000
    return path


def test_tokenizer_on_dask_gives_the_same_as_in_this_process(client, path, tmp_path):
    corpus, specials = Corpus(path), [token.encode() for token in SPECIALS]
    used = set(client.run(os.getpid).values())
    assert len(used) == 2
    assert os.getpid() not in used
    executor = client.get_executor()
    counts = count_corpus(corpus, specials, executor=executor, largest_part=1 << 17)
    assert list(counts.items()) == list(count_corpus(corpus, specials, num_workers=1, largest_part=1 << 17).items())
    tokenizer = Tokenizer(*merge_pretokens(counts, 300, SPECIALS), SPECIALS)
    remote = encode_corpus(tokenizer, corpus, tmp_path / "remote.bin", executor=executor, task_bytes=1 << 17)
    local = encode_corpus(tokenizer, corpus, tmp_path / "local.bin", num_workers=1)
    assert remote.path.read_bytes() == local.path.read_bytes()
    assert tokenizer.decode(local.ids).encode() == path.read_bytes()


def test_tokenizer_on_dask_passes_errors_on_and_leaves_nothing_running(client, path, tmp_path):
    bad, output = tmp_path / "bad.txt", tmp_path / "out" / "ids.bin"
    bad.write_bytes(b"low lower " * 20_000 + b"\xe9" + path.read_bytes())
    tokenizer = Tokenizer({byte: bytes([byte]) for byte in range(256)}, [], SPECIALS)
    with pytest.raises(ValueError, match=r"bad\.txt is not UTF-8: byte 0xe9 at offset 200000;"):
        encode_corpus(tokenizer, Corpus(bad), output, executor=client.get_executor(), task_bytes=1 << 17)
    assert list(output.parent.iterdir()) == []
    deadline = time.monotonic() + 30
    while any(client.processing().values()):  # tasks that were under way may come to their end
        assert time.monotonic() < deadline
        time.sleep(0.02)
