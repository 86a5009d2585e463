"""The C kernels of a training step as autograd functions, as fused.py and objective.py call them on a CPU.

A kernel takes what a step spends outside its matmuls to one pass over memory each way. It multiplies and stores in the
dtype of the activations, float32 or bfloat16; what it adds up is float32. The plain forms are in functional.py.

Shapes: B batch, T positions, H heads, K head dimension, N rows, D d_model, F d_ff, V vocab_size.
"""

# ruff: noqa: ANN401 - the context of an autograd function takes any attribute
from __future__ import annotations

import ctypes
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tslm.model.hardware import cpu_multiplies_bfloat16
from tslm.model.native import build

SOURCES = tuple(Path(__file__).with_name(name) for name in ("attention.c", "passes.c"))
_WHAT = "the model is computed"
_libraries: dict[torch.dtype, ctypes.CDLL | None] = {}
TOGETHER = 64  # rows whose gradients of the gain are added up in one sum


def takes(x: Tensor, dtype: torch.dtype) -> bool:
    """Whether the kernels compute from `x` in `dtype`; the compiler is given torch's operators, which it can join."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling() and library(dtype) is not None


def library(dtype: torch.dtype) -> ctypes.CDLL | None:
    """The compiled kernels of a dtype; None where there are none: for another dtype, or with one warning."""
    if dtype not in _libraries:
        usable = dtype == torch.float32 or (dtype == torch.bfloat16 and cpu_multiplies_bfloat16())
        _libraries[dtype] = build.load(SOURCES, dtype, _WHAT) if usable else None
        if _libraries[dtype] is not None:
            from tslm.model.native.check import wrong_kernels  # which calls the kernels

            if wrong := wrong_kernels(dtype):
                _libraries[dtype] = None
                warnings.warn(f"{_WHAT} by torch's operators, more slowly: the C kernel computes something else "
                              f"({', '.join(wrong)} in {dtype})", stacklevel=2)
    return _libraries[dtype]


def self_attention(qkv: Tensor, rotation: Tensor | None, documents: Tensor | None = None) -> Tensor:
    """`fused.self_attention` of queries, keys and values (B, T, 3, H, K), K even, to (B, T, H, K)."""
    rotation = None if rotation is None else rotation.contiguous()
    documents = None if documents is None else documents.to(torch.int64).contiguous()
    return _SelfAttention.apply(qkv.contiguous(), rotation, documents)  # type: ignore[no-any-return]


def rms_norm(x: Tensor, gain: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """`fused.rms_norm` of x (..., D) in float32 to (..., D) in `dtype`."""
    return _RMSNorm.apply(x.contiguous(), gain.contiguous(), eps, dtype)  # type: ignore[no-any-return]


def swiglu_linear(gate_up: Tensor, weight: Tensor) -> Tensor:
    """`fused.swiglu_linear` of (..., 2F) and W (D, F), both in the dtype of the kernel, to (..., D)."""
    return _SwiGLULinear.apply(gate_up.contiguous(), weight)  # type: ignore[no-any-return]


def losses_and_gradient(logits: Tensor, targets: Tensor, with_grad: bool) -> tuple[Tensor, Tensor | None]:
    """Return the sum of -log softmax(logits)[target], and softmax(logits) - onehot(targets) in the logits' place.

    Shapes: logits (N, V), contiguous; targets (N).

    Raises:
        IndexError: a target is outside 0 … V-1.
    """
    rows, size = logits.shape
    losses, room = _floats(rows), _floats(torch.get_num_threads(), size)
    wrong = _call("cross_entropy", logits.dtype, rows, size, logits, targets.contiguous(), losses, with_grad, room)
    if wrong >= 0:
        raise IndexError(f"target {int(targets[wrong])} is outside the vocabulary of {size}")
    return losses.sum(), logits if with_grad else None


class _SelfAttention(torch.autograd.Function):
    """attention.c has the formulas; what is kept is the input, the output and L, the log-sum-exp of the scores."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, rotation: Tensor | None, documents: Tensor | None) -> Tensor:
        batch, length, _, heads, width = qkv.shape
        out, log_sums = qkv.new_empty(batch, length, heads, width), _floats(batch, heads, length)
        _attention(qkv, rotation, documents, out, log_sums, None, None)
        ctx.save_for_backward(qkv, rotation, documents, out, log_sums)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, None, None]:
        qkv, rotation, documents, out, log_sums = ctx.saved_tensors
        grad = torch.empty_like(qkv)
        _attention(qkv, rotation, documents, out, log_sums, grad_out.contiguous(), grad)
        return grad, None, None


def _attention(qkv: Tensor, *others: Tensor | None) -> None:
    """Call the kernel with memory to work in, a part for each thread."""
    batch, length, _, heads, width = qkv.shape
    words = _function("attention_room", qkv.dtype)
    words.restype = ctypes.c_size_t
    room = _floats(torch.get_num_threads(), words(length, width))
    _call("attention", qkv.dtype, batch, length, heads, width, qkv, *others, room)


class _RMSNorm(torch.autograd.Function):
    """As `fused._RMSNorm`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        rows, size = x.numel() // x.shape[-1], x.shape[-1]
        y, rates = torch.empty_like(x, dtype=dtype), _floats(rows)
        _call("rms_norm_forward", dtype, rows, size, x, gain, ctypes.c_float(eps), y, rates)
        ctx.save_for_backward(x, gain, rates)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, gain, rates = ctx.saved_tensors
        rows, size = len(rates), x.shape[-1]
        grad_x, grad_gains = torch.empty_like(x), _floats(-(-rows // TOGETHER), size)
        _call("rms_norm_backward", grad_y.dtype, rows, size, x, gain, rates, grad_y.contiguous(), grad_x, grad_gains,
              TOGETHER)
        return grad_x, grad_gains.sum(0), None, None


class _SwiGLULinear(torch.autograd.Function):
    """out = y Wᵀ for the y of `fused._SwiGLU`:  dy = dout W;  dW = doutᵀ y.

    y is a seventh of what a block keeps, and cheap: the backward makes it again in its one pass over g and u.
    """

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up, weight)
        y = gate_up.new_empty(*gate_up.shape[:-1], weight.shape[1])
        _call("swiglu_forward", y.dtype, y.numel() // y.shape[-1], y.shape[-1], gate_up, y)
        return y @ weight.T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, Tensor]:
        gate_up, weight = ctx.saved_tensors
        rows = grad_out.reshape(-1, grad_out.shape[-1])
        grad, y = torch.empty_like(gate_up), rows @ weight  # dy, in whose place the kernel leaves y
        _call("swiglu_backward", y.dtype, *y.shape, gate_up, y, grad)
        return grad, rows.T @ y


def _floats(*size: int) -> Tensor:
    """Room for C's floats, whatever torch's default dtype is: `bf16-true` and its like change it around each step."""
    return torch.empty(size, dtype=torch.float32)


def _call(name: str, dtype: torch.dtype, *arguments: Any) -> int:
    """Call a kernel: tensors become addresses, and the number of threads is the last argument of all of them."""
    given = [_address(each) if isinstance(each, Tensor) or each is None else each for each in arguments]
    return _function(name, dtype)(*given, torch.get_num_threads())  # type: ignore[no-any-return]


def _function(name: str, dtype: torch.dtype) -> Any:
    return getattr(_libraries[dtype], name)


def _address(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())
