"""The forms with fewer passes (fused.py) against the plain formulas: values, gradients, and finite differences."""

import pytest
import torch

from tslm.model import functional, fused
from tslm.model.native import functions
from tslm.model.rope import RotaryEmbedding


@pytest.fixture(autouse=True)
def _no_kernels(monkeypatch):
    """These are the forms for where there are no kernels in C."""
    monkeypatch.setattr(functions, "_libraries", {torch.float32: None, torch.bfloat16: None})


def _attention_inputs(length, dtype=torch.float32, width=8):
    torch.manual_seed(length)
    # Transposed as in the model, so that the strides are not the plain ones.
    return [torch.randn(2, length, 3, width, dtype=dtype).transpose(1, 2).requires_grad_() for _ in range(3)]


def _grads(out, inputs, probe):
    return torch.autograd.grad(out, inputs, probe)


@pytest.mark.parametrize("length", [1, fused.QUERY_BLOCK - 1, fused.QUERY_BLOCK, 2 * fused.QUERY_BLOCK + 5])
def test_causal_attention_equals_the_masked_formula(length):
    q, k, v = _attention_inputs(length)
    fast = fused.causal_attention(q, k, v)
    plain = functional.scaled_dot_product_attention(q, k, v, functional.causal_mask(length))
    torch.testing.assert_close(fast, plain)
    probe = torch.randn_like(plain)
    for ours, theirs in zip(_grads(fast, (q, k, v), probe), _grads(plain, (q, k, v), probe), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_self_attention_keeps_documents_apart():
    qkv, documents = torch.randn(3, 2, 9, 3, 4, 8), torch.tensor([0, 0, 0, 3, 4, 4, 4, 4, 4]).expand(3, 2, 9)
    rotation = RotaryEmbedding(8, 9).table
    parts = [fused.self_attention(qkv[:, :, start:end], rotation[start:end]) for start, end in ((0, 3), (3, 4), (4, 9))]
    torch.testing.assert_close(fused.self_attention(qkv, rotation, documents), torch.cat(parts, 2))


def test_causal_attention_passes_gradcheck(monkeypatch):
    monkeypatch.setattr(fused, "QUERY_BLOCK", 2)
    inputs = _attention_inputs(5, torch.float64, width=4)
    assert torch.autograd.gradcheck(fused.causal_attention, inputs)


def test_causal_attention_survives_scores_of_1e4():
    q, k, v = _attention_inputs(9)
    out = fused.causal_attention(100 * q, 1000 * k, v)
    grads = _grads(out.sum(), (q, k, v), None)
    assert all(tensor.isfinite().all() for tensor in (out, *grads))


@pytest.mark.parametrize("name", ["causal_attention", "rms_norm", "swiglu_together"])
def test_fused_forms_in_bfloat16_stay_within_its_rounding(name):
    q, k, v = _attention_inputs(70)
    gain = torch.rand(8)
    forms = {"causal_attention": lambda q: fused.causal_attention(q, k, v),
             "rms_norm": lambda q: fused.rms_norm(q, gain, 1e-5), "swiglu_together": fused.swiglu_together}
    exact = forms[name](q)
    q16 = q.detach().bfloat16().requires_grad_()
    k, v = k.detach().bfloat16(), v.detach().bfloat16()
    rounded = forms[name](q16)
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), exact, rtol=2e-2, atol=2e-2)  # bfloat16 has 8 bits: steps of 1/256
    probe = torch.randn_like(exact)
    grad, grad16 = _grads(exact, q, probe)[0], _grads(rounded, q16, probe.bfloat16())[0]
    assert (grad16.float() - grad).norm() < 0.01 * grad.norm()


def test_rms_norm_equals_the_formula_and_passes_gradcheck():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    gain = torch.rand(6, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(fused.rms_norm(x, gain, 1e-5), functional.rms_norm(x, gain, 1e-5))
    assert torch.autograd.gradcheck(lambda x, gain: fused.rms_norm(x, gain, 1e-5), (x, gain))
    probe = torch.randn_like(x)
    for ours, theirs in zip(_grads(fused.rms_norm(x, gain, 1e-5), (x, gain), probe),
                            _grads(functional.rms_norm(x, gain, 1e-5), (x, gain), probe), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_swiglu_equals_the_formula_and_passes_gradcheck():
    torch.manual_seed(0)
    gate_up = torch.randn(4, 3, 10, dtype=torch.float64, requires_grad=True)
    gate, up = gate_up.chunk(2, -1)
    torch.testing.assert_close(fused.swiglu_together(gate_up), functional.swiglu(gate, up))
    assert torch.autograd.gradcheck(fused.swiglu_together, gate_up)


def test_swiglu_far_from_zero_is_finite():
    x = torch.tensor([1e4, -1e4, 2.0, 3.0], requires_grad=True)
    out = fused.swiglu_together(x)
    assert out.tolist() == [2e4, 0]
    assert _grads(out.sum(), x, None)[0].tolist() == [2, 0, 1e4, 0]
