"""The Triton kernels of attention in Triton's interpreter against the formula, values and gradients."""

import itertools
import subprocess
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.conftest import needs_open_door
from tests.interpreted import compile_for_gpu, interpreted
from tslm.fast import door
from tslm.fast.forms import Form
from tslm.model import ops
from tslm.model.attention import MultiHeadSelfAttention
from tslm.model.rope import RotaryEmbedding
from tslm.model.transformer import TransformerBlock

WIDTHS, LENGTHS, ROUNDED = [32, 24], [1, 7, 64, 130], [7, 130]
CHILD = f"""
from tests.fast.gpu.test_attention import document_starts, inputs
from tslm.fast.gpu.attention import self_attention
def run(key, qkv, rotation, probe, starts=None):
    out = self_attention(qkv, rotation, starts)
    results[key] = [out.detach(), *torch.autograd.grad(out, qkv, probe)]
for length in {LENGTHS}:
    run(("documents", length), *inputs(length, 24, torch.float32), document_starts(length))
qkv, rotation, probe = inputs(130, 32, torch.float32)
run("whole", qkv, rotation, probe, torch.zeros(2, 130, dtype=torch.int64))
for width in {WIDTHS}:
    for length in {LENGTHS}:
        for dtype in (torch.float32, torch.bfloat16) if length in {ROUNDED} else (torch.float32,):
            run((width, length, str(dtype)), *inputs(length, width, dtype))
qkv, rotation, probe = inputs(70, 80, torch.float32)
run((80, 70, "torch.float32"), qkv, rotation, probe)  # in blocks of 16
run("unrotated", qkv, None, probe)
factors = torch.tensor([100.0, 1000.0, 1.0])[:, None, None]
run("large", (factors * qkv).detach().requires_grad_(), rotation, probe)
"""


def inputs(length, width, dtype):
    """Queries, keys and values as the projection lays them out, the angles, and a gradient of the output."""
    torch.manual_seed(1000 * width + length)
    qkv = torch.randn(2, length, 3, 2, width).to(dtype).requires_grad_()
    return qkv, RotaryEmbedding(width, length).table, torch.randn(2, length, 2, width).to(dtype)


def document_starts(length):
    """Where documents begin: in one sequence of 2 and 3 tokens and all the rest, in the other of 71 and the rest."""
    positions = torch.arange(length)
    first = torch.where(positions < 2, 0, torch.where(positions < 5, 2, 5))
    return torch.stack([first, torch.where(positions < 71, 0, 71)])


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return interpreted(tmp_path_factory.mktemp("triton"), CHILD)


def plain(qkv, rotation, probe, starts=None):
    """Output and gradient of the formula on the same numbers, computed in float32."""
    qkv = qkv.detach().float().requires_grad_()
    out = ops.self_attention.plain(qkv, rotation, starts)
    return [out.detach(), *torch.autograd.grad(out, qkv, probe.float())]


@pytest.mark.parametrize(("width", "length"), [*itertools.product(WIDTHS, LENGTHS), (80, 70)])
def test_the_kernels_equal_the_masked_formula(results, width, length):
    expected = plain(*inputs(length, width, torch.float32))
    for ours, theirs in zip(results[width, length, "torch.float32"], expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_kernels_equal_the_masked_formula_without_angles(results):
    qkv, _, probe = inputs(70, 80, torch.float32)
    for ours, theirs in zip(results["unrotated"], plain(qkv, None, probe), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("length", LENGTHS)
def test_the_kernels_keep_documents_apart(results, length):
    expected = plain(*inputs(length, 24, torch.float32), document_starts(length))
    for ours, theirs in zip(results["documents", length], expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_one_document_is_no_document(results):
    assert all(map(torch.equal, results["whole"], results[32, 130, "torch.float32"]))


@pytest.mark.parametrize("length", ROUNDED)
@pytest.mark.parametrize("width", WIDTHS)
def test_the_kernels_in_bfloat16_stay_within_its_rounding(results, width, length):
    ours, expected = results[width, length, "torch.bfloat16"], plain(*inputs(length, width, torch.bfloat16))
    torch.testing.assert_close(ours[0].float(), expected[0], rtol=2e-2, atol=2e-2)  # steps of 1/256
    for one, other in zip(ours, expected, strict=True):
        assert one.dtype == torch.bfloat16
        assert (one.float() - other).norm() <= 0.015 * other.norm()  # the interpreter cuts bits off; GPUs round


def test_the_kernels_survive_scores_of_1e4(results):
    assert all(tensor.isfinite().all() for tensor in results["large"])


@pytest.mark.parametrize(("dtype", "width"), [(torch.bfloat16, 32), (torch.float32, 128)])
@pytest.mark.parametrize("name", ["forward", "backward_keys", "backward_queries"])
@pytest.mark.parametrize("documents", [False, True])
def test_the_kernels_compile_for_a_gpu_and_fit_its_shared_memory(monkeypatch, tmp_path, name, dtype, width, documents):
    pytest.importorskip("triton", reason="Triton has no wheels for this system")
    from tslm.fast.gpu import attention, attention_kernels

    _, _, *constants = attention.Launch.of(torch.empty(2, 256, 3, 4, width, dtype=dtype))
    kernel = getattr(attention_kernels, name)
    constants = dict(zip(("SCALE", "HEADS", "WIDTH", "PADDED", "BLOCK"), constants, strict=True))
    if not documents:
        constants["starts_ptr"] = None
    number = {torch.bfloat16: "*bf16", torch.float32: "*fp32"}[dtype]
    types = dict.fromkeys(("qkv_ptr", "out_ptr", "grad_out_ptr", "grad_ptr"), number)
    types |= {"length": "i32", "starts_ptr": "*i64"}
    # The smallest GPUs since the A100 have 99 KB for a program.
    assert compile_for_gpu(monkeypatch, tmp_path, kernel, types, constants) <= 99 * 1024


def test_rotation_compiles_for_a_gpu(monkeypatch, tmp_path):
    pytest.importorskip("triton", reason="Triton has no wheels for this system")
    from tslm.fast.gpu.attention_kernels import rotate

    types = {"qkv_ptr": "*bf16", "rotated_ptr": "*bf16", "length": "i32", "size": "i32"}
    compile_for_gpu(monkeypatch, tmp_path, rotate, types, {"COPIES": True, "WIDTH": 32, "SPACE": 512})


def test_the_kernels_support_what_fits():
    pytest.importorskip("triton", reason="Triton has no wheels for this system")
    from tslm.fast.gpu.attention import SELF_ATTENTION

    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert SELF_ATTENTION.supports(torch.empty(1, 1, 3, 1, 32, dtype=dtype)) is not None
    assert SELF_ATTENTION.supports(torch.empty(1, 1, 3, 1, 32, dtype=torch.float64)) is None
    assert SELF_ATTENTION.supports(torch.empty(1, 1, 3, 1, 192)) is None
    assert SELF_ATTENTION.supports(torch.empty(1, 1, 3, 1, 7)) is None


@pytest.mark.parametrize("rotated", [True, False])
def test_the_layer_gives_the_same_with_positions_and_without(rotated):
    torch.manual_seed(0)
    layer, x, rope = MultiHeadSelfAttention(16, 2), torch.randn(3, 5, 16), RotaryEmbedding(8, 5)
    rotation = rope.at(None, 5) if rotated else None
    each = rope.at(torch.arange(5).expand(3, 5), 5) if rotated else None
    mask = ops.causal_mask(5).expand(3, 5, 5)
    torch.testing.assert_close(layer(x, rotation), layer(x, each, mask=mask))


def test_a_cpu_never_imports_triton():
    source = (
        "import sys, torch, tslm\n"
        "from tslm.model import ops\n"
        "ops.self_attention(torch.randn(1, 4, 3, 2, 8))\n"
        "ops.swiglu_linear(torch.randn(4, 8), torch.randn(3, 4))\n"
        "assert not any(name.startswith(('tslm.fast.gpu', 'triton')) for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", source], check=True)


@needs_open_door
def test_the_compiler_sees_the_kernels_of_a_gpu_and_the_formulas_without_them(monkeypatch):
    """With tensors that have a device and a shape but no numbers, so that it needs no GPU."""
    pytest.importorskip("triton", reason="Triton has no wheels for this system")
    from tslm.fast.gpu.attention import SELF_ATTENTION

    found = []

    def backend(graph, inputs):
        found.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    def compiled():
        torch.compiler.reset()
        found.clear()
        with FakeTensorMode(allow_non_fake_inputs=True):
            with torch.device("cuda"):
                block, x, rotation = TransformerBlock(32, 2, 48), torch.randn(2, 8, 32), torch.randn(8, 8, 2)
            out = torch.compile(block, backend=backend, fullgraph=True)(x, rotation)
        assert (out.device.type, out.shape) == ("cuda", (2, 8, 32))
        return {name for name in found if name.startswith("tslm.")}

    def agreed(*forms):
        return {("tslm.model.ops.self_attention", "cuda"): (SELF_ATTENTION, set(forms))}

    door.forget()
    assert compiled() == set()  # nothing has been compared yet
    monkeypatch.setattr(door, "_for_compiler", agreed(Form("cuda", torch.float32)))
    assert compiled() == {"tslm.self_attention.default"}
    monkeypatch.setattr(door, "_for_compiler", agreed(Form("cuda", torch.bfloat16)))  # another form than this one
    assert compiled() == set()
