"""The formulas of functional.py as autograd functions that pass over memory fewer times and keep less for the backward.

Training spends its time either in matmuls or in moving activations through memory; these forms cut the second part.
Each is tested against its plain counterpart, forward and gradient. The derivatives are written out in the docstrings.
A CPU goes on from here to kernels in C (native/), a GPU to Triton's; what is written here is for where there are none.

Shapes: N rows or (batch · heads), T positions, K head dimension, D d_model, F d_ff.
"""

# ruff: noqa: ANN401 - the context of an autograd function takes any attribute
from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tslm.model import functional, hardware, native
from tslm.model.hardware import matmul_dtype
from tslm.model.rope import rotate

QUERY_BLOCK = 64  # queries per block; 32 to 128 measured alike at 128 to 256 positions, larger is slower


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q kᵀ / √K + mask) v, in which position i attends to positions 0 … i: -inf in the mask above the diagonal.

    The plain form is `functional.scaled_dot_product_attention` with `functional.causal_mask`.

    Args:
        q: queries (..., T, K).
        k: keys (..., T, K).
        v: values (..., T, any width).

    Returns:
        (..., T, width of v), in the dtype of `hardware.matmul_dtype(q)`; the softmax is float32.
    """
    flat = (x.reshape(-1, *x.shape[-2:]).to(matmul_dtype(x)) for x in (q, k, v))
    return _CausalAttention.apply(*flat).view(*q.shape[:-1], v.shape[-1])  # type: ignore[no-any-return]


def self_attention(qkv: Tensor, rotation: Tensor | None, documents: Tensor | None = None) -> Tensor:
    """`causal_attention` among the positions 0 … T-1 of each head, with queries and keys turned by `rope.rotate`.

    Args:
        qkv: queries, keys and values side by side, (..., T, 3, H, K).
        rotation: rows of `RotaryEmbedding.at` for the T positions, (T, K/2, 2); None for no RoPE.
        documents: where each position's document begins, int64 (..., T): a position attends to nothing before that, as
            with `functional.document_mask`. None where each sequence is one document.

    Returns:
        (..., T, H, K).
    """
    kernels = _kernels_of_attention(qkv)
    if kernels is not None:
        flat = None if documents is None else documents.reshape(-1, documents.shape[-1])
        heads = kernels(qkv.reshape(-1, *qkv.shape[-4:]), rotation, flat)
        return heads.view(*qkv.shape[:-3], *qkv.shape[-2:])
    q, k, v = (part.transpose(-3, -2) for part in qkv.unbind(-3))  # each (..., H, T, K)
    if rotation is not None:
        q, k = rotate(q, rotation), rotate(k, rotation)
    if documents is None:
        return causal_attention(q, k, v).transpose(-3, -2)
    mask = functional.document_mask(documents).unsqueeze(-3)  # the same for every head
    return functional.scaled_dot_product_attention(q, k, v, mask).transpose(-3, -2)


def _kernels_of_attention(qkv: Tensor) -> Callable[[Tensor, Tensor | None, Tensor | None], Tensor] | None:
    """What attends in one piece, on this tensor's device and with its numbers; None where torch's operators do it."""
    if qkv.is_cuda and hardware.TRITON:
        from tslm.model import triton_attention  # a CPU never imports it

        if triton_attention.takes(qkv):
            return triton_attention.self_attention
    return native.self_attention if qkv.shape[-1] % 2 == 0 and native.takes(qkv, qkv.dtype) else None


def rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """Root-mean-square normalisation, x / √(mean(x²) + eps) · gain over the last dimension, computed in float32.

    The plain form is `functional.rms_norm`.

    Shapes: x (..., D), gain (D); the result has the shape of x, and the dtype of `hardware.matmul_dtype(x)`.
    """
    dtype = matmul_dtype(x)
    if x.dtype == gain.dtype == torch.float32 and native.takes(x, dtype):
        return native.rms_norm(x, gain, eps, dtype)
    return _RMSNorm.apply(x, gain, eps, dtype)  # type: ignore[no-any-return]


def swiglu_linear(gate_up: Tensor, weight: Tensor) -> Tensor:
    """`swiglu_together`, and a linear map of it: (SiLU(gate) · up) Wᵀ.

    Shapes: gate_up (..., 2F), W (D, F); the result (..., D).
    """
    if gate_up.dtype == weight.dtype and native.takes(gate_up, gate_up.dtype):
        return native.swiglu_linear(gate_up, weight)
    return swiglu_together(gate_up) @ weight.T


def swiglu_together(gate_up: Tensor) -> Tensor:
    """SiLU(gate) · up for gate and up side by side in one tensor; the plain form is `functional.swiglu`.

    Shapes: (..., 2F) to (..., F), in the dtype of `gate_up`.
    """
    if gate_up.is_cuda and hardware.TRITON:
        from tslm.model import triton_swiglu

        if triton_swiglu.takes(gate_up):
            return triton_swiglu.swiglu(gate_up)
    if torch.compiler.is_compiling():
        return functional.swiglu(*gate_up.chunk(2, -1))  # of which the compiler makes one pass each way by itself
    return _SwiGLU.apply(gate_up)  # type: ignore[no-any-return]


class _CausalAttention(torch.autograd.Function):
    """Queries are taken a block at a time against the keys up to the block's end, so the masked half is never computed.

    With P = softmax(S), S = q kᵀ / √K and O = P v, and writing dX for the gradient of the loss with respect to X:
    dv = Pᵀ dO;  dP = dO vᵀ;  dS = P ∘ (dP - Δ) with Δ = rowsum(P ∘ dP) = rowsum(dO ∘ O);  dq = dS k / √K;
    dk = dSᵀ q / √K. Only the blocks of P at and below the diagonal are kept.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scale, weights, outs = 1 / math.sqrt(q.shape[2]), [], []
        later = torch.ones(QUERY_BLOCK, QUERY_BLOCK, dtype=torch.bool, device=q.device).triu_(1)
        for start, end in _query_blocks(q.shape[1]):
            scores = torch.bmm(q[:, start:end], k[:, :end].transpose(1, 2))  # (N, block, end)
            scores = (scores.float() if scores.dtype != torch.float64 else scores).mul_(scale)
            scores[:, :, start:].masked_fill_(later[: end - start, : end - start], -math.inf)
            scores.sub_(scores.amax(-1, keepdim=True)).exp_()
            weights.append(scores.div_(scores.sum(-1, keepdim=True)).to(v.dtype))
            outs.append(torch.bmm(weights[-1], v[:, :end]))
        out = torch.cat(outs, 1)
        ctx.save_for_backward(q, k, v, out, *weights)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, out, *weights = ctx.saved_tensors
        scale = 1 / math.sqrt(q.shape[2])
        grad_q, grad_k, grad_v = [], torch.zeros_like(k[:, :0]), torch.zeros_like(v[:, :0])
        delta = (grad_out * out).sum(-1, keepdim=True)
        # From the last block on: its queries see every key, so that its products are where the sums over blocks start.
        for (start, end), weight in zip(reversed(_query_blocks(q.shape[1])), reversed(weights), strict=True):
            grad = grad_out[:, start:end]
            grad_scores = torch.bmm(grad, v[:, :end].transpose(1, 2)).sub_(delta[:, start:end]).mul_(weight).mul_(scale)
            grad_q.append(torch.bmm(grad_scores, k[:, :end]))
            of_k = torch.bmm(grad_scores.transpose(1, 2), q[:, start:end])
            of_v = torch.bmm(weight.transpose(1, 2), grad)
            if end == q.shape[1]:
                grad_k, grad_v = of_k, of_v
            else:
                grad_k[:, :end] += of_k
                grad_v[:, :end] += of_v
        return torch.cat(grad_q[::-1], 1), grad_k, grad_v


def _query_blocks(length: int) -> list[tuple[int, int]]:
    """Where each block of queries starts and ends."""
    return [(start, min(start + QUERY_BLOCK, length)) for start in range(0, length, QUERY_BLOCK)]


class _RMSNorm(torch.autograd.Function):
    """Only x and the rate r = 1 / √(mean(x²) + eps) are kept for the backward.

    With n = x r and y = n ∘ gain:  dgain = Σ_rows dy ∘ n;  dx = r (dy ∘ gain - n · mean(dy ∘ gain ∘ n)).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        x32 = x.float() if x.dtype != torch.float64 else x
        rate = torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, gain, rate)
        return (x32 * rate).mul_(gain).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, gain, rate = ctx.saved_tensors
        normal = x * rate
        product = grad_y * normal
        grad_gain = product.sum(tuple(range(product.ndim - 1)))
        mean = (product @ gain.to(product.dtype)).unsqueeze(-1).div_(x.shape[-1])
        grad_x = (grad_y * gain).sub_(normal.mul_(mean)).mul_(rate)
        return grad_x.to(x.dtype), grad_gain.to(gain.dtype), None, None


class _SwiGLU(torch.autograd.Function):
    """Only the gate g and the other factor u are kept for the backward.

    With s = sigmoid(g) and y = g s u:  du = dy ∘ g s;  dg = dy ∘ u ∘ (s + g s (1 - s)).
    """

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, -1)
        return torch.sigmoid(gate).mul_(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        gate, up = gate_up.chunk(2, -1)
        grad = torch.empty_like(gate_up)
        grad_gate, grad_up = grad.chunk(2, -1)
        sigmoid = torch.sigmoid(gate)
        activated = sigmoid * gate
        torch.mul(grad_y, activated, out=grad_up)
        slope = activated.addcmul_(activated, sigmoid, value=-1).add_(sigmoid)  # g s - g s² + s
        torch.mul(slope.mul_(up), grad_y, out=grad_gate)
        return grad
