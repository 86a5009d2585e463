import pytest
import torch

from tslm.optim import clip_gradients


def make_parameters(dtype=torch.float32, scale=1.0):
    generator = torch.Generator().manual_seed(0)
    parameters = [torch.nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in [(5, 3), (7,), (), (2, 3, 4)]]
    for parameter in parameters:
        parameter.grad = (torch.randn(parameter.shape, generator=generator) * scale).to(dtype)
    parameters.append(torch.nn.Parameter(torch.zeros(3)))  # has no gradient
    return parameters


def gradients(parameters):
    return [parameter.grad.clone() for parameter in parameters if parameter.grad is not None]


@pytest.mark.parametrize("max_norm", [1e-3, 0.1, 1.0, 5.0])
@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_gradient_clipping_equals_torch(max_norm, scale):
    ours, theirs = make_parameters(scale=scale), make_parameters(scale=scale)
    norm = clip_gradients(ours, max_norm)
    assert norm.item() > max_norm
    torch.testing.assert_close(norm, torch.nn.utils.clip_grad_norm_(theirs, max_norm))
    for mine, other in zip(gradients(ours), gradients(theirs), strict=True):
        torch.testing.assert_close(mine, other)
    assert ours[-1].grad is None


def test_gradient_clipping_changes_no_bit_below_the_maximum():
    parameters = make_parameters()
    before = gradients(parameters)
    norm = clip_gradients(parameters, 1e6)
    assert norm.item() == pytest.approx(torch.cat([g.flatten() for g in before]).norm().item())
    assert all(torch.equal(new, old) for new, old in zip(gradients(parameters), before, strict=True))


def test_gradient_clipping_hand_example():
    parameters = [torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(1))]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    assert clip_gradients(parameters, 1.0, eps=0.0).item() == 5.0
    assert parameters[0].grad.tolist() == pytest.approx([0.6, 0.0])
    assert parameters[1].grad.tolist() == pytest.approx([0.8])


def test_gradient_clipping_begins_where_the_norm_reaches_the_maximum():
    parameter = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
    parameter.grad = torch.tensor([3.0, 4.0], dtype=torch.float64)
    clip_gradients([parameter], 5.0, eps=1.0)
    assert parameter.grad.tolist() == pytest.approx([3 * 5 / 6, 4 * 5 / 6], rel=1e-15)


def test_gradient_clipping_works_in_place_and_takes_generators_and_single_parameters():
    parameters = make_parameters()
    kept = [parameter.grad for parameter in parameters]
    clip_gradients((parameter for parameter in parameters), 0.1)
    assert all(parameter.grad is gradient for parameter, gradient in zip(parameters, kept, strict=True))
    assert torch.cat([g.flatten() for g in gradients(parameters)]).norm().item() == pytest.approx(0.1, rel=1e-4)
    assert clip_gradients(parameters[1], 0.05).item() < 0.11


def test_gradient_clipping_without_gradients_returns_zero():
    norm = clip_gradients([torch.nn.Parameter(torch.zeros(3))], 1.0)
    assert norm.shape == ()
    assert norm.item() == 0.0
    assert clip_gradients([], 1.0).item() == 0.0


def test_gradient_clipping_sums_low_precision_gradients_in_float32():
    parameters = [torch.nn.Parameter(torch.zeros(10_000, dtype=torch.bfloat16)) for _ in range(3)]
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 1.0)
    norm = clip_gradients(parameters, 1.0)
    assert norm.dtype == torch.float32
    assert norm.item() == pytest.approx(30_000**0.5, rel=1e-6)
    assert parameters[0].grad.dtype == torch.bfloat16
    assert parameters[0].grad[0].item() == pytest.approx(30_000**-0.5, rel=2**-8)


def test_gradient_clipping_takes_several_dtypes_at_once():
    parameters = make_parameters(torch.bfloat16)[:2] + make_parameters(torch.float64)[2:4]
    whole = torch.cat([g.flatten().double() for g in gradients(parameters)]).norm().item()
    norm = clip_gradients(parameters, 0.5)
    assert norm.dtype == torch.float64
    assert norm.item() == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize("max_norm", [0.0, -1.0, float("nan")])
def test_gradient_clipping_refuses_a_maximum_that_is_none(max_norm):
    with pytest.raises(ValueError, match=f"max_norm is {max_norm}"):
        clip_gradients(make_parameters(), max_norm)
