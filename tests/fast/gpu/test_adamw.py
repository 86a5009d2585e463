"""The Triton kernel of AdamW in Triton's interpreter against the definition, with skipped steps."""

import math

import pytest
import torch

from tests.interpreted import compile_for_gpu, interpreted
from tests.optim.test_adamw import make_parameters, set_gradients
from tslm.optim import AdamW

CHILD = """
from tests.fast.gpu import test_adamw as here
from tslm.fast.gpu import adamw as kernel
from tslm.optim import adamw
kernel.BLOCK = 16  # so that a parameter takes several programs
adamw.adamw_step = kernel.adamw_step
for name, (settings, skipped) in here.RUNS.items():
    parameters, optimizer = here.with_optimizer(**settings)
    optimizer.skip = torch.tensor(False)
    here.train(parameters, optimizer, range(8), skipped)
    results[name] = [parameter.detach() for parameter in parameters], optimizer.state_dict()
parameters, optimizer = here.with_optimizer()
for step in range(3):
    here.set_gradients(parameters, step)
    parameters[1].grad = None if step < 2 else parameters[1].grad
    optimizer.step()
results["missing"] = [optimizer.state[parameter]["step"] for parameter in parameters]
"""
RUNS = {"usual": ({}, []), "betas": ({"betas": (0.0, 0.999)}, []), "skipping": ({}, [0, 4, 5])}
SETTINGS = {"lr": 1e-2, "weight_decay": 0.1}


def with_optimizer(**settings):
    parameters = make_parameters(torch.float32)
    return parameters, AdamW(parameters, **(SETTINGS | settings))


def train(parameters, optimizer, steps, skipped=()):
    for step in steps:
        set_gradients(parameters, step)
        optimizer.param_groups[0]["lr"] = 1e-2 / (1 + step)
        if step in skipped:
            parameters[step % 4].grad.fill_(math.inf if step % 2 else math.nan)
        if optimizer.skip is not None:
            optimizer.skip.fill_(step in skipped)
        optimizer.step()
    return parameters, optimizer


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return interpreted(tmp_path_factory.mktemp("triton"), CHILD)


@pytest.mark.parametrize("name", RUNS)
def test_the_kernel_equals_the_definition(results, name):
    settings, skipped = RUNS[name]
    parameters, optimizer = train(*with_optimizer(**settings), [step for step in range(8) if step not in skipped])
    others, state = results[name]
    for one, two in zip(parameters, others, strict=True):
        torch.testing.assert_close(one.detach(), two, rtol=2e-6, atol=2e-6)
    for number, one in optimizer.state_dict()["state"].items():
        two = state["state"][number]
        assert two["step"] == one["step"] == 8 - len(skipped)
        for moment in ("exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(one[moment], two[moment], rtol=1e-6, atol=1e-9)


def test_a_parameter_without_a_gradient_keeps_its_counter(results):
    assert [float(step) for step in results["missing"]] == [3, 1, 3, 3]


def test_a_skipped_step_changes_nothing_on_a_cpu():
    whole, one = train(*with_optimizer(), [0, 3])
    parameters, other = with_optimizer()
    other.skip = torch.tensor(False)
    train(parameters, other, range(4), skipped=[1, 2])
    for mine, theirs in zip(whole, parameters, strict=True):
        assert torch.equal(mine, theirs)
        assert one.state[mine]["step"] == other.state[theirs]["step"] == 2


def test_only_contiguous_float32_is_supported():
    pytest.importorskip("triton", reason="Triton has no wheels for this system")
    from tslm.fast.gpu.adamw import ADAMW_STEP

    ones = torch.ones(2, 3)
    for other, supported in ((ones, True), (ones.double(), False), (ones.bfloat16(), False), (ones.T, False)):
        state = [{"step": 1, "exp_avg": ones, "exp_avg_sq": ones}]
        found = ADAMW_STEP.supports([ones], [other], state, None, 0.1, 0.9, 0.95, 1e-8, 0.1)
        assert (found is not None) is supported


def test_the_counter_has_torchs_own_form():
    pytest.importorskip("triton", reason="Triton has no wheels for this system")
    from tslm.fast.gpu.adamw import counter_on

    cpu = torch.device("cpu")
    counter = counter_on(cpu, 7)
    assert counter == 7
    assert counter.dtype == torch.float32
    assert counter_on(cpu, counter) is counter
    assert counter_on(cpu, torch.tensor(7, dtype=torch.int64)) == 7


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.95, 0.9999])
def test_one_minus_a_power_is_exact_to_rounding(beta):
    pytest.importorskip("triton", reason="Triton has no wheels for this system")
    from tslm.fast.gpu.adamw import one_minus_power

    t = torch.tensor([1.0, 2.0, 1000.0])
    expected = torch.tensor([1 - beta**n for n in (1, 2, 1000)], dtype=torch.float64)
    torch.testing.assert_close(one_minus_power(beta, t).double(), expected, rtol=2e-7, atol=0)


def test_the_kernel_compiles_for_a_gpu(monkeypatch, tmp_path):
    pytest.importorskip("triton", reason="Triton has no wheels for this system")
    from tslm.fast.gpu import adamw

    tables = dict.fromkeys(("addresses_ptr", "sizes_ptr", "owners_ptr", "blocks_ptr"), "*i64")
    types = tables | {"skip_ptr": "*i1", "count": "i32"}
    compile_for_gpu(monkeypatch, tmp_path, adamw._update, types, {"BLOCK": adamw.BLOCK})
