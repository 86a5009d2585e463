"""The C form of AdamW's update: the definition's numbers in one pass."""

import copy

import pytest
import torch

from tests.conftest import needs_compiler
from tests.fast.cpu.test_decoder import fresh_door  # noqa: F401 (a fixture)
from tslm.fast.cpu import adamw
from tslm.optim import AdamW
from tslm.optim.adamw import adamw_step

pytestmark = needs_compiler
NUMBERS = (0.1, 0.9, 0.95, 1e-8, 0.1)


def drawn(*sizes):
    torch.manual_seed(0)
    parameters, gradients, means = ([torch.randn(size) for size in sizes] for _ in range(3))
    states = [{"step": number, "exp_avg": mean, "exp_avg_sq": mean.square()} for number, mean in enumerate(means)]
    return parameters, gradients, states


@pytest.mark.parametrize("sizes", [[1], [7, 16, 1], [(3, 5), 1000, (64, 33)], [4096, 1, 1, 1, 4095]])
def test_the_kernel_equals_the_definition(sizes):
    ours, theirs = drawn(*sizes), drawn(*sizes)
    for _ in range(3):
        adamw.adamw_step(*ours, None, *NUMBERS)
        adamw_step.plain(*theirs, None, *NUMBERS)
    for one, other in zip(ours[0], theirs[0], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)
    for one, other in zip(ours[2], theirs[2], strict=True):
        assert one["step"] == other["step"]
        for name in ("exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(one[name], other[name], rtol=1e-6, atol=1e-7)


def test_the_number_of_threads_changes_no_bit():
    ends = []
    before = torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        given = drawn(5, (40, 41), 1)
        adamw.adamw_step(*given, None, *NUMBERS)
        ends.append(torch.cat([each.flatten() for each in given[0]]))
    torch.set_num_threads(before)
    assert torch.equal(ends[0], ends[1])
    assert torch.equal(ends[0], ends[2])


def test_a_skipped_step_changes_nothing():
    given = drawn(5, 6)
    before = copy.deepcopy(given)
    adamw.adamw_step(*given, torch.tensor(True), *NUMBERS)
    assert all(torch.equal(*pair) for pair in zip(given[0], before[0], strict=True))
    assert given[2][1]["step"] == before[2][1]["step"]


@pytest.mark.parametrize("change", [lambda x: x.double(), lambda x: x.T, lambda x: x.bfloat16()])
def test_what_the_kernel_does_not_support(change):
    parameters, gradients, states = drawn((4, 6), (6, 6))
    assert adamw.ADAMW_STEP.supports(parameters, gradients, states, None, *NUMBERS) is not None
    assert adamw.ADAMW_STEP.supports(parameters, [gradients[0], change(gradients[1])], states, None, *NUMBERS) is None


def test_the_optimizer_uses_it(monkeypatch, fresh_door):  # noqa: F811
    calls, load = [], adamw.build.load
    parameter = torch.nn.Parameter(torch.ones(3))
    parameter.grad = torch.full((3,), 5.0)
    with monkeypatch.context() as patched:
        patched.setattr(adamw.build, "load", lambda *given: calls.append(given) or load(*given))
        AdamW([parameter], lr=0.1, weight_decay=0.0).step()
    assert torch.allclose(parameter, torch.full((3,), 0.9))
    assert calls
