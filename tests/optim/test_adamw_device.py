"""AdamW's form for GPUs, run on a CPU: against the plain form, skipped steps, and state dicts that change sides."""

import copy
import math

import pytest
import torch

from tests.interpreted import compile_for_gpu, interpreted
from tests.optim.test_adamw import make_parameters, set_gradients
from tslm.optim import AdamW, adamw, adamw_device
from tslm.optim.adamw_device import _one_minus_power, _update_for, counter_on, foreach_update

SETTINGS = {"lr": 1e-2, "weight_decay": 0.1}


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Make the optimizer take the tensors of a CPU for a GPU's."""
    return lambda: monkeypatch.setattr(adamw, "_is_on_cpu", lambda tensor: False)


def train(parameters, optimizer, steps, bad=()):
    for step in steps:
        set_gradients(parameters, step)
        optimizer.param_groups[0]["lr"] = 1e-2 / (1 + step)
        if step in bad:
            parameters[step % 4].grad.fill_(math.inf if step % 2 else math.nan)
        if optimizer.skip is not None:
            optimizer.skip.fill_(step in bad)
        optimizer.step()
    return parameters, optimizer


@pytest.mark.parametrize("betas", [(0.9, 0.95), (0.0, 0.5), (0.9, 0.999)])
@pytest.mark.parametrize("eps", [1e-8, 0.0])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-14)])
def test_the_device_form_equals_the_plain_form(as_on_a_gpu, betas, eps, dtype, tolerance):
    plain, host = train(*with_optimizer(dtype, betas=betas, eps=eps), range(20))
    as_on_a_gpu()
    fast, device = train(*with_optimizer(dtype, betas=betas, eps=eps), range(20))
    for mine, theirs in zip(fast, plain, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)
        assert device.state[mine]["step"].dtype == torch.float32
        assert device.state[mine]["step"] == host.state[theirs]["step"] == 20
        assert torch.equal(device.state[mine]["exp_avg"], host.state[theirs]["exp_avg"])
        assert torch.equal(device.state[mine]["exp_avg_sq"], host.state[theirs]["exp_avg_sq"])


def with_optimizer(dtype=torch.float32, **settings):
    parameters = make_parameters(dtype)
    return parameters, AdamW(parameters, **(SETTINGS | settings))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("eps", [1e-8, 0.0])
@pytest.mark.parametrize("bad", [[0, 1], [3], [0, 4, 5, 6]])
def test_the_device_form_skips_as_if_the_step_had_not_been(as_on_a_gpu, bad, eps, dtype):
    as_on_a_gpu()
    parameters, optimizer = with_optimizer(dtype, eps=eps)
    optimizer.skip = torch.tensor(False)
    train(parameters, optimizer, range(8), bad)
    others, other = train(*with_optimizer(dtype, eps=eps), [step for step in range(8) if step not in bad])
    for one, two in zip(parameters, others, strict=True):
        assert torch.equal(one, two)
        for name in ("step", "exp_avg", "exp_avg_sq"):
            assert torch.equal(optimizer.state[one][name], other.state[two][name])


def test_the_device_form_widens_half_precision(as_on_a_gpu):
    as_on_a_gpu()
    parameter = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    parameter.grad = torch.zeros_like(parameter)
    AdamW([parameter], lr=0.1, weight_decay=0.06).step()  # 1 - αλ = 0.994 lies between 1 and its neighbour, 0.9961
    assert torch.equal(parameter, torch.full((3,), 0.994).bfloat16())


def test_state_dicts_change_sides(as_on_a_gpu):
    whole, _ = train(*with_optimizer(torch.float64), range(9))
    parameters, host = train(*with_optimizer(torch.float64), range(3))
    as_on_a_gpu()
    parameters, device = moved(parameters, host)
    train(parameters, device, range(3, 6))
    assert all(isinstance(state["step"], torch.Tensor) for state in device.state_dict()["state"].values())
    adamw._is_on_cpu = lambda tensor: True  # back again; the fixture restores the real one
    parameters, host = train(*moved(parameters, device), range(6, 9))
    for mine, theirs in zip(parameters, whole, strict=True):
        assert host.state[mine]["step"] == 9
        assert isinstance(host.state[mine]["step"], int)
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-14)


def moved(parameters, optimizer):
    parameters = copy.deepcopy(parameters)
    other = AdamW(parameters, **SETTINGS)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    return parameters, other


def test_the_device_form_leaves_parameters_without_gradient_alone(as_on_a_gpu):
    as_on_a_gpu()
    parameters, optimizer = with_optimizer()
    for step in range(3):
        set_gradients(parameters, step)
        if step < 2:
            parameters[1].grad = None
        optimizer.step()
    assert [float(optimizer.state[parameter]["step"]) for parameter in parameters] == [3, 1, 3, 3]


def test_the_counter_is_what_torchs_own_is_and_stays_itself():
    cpu = torch.device("cpu")
    counter = counter_on(cpu, 7)
    assert counter == 7
    assert counter.dtype == torch.float32
    assert counter_on(cpu, counter) is counter
    assert counter_on(cpu, torch.tensor(7, dtype=torch.int64)) == 7


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.95, 0.9999])
def test_one_minus_a_power_is_exact_to_rounding(beta):
    t = torch.tensor([1.0, 2.0, 1000.0])
    expected = torch.tensor([1 - beta**n for n in (1, 2, 1000)], dtype=torch.float64)
    torch.testing.assert_close(_one_minus_power(beta, t).double(), expected, rtol=2e-7, atol=0)


CHILD = """
from unittest import mock
from tests.optim import test_adamw_device as here
from tslm.optim import adamw, adamw_device, triton_adamw
triton_adamw.BLOCK = 16  # so that a parameter takes several programs
for name, (settings, bad) in here.KERNEL_RUNS.items():
    parameters, optimizer = here.with_optimizer(**settings)
    optimizer.skip = torch.tensor(False)
    with (mock.patch.object(adamw, "_is_on_cpu", lambda tensor: False),
          mock.patch.object(adamw_device, "_update_for", lambda *sides: triton_adamw.update)):
        here.train(parameters, optimizer, range(8), bad)
    results[name] = [parameter.detach() for parameter in parameters], optimizer.state_dict()
"""
KERNEL_RUNS = {"usual": ({}, []), "betas": ({"betas": (0.0, 0.999)}, []), "skipping": ({}, [0, 4, 5])}


@pytest.fixture(scope="module")
def by_the_kernel(tmp_path_factory):
    return interpreted(tmp_path_factory.mktemp("triton"), CHILD)


@pytest.mark.parametrize("name", KERNEL_RUNS)
def test_the_triton_kernel_equals_the_plain_form(by_the_kernel, name):
    settings, bad = KERNEL_RUNS[name]
    parameters, optimizer = train(*with_optimizer(**settings), [step for step in range(8) if step not in bad])
    others, state = by_the_kernel[name]
    for one, two in zip(parameters, others, strict=True):
        torch.testing.assert_close(one.detach(), two, rtol=2e-6, atol=2e-6)
    for number, one in optimizer.state_dict()["state"].items():
        two = state["state"][number]
        assert two["step"] == one["step"] == 8 - len(bad)
        for moment in ("exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(one[moment], two[moment], rtol=1e-6, atol=1e-9)


def test_only_float32_on_a_gpu_goes_to_the_kernel(monkeypatch):
    class Cuda(torch.Tensor):
        is_cuda = True

    pytest.importorskip("triton", reason="Triton has no wheels for this system")
    cuda = torch.ones(2, 3).as_subclass(Cuda)
    assert _update_for([cuda], [cuda]) is not foreach_update
    for other in (torch.ones(2, 3), cuda.double(), cuda.bfloat16(), cuda.T):
        assert _update_for([cuda], [other]) is foreach_update
    monkeypatch.setattr(adamw_device, "TRITON", False)
    assert _update_for([cuda]) is foreach_update


def test_the_kernel_compiles_for_a_gpu(monkeypatch, tmp_path):
    pytest.importorskip("triton", reason="Triton has no wheels for this system")
    from tslm.optim import triton_adamw

    tables = dict.fromkeys(("addresses_ptr", "sizes_ptr", "owners_ptr", "blocks_ptr"), "*i64")
    types = tables | {"skip_ptr": "*i1", "count": "i32"}
    compile_for_gpu(monkeypatch, tmp_path, triton_adamw._update, types, {"BLOCK": triton_adamw.BLOCK})
