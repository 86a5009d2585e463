"""Windows that begin where documents do, against hand examples and the rules by themselves."""

import types
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from tslm.data import TextDataModule, documents
from tslm.data.batches import valid_batches
from tslm.data.device_windows import DeviceWindows
from tslm.data.documents import DocumentStream, document_starts, document_windows
from tslm.data.windows import WindowStream
from tslm.tokenizer import Tokenizer
from tslm.training import LanguageModule

IDS = st.lists(st.integers(0, 3), min_size=2, max_size=200).map(lambda ids: np.array(ids, dtype=np.uint16))


def test_documents_begin_at_the_first_token_and_at_each_separator():
    assert document_starts(np.array([5, 6, 0, 7, 0, 8]), 0).tolist() == [0, 2, 4]
    assert document_starts(np.array([0, 6, 0, 0, 8]), 0).tolist() == [0, 2, 3]
    assert document_starts(np.array([5, 6]), 0).tolist() == [0]


@given(ids=IDS)
def test_documents_are_found_piece_by_piece(ids):
    whole = document_starts(ids, 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "_AT_ONCE", 7)
        pieces = document_starts(ids, 0)
    assert pieces.tolist() == whole.tolist() == sorted({0, *np.flatnonzero(ids == 0).tolist()})


def stream_of(ids, context_length, seed=3):
    return DocumentStream(ids, context_length, seed, document_starts(ids, 0))


def possible_stream(ids, context_length):
    assume(len(ids) > context_length)
    return stream_of(ids, context_length)


@given(ids=IDS, context_length=st.integers(1, 40))
def test_an_epoch_has_each_window_once(ids, context_length):
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


def test_an_epoch_comes_in_the_order_of_its_random_numbers():
    ids = np.zeros(50, dtype=np.uint16)  # 49 documents, and 7 of them in a window
    stream = stream_of(ids, 7)
    keys = WindowStream(ids, 7, 3).random(np.arange(7, 14))
    expected = [7 * place for place in sorted(range(7), key=lambda place: keys[place])]
    assert stream.starts(np.arange(7, 14)).tolist() == [min(start, 42) for start in expected]


def test_every_order_of_an_epoch_is_equally_likely():
    stream = stream_of(np.zeros(4, dtype=np.uint16), 1)
    orders, counts = np.unique(stream.starts(np.arange(18_000)).reshape(-1, 3), axis=0, return_counts=True)
    assert len(orders) == 6
    assert ((counts - 1000) ** 2 / 1000).sum() < 30  # chi-square with 5 degrees of freedom: one in 70,000


def test_epochs_and_seeds_have_orders_of_their_own():
    ids = np.zeros(1001, dtype=np.uint16)
    first, second = stream_of(ids, 1).starts(np.arange(2000)).reshape(2, 1000)
    other = stream_of(ids, 1, seed=4).starts(np.arange(1000))
    for one, two in ((first, second), (first, other)):
        assert abs(np.corrcoef(one, two)[0, 1]) < 0.15


@given(ids=IDS, context_length=st.integers(1, 40))
def test_windows_on_a_device_are_those_of_the_stream(ids, context_length):
    stream = possible_stream(ids, context_length)
    on_device = DeviceWindows(stream, torch.device("cpu"))
    for step, (rank, world_size) in product((0, 70), ((0, 1), (1, 2))):
        ours = on_device.batch(step, 5, rank=rank, world_size=world_size)
        assert all(map(torch.equal, ours, stream.batch(step, 5, rank=rank, world_size=world_size)))


def test_windows_hold_as_many_documents_as_fit():
    ids = np.arange(1, 10)
    assert document_windows(ids, 6, np.array([0, 3, 5])).tolist() == [[0, 5], [5, 3]]
    assert document_windows(ids, 2, np.array([0, 3, 5])).tolist() == [[0, 2], [2, 1], [3, 2], [5, 2], [7, 1]]
    assert document_windows(ids[:1], 2, np.array([0])).tolist() == []


@given(ids=IDS, context_length=st.integers(1, 40))
def test_windows_of_documents_make_each_token_but_the_first_a_target_once(ids, context_length):
    begins = document_starts(ids, 0)
    end = 0
    for start, length in document_windows(ids, context_length, begins).tolist():
        assert start == end
        assert 1 <= length <= context_length
        end = start + length
        cut = end < len(ids) - 1 and end not in begins  # only a document that is longer than what was left
        assert not cut or (length == context_length and not any(start < begin <= end for begin in begins))
        assert not any(end < begin <= start + context_length for begin in begins)  # the next one does not fit
    assert end == len(ids) - 1


@pytest.mark.parametrize("world_size", [1, 2, 3])
@given(ids=IDS, context_length=st.integers(1, 40))
def test_validation_shows_each_target_once(world_size, ids, context_length):
    places, begins = np.arange(len(ids)), document_starts(ids, 0)
    seen = []
    for rank in range(world_size):
        batches = valid_batches(places, context_length, 3, rank, world_size, begins)
        assert len(list(batches)) == len(batches)
        for inputs, targets in batches:
            assert len(inputs) <= 3
            assert torch.equal(inputs + 1, targets)
            seen += targets.flatten().tolist()
    assert sorted(seen) == list(range(1, len(ids)))


def test_the_data_module_aligns_training_and_validation(tmp_path):
    (tmp_path / "text.txt").write_text("".join(f"The story of cat {i}.\n<|endoftext|>\n" for i in range(200)))
    data = TextDataModule(train_files=[str(tmp_path / "text.txt")], vocab_size=300, context_length=32, batch_size=4,
                          align_documents=True, cache_dir=str(tmp_path / "cache"), num_workers=1)
    data.load()
    separator = data.tokenizer.special_ids["<|endoftext|>"]
    inputs, _ = data.windows.batch(0, 100)
    begins = inputs[:, 0] == separator
    assert begins.float().mean() > 0.9  # all but the very first document and the last windows
    module = types.SimpleNamespace()
    data.trainer = types.SimpleNamespace(global_rank=0, world_size=1, lightning_module=module)
    data.setup("fit")
    assert module.separator == separator
    first = torch.cat([inputs[:, 0] for inputs, _ in data.val_dataloader()])
    assert (first == separator).sum() >= len(first) - 1


def test_a_document_costs_the_same_alone_and_in_company():
    module = LanguageModule(vocab_size=9, context_length=16, d_model=16, num_layers=2, num_heads=2, d_ff=32)
    ids = torch.tensor([[0, 3, 4, 1, 0, 2, 3, 8, 5, 0, 4, 4, 0]])
    inputs, targets = ids[:, :-1], ids[:, 1:]
    alone = sum(module.mean_loss(inputs[:, start:end], targets[:, start:end]) * (end - start)
                for start, end in ((0, 4), (4, 9), (9, 12)))
    in_company = module.mean_loss(inputs, targets) * 12
    module.separator = 0
    torch.testing.assert_close(module.mean_loss(inputs, targets) * 12, alone)
    assert not torch.isclose(in_company, alone)


def test_a_separator_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"data.special_tokens names none to tell documents apart"):
        TextDataModule(special_tokens=[], align_documents=True)
    (tmp_path / "text.txt").write_text("A story.\n" * 200)
    Tokenizer({i: bytes([i]) for i in range(256)}, []).save(tmp_path / "tokenizer")
    data = TextDataModule(train_files=[str(tmp_path / "text.txt")], context_length=32, align_documents=True,
                          tokenizer=str(tmp_path / "tokenizer"), cache_dir=str(tmp_path / "cache"), num_workers=1)
    with pytest.raises(ValueError, match=r"the tokenizer has no token '<\|endoftext\|>'"):
        data.load()
