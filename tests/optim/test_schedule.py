import math
import pickle

import pytest
import torch

from tslm.optim import SGD, CosineSchedule, lr_cosine_schedule

HALF_ROOT = math.sqrt(0.5) / 2  # cos(π/4) / 2


def test_get_lr_cosine_schedule_hand_worked_steps():
    rates = [lr_cosine_schedule(t, 1.0, 0.0, warmup_steps=2, cosine_steps=6) for t in range(9)]
    expected = [0, 0.5, 1, 0.5 + HALF_ROOT, 0.5, 0.5 - HALF_ROOT, 0, 0, 0]
    assert rates == pytest.approx(expected, abs=1e-15)


def test_get_lr_cosine_schedule_reaches_the_floor_and_stays():
    rates = [lr_cosine_schedule(t, 3.0, 1.0, warmup_steps=3, cosine_steps=7) for t in range(100)]
    assert rates[:8] == pytest.approx([0, 1, 2, 3, 2 + 2 * HALF_ROOT, 2, 2 - 2 * HALF_ROOT, 1])
    assert rates[7:] == [1.0] * 93
    assert max(rates) == rates[3] == 3.0


def test_get_lr_cosine_schedule_without_warmup_starts_at_the_top():
    assert [lr_cosine_schedule(t, 2.0, 0.5, 0, 2) for t in range(4)] == pytest.approx([2.0, 1.25, 0.5, 0.5])


def test_get_lr_cosine_schedule_with_warmup_alone():
    assert [lr_cosine_schedule(t, 2.0, 0.5, 4, 4) for t in range(7)] == [0.0, 0.5, 1.0, 1.5, 2.0, 0.5, 0.5]
    assert [lr_cosine_schedule(t, 2.0, 0.5, 0, 0) for t in range(3)] == [2.0, 0.5, 0.5]


def test_get_lr_cosine_schedule_with_equal_rates_is_constant():
    assert [lr_cosine_schedule(t, 1.0, 1.0, 0, 5) for t in range(10)] == [1.0] * 10


@pytest.mark.parametrize(("settings", "message"), [
    ((1.0, 0.1, 8, 7), "warmup_steps is 8 and cosine_steps is 7"),
    ((1.0, 0.1, -1, 7), "warmup_steps is -1"),
    ((0.1, 1.0, 2, 7), "lr_min is 1.0 and lr_max is 0.1"),
    ((1.0, -0.1, 2, 7), "lr_min is -0.1"),
])
def test_get_lr_cosine_schedule_refuses_what_is_no_schedule(settings, message):
    with pytest.raises(ValueError, match=message):
        lr_cosine_schedule(0, *settings)
    with pytest.raises(ValueError, match=message):
        CosineSchedule(*settings)


def scheduled(lr_max):
    optimizer = SGD([torch.nn.Parameter(torch.ones(1))], lr=lr_max)
    schedule = CosineSchedule(lr_max, 0.1 * lr_max, warmup_steps=3, cosine_steps=10)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)


def advance(optimizer, scheduler, steps):
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_cosine_schedule_in_lambda_lr_gives_the_rates_of_the_function():
    expected = [lr_cosine_schedule(t, 3e-3, 3e-4, 3, 10) for t in range(14)]
    assert advance(*scheduled(3e-3), 14) == pytest.approx(expected, rel=1e-14)


def test_cosine_schedule_with_lr_max_zero():
    assert advance(*scheduled(0.0), 5) == [0.0] * 5


def test_cosine_schedule_continues_from_a_state_dict():
    whole = advance(*scheduled(3e-3), 12)
    optimizer, scheduler = scheduled(3e-3)
    advance(optimizer, scheduler, 5)
    saved = pickle.loads(pickle.dumps([optimizer.state_dict(), scheduler.state_dict()]))
    optimizer, scheduler = scheduled(3e-3)
    optimizer.load_state_dict(saved[0])
    scheduler.load_state_dict(saved[1])
    assert advance(optimizer, scheduler, 7) == whole[5:]
    assert all(isinstance(value, int | float) for value in saved[1]["lr_lambdas"][0].values())
