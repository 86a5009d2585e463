"""The key-value cache: logits equal to those of one pass, for ragged sequences and after some have left the batch."""

import pytest
import torch

from tslm.model import TransformerConfig, TransformerLM
from tslm.model.kv_cache import KeyValueCache

CONFIG = TransformerConfig(vocab_size=61, context_length=16, d_model=32, num_layers=2, num_heads=4, d_ff=48)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return TransformerLM(CONFIG)


def test_cached_logits_equal_those_of_one_pass(model):
    ids = torch.randint(0, CONFIG.vocab_size, (3, 16))
    cache = KeyValueCache(CONFIG, 3, 16, torch.float32, torch.device("cpu"))
    with torch.no_grad():
        expected = model(ids)
        torch.testing.assert_close(model(ids[:, :9], cache=cache), expected[:, :9])
        cache.length = 16
        rest = model(ids[:, 9:], torch.arange(9, 16).expand(3, -1), cache)
    torch.testing.assert_close(rest, expected[:, 9:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [1, 3], [0, 2], [3]])
def test_the_sequences_that_stay_keep_their_keys_and_order(model, rows):
    ids = torch.randint(0, CONFIG.vocab_size, (4, 16))
    lengths = torch.tensor([5, 9, 2, 7])  # what follows in a row is padding
    cache = KeyValueCache(CONFIG, 4, 16, torch.float32, torch.device("cpu"))
    with torch.no_grad():
        model(ids[:, :9], cache=cache)
        cache.length = 10
        cache.keep(rows)
        newest = model(ids[rows, lengths[rows]].unsqueeze(-1), lengths[rows].unsqueeze(-1), cache)[:, -1]
        expected = model(ids)[rows, lengths[rows]]
    torch.testing.assert_close(newest, expected, rtol=1e-5, atol=1e-5)
