import copy
import io
import math

import pytest
import torch

from tslm.optim import AdamW

SHAPES = [(5, 3), (7,), (), (2, 3, 4)]


def make_parameters(dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype)) for shape in SHAPES]


def set_gradients(parameters, step):
    generator = torch.Generator().manual_seed(1000 + step)
    for parameter in parameters:
        gradient = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.grad = (gradient * 10.0 ** (step % 5 - 2)).to(parameter.dtype)


def by_the_book(theta, gradients, lr, betas, eps, weight_decay):
    """Compute the equations of DESIGN.md on one number at a time, in Python's floats."""
    (beta1, beta2), m, v = betas, 0.0, 0.0
    for t, (g, alpha) in enumerate(zip(gradients, lr, strict=True), start=1):
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        alpha_t = alpha * math.sqrt(1 - beta2**t) / (1 - beta1**t)
        theta = theta - alpha_t * m / (math.sqrt(v) + eps)
        theta = theta - alpha * weight_decay * theta
    return theta, m, v


@pytest.mark.parametrize("lr", [1e-4, 1e-2, 0.5])
@pytest.mark.parametrize("betas", [(0.9, 0.95), (0.9, 0.999), (0.0, 0.5)])
@pytest.mark.parametrize("eps", [1e-8, 1e-2])
@pytest.mark.parametrize("weight_decay", [0.0, 0.01, 0.3])
def test_adamw_follows_the_equations(lr, betas, eps, weight_decay):
    parameters = make_parameters(torch.float64)
    start = [parameter.item() for parameter in torch.cat([p.detach().flatten() for p in parameters])]
    optimizer = AdamW(parameters, lr, betas, eps, weight_decay)
    history, rates = [], [lr / (1 + step) for step in range(12)]  # a scheduled rate, so that decay must follow it
    for step, rate in enumerate(rates):
        set_gradients(parameters, step)
        history.append(torch.cat([parameter.grad.flatten() for parameter in parameters]))
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
    expected = [
        by_the_book(theta, [row[i].item() for row in history], rates, betas, eps, weight_decay)
        for i, theta in enumerate(start)
    ]
    flat = [torch.cat([tensor.detach().flatten() for tensor in tensors]) for tensors in (
        parameters,
        [optimizer.state[parameter]["exp_avg"] for parameter in parameters],
        [optimizer.state[parameter]["exp_avg_sq"] for parameter in parameters],
    )]
    torch.testing.assert_close(torch.stack(flat, dim=1), torch.tensor(expected, dtype=torch.float64),
                               rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("lr", [1e-4, 1e-3, 1e-1])
@pytest.mark.parametrize("betas", [(0.9, 0.95), (0.9, 0.999), (0.5, 0.9)])
@pytest.mark.parametrize("weight_decay", [0.0, 0.01, 0.5])
def test_adamw_equals_torch_apart_from_the_two_known_differences(lr, betas, weight_decay):
    # eps: made so small that where it is added cannot be seen. Decay: torch's comes before the step, ours after it, so
    # ours followed by one more decay at the end is torch's on parameters decayed once at the start.
    ours, theirs = make_parameters(torch.float64), make_parameters(torch.float64)
    with torch.no_grad():
        for parameter in ours:
            parameter.mul_(1 - lr * weight_decay)
    settings = {"lr": lr, "betas": betas, "eps": 1e-30, "weight_decay": weight_decay}
    our_optimizer, their_optimizer = AdamW(ours, **settings), torch.optim.AdamW(theirs, **settings)
    for step in range(20):
        set_gradients(ours, step)
        set_gradients(theirs, step)
        our_optimizer.step()
        their_optimizer.step()
        for mine, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, other * (1 - lr * weight_decay), rtol=1e-12, atol=1e-14)
            mine_state, other_state = our_optimizer.state[mine], their_optimizer.state[other]
            assert mine_state.keys() == other_state.keys()
            assert mine_state["step"] == other_state["step"] == step + 1
            torch.testing.assert_close(mine_state["exp_avg"], other_state["exp_avg"], rtol=1e-12, atol=1e-14)
            torch.testing.assert_close(mine_state["exp_avg_sq"], other_state["exp_avg_sq"], rtol=1e-12, atol=1e-14)


def test_adamw_is_close_to_torch_in_float32_with_the_usual_settings():
    ours, theirs = make_parameters(), make_parameters()
    settings = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}
    optimizers = AdamW(ours, **settings), torch.optim.AdamW(theirs, **settings)
    for step in range(100):
        for parameters, optimizer in zip((ours, theirs), optimizers, strict=True):
            set_gradients(parameters, step)
            optimizer.step()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


def test_adamw_hand_example():
    parameter = torch.nn.Parameter(torch.tensor([1.0, 1.0, 1.0], dtype=torch.float64))
    optimizer = AdamW([parameter], lr=0.1, betas=(0.9, 0.99), eps=0.0, weight_decay=0.5)
    parameter.grad = torch.tensor([5.0, -0.001, 5.0], dtype=torch.float64)
    optimizer.step()
    # Every entry moves by 0.1 against its gradient's sign, then shrinks by 0.1 · 0.5.
    torch.testing.assert_close(parameter.detach(), torch.tensor([0.9, 1.1, 0.9], dtype=torch.float64) * 0.95)


@pytest.mark.parametrize("first", [0, 2])
def test_adamw_skips_a_step_as_if_it_had_not_been(first):
    parameters, others = make_parameters(), make_parameters()
    optimizer, other = AdamW(parameters, lr=0.1, weight_decay=0.1), AdamW(others, lr=0.1, weight_decay=0.1)
    optimizer.skip = torch.tensor(False)
    for step in range(6):
        set_gradients(parameters, step)
        if optimizer.skip.fill_(first <= step < first + 2):
            parameters[2].grad.fill_(math.nan)
        else:
            set_gradients(others, step)
            other.step()
        optimizer.step()
    for one, two in zip(parameters, others, strict=True):
        assert torch.equal(one, two)
        assert optimizer.state[one]["step"] == 4
    copy.deepcopy(optimizer).step()  # a copy knows of no flag


@pytest.mark.parametrize("through_file", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adamw_state_dict_continues_bit_for_bit(through_file, dtype):
    def run(parameters, optimizer, steps):
        for step in steps:
            set_gradients(parameters, step)
            optimizer.param_groups[0]["lr"] = 1e-2 / (1 + step)
            optimizer.step()

    whole = make_parameters(dtype)
    whole_optimizer = AdamW(whole, lr=1e-3, weight_decay=0.1)
    run(whole, whole_optimizer, range(10))

    first = make_parameters(dtype)
    optimizer = AdamW(first, lr=1e-3, weight_decay=0.1)
    run(first, optimizer, range(4))
    state = optimizer.state_dict()
    if through_file:
        torch.save(state, buffer := io.BytesIO())
        buffer.seek(0)
        state = torch.load(buffer, weights_only=True)
    second = copy.deepcopy(first)
    resumed = AdamW(second, lr=7.0, betas=(0.1, 0.1), weight_decay=0.9)
    resumed.load_state_dict(state)
    assert resumed.state[second[0]]["step"] == 4
    run(second, resumed, range(4, 10))
    for one, other in zip(whole, second, strict=True):
        assert torch.equal(one, other)
        for key in ("step", "exp_avg", "exp_avg_sq"):
            assert torch.equal(torch.as_tensor(whole_optimizer.state[one][key]),
                               torch.as_tensor(resumed.state[other][key]))


def test_adamw_continues_from_torchs_own_state_dict():
    ours, theirs = make_parameters(torch.float64), make_parameters(torch.float64)
    settings = {"lr": 1e-2, "eps": 1e-30, "weight_decay": 0.0}
    their_optimizer, our_optimizer = torch.optim.AdamW(theirs, **settings), AdamW(ours, **settings)
    for step in range(3):
        set_gradients(theirs, step)
        their_optimizer.step()
    ours = copy.deepcopy(theirs)
    our_optimizer = AdamW(ours, **settings)
    our_optimizer.load_state_dict(copy.deepcopy(their_optimizer.state_dict()))
    assert our_optimizer.state[ours[0]]["step"] == 3
    for optimizer, parameters in ((our_optimizer, ours), (their_optimizer, theirs)):
        set_gradients(parameters, 3)
        optimizer.step()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-14)


def test_adamw_with_lr_zero_creates_state_and_moves_nothing():
    parameters = make_parameters()
    before = copy.deepcopy(parameters)
    optimizer = AdamW(parameters, lr=0.0)
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)  # as torch.distributed.checkpoint does to create the state
    optimizer.step()
    for parameter, old in zip(parameters, before, strict=True):
        assert torch.equal(parameter, old)
        assert optimizer.state[parameter]["exp_avg"].shape == parameter.shape


def test_adamw_leaves_parameters_without_gradient_alone():
    parameters = make_parameters()
    frozen = parameters[1].detach().clone()
    optimizer = AdamW(parameters, lr=0.1)
    for step in range(3):
        set_gradients(parameters, step)
        parameters[1].grad = None
        optimizer.step()
    assert torch.equal(parameters[1], frozen)
    assert parameters[1] not in optimizer.state
    set_gradients(parameters, 3)
    optimizer.step()  # its t starts now, the others' goes on
    assert [optimizer.state[parameter]["step"] for parameter in parameters] == [4, 1, 4, 4]
    moved = (parameters[1].detach() / (1 - 0.1 * 0.01) - frozen).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 0.1), rtol=1e-4, atol=0)
    AdamW(make_parameters(), lr=0.1).step()  # nothing has a gradient


def test_adamw_keeps_groups_apart():
    parameters = make_parameters()
    before = copy.deepcopy(parameters)
    optimizer = AdamW([
        {"params": parameters[:1], "weight_decay": 0.5},
        {"params": parameters[1:], "lr": 0.0},
    ], lr=0.1, weight_decay=0.0)
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(parameters[0], before[0] * 0.95)
    assert all(torch.equal(new, old) for new, old in zip(parameters[1:], before[1:], strict=True))


def test_adamw_runs_a_closure_with_gradients_enabled():
    parameter = torch.nn.Parameter(torch.tensor(3.0))
    optimizer = AdamW([parameter], lr=0.1, weight_decay=0.0)

    def closure():
        optimizer.zero_grad()
        loss = parameter**2
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 9.0
    assert parameter.item() == pytest.approx(2.9)


def test_adamw_finds_the_minimum_of_a_small_problem():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(64, 5, generator=generator)
    truth = torch.randn(5, generator=generator)
    weight = torch.nn.Parameter(torch.zeros(5))
    optimizer = AdamW([weight], lr=0.05, weight_decay=0.0)
    for step in range(300):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 300)
        optimizer.zero_grad()
        ((inputs @ weight - inputs @ truth) ** 2).mean().backward()
        optimizer.step()
    torch.testing.assert_close(weight.detach(), truth, rtol=0, atol=1e-3)


@pytest.mark.parametrize(("settings", "message"), [
    ({"lr": -1.0}, "lr is -1.0"),
    ({"lr": float("nan")}, "lr is nan"),
    ({"betas": (1.0, 0.9)}, r"betas are \(1.0, 0.9\)"),
    ({"betas": (0.9, -0.1)}, r"betas are \(0.9, -0.1\)"),
    ({"eps": -1e-8}, "eps is -1e-08"),
    ({"weight_decay": -0.1}, "weight_decay is -0.1"),
])
def test_adamw_refuses_values_outside_their_range(settings, message):
    with pytest.raises(ValueError, match=message):
        AdamW(make_parameters(), **({"lr": 1e-3} | settings))


def test_adamw_refuses_sparse_gradients_before_anything_is_changed():
    embedding, gain = torch.nn.Embedding(10, 3, sparse=True), torch.ones(3, requires_grad=True)
    (embedding(torch.tensor([1])) * gain).sum().backward()
    optimizer = AdamW([{"params": [gain]}, {"params": embedding.parameters()}], lr=0.1)
    with pytest.raises(ValueError, match=r"shape \(10, 3\) is sparse"):
        optimizer.step()
    assert gain.tolist() == [1, 1, 1]
    assert not optimizer.state


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_step_with_a_gradient_that_is_not_finite_changes_nothing_and_warns(bad):
    weights = [torch.ones(3, requires_grad=True), torch.ones(2, requires_grad=True)]
    optimizer = AdamW(weights, lr=0.1)
    for gradients in ([1.0, 2.0], [1.0, bad], [3.0, 4.0]):
        for weight, value in zip(weights, gradients, strict=True):
            weight.grad = torch.full_like(weight, value)
        if math.isfinite(gradients[1]):
            optimizer.step()
        else:
            before = [weight.detach().clone() for weight in weights]
            with pytest.warns(UserWarning, match="a gradient is not finite, so AdamW skips the step"):
                optimizer.step()
            assert all(map(torch.equal, before, weights))
    assert [int(optimizer.state[weight]["step"]) for weight in weights] == [2, 2]


def test_large_gradients_in_half_precision_are_no_reason_to_skip():
    weight = torch.ones(1000, dtype=torch.float16, requires_grad=True)
    weight.grad = torch.full_like(weight, 60_000)  # the square of their norm is far above the largest float16
    AdamW([weight], lr=0.1, eps=1e-3).step()
    assert not torch.equal(weight, torch.ones_like(weight))
