"""Windows at document boundaries: hand examples, and the rules as properties."""

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from tslm.data.device_windows import DeviceWindows
from tslm.data.documents import DocumentStream, document_prefix, document_starts, document_windows
from tslm.data.windows import WindowStream
from tslm.training.module import LanguageModule

IDS = st.lists(st.integers(0, 3), min_size=2, max_size=200).map(lambda ids: np.array(ids, dtype=np.uint16))


def test_documents_start_at_the_first_token_and_at_each_separator():
    assert document_starts(np.array([5, 6, 0, 7, 0, 8]), 0).tolist() == [0, 2, 4]
    assert document_starts(np.array([0, 6, 0, 0, 8]), 0).tolist() == [0, 2, 3]
    assert document_starts(np.array([5, 6]), 0).tolist() == [0]


@given(ids=IDS, chunk_size=st.integers(1, 300))
def test_document_starts_do_not_depend_on_the_chunk_size(ids, chunk_size):
    assert document_starts(ids, 0, chunk_size=chunk_size).tolist() == sorted({0, *np.flatnonzero(ids == 0).tolist()})


VOCAB = {0: b"<e>", 1: b"\n", 2: b"\r", 3: b" ", 4: b"word", 5: b" word", 6: b"\n\n"}


@pytest.mark.parametrize(
    ("ids", "prefix"),
    [
        ([4, 0, 1, 4, 0, 1, 5, 0, 1], [0, 1]),  # a line break after the separator, as in TinyStories
        ([4, 0, 4, 0, 5, 0, 4, 0], [0]),  # none, as in JSONL
        ([4, 0, 2, 1, 4, 0, 2, 1, 4, 0, 2, 1], [0, 2, 1]),  # CRLF
        ([4, 0, 1, 4, 0, 4, 0, 1, 4, 0, 4], [0]),  # in half of the documents, which is not most
        ([4, 0, 1, 4, 0, 6, 4, 0, 1, 4], [0, 1]),
        ([4, 0, 0, 0, 0], [0]),
        ([4, 5, 1, 1], []),
        ([0, *[1] * 20], [0, *[1] * 7]),
    ],
)
def test_what_stands_in_front_of_most_documents(ids, prefix):
    assert document_prefix(np.array(ids, np.uint16), 0, VOCAB) == prefix
    assert document_prefix(np.array(ids, np.uint16), None, VOCAB) == []


def stream_of(ids, context_length, seed=3):
    return DocumentStream(ids, context_length, seed, document_starts(ids, 0))


def possible_stream(ids, context_length):
    assume(len(ids) > context_length)
    return stream_of(ids, context_length)


@given(ids=IDS, context_length=st.integers(1, 40))
def test_an_epoch_contains_each_window_once(ids, context_length):
    stream = possible_stream(ids, context_length)
    begins = document_windows(ids, context_length, document_starts(ids, 0))[:, 0]
    expected = sorted(min(begin, len(ids) - context_length - 1) for begin in begins.tolist())
    for epoch in (0, 1, 10**9):
        starts = stream.starts(np.arange(epoch * len(begins), (epoch + 1) * len(begins)))
        assert starts.dtype == np.int64
        assert sorted(starts.tolist()) == expected


@given(ids=IDS, context_length=st.integers(1, 40), indices=st.lists(st.integers(0, 10**6), min_size=1))
def test_a_window_is_a_function_of_seed_and_index(ids, context_length, indices):
    stream = possible_stream(ids, context_length)
    alone = [stream_of(ids, context_length).starts([index]).item() for index in indices]
    assert stream.starts(indices).tolist() == alone


def test_an_epoch_is_sorted_by_its_random_numbers():
    ids = np.zeros(50, dtype=np.uint16)  # 49 documents, 7 in each window
    stream = stream_of(ids, 7)
    keys = WindowStream(ids, 7, 3).random(np.arange(7, 14))
    expected = [7 * window for window in sorted(range(7), key=lambda window: keys[window])]
    assert stream.starts(np.arange(7, 14)).tolist() == [min(start, 42) for start in expected]


def test_every_order_of_an_epoch_is_equally_likely():
    stream = stream_of(np.zeros(4, dtype=np.uint16), 1)
    orders, counts = np.unique(stream.starts(np.arange(18_000)).reshape(-1, 3), axis=0, return_counts=True)
    assert len(orders) == 6
    assert ((counts - 1000) ** 2 / 1000).sum() < 30  # chi-square with 5 degrees of freedom: one in 70,000


def test_the_orders_of_different_epochs_and_seeds_are_uncorrelated():
    ids = np.zeros(1001, dtype=np.uint16)
    first, second = stream_of(ids, 1).starts(np.arange(2000)).reshape(2, 1000)
    other = stream_of(ids, 1, seed=4).starts(np.arange(1000))
    for one, two in ((first, second), (first, other)):
        assert abs(np.corrcoef(one, two)[0, 1]) < 0.15


@given(ids=IDS, context_length=st.integers(1, 40))
def test_device_windows_equal_the_windows_of_the_stream(ids, context_length):
    stream = possible_stream(ids, context_length)
    on_device = DeviceWindows(stream, torch.device("cpu"))
    for step, (rank, world_size) in product((0, 70), ((0, 1), (1, 2))):
        ours = on_device.batch(step, 5, rank=rank, world_size=world_size)
        assert all(map(torch.equal, ours, stream.batch(step, 5, rank=rank, world_size=world_size)))


def test_a_window_takes_as_many_documents_as_fit():
    ids = np.arange(1, 10)
    assert document_windows(ids, 6, np.array([0, 3, 5])).tolist() == [[0, 5], [5, 3]]
    assert document_windows(ids, 2, np.array([0, 3, 5])).tolist() == [[0, 2], [2, 1], [3, 2], [5, 2], [7, 1]]
    assert document_windows(ids[:1], 2, np.array([0])).tolist() == []


@given(ids=IDS, context_length=st.integers(1, 40))
def test_in_document_windows_each_token_except_the_first_is_a_target_once(ids, context_length):
    begins = document_starts(ids, 0)
    end = 0
    for start, length in document_windows(ids, context_length, begins).tolist():
        assert start == end
        assert 1 <= length <= context_length
        end = start + length
        splits_document = end < len(ids) - 1 and end not in begins  # allowed only for one longer than a window
        assert not splits_document or (length == context_length and not any(start < at <= end for at in begins))
        assert not any(end < at <= start + context_length for at in begins)  # the next document does not fit
    assert end == len(ids) - 1


def test_with_a_separator_the_loss_of_a_document_does_not_depend_on_the_others_in_its_window():
    module = LanguageModule(vocab_size=9, context_length=16, d_model=16, num_layers=2, num_heads=2, d_ff=32)
    ids = torch.tensor([[0, 3, 4, 1, 0, 2, 3, 8, 5, 0, 4, 4, 0]])
    inputs, targets = ids[:, :-1], ids[:, 1:]
    alone = sum(module.mean_loss(inputs[:, start:end], targets[:, start:end]) * (end - start)
                for start, end in ((0, 4), (4, 9), (9, 12)))
    without_separator = module.mean_loss(inputs, targets) * 12
    module.separator = 0
    torch.testing.assert_close(module.mean_loss(inputs, targets) * 12, alone)
    assert not torch.isclose(without_separator, alone)
