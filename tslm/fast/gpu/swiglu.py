"""SwiGLU on a GPU: one Triton kernel each way, for gate and up side by side.

A compiler writes the two gradients in two passes that both read the inputs.

Shapes: N rows, F d_ff.
"""

# ruff: noqa: ANN001, ANN202 - a kernel's arguments are Triton's own
# mypy: disable-error-code="no-untyped-def, untyped-decorator, import-untyped, no-untyped-call, no-any-return"
# No `from __future__ import annotations`: Triton reads the annotations of a kernel, and torch those of an operator.
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tslm.fast.door import Case, Substitute
from tslm.fast.forms import Form, drawn, form_of
from tslm.fast.gpu import TOLERANCES, forms, precise

BLOCK = 512  # entries of a row in a program


def swiglu_linear(gate_up: Tensor, weight: Tensor) -> Tensor:
    """Substitute for `ops.swiglu_linear` of (..., 2F) and W (D, F)."""
    return swiglu(gate_up) @ weight.to(form_of(gate_up).compute_dtype).T


def swiglu(gate_up: Tensor) -> Tensor:
    """SiLU(gate) · up: (..., 2F) to (..., F), in the dtype of `gate_up`, computed in float32."""
    rows = gate_up.contiguous().flatten(0, -2)
    return _swiglu(rows).view(*gate_up.shape[:-1], -1)


# Registered operators, which the compiler takes as they are.
@torch.library.custom_op("tslm::swiglu", mutates_args=())
def _swiglu(gate_up: Tensor) -> Tensor:
    rows, size = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty(rows, size)
    with torch.cuda.device_of(out):
        _forward[(rows * triton.cdiv(size, BLOCK),)](gate_up, out, size, BLOCK)
    return out


@torch.library.custom_op("tslm::swiglu_backward", mutates_args=())
def _swiglu_backward(gate_up: Tensor, grad_out: Tensor) -> Tensor:
    rows, size = grad_out.shape
    grad = torch.empty_like(gate_up)
    with torch.cuda.device_of(grad):
        _backward_both[(rows * triton.cdiv(size, BLOCK),)](gate_up, grad_out.contiguous(), grad, size, BLOCK)
    return grad


@_swiglu.register_fake
def _swiglu_shape(gate_up: Tensor) -> Tensor:
    return gate_up.new_empty(gate_up.shape[0], gate_up.shape[1] // 2)


@_swiglu_backward.register_fake
def _swiglu_backward_shape(gate_up: Tensor, grad_out: Tensor) -> Tensor:
    return torch.empty_like(gate_up)


def _save(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:  # noqa: ANN401
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad_out: Tensor) -> Tensor:  # noqa: ANN401
    return _swiglu_backward(*ctx.saved_tensors, grad_out)


_swiglu.register_autograd(_backward, setup_context=_save)


@triton.jit
def _forward(gate_up_ptr, out_ptr, size, BLOCK: tl.constexpr):
    row, at, inside = _position(size, BLOCK)
    gate = tl.load(gate_up_ptr + row * 2 * size + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + row * 2 * size + size + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * size + at, (gate * tl.sigmoid(gate) * up).to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _backward_both(gate_up_ptr, grad_out_ptr, grad_ptr, size, BLOCK: tl.constexpr):
    """With s = sigmoid(g) and y = g s u:  du = dy g s;  dg = dy u (s + g s (1 - s))."""
    row, at, inside = _position(size, BLOCK)
    gate = tl.load(gate_up_ptr + row * 2 * size + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + row * 2 * size + size + at, mask=inside, other=0.0).to(tl.float32)
    grad_out = tl.load(grad_out_ptr + row * size + at, mask=inside, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    activated = gate * sigmoid
    grad_gate = grad_out * up * (sigmoid + activated * (1 - sigmoid))
    to = grad_ptr + row * 2 * size + at
    tl.store(to, grad_gate.to(grad_ptr.dtype.element_ty), mask=inside)
    tl.store(to + size, (grad_out * activated).to(grad_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _position(size, BLOCK: tl.constexpr):
    """Return this program's row, its offsets in the row, and which of them exist."""
    blocks = tl.cdiv(size, BLOCK)
    at = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    return (tl.program_id(0) // blocks).to(tl.int64), at, at < size


def _supports(gate_up: Tensor, weight: Tensor) -> Form | None:
    return form_of(gate_up) if gate_up.dtype in TOLERANCES and weight.dtype in TOLERANCES else None


def _case(form: Form, rows: int, d_ff: int, d_model: int) -> Case:
    gate_up = drawn(rows, 2 * d_ff, dtype=form.dtype, device=form.device)
    return Case((gate_up, drawn(d_model, d_ff, dtype=form.dtype, device=form.device, seed=1, scale=0.1)))


SWIGLU_LINEAR = Substitute(
    swiglu_linear, _supports, probes=lambda form: [_case(form, 67, 41, 6)],
    tolerance=lambda form: TOLERANCES[form.compute_dtype], precise=precise, traceable=True,
    examples=lambda form: _case(form, 32_768, 1344, 512), keys=forms,
)
