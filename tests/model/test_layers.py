"""Single layers against hand computations, against torch's own layers, and against their definitions."""

import math

import pytest
import torch
from torch.nn import functional as F

from tslm.model import Embedding, Linear, RMSNorm, RotaryEmbedding, SwiGLU, scaled_dot_product_attention, silu, softmax
from tslm.model.ops import causal_mask, document_mask, document_starts_of, linear, rotate, self_attention

BATCHES = [(), (3,), (2, 1, 3)]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("batch", BATCHES)
def test_linear_is_x_times_w_transposed(batch):
    layer, x = Linear(5, 7), torch.randn(*batch, 5)
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight))
    assert [name for name, _ in layer.named_parameters()] == ["weight"]
    assert layer.weight.shape == (7, 5)


@pytest.mark.parametrize("rows", [1, 50])
def test_linear_with_several_weights_concatenates_their_outputs(rows):
    layers, x = [Linear(6, 4), Linear(6, 3), Linear(6, 5)], torch.randn(2, rows, 6, requires_grad=True)
    together = linear(x, *(layer.weight for layer in layers))
    apart = torch.cat([F.linear(x, layer.weight) for layer in layers], -1)
    torch.testing.assert_close(together, apart)
    inputs = [x, *(layer.weight for layer in layers)]
    probe = torch.randn_like(apart)
    for ours, theirs in zip(torch.autograd.grad(together, inputs, probe), torch.autograd.grad(apart, inputs, probe),
                            strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("batch", BATCHES)
def test_embedding_looks_up_rows(batch):
    layer, ids = Embedding(11, 4), torch.randint(0, 11, (*batch, 6))
    assert torch.equal(layer(ids), F.embedding(ids, layer.weight))


def test_embedding_gradient_adds_repeated_ids_and_is_the_same_each_time():
    layer, ids = Embedding(50, 64), torch.randint(0, 50, (64, 64))
    probe = torch.randn(64, 64, 64)
    expected = torch.autograd.grad(F.embedding(ids, layer.weight), layer.weight, probe)[0]
    gradients = [torch.autograd.grad(layer(ids), layer.weight, probe)[0] for _ in range(5)]
    torch.testing.assert_close(gradients[0], expected, rtol=1e-4, atol=1e-4)  # sums of about 80 normals in float32
    assert all(torch.equal(gradient, gradients[0]) for gradient in gradients)


@pytest.mark.parametrize("wrong", [-1, 11])
def test_embedding_refuses_an_id_outside_the_vocabulary(wrong):
    with pytest.raises(IndexError):
        Embedding(11, 4)(torch.tensor([0, wrong]))


@pytest.mark.parametrize("batch", BATCHES)
def test_rmsnorm_equals_torch(batch):
    layer, x = RMSNorm(8), 3 * torch.randn(*batch, 2, 8)
    with torch.no_grad():
        layer.weight.uniform_(0.5, 2)
    torch.testing.assert_close(layer(x), F.rms_norm(x, (8,), layer.weight, 1e-5))


def test_rmsnorm_by_hand():
    layer = RMSNorm(2, eps=1.5)
    assert layer(torch.tensor([3.0, 4.0])).tolist() == pytest.approx([3 / math.sqrt(14), 4 / math.sqrt(14)])


def test_rmsnorm_of_half_precision_is_computed_in_float32():
    x = torch.full((4,), 300.0, dtype=torch.float16)  # its square overflows float16
    layer = RMSNorm(4).half()
    assert layer(x).dtype == torch.float16
    assert layer(x).tolist() == [1.0] * 4


def test_silu_equals_torch():
    x = torch.linspace(-20, 20, 101)
    torch.testing.assert_close(silu(x), F.silu(x))


@pytest.mark.parametrize("batch", BATCHES)
def test_swiglu_is_w2_of_silu_w1_times_w3(batch):
    layer, x = SwiGLU(6, 10), torch.randn(*batch, 6)
    expected = F.linear(F.silu(F.linear(x, layer.w1.weight)) * F.linear(x, layer.w3.weight), layer.w2.weight)
    torch.testing.assert_close(layer(x), expected)


def test_rope_by_hand():
    rope = RotaryEmbedding(head_dim=4, max_seq_len=3, theta=100.0)  # the pairs turn by p and by p / 10
    turned = rope(torch.tensor([[1.0, 0.0, 0.0, 1.0]] * 3))
    for p in range(3):
        expected = [math.cos(p), math.sin(p), -math.sin(p / 10), math.cos(p / 10)]
        assert turned[p].tolist() == pytest.approx(expected, abs=1e-6)


def test_rope_takes_any_positions():
    rope, x = RotaryEmbedding(6, 20), torch.randn(2, 3, 5, 6)
    positions = torch.tensor([7, 0, 19, 7, 3])
    table = rope(torch.ones(20, 6))
    torch.testing.assert_close(rope(torch.ones(5, 6), positions), table[positions])
    torch.testing.assert_close(rope(x, positions.expand(2, 3, 5)), rope(x, positions))
    torch.testing.assert_close(rope(x), rope(x, torch.arange(5)))


def test_rope_keeps_lengths_and_depends_on_distance_only():
    rope, q, k = RotaryEmbedding(8, 100), torch.randn(8), torch.randn(8)

    def score(i, j):
        return rope(q[None], torch.tensor([i])) @ rope(k[None], torch.tensor([j])).T

    torch.testing.assert_close(score(5, 3), score(92, 90), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(rope(q[None], torch.tensor([77])).norm(), q.norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotation_is_multiplication_by_a_complex_number_of_length_1(dtype):
    rope = RotaryEmbedding(8, 16)
    x = torch.randn(2, 16, 3, 8, dtype=dtype).transpose(1, 2)  # strided as in attention
    rotated = rotate(x, rope.at(None, 16))
    assert rotated.dtype == dtype
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    expected = torch.view_as_real(pairs * torch.view_as_complex(rope.table)).flatten(-2).to(dtype)
    torch.testing.assert_close(rotated, expected)


def test_self_attention_is_masked_attention_of_rotated_heads():
    qkv, rope = torch.randn(2, 9, 3, 4, 8), RotaryEmbedding(8, 9)
    q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))
    expected = F.scaled_dot_product_attention(rope(q), rope(k), v, is_causal=True).transpose(1, 2)
    torch.testing.assert_close(self_attention(qkv, rope.table), expected)
    torch.testing.assert_close(self_attention.plain(qkv, rope.table), expected)
    starts = torch.tensor([0, 0, 0, 3, 4, 4, 4, 4, 4]).expand(2, 9)
    parts = [self_attention(qkv[:, a:b], rope.table[a:b]) for a, b in ((0, 3), (3, 4), (4, 9))]
    torch.testing.assert_close(self_attention(qkv, rope.table, starts), torch.cat(parts, 1))


def test_rope_table_stays_float32_and_survives_the_meta_device():
    rope, reference = RotaryEmbedding(8, 16).bfloat16(), RotaryEmbedding(8, 16)
    assert rope.table.dtype == torch.float32
    assert torch.equal(rope.table, reference.table)
    with torch.device("meta"):
        empty = RotaryEmbedding(8, 16)
    assert torch.equal(empty.to_empty(device="cpu").table, reference.table)
    assert not reference.state_dict()


def test_rope_refuses_an_odd_width():
    with pytest.raises(ValueError, match="head dimension is 5"):
        RotaryEmbedding(5, 16)


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_softmax_equals_torch(dim):
    x = torch.randn(3, 4, 5)
    torch.testing.assert_close(softmax(x, dim), torch.softmax(x, dim))


def test_softmax_by_hand_and_far_from_zero():
    assert softmax(torch.tensor([0.0, math.log(3)]), 0).tolist() == pytest.approx([0.25, 0.75])
    assert softmax(torch.tensor([1e4, 1e4 - math.log(3), -1e4]), 0).tolist() == pytest.approx([0.75, 0.25, 0], abs=1e-3)
    assert softmax(torch.tensor([0.0, -math.inf]), 0).tolist() == [1, 0]


def test_softmax_of_bfloat16_is_computed_in_float32():
    x = torch.randn(64).bfloat16()
    assert torch.equal(softmax(x, 0), torch.softmax(x.float(), 0).bfloat16())


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("masked", [False, True])
def test_scaled_dot_product_attention_equals_torch(batch, masked):
    q, k, v = torch.randn(*batch, 4, 6), torch.randn(*batch, 5, 6), torch.randn(*batch, 5, 3)
    mask = torch.rand(*batch, 4, 5) > 0.4 if masked else None
    if masked:
        mask[..., 0] = True
    expected = F.scaled_dot_product_attention(q, k, v, mask)
    torch.testing.assert_close(scaled_dot_product_attention(q, k, v, mask), expected)


def test_scaled_dot_product_attention_of_a_query_without_a_key_is_zero_without_gradient():
    q, k, v = (torch.randn(3, 4, requires_grad=True) for _ in range(3))
    mask = torch.tensor([[True, False, True], [False] * 3, [True] * 3])
    out = scaled_dot_product_attention(q, k, v, mask)
    assert torch.equal(out[1], torch.zeros(4))
    grad_q, grad_k, grad_v = torch.autograd.grad(out.square().sum(), (q, k, v))
    assert torch.equal(grad_q[1], torch.zeros(4))
    assert all(gradient.isfinite().all() for gradient in (grad_q, grad_k, grad_v))


def test_scaled_dot_product_attention_with_a_causal_mask():
    q, k, v = (torch.randn(2, 7, 4) for _ in range(3))
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(scaled_dot_product_attention(q, k, v, causal_mask(7)), expected)


def test_documents_start_at_separators_and_the_mask_hides_what_precedes_them():
    starts = document_starts_of(torch.tensor([[5, 6, 0, 7, 0, 8], [0, 0, 1, 1, 1, 0]]), 0)
    assert starts.tolist() == [[0, 0, 2, 2, 4, 4], [0, 1, 1, 1, 1, 5]]
    assert document_mask(torch.tensor([0, 0, 2, 2])).int().tolist() == [
        [1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
