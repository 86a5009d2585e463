"""The Triton kernels under Triton's interpreter against the plain formula, forward and gradients, and who takes them.

Whether a kernel is interpreted is decided when its file is imported, so one child process makes all the results.
"""

import itertools
import os
import subprocess
import sys

import pytest
import torch

from tslm.model import functional, fused

pytest.importorskip("triton", reason="Triton has no wheels for this system")

WIDTHS, LENGTHS = [32, 24], [1, 7, 64, 200, 256]
CHILD = f"""
import sys, torch
from tests.model.test_triton_attention import inputs
from tslm.model.triton_attention import causal_attention
results = {{}}
for width in {WIDTHS}:
    for length in {LENGTHS}:
        for dtype in (torch.float32, torch.bfloat16):
            *qkv, probe = inputs(length, width, dtype)
            out = causal_attention(*qkv)
            results[width, length, str(dtype)] = [out.detach(), *torch.autograd.grad(out, qkv, probe)]
*qkv, probe = inputs(70, 80, torch.float32)  # in blocks of 16
out = causal_attention(*qkv)
results[80, 70, "torch.float32"] = [out.detach(), *torch.autograd.grad(out, qkv, probe)]
q, k, v = 100 * qkv[0], 1000 * qkv[1], qkv[2]
out = causal_attention(q, k, v)
results["large"] = [out.detach(), *torch.autograd.grad(out, (q, k, v), probe)]
torch.save(results, sys.argv[1])
"""


def inputs(length, width, dtype):
    """q, k and v with the strides that they have in the model, and a gradient of the output."""
    torch.manual_seed(1000 * width + length)
    qkv = [torch.randn(1, length, 2, width).transpose(1, 2).flatten(0, 1).to(dtype) for _ in range(3)]
    return *(part.requires_grad_() for part in qkv), torch.randn(2, length, width).to(dtype)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    path = tmp_path_factory.mktemp("triton") / "results.pt"
    environment = os.environ | {"TRITON_INTERPRET": "1", "TRITON_CACHE_DIR": str(path.parent)}
    child = subprocess.run([sys.executable, "-c", CHILD, str(path)], env=environment, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    return torch.load(path, weights_only=True)


def plain(length, width, dtype):
    """Output and gradients of the formula on the same numbers, computed in float32."""
    *qkv, probe = (tensor.detach().float() for tensor in inputs(length, width, dtype))
    qkv = [part.requires_grad_() for part in qkv]
    out = functional.scaled_dot_product_attention(*qkv, functional.causal_mask(length))
    return [out.detach(), *torch.autograd.grad(out, qkv, probe)]


@pytest.mark.parametrize(("width", "length"), [*itertools.product(WIDTHS, LENGTHS), (80, 70)])
def test_triton_attention_equals_the_masked_formula(results, width, length):
    for ours, theirs in zip(results[width, length, "torch.float32"], plain(length, width, torch.float32), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("width", WIDTHS)
def test_triton_attention_in_bfloat16_stays_within_its_rounding(results, width, length):
    ours, expected = results[width, length, "torch.bfloat16"], plain(length, width, torch.bfloat16)
    torch.testing.assert_close(ours[0].float(), expected[0], rtol=2e-2, atol=2e-2)  # steps of 1/256
    for one, other in zip(ours, expected, strict=True):
        assert one.dtype == torch.bfloat16
        # The interpreter cuts bits off where a GPU rounds. With one position q and k have no influence: gradients of 0.
        assert (one.float() - other).norm() <= 0.01 * other.norm() + (0.02 if length == 1 else 0)


def test_triton_attention_survives_scores_of_1e4(results):
    assert all(tensor.isfinite().all() for tensor in results["large"])


@pytest.mark.parametrize(("dtype", "width"), [(torch.bfloat16, 32), (torch.float32, 128)])
@pytest.mark.parametrize("kernel", ["_forward", "_backward_keys", "_backward_queries"])
def test_the_kernels_compile_for_a_gpu_and_fit_its_shared_memory(monkeypatch, tmp_path, kernel, dtype, width):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from tslm.model import triton_attention

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = getattr(triton_attention, kernel)
    _, sizes = triton_attention.launch(torch.empty(2, 256, width, dtype=dtype))
    constants = dict(zip(("SCALE", "WIDTH", "PADDED", "BLOCK"), sizes[1:], strict=True))
    number = {torch.bfloat16: "*bf16", torch.float32: "*fp32"}[dtype]
    types = {"length": "i32", "log_sums_ptr": "*fp32", "delta_ptr": "*fp32"}
    signature = {name: "constexpr" if name in constants else types.get(name, number) for name in kernel.arg_names}
    # An A100, whose kind of matmul all later ones know; the smallest GPUs since then have 99 KB for a program.
    compiled = compile(ASTSource(kernel, signature, constants), GPUTarget("cuda", 80, 32))
    assert compiled.metadata.shared <= 99 * 1024


def test_the_kernels_take_what_fits(monkeypatch):
    from tslm.model.triton_attention import causal_attention

    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert fused._attention_kernels(dtype, 32, 32) is causal_attention
    for dtype, width, value_width in [(torch.float64, 32, 32), (torch.float32, 192, 192), (torch.float32, 32, 64)]:
        assert fused._attention_kernels(dtype, width, value_width) is None
    monkeypatch.setitem(sys.modules, "tslm.model.triton_attention", None)  # as if importing it failed
    assert fused._attention_kernels(torch.float32, 32, 32) is None


def test_cuda_tensors_go_to_the_kernels(monkeypatch):
    """With a tensor that only says it were one."""

    class Cuda(torch.Tensor):
        is_cuda = True

    calls = []

    def kernels(q, k, v):
        calls.append(q.shape)
        return fused._CausalAttention.apply(q, k, v)

    q, k, v = torch.randn(3, 2, 5, 7, 8).unbind(0)
    expected = fused.causal_attention(q, k, v)
    monkeypatch.setattr(fused, "_attention_kernels", lambda *what: kernels)
    assert torch.equal(fused.causal_attention(q.as_subclass(Cuda), k, v).as_subclass(torch.Tensor), expected)
    assert calls == [(10, 7, 8)]


def test_a_cpu_never_imports_triton():
    source = (
        "import sys, torch, tslm\n"
        "from tslm.model.fused import causal_attention\n"
        "causal_attention(*torch.randn(3, 1, 4, 8).unbind(0))\n"
        "assert 'tslm.model.triton_attention' not in sys.modules and 'triton' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", source], check=True)
