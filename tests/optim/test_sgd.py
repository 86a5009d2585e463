import copy
import math

import pytest
import torch

from tslm.optim import SGD


def test_sgd_hand_example():
    theta = torch.nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
    optimizer = SGD([theta], lr=1.0)
    values = []
    for _ in range(3):
        optimizer.zero_grad()
        (theta**2).backward()
        optimizer.step()
        values.append(theta.item())
    third = (math.sqrt(2) - 1) * (1 - 2 / math.sqrt(3))
    assert values == pytest.approx([-1.0, math.sqrt(2) - 1, third], rel=1e-14)


def test_sgd_continues_from_its_state_dict():
    def run(theta, optimizer, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            (theta**2).sum().backward()
            optimizer.step()

    whole = torch.nn.Parameter(torch.linspace(-1, 1, 5))
    part = copy.deepcopy(whole)
    run(whole, SGD([whole], lr=0.3), 7)
    first = SGD([part], lr=0.3)
    run(part, first, 3)
    second = SGD([part], lr=9.0)
    second.load_state_dict(first.state_dict())
    run(part, second, 4)
    assert torch.equal(whole, part)


def test_sgd_skips_parameters_without_gradient_and_runs_a_closure():
    used, unused = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    optimizer = SGD([used, unused], lr=0.5)

    def closure():
        loss = used.sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 2.0
    assert used.tolist() == [0.5, 0.5]
    assert unused.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("lr", [-1.0, float("nan")])
def test_sgd_refuses_a_negative_rate(lr):
    with pytest.raises(ValueError, match=f"lr is {lr}"):
        SGD([torch.nn.Parameter(torch.ones(1))], lr=lr)
