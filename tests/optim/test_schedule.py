import math

import pytest
import torch

from tslm.optim import SGD, check_schedule, lr_cosine_schedule

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
        check_schedule(*settings)


def test_check_schedule_accepts_every_schedule_that_is_well_defined():
    for settings in ((1.0, 0.1, 2, 7), (1.0, 1.0, 0, 5), (1.0, 0.0, 4, 4), (0.0, 0.0, 0, 0)):
        check_schedule(*settings)
        assert lr_cosine_schedule(0, *settings) >= 0


def test_get_lr_cosine_schedule_in_lambda_lr_gives_its_rates():
    # Around an optimizer of rate 1 the factor that LambdaLR multiplies by is the rate itself.
    optimizer = SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: lr_cosine_schedule(t, 3e-3, 3e-4, 3, 10))
    rates = []
    for _ in range(14):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == [lr_cosine_schedule(t, 3e-3, 3e-4, 3, 10) for t in range(14)]
