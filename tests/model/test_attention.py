"""Multi-head self-attention against torch's attention head by head, and its causality."""

import pytest
import torch
from torch.nn import functional as F

from tslm.model import MultiHeadSelfAttention, RotaryEmbedding, TransformerBlock


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def _head_by_head(layer, x, rope=None, positions=None):
    """The definition: each head on its own rows of the weights, then the output projection."""
    width, heads = x.shape[-1] // layer.num_heads, []
    for head in range(layer.num_heads):
        rows = slice(head * width, (head + 1) * width)
        q, k, v = (F.linear(x, proj.weight[rows]) for proj in (layer.q_proj, layer.k_proj, layer.v_proj))
        if rope is not None:
            q, k = rope(q, positions), rope(k, positions)
        heads.append(F.scaled_dot_product_attention(q, k, v, is_causal=True))
    return F.linear(torch.cat(heads, -1), layer.output_proj.weight)


@pytest.mark.parametrize("batch", [(), (3,), (2, 1, 3)])
@pytest.mark.parametrize("with_rope", [False, True])
def test_multihead_self_attention_is_attention_head_by_head(batch, with_rope):
    layer, x = MultiHeadSelfAttention(12, 3), torch.randn(*batch, 9, 12)
    rope = RotaryEmbedding(4, 16) if with_rope else None
    out = layer(x, None if rope is None else rope.at(None, 9))
    torch.testing.assert_close(out, _head_by_head(layer, x, rope))


@pytest.mark.parametrize("batch", [(), (1,), (2,), (3, 2)])
def test_multihead_self_attention_takes_token_positions(batch):
    layer, x, rope = MultiHeadSelfAttention(12, 3), torch.randn(3, 2, 5, 12), RotaryEmbedding(4, 16)
    positions = torch.randint(0, 16, (*batch, 5)) if batch != (2,) else torch.randint(0, 16, (2, 5))
    out = layer(x, rope.at(positions, 5))
    torch.testing.assert_close(out, _head_by_head(layer, x, rope, positions))


def test_multihead_self_attention_never_looks_ahead():
    layer, x = MultiHeadSelfAttention(8, 2), torch.randn(2, 100, 8)
    changed = x.clone()
    changed[:, 60:] += 1
    assert torch.equal(layer(x)[:, :60], layer(changed)[:, :60])
    assert not torch.allclose(layer(x)[:, 60:], layer(changed)[:, 60:])


def test_multihead_self_attention_refuses_heads_that_do_not_fit():
    with pytest.raises(ValueError, match="num_heads = 3"):
        MultiHeadSelfAttention(8, 3)


def test_transformer_block_is_two_residual_branches():
    block, x, rope = TransformerBlock(12, 3, 20), torch.randn(2, 5, 12), RotaryEmbedding(4, 16)
    with torch.no_grad():
        block.ln1.weight.uniform_(0.5, 2)
        block.ln2.weight.uniform_(0.5, 2)
    rotation = rope.at(None, 5)
    middle = x + block.attn(F.rms_norm(x, (12,), block.ln1.weight, 1e-5), rotation)
    expected = middle + block.ffn(F.rms_norm(middle, (12,), block.ln2.weight, 1e-5))
    torch.testing.assert_close(block(x, rotation), expected)
