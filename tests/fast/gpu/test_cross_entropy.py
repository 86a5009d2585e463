"""The Triton kernel of cross-entropy in Triton's interpreter against the definition, and in the loss that uses it."""

import pytest
import torch

from tests.interpreted import compile_for_gpu, interpreted
from tslm import objective

SIZES = [(5, 3), (4, 64), (3, 300)]
CHILD = f"""
from tests.fast.gpu.test_cross_entropy import inputs, joined
from tslm.fast.gpu import cross_entropy
for number, vocab_size in {SIZES}:
    for dtype in (torch.float32, torch.bfloat16):
        logits, targets = inputs(number, vocab_size, dtype)
        results[vocab_size, str(dtype)] = cross_entropy.row_losses(logits, targets, True)
results["joined"] = joined(cross_entropy.LINEAR_AND_LOSS.function)
"""


def inputs(number, vocab_size, dtype):
    torch.manual_seed(vocab_size)
    logits = 4 * torch.randn(number, vocab_size)
    logits[0] += 1e4  # far from 0, where exp overflows
    return logits.to(dtype), torch.randint(vocab_size, (number,))


def joined(linear_and_loss):
    """Loss and gradients of the head with the loss, in chunks, the last of which is shorter."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(2, 5, 8).requires_grad_(), torch.randn(70, 8).requires_grad_()
    targets = torch.randint(70, (2, 5))
    loss = linear_and_loss(hidden, weight, targets, 4)
    with torch.no_grad():
        evaluated = linear_and_loss(hidden, weight, targets, 4)
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
    for one, other in zip(results["joined"], joined(objective.linear_and_loss.plain), strict=True):
        torch.testing.assert_close(one, other)


def test_the_kernel_compiles_for_a_gpu(monkeypatch, tmp_path):
    pytest.importorskip("triton", reason="Triton has no wheels for this system")
    from tslm.fast.gpu.cross_entropy import LINEAR_AND_LOSS, _row_losses

    types = {"logits_ptr": "*bf16", "targets_ptr": "*i64", "vocab_size": "i32"}
    compile_for_gpu(monkeypatch, tmp_path, _row_losses, types, {"PADDED": 2**14})
    hidden, targets = torch.empty(1, 4), torch.zeros(1, dtype=torch.int64)
    for vocab_size, dtype, supported in ((2**16, torch.float32, True), (2**16 + 1, torch.float32, False),
                                         (10, torch.float64, False)):
        weight = torch.empty(vocab_size, 4, dtype=dtype)
        assert (LINEAR_AND_LOSS.supports(hidden.to(dtype), weight, targets, None) is not None) is supported
