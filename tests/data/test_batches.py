"""Validation batches: every target exactly once, whatever the windows and the number of processes."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tslm.data.batches import valid_batches
from tslm.data.documents import document_starts


def check_targets(size, context_length, batch_size, world_size, documents=None):
    """Token i of the text is the number i, so a batch shows which targets it holds."""
    targets = []
    for rank in range(world_size):
        batches = valid_batches(np.arange(size), context_length, batch_size, rank, world_size, documents)
        assert len(list(batches)) == len(batches)
        for inputs, shifted in batches:
            assert len(inputs) <= batch_size
            assert torch.equal(inputs + 1, shifted)
            targets += shifted.flatten().tolist()
    assert sorted(targets) == list(range(1, size))


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("size", [2, 32, 33, 34, 100, 257])
def test_sequential_validation_batches_contain_each_target_once(size, world_size):
    check_targets(size, 32, 2, world_size)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@given(ids=st.lists(st.integers(0, 3), min_size=2, max_size=200), context_length=st.integers(1, 40))
def test_document_validation_batches_contain_each_target_once(world_size, ids, context_length):
    check_targets(len(ids), context_length, 3, world_size, document_starts(np.array(ids), 0))
