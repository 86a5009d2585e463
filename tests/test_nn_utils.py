"""Softmax, cross-entropy and gradient clipping through the adapters, under the name of the course's own test file."""

import torch
from torch.nn import functional as F

from tests import adapters


def test_silu_and_softmax():
    x = torch.randn(2, 7, 12)
    torch.testing.assert_close(adapters.run_silu(x), F.silu(x))
    torch.testing.assert_close(adapters.run_softmax(100 * x, 1), F.softmax(100 * x, 1))


def test_cross_entropy():
    logits, targets = 1000 * torch.randn(2, 31), torch.randint(0, 31, (2,))
    torch.testing.assert_close(adapters.run_cross_entropy(logits, targets), F.cross_entropy(logits, targets))


def test_gradient_clipping():
    def parameters():
        torch.manual_seed(1)
        made = [torch.nn.Parameter(torch.randn(5, 5)) for _ in range(4)]
        made[-1].requires_grad_(False)
        torch.cat(made).square().sum().backward()
        return made

    ours, theirs = parameters(), parameters()
    assert adapters.run_gradient_clipping(iter(ours), 0.5) is None
    torch.nn.utils.clip_grad_norm_(theirs, 0.5)
    for mine, reference in zip(ours[:-1], theirs[:-1], strict=True):
        torch.testing.assert_close(mine.grad, reference.grad)
    assert ours[-1].grad is None
