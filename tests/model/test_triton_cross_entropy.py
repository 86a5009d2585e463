"""The Triton kernel of cross-entropy in Triton's interpreter against the definition, and in the loss that uses it."""

import pytest
import torch

from tests.interpreted import compile_for_gpu, interpreted
from tslm import objective

SIZES = [(5, 3), (4, 64), (3, 300)]
CHILD = f"""
from tests.model.test_triton_cross_entropy import inputs, joined
from tslm import objective
from tslm.model import triton_cross_entropy
for number, vocab_size in {SIZES}:
    for dtype in (torch.float32, torch.bfloat16):
        logits, targets = inputs(number, vocab_size, dtype)
        results[vocab_size, str(dtype)] = triton_cross_entropy.losses_and_gradient(logits, targets, True)
objective._losses_and_gradient = triton_cross_entropy.losses_and_gradient
results["joined"] = joined()
"""


def inputs(number, vocab_size, dtype):
    torch.manual_seed(vocab_size)
    logits = 4 * torch.randn(number, vocab_size)
    logits[0] += 1e4  # far from 0, where exp overflows
    return logits.to(dtype), torch.randint(vocab_size, (number,))


def joined():
    """Loss and gradients of the head with the loss, in chunks of which the last is short."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(2, 5, 8).requires_grad_(), torch.randn(70, 8).requires_grad_()
    targets = torch.randint(70, (2, 5))
    loss = objective.linear_cross_entropy(hidden, weight, targets, chunk_size=4)
    with torch.no_grad():
        evaluated = objective.linear_cross_entropy(hidden, weight, targets, chunk_size=4)
    return [evaluated, loss.detach(), *torch.autograd.grad(3 * loss, (hidden, weight))]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return interpreted(tmp_path_factory.mktemp("triton"), CHILD)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("number", "vocab_size"), SIZES)
def test_the_kernel_equals_the_definition(results, number, vocab_size, dtype):
    loss, gradient = results[vocab_size, str(dtype)]
    logits, targets = inputs(number, vocab_size, dtype)
    logits = logits.double().requires_grad_()
    expected = objective.cross_entropy(logits, targets) * number
    torch.testing.assert_close(loss.double(), expected.detach(), rtol=1e-5, atol=1e-5)
    (slope,) = torch.autograd.grad(expected, logits)
    assert gradient.dtype == dtype
    tolerance = 1e-6 if dtype == torch.float32 else 2**-7  # the interpreter cuts bits off where a GPU rounds
    torch.testing.assert_close(gradient.double(), slope, rtol=tolerance, atol=tolerance)


def test_the_loss_with_the_kernel_is_the_loss_without(results):
    for one, other in zip(results["joined"], joined(), strict=True):
        torch.testing.assert_close(one, other)


def test_the_kernel_compiles_for_a_gpu(monkeypatch, tmp_path):
    pytest.importorskip("triton", reason="Triton has no wheels for this system")
    from tslm.model.triton_cross_entropy import _losses_and_gradient, takes

    types = {"logits_ptr": "*bf16", "targets_ptr": "*i64", "vocab_size": "i32"}
    compile_for_gpu(monkeypatch, tmp_path, _losses_and_gradient, types, {"SPACE": 2**14})
    assert takes(torch.empty(1, 2**16, dtype=torch.bfloat16))
    assert not takes(torch.empty(1, 2**16 + 1, dtype=torch.bfloat16))
    assert not takes(torch.empty(1, 10, dtype=torch.float64))
