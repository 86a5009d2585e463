"""The C kernels of a training step as autograd functions, each a substitute for one function of the core.

A kernel joins operations between two matmuls in one pass over memory forward and one backward. It multiplies and stores
in the dtype of the activations, float32 or bfloat16, and sums in float32.

Shapes: B batch, T positions, H heads, K head dimension, N rows, D d_model, F d_ff, V vocab_size.
"""

# ruff: noqa: ANN401 - the context of an autograd function takes any attribute
from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tslm.fast.chunked_loss import loss_probes, loss_substitute
from tslm.fast.cpu import build
from tslm.fast.door import Case, Substitute
from tslm.fast.forms import (
    TOLERANCES,
    Form,
    attends_to_itself,
    attention_case,
    attention_probes,
    cpu_multiplies_bfloat16,
    drawn,
    form_of,
    forms,
    loss_case,
    precise,
    tolerance,
)

SOURCES = tuple(Path(__file__).with_name(name) for name in ("attention.c", "norm_swiglu_loss.c"))
ROWS_PER_SUM = 64  # rows whose gradients of the gain are added in one sum
CHUNK_SIZE = 512  # tokens whose logits are in memory at a time; the processor's caches hold little more


def _supported(x: Tensor) -> Form | None:
    form = form_of(x)
    is_bfloat16 = form.compute_dtype == torch.bfloat16 and cpu_multiplies_bfloat16()
    return form if form.device == "cpu" and (is_bfloat16 or form.compute_dtype == torch.float32) else None


# --- RMSNorm


def rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """Substitute for `ops.rms_norm` of x (..., D) and gain (D), both float32."""
    dtype = form_of(x).compute_dtype
    return _RMSNorm.apply(x.contiguous(), gain.contiguous(), eps, dtype)  # type: ignore[no-any-return]


class _RMSNorm(torch.autograd.Function):
    """Only x and the rate r = 1 / √(mean(x²) + eps) are kept for the backward pass.

    With n = x r and y = n ∘ gain:  dgain = Σ_rows dy ∘ n;  dx = r (dy ∘ gain - n · mean(dy ∘ gain ∘ n)).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        """Return y in `dtype`, of the shape of x (..., size)."""
        rows, size = x.numel() // x.shape[-1], x.shape[-1]
        y, rates = torch.empty_like(x, dtype=dtype), _floats(rows)
        _call("rms_norm_forward", dtype, rows, size, x, gain, ctypes.c_float(eps), y, rates)
        ctx.save_for_backward(x, gain, rates)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """Return dx and dgain."""
        x, gain, rates = ctx.saved_tensors
        rows, size = len(rates), x.shape[-1]
        grad_x, grad_gains = torch.empty_like(x), _floats(-(-rows // ROWS_PER_SUM), size)
        _call("rms_norm_backward", grad_y.dtype, rows, size, x, gain, rates, grad_y.contiguous(), grad_x, grad_gains,
              ROWS_PER_SUM)
        return grad_x, grad_gains.sum(0), None, None


def _supports_rms_norm(x: Tensor, gain: Tensor, eps: float) -> Form | None:
    return _supported(x) if x.dtype == gain.dtype == torch.float32 else None


def _rms_norm_case(form: Form, rows: int, size: int) -> Case:
    return Case((drawn(rows, size, dtype=form.dtype, scale=3), drawn(size, dtype=form.dtype, seed=1), 0.1))


RMS_NORM = Substitute(
    rms_norm, _supports_rms_norm,
    probes=lambda form: _built(form, _rms_norm_case(form, 67, 41)), tolerance=tolerance, precise=precise,
    examples=lambda form: _rms_norm_case(form, 4096, 512),
    keys=lambda: [form for form in forms("cpu") if form.dtype == torch.float32],
)


# --- attention


def self_attention(
    qkv: Tensor, rotation: Tensor | None = None, document_starts: Tensor | None = None, *nothing: None
) -> Tensor:
    """Substitute for `ops.self_attention` of qkv (..., T, 3, H, K), K even, without cache or mask."""
    dtype = form_of(qkv).compute_dtype
    rotation = None if rotation is None else rotation.float().contiguous()
    if document_starts is not None:
        document_starts = document_starts.reshape(-1, document_starts.shape[-1]).to(torch.int64).contiguous()
    heads: Tensor = _SelfAttention.apply(
        qkv.reshape(-1, *qkv.shape[-4:]).to(dtype).contiguous(), rotation, document_starts)
    return heads.view(*qkv.shape[:-3], *qkv.shape[-2:])


class _SelfAttention(torch.autograd.Function):
    """attention.c has the formulas. The backward pass needs the input, the output and L, the scores' log-sum-exp."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, rotation: Tensor | None, document_starts: Tensor | None) -> Tensor:
        """Return the heads (B, T, H, K) of qkv (B, T, 3, H, K)."""
        batch, length, _, heads, width = qkv.shape
        out, log_sums = qkv.new_empty(batch, length, heads, width), _floats(batch, heads, length)
        _attention(qkv, rotation, document_starts, out, log_sums, None, None)
        ctx.save_for_backward(qkv, rotation, document_starts, out, log_sums)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient of qkv."""
        qkv, rotation, document_starts, out, log_sums = ctx.saved_tensors
        grad = torch.empty_like(qkv)
        _attention(qkv, rotation, document_starts, out, log_sums, grad_out.contiguous(), grad)
        return grad, None, None


def _attention(qkv: Tensor, *others: Tensor | None) -> None:
    """Call the kernel with a scratch buffer for each thread."""
    batch, length, _, heads, width = qkv.shape
    scratch_size = _function("attention_scratch", qkv.dtype)
    scratch_size.restype = ctypes.c_size_t
    scratch = _floats(torch.get_num_threads(), scratch_size(length, width))
    _call("attention", qkv.dtype, batch, length, heads, width, qkv, *others, scratch)


def _supports_attention(
    qkv: Tensor, rotation: Tensor | None = None, document_starts: Tensor | None = None, *cached: object
) -> Form | None:
    return _supported(qkv) if attends_to_itself(qkv, rotation, cached) else None


SELF_ATTENTION = Substitute(
    self_attention, _supports_attention,
    probes=lambda form: _built(form, *attention_probes(form)), tolerance=tolerance, precise=precise,
    examples=lambda form: attention_case(form, 16, 256, 16, 32, False), keys=lambda: forms("cpu"),
)


# --- SwiGLU and the down projection


def swiglu_linear(gate_up: Tensor, weight: Tensor) -> Tensor:
    """Substitute for `ops.swiglu_linear` of (..., 2F) and W (D, F)."""
    dtype = form_of(gate_up).compute_dtype
    return _SwiGLULinear.apply(gate_up.to(dtype).contiguous(), weight.to(dtype))  # type: ignore[no-any-return]


class _SwiGLULinear(torch.autograd.Function):
    """out = y Wᵀ for y = SiLU(g) ∘ u:  dy = dout W;  dW = doutᵀ y.

    With s = sigmoid(g):  du = dy ∘ g s;  dg = dy ∘ u ∘ (s + g s (1 - s)). To save memory, y is not kept:
    the backward pass computes it again in its one pass over g and u.
    """

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor, weight: Tensor) -> Tensor:
        """Return y Wᵀ for g and u side by side in `gate_up` (..., 2F) and W (D, F)."""
        ctx.save_for_backward(gate_up, weight)
        y = gate_up.new_empty(*gate_up.shape[:-1], weight.shape[1])
        _call("swiglu_forward", y.dtype, y.numel() // y.shape[-1], y.shape[-1], gate_up, y)
        return y @ weight.T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of `gate_up` and W."""
        gate_up, weight = ctx.saved_tensors
        rows = grad_out.reshape(-1, grad_out.shape[-1])
        grad, y = torch.empty_like(gate_up), rows @ weight  # dy, which the kernel overwrites with y
        _call("swiglu_backward", y.dtype, *y.shape, gate_up, y, grad)
        return grad, rows.T @ y


def _supports_swiglu(gate_up: Tensor, weight: Tensor) -> Form | None:
    return _supported(gate_up) if weight.dtype in TOLERANCES else None


def _swiglu_case(form: Form, rows: int, d_ff: int, d_model: int) -> Case:
    return Case((drawn(rows, 2 * d_ff, dtype=form.dtype), drawn(d_model, d_ff, dtype=form.dtype, seed=1, scale=0.1)))


SWIGLU_LINEAR = Substitute(
    swiglu_linear, _supports_swiglu,
    probes=lambda form: _built(form, _swiglu_case(form, 67, 41, 6)), tolerance=tolerance, precise=precise,
    examples=lambda form: _swiglu_case(form, 4096, 1344, 512), keys=lambda: forms("cpu"),
)


# --- the head and the loss


def row_losses(logits: Tensor, targets: Tensor, with_grad: bool) -> tuple[Tensor, Tensor | None]:
    """Return the sum of -log softmax(logits)[target], and softmax(logits) - onehot(targets), which overwrites `logits`.

    Shapes: logits (N, V), contiguous; targets (N).

    Raises:
        IndexError: a target is outside 0 … V-1.
    """
    rows, size = logits.shape
    losses, scratch = _floats(rows), _floats(torch.get_num_threads(), size)
    wrong = _call("cross_entropy", logits.dtype, rows, size, logits, targets.contiguous(), losses, with_grad, scratch)
    if wrong >= 0:
        raise IndexError(f"target {int(targets[wrong])} is outside the vocabulary of {size}")
    return losses.sum(), logits if with_grad else None


LINEAR_AND_LOSS = loss_substitute(
    row_losses, CHUNK_SIZE, lambda hidden, weight: _supported(hidden) if weight.dtype in TOLERANCES else None,
    probes=lambda form: _built(form, *loss_probes(form)), keys=lambda: forms("cpu"),
    examples=lambda form: loss_case(form, 2048, 512, 10_000, None),
)


# --- calling C


def _built(form: Form, *cases: Case) -> tuple[Case, ...]:
    """Compile the library and return the probes, whose sizes are multiples of no block or vector of the kernels.

    Raises:
        UnavailableError: the library cannot be compiled or loaded.
    """
    build.load(SOURCES, form.compute_dtype)
    return cases


def _floats(*size: int) -> Tensor:
    """Allocate C floats. The dtype is explicit, because precision `bf16-true` changes torch's default dtype."""
    return torch.empty(size, dtype=torch.float32)


def _call(name: str, dtype: torch.dtype, *arguments: Any) -> int:
    """Call a kernel: tensors become addresses, and the last argument of every kernel is the number of threads."""
    converted = [_address(each) if isinstance(each, Tensor) or each is None else each for each in arguments]
    return _function(name, dtype)(*converted, torch.get_num_threads())  # type: ignore[no-any-return]


def _function(name: str, dtype: torch.dtype) -> Any:
    return getattr(build.load(SOURCES, dtype), name)


def _address(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())
