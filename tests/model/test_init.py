"""A new model's random weights: variance, cut, gains, and the same draw for the same seed."""

import math

import pytest
import torch

from tslm.model import TransformerConfig, TransformerLM
from tslm.model.init import init_embedding_, init_linear_, truncated_normal_

# Cutting a standard normal at ±3 leaves the variance 1 - 2·3·φ(3) / (2Φ(3) - 1).
CUT_VARIANCE = 1 - 6 * math.exp(-4.5) / math.sqrt(2 * math.pi) / math.erf(3 / math.sqrt(2))


@pytest.mark.parametrize(("fill", "shape", "variance"), [
    (init_linear_, (300, 700), 2 / 1000), (init_embedding_, (1000, 200), 1.0)])
def test_variance_and_cut(fill, shape, variance):
    torch.manual_seed(0)
    sample = fill(torch.empty(shape)) / math.sqrt(variance)
    assert sample.abs().max() <= 3.0
    assert sample.abs().max() > 2.95
    assert sample.mean().item() == pytest.approx(0, abs=5 / math.sqrt(sample.numel()))
    assert sample.var().item() == pytest.approx(CUT_VARIANCE, rel=0.02)
    # Kolmogorov's distance to the cut normal; 1.95 / √n is its 0.1% point.
    ordered = sample.flatten().sort().values.double()
    edge = math.erf(3 / math.sqrt(2))
    exact = (torch.erf(ordered / math.sqrt(2)) / edge + 1) / 2
    steps = torch.arange(1, len(ordered) + 1) / len(ordered)
    assert (exact - steps).abs().max() < 1.95 / math.sqrt(len(ordered))


def test_half_precision_is_drawn_in_float32():
    torch.manual_seed(0)
    wide = truncated_normal_(torch.empty(100, 100), std=0.02)
    torch.manual_seed(0)
    assert torch.equal(truncated_normal_(torch.empty(100, 100, dtype=torch.bfloat16), std=0.02), wide.bfloat16())


def test_model_follows_the_seed_and_each_rule():
    config = TransformerConfig(vocab_size=400, context_length=8, d_model=64, num_layers=2, num_heads=2, d_ff=192)
    models = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        models.append(TransformerLM(config))
    first, again, other = (model.state_dict() for model in models)
    assert all(torch.equal(first[name], again[name]) for name in first)
    for name, weight in first.items():
        if weight.ndim == 1:
            assert torch.equal(weight, torch.ones(64)), name
            continue
        assert not torch.equal(weight, other[name]), name
        std = 1.0 if name == "token_embeddings.weight" else math.sqrt(2 / sum(weight.shape))
        assert weight.std().item() == pytest.approx(std * math.sqrt(CUT_VARIANCE), rel=0.05), name
        assert weight.abs().max() <= 3 * std, name
