"""Cross-entropy, plain and joined with the head, against torch and finite differences; perplexity; bits per byte."""

import math

import pytest
import torch
from torch.nn import functional as F

from tslm.objective import bits_per_byte, cross_entropy, linear_cross_entropy, perplexity, token_losses


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("batch", [(), (5,), (2, 1, 3)])
def test_cross_entropy_equals_torch(batch):
    logits, targets = torch.randn(*batch, 7), torch.randint(0, 7, batch)
    expected = F.cross_entropy(logits.reshape(-1, 7), targets.reshape(-1))
    torch.testing.assert_close(cross_entropy(logits, targets), expected)


def test_cross_entropy_by_hand():
    logits = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]])
    losses = token_losses(logits, torch.tensor([1, 0]))
    assert losses.tolist() == pytest.approx([math.log(4 / 3), math.log(2)])
    assert cross_entropy(logits, torch.tensor([1, 0])).item() == pytest.approx(math.log(8 / 3) / 2)


def test_cross_entropy_survives_logits_of_1e4():
    logits = torch.tensor([[1e4, -1e4, 0.0], [1e4, 1e4, -1e4]], requires_grad=True)
    losses = token_losses(logits, torch.tensor([1, 0]))
    assert losses.tolist() == pytest.approx([2e4, math.log(2)], rel=1e-4)
    assert torch.autograd.grad(losses.sum(), logits)[0].isfinite().all()
    joined = linear_cross_entropy(logits, torch.eye(3), torch.tensor([1, 0]))
    assert joined.item() == pytest.approx(1e4 + math.log(2) / 2)
    assert torch.autograd.grad(joined, logits)[0].isfinite().all()


def test_cross_entropy_of_bfloat16_logits_is_computed_in_float32():
    logits, targets = torch.randn(4, 9).bfloat16(), torch.randint(0, 9, (4,))
    assert torch.equal(cross_entropy(logits, targets), cross_entropy(logits.float(), targets))


@pytest.mark.parametrize("chunk_size", [1, 5, 12, 100])
@pytest.mark.parametrize("batch", [(12,), (3, 4)])
def test_linear_cross_entropy_equals_head_then_cross_entropy(chunk_size, batch):
    hidden, weight = torch.randn(*batch, 6, requires_grad=True), torch.randn(11, 6, requires_grad=True)
    targets = torch.randint(0, 11, batch)
    joined = linear_cross_entropy(hidden, weight, targets, chunk_size)
    plain = cross_entropy(hidden @ weight.T, targets)
    torch.testing.assert_close(joined, plain)
    for scale in (1.0, 128.0):  # what follows the loss, such as a gradient scaler or accumulation, must pass through
        for ours, theirs in zip(torch.autograd.grad(scale * joined, (hidden, weight), retain_graph=True),
                                torch.autograd.grad(scale * plain, (hidden, weight), retain_graph=True), strict=True):
            torch.testing.assert_close(ours, theirs)


def test_linear_cross_entropy_passes_gradcheck():
    hidden = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 3, 3, 1, 2])
    assert torch.autograd.gradcheck(lambda h, w: linear_cross_entropy(h, w, targets, 2), (hidden, weight))


def test_linear_cross_entropy_makes_no_gradients_without_need():
    hidden, weight, targets = torch.randn(4, 3), torch.randn(5, 3, requires_grad=True), torch.randint(0, 5, (4,))
    with torch.no_grad():
        loss = linear_cross_entropy(hidden, weight, targets)
    assert not loss.requires_grad
    assert linear_cross_entropy(hidden, weight, targets).requires_grad
    torch.testing.assert_close(loss, cross_entropy(hidden @ weight.T, targets).detach())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_linear_cross_entropy_under_autocast(dtype):
    hidden, weight = torch.randn(4000, 32, requires_grad=True), (torch.randn(50, 32) / 4).requires_grad_()
    targets = torch.randint(0, 50, (4000,))
    plain = cross_entropy(hidden @ weight.T, targets)
    with torch.autocast("cpu", dtype):
        joined = linear_cross_entropy(hidden, weight, targets)
    assert joined.dtype == torch.float32
    torch.testing.assert_close(joined, plain, rtol=1e-3, atol=0)
    for ours, theirs in zip(torch.autograd.grad(joined, (hidden, weight)), torch.autograd.grad(plain, (hidden, weight)),
                            strict=True):
        assert ours.dtype == torch.float32
        assert (ours - theirs).norm() < 0.01 * theirs.norm()


@pytest.mark.parametrize(("hidden", "weight", "targets", "message"), [
    ((4, 3), (5, 3), (3,), r"needs targets of shape \(4,\)"), ((4, 3), (5, 2), (4,), r"must be \(vocab_size, 3\)"),
    ((0, 3), (5, 3), (0,), "no tokens")])
def test_linear_cross_entropy_refuses_shapes_that_disagree(hidden, weight, targets, message):
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy(torch.zeros(hidden), torch.zeros(weight), torch.zeros(targets, dtype=torch.int64))


def test_cross_entropy_refuses_shapes_that_disagree():
    with pytest.raises(ValueError, match=r"logits of shape \(2, 3, 5\) needs targets of shape \(2, 3\)"):
        cross_entropy(torch.zeros(2, 3, 5), torch.zeros(6, dtype=torch.int64))


def test_linear_cross_entropy_refuses_empty_chunks():
    with pytest.raises(ValueError, match="chunk_size is 0"):
        linear_cross_entropy(torch.zeros(4, 3), torch.zeros(5, 3), torch.zeros(4, dtype=torch.int64), 0)


def test_perplexity_is_the_exponential_and_overflows_to_infinity():
    assert perplexity(math.log(8)) == pytest.approx(8)
    assert perplexity(torch.tensor(math.log(8))).item() == pytest.approx(8)
    assert perplexity(1e4) == math.inf
    assert perplexity(torch.tensor(1e4)).item() == math.inf


def test_bits_per_byte_by_hand():
    assert bits_per_byte(16 * math.log(2), 4) == pytest.approx(4)
    with pytest.raises(ValueError, match="not 0"):
        bits_per_byte(1.0, 0)
