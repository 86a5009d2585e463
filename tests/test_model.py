"""The model's parts through the adapters, against torch's own layers or a computation by hand."""

import math

import pytest
import torch
from torch.nn import functional as F

from tests import adapters

B, T, D, H, FF, V = 2, 7, 12, 3, 20, 31
THETA = 100.0


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def x():
    return torch.randn(B, T, D)


def _block_weights():
    shapes = {"attn.q_proj": (D, D), "attn.k_proj": (D, D), "attn.v_proj": (D, D), "attn.output_proj": (D, D),
              "ln1": (D,), "ln2": (D,), "ffn.w1": (FF, D), "ffn.w2": (D, FF), "ffn.w3": (FF, D)}
    return {f"{name}.weight": torch.rand(shape) - 0.3 for name, shape in shapes.items()}


def _turn(x, positions):
    """RoPE pair by pair with 2 × 2 matrices, as the paper writes it."""
    out, width = torch.empty_like(x), x.shape[-1]
    for t, position in enumerate(positions):
        for pair in range(0, width, 2):
            angle = position * THETA ** (-pair / width)
            matrix = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
            out[..., t, pair : pair + 2] = x[..., t, pair : pair + 2] @ matrix.T
    return out


def _attend(x, weights, positions=None):
    q, k, v = (F.linear(x, weights[f"attn.{name}_proj.weight"]).unflatten(-1, (H, -1)).transpose(-3, -2)
               for name in "qkv")
    if positions is not None:
        q, k = _turn(q, positions), _turn(k, positions)
    heads = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return F.linear(heads.transpose(-3, -2).flatten(-2), weights["attn.output_proj.weight"])


def _feed_forward(x, weights):
    gate, up = (F.linear(x, weights[f"ffn.{name}.weight"]) for name in ("w1", "w3"))
    return F.linear(F.silu(gate) * up, weights["ffn.w2.weight"])


def _run_block(x, weights):
    x = x + _attend(F.rms_norm(x, (D,), weights["ln1.weight"], 1e-5), weights, range(x.shape[-2]))
    return x + _feed_forward(F.rms_norm(x, (D,), weights["ln2.weight"], 1e-5), weights)


def _projections(weights):
    return [weights[f"attn.{name}_proj.weight"] for name in ("q", "k", "v", "output")]


def test_linear(x):
    weight = torch.randn(5, D)
    torch.testing.assert_close(adapters.run_linear(D, 5, weight, x), F.linear(x, weight))


def test_embedding():
    weight, ids = torch.randn(V, D), torch.randint(0, V, (B, T))
    assert torch.equal(adapters.run_embedding(V, D, weight, ids), weight[ids])


def test_swiglu(x):
    weights = _block_weights()
    w1, w2, w3 = (weights[f"ffn.w{i}.weight"] for i in (1, 2, 3))
    torch.testing.assert_close(adapters.run_swiglu(D, FF, w1, w2, w3, x), _feed_forward(x, weights))


def test_scaled_dot_product_attention_4d():
    q, k, v = torch.randn(B, H, 4, 6), torch.randn(B, H, T, 6), torch.randn(B, H, T, 5)
    mask = torch.rand(B, H, 4, T) > 0.3
    torch.testing.assert_close(adapters.run_scaled_dot_product_attention(q, k, v),
                               F.scaled_dot_product_attention(q, k, v))
    torch.testing.assert_close(adapters.run_scaled_dot_product_attention(Q=q, K=k, V=v, mask=mask),
                               F.scaled_dot_product_attention(q, k, v, mask))


def test_multihead_self_attention(x):
    weights = _block_weights()
    out = adapters.run_multihead_self_attention(D, H, *_projections(weights), x)
    torch.testing.assert_close(out, _attend(x, weights))


def test_multihead_self_attention_with_rope(x):
    weights, positions = _block_weights(), [4, 0, 1, 9, 2, 2, 5]
    for given, used in ((torch.tensor([positions]), positions), (torch.tensor(positions), positions), (None, range(T))):
        out = adapters.run_multihead_self_attention_with_rope(D, H, 10, THETA, *_projections(weights), x, given)
        torch.testing.assert_close(out, _attend(x, weights, used))


def test_rope():
    x, positions = torch.randn(B, T, 6), [4, 0, 1, 9, 2, 2, 5]
    torch.testing.assert_close(adapters.run_rope(6, THETA, 10, x, torch.tensor(positions)), _turn(x, positions))


def test_transformer_block(x):
    weights = _block_weights()
    torch.testing.assert_close(adapters.run_transformer_block(D, H, FF, 16, THETA, weights, x), _run_block(x, weights))


def test_transformer_lm():
    blocks = [_block_weights() for _ in range(2)]
    weights = {f"layers.{i}.{name}": weight for i, block in enumerate(blocks) for name, weight in block.items()}
    weights |= {"token_embeddings.weight": torch.randn(V, D), "ln_final.weight": torch.rand(D),
                "lm_head.weight": torch.randn(V, D)}
    ids = torch.randint(0, V, (B, T))
    x = weights["token_embeddings.weight"][ids]
    for block in blocks:
        x = _run_block(x, block)
    expected = F.linear(F.rms_norm(x, (D,), weights["ln_final.weight"], 1e-5), weights["lm_head.weight"])
    out = adapters.run_transformer_lm(V, 16, D, 2, H, FF, THETA, weights, ids)
    torch.testing.assert_close(out, expected)


def test_rmsnorm(x):
    weight = torch.rand(D)
    torch.testing.assert_close(adapters.run_rmsnorm(D, 1e-3, weight, x), F.rms_norm(x, (D,), weight, 1e-3))
