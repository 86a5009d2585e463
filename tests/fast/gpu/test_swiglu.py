"""SwiGLU's Triton kernels in Triton's interpreter against the formula."""

import pytest
import torch

from tests.interpreted import compile_for_gpu, interpreted
from tslm.model import ops

SIZES = [1, 70, 512, 600]
CHILD = f"""
from tests.fast.gpu.test_swiglu import inputs
from tslm.fast.gpu.swiglu import swiglu
for size in {SIZES}:
    for dtype in (torch.float32, torch.bfloat16):
        gate_up, probe = inputs(size, dtype)
        out = swiglu(gate_up)
        results[size, str(dtype)] = [out.detach(), *torch.autograd.grad(out, gate_up, probe)]
"""


def inputs(size, dtype):
    torch.manual_seed(size)
    return (3 * torch.randn(2, 3, 2 * size)).to(dtype).requires_grad_(), torch.randn(2, 3, size).to(dtype)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return interpreted(tmp_path_factory.mktemp("triton"), CHILD)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", SIZES)
def test_the_kernels_equal_the_formula(results, size, dtype):
    gate_up, probe = inputs(size, dtype)
    gate_up = gate_up.detach().double().requires_grad_()
    gate, up = gate_up.chunk(2, -1)
    out = ops.silu(gate) * up
    expected = [out.detach(), *torch.autograd.grad(out, gate_up, probe.double())]
    for one, other in zip(results[size, str(dtype)], expected, strict=True):
        assert one.dtype == dtype
        bound = 1e-6 if dtype == torch.float32 else 0.01  # the interpreter cuts bits off where a GPU rounds
        assert (one.double() - other).norm() <= bound * other.norm()


@pytest.mark.parametrize("name", ["_forward", "_backward_both"])
def test_the_kernels_compile_for_a_gpu(monkeypatch, tmp_path, name):
    pytest.importorskip("triton", reason="Triton has no wheels for this system")
    from tslm.fast.gpu import swiglu

    kernel = getattr(swiglu, name)
    types = {argument: "*bf16" for argument in kernel.arg_names if argument.endswith("_ptr")} | {"size": "i32"}
    compile_for_gpu(monkeypatch, tmp_path, kernel, types, {"BLOCK": swiglu.BLOCK})
