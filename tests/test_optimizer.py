"""AdamW and its schedule through the adapters, under the name of the course's own test file."""

import pytest
import torch

from tests import adapters


def test_adamw():
    cls = adapters.get_adamw_cls()
    assert issubclass(cls, torch.optim.Optimizer)
    results = []
    for optimizer_class in (cls, torch.optim.AdamW):
        torch.manual_seed(2)
        layer = torch.nn.Linear(3, 2, bias=False)
        optimizer = optimizer_class(layer.parameters(), lr=1e-3, weight_decay=0.01, betas=(0.9, 0.999), eps=1e-8)
        for _ in range(100):
            optimizer.zero_grad()
            (layer(torch.rand(3)).sum() - 1).square().backward()
            optimizer.step()
        results.append(layer.weight.detach())
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)  # the decay comes after the step, and eps differs


def test_get_lr_cosine_schedule():
    rates = [adapters.run_get_lr_cosine_schedule(it, 1.0, 0.1, 7, 21) for it in (0, 7, 14, 21, 22)]
    assert rates == pytest.approx([0, 1, 0.55, 0.1, 0.1])
