"""Causal attention on a GPU as three Triton kernels of our own, in which the T × T weights never reach memory.

`fused.causal_attention` comes here with CUDA tensors where Triton can be imported; nothing else imports this file, so
that a CPU needs no Triton. Tested under Triton's interpreter against `functional.scaled_dot_product_attention`, and
compiled for GPUs; not yet run or measured on one.

Shapes: N (batch · heads), T positions, K head dimension.
"""

# ruff: noqa: ANN001, ANN202, ANN401 - a kernel's arguments are Triton's own; a context takes any attribute
# mypy: disable-error-code="no-untyped-def, untyped-decorator, import-untyped"
# No `from __future__ import annotations`: Triton reads the annotations of a kernel.
import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK_BYTES = 8192  # of the queries or keys in a block, so that all a kernel needs fits into 99 KB of shared memory
LARGEST_WIDTH = 128  # a wider head would leave room for fewer than 16 of them, the smallest side of a matmul
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
LOG2_E = tl.constexpr(1.4426950408889634)  # GPUs have 2ˣ in hardware: eˣ = 2^(x · log₂ e)


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q kᵀ / √K + mask) v, in which position i attends to positions 0 … i, for one of `DTYPES`.

    Args:
        q: queries (N, T, K), K at most `LARGEST_WIDTH`.
        k: keys (N, T, K).
        v: values (N, T, K).

    Returns:
        (N, T, K), in the dtype of q; the softmax is float32, and the matmuls of float32 inputs are too, not TF32.
    """
    return _CausalAttention.apply(q.contiguous(), k.contiguous(), v.contiguous())  # type: ignore[no-any-return]


class _CausalAttention(torch.autograd.Function):
    """FlashAttention-2 (Dao 2023, algorithms 1 and 2), with blocks above the diagonal left out.

    Forward, for a block of queries over the blocks j of keys, S = q kⱼᵀ / √K masked, from m = -∞, l = 0, O = 0 on:

        m' = max(m, rowmax S);  P = exp(S - m');  l ← l exp(m - m') + rowsum P;  O ← O exp(m - m') + P vⱼ;  m ← m'

    and at the end O ← O / l. What is kept for the backward is one number per query, L = m + log l, the log-sum-exp.

    Backward, with P = exp(S - L), and Δ = rowsum(dO ∘ O) made beforehand:

        dv = Pᵀ dO;  dP = dO vᵀ;  dS = P ∘ (dP - Δ);  dq = dS k / √K;  dk = dSᵀ q / √K

    One kernel takes a block of keys and sums dk and dv over the queries, another takes a block of queries and sums dq
    over the keys: each makes P anew, and neither adds into what the other writes, so that the result is the same bits
    every time.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out, log_sums = torch.empty_like(q), torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
        grid, sizes = launch(q)
        with _on_device_of(q):
            _forward[grid](q, k, v, out, log_sums, *sizes)
        ctx.save_for_backward(q, k, v, out, log_sums)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, out, log_sums = ctx.saved_tensors
        grad_out = grad_out.contiguous()
        delta = (grad_out.float() * out.float()).sum(-1)
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        grid, sizes = launch(q)
        with _on_device_of(q):
            _backward_keys[grid](q, k, v, grad_out, log_sums, delta, grad_k, grad_v, *sizes)
            _backward_queries[grid](q, k, v, grad_out, log_sums, delta, grad_q, *sizes)
        return grad_q, grad_k, grad_v


def _on_device_of(q: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device. The compiler's own code sees to that, and cannot look into this."""
    return nullcontext() if torch.compiler.is_compiling() else torch.cuda.device_of(q)


def launch(q: Tensor) -> tuple[tuple[int], tuple[int, float, int, int, int]]:
    """Return the kernels' grid for q (N, T, K), one program a block of a sequence, and their last arguments."""
    number, length, width = q.shape
    padded = max(16, triton.next_power_of_2(width))
    block = min(64, BLOCK_BYTES // (padded * q.element_size()))
    return (number * triton.cdiv(length, block),), (length, 1 / math.sqrt(width), width, padded, block)


@triton.jit
def _forward(q_ptr, k_ptr, v_ptr, out_ptr, log_sums_ptr, length,
             SCALE: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr):
    first, row, matrix = _place(length, WIDTH, BLOCK)
    queries = first + tl.arange(0, BLOCK)
    q = _load(q_ptr + matrix, queries, length, WIDTH, PADDED)
    largest = tl.full([BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    out = tl.zeros([BLOCK, PADDED], tl.float32)
    for start in range(0, first + BLOCK, BLOCK):
        keys = start + tl.arange(0, BLOCK)
        k = _load(k_ptr + matrix, keys, length, WIDTH, PADDED)
        v = _load(v_ptr + matrix, keys, length, WIDTH, PADDED)
        scores = _dot(q, tl.trans(k)) * (SCALE * LOG2_E)
        # Keys behind the last one come behind every query, so this masks them too.
        scores = tl.where(queries[:, None] >= keys[None, :], scores, float("-inf"))
        larger = tl.maximum(largest, tl.max(scores, 1))
        weights = tl.exp2(scores - larger[:, None])
        shrink = tl.exp2(largest - larger)
        total = total * shrink + tl.sum(weights, 1)
        out = out * shrink[:, None] + _dot(weights.to(v.dtype), v)
        largest = larger
    _store(out_ptr + matrix, queries, out / total[:, None], length, WIDTH, PADDED)
    tl.store(log_sums_ptr + row + queries, largest + tl.log2(total), mask=queries < length)


@triton.jit
def _backward_keys(q_ptr, k_ptr, v_ptr, grad_out_ptr, log_sums_ptr, delta_ptr, grad_k_ptr, grad_v_ptr, length,
                   SCALE: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr):
    first, row, matrix = _place(length, WIDTH, BLOCK)
    keys = first + tl.arange(0, BLOCK)
    k = _load(k_ptr + matrix, keys, length, WIDTH, PADDED)
    v = _load(v_ptr + matrix, keys, length, WIDTH, PADDED)
    grad_k = tl.zeros([BLOCK, PADDED], tl.float32)
    grad_v = tl.zeros([BLOCK, PADDED], tl.float32)
    for start in range(first, length, BLOCK):
        queries = start + tl.arange(0, BLOCK)
        q = _load(q_ptr + matrix, queries, length, WIDTH, PADDED)
        grad_out = _load(grad_out_ptr + matrix, queries, length, WIDTH, PADDED)
        weights, grad_scores = _gradients_of_scores(
            q, k, v, grad_out, queries, keys, log_sums_ptr + row, delta_ptr + row, length, SCALE)
        grad_v += _dot(tl.trans(weights.to(v.dtype)), grad_out)
        grad_k += _dot(tl.trans(grad_scores.to(q.dtype)), q)
    _store(grad_k_ptr + matrix, keys, grad_k * SCALE, length, WIDTH, PADDED)
    _store(grad_v_ptr + matrix, keys, grad_v, length, WIDTH, PADDED)


@triton.jit
def _backward_queries(q_ptr, k_ptr, v_ptr, grad_out_ptr, log_sums_ptr, delta_ptr, grad_q_ptr, length,
                      SCALE: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr):
    first, row, matrix = _place(length, WIDTH, BLOCK)
    queries = first + tl.arange(0, BLOCK)
    q = _load(q_ptr + matrix, queries, length, WIDTH, PADDED)
    grad_out = _load(grad_out_ptr + matrix, queries, length, WIDTH, PADDED)
    grad_q = tl.zeros([BLOCK, PADDED], tl.float32)
    for start in range(0, first + BLOCK, BLOCK):
        keys = start + tl.arange(0, BLOCK)
        k = _load(k_ptr + matrix, keys, length, WIDTH, PADDED)
        v = _load(v_ptr + matrix, keys, length, WIDTH, PADDED)
        _, grad_scores = _gradients_of_scores(
            q, k, v, grad_out, queries, keys, log_sums_ptr + row, delta_ptr + row, length, SCALE)
        grad_q += _dot(grad_scores.to(k.dtype), k)
    _store(grad_q_ptr + matrix, queries, grad_q * SCALE, length, WIDTH, PADDED)


@triton.jit
def _gradients_of_scores(q, k, v, grad_out, queries, keys, log_sums_ptr, delta_ptr, length, SCALE: tl.constexpr):
    """P and dS of a block. Queries behind the last one read zeros, so that their dO and Δ, and so their dS, are 0."""
    log_sums = tl.load(log_sums_ptr + queries, mask=queries < length, other=0.0)
    delta = tl.load(delta_ptr + queries, mask=queries < length, other=0.0)
    scores = _dot(q, tl.trans(k)) * (SCALE * LOG2_E)
    weights = tl.where(queries[:, None] >= keys[None, :], tl.exp2(scores - log_sums[:, None]), 0.0)
    grad_weights = _dot(grad_out, tl.trans(v))
    return weights, weights * (grad_weights - delta[:, None])


@triton.jit
def _dot(a, b):
    """Matmul summed in float32. Triton's interpreter would multiply bfloat16's bits as integers, so it gets floats."""
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def _place(length, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """The first position of this program's block, and where its sequence begins in (N, T) and in (N, T, K)."""
    blocks = tl.cdiv(length, BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64) * length  # a batch may have more entries than an int32 counts
    return tl.program_id(0) % blocks * BLOCK, row, row * WIDTH


@triton.jit
def _load(matrix_ptr, rows, length, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    """Rows of a (T, K) matrix, filled up with zeros to `PADDED` columns and behind row T - 1."""
    columns = tl.arange(0, PADDED)
    inside = (rows[:, None] < length) & (columns[None, :] < WIDTH)
    return tl.load(matrix_ptr + rows[:, None] * WIDTH + columns[None, :], mask=inside, other=0.0)


@triton.jit
def _store(matrix_ptr, rows, values, length, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    """Write what `_load` would read, in the dtype of the matrix."""
    columns = tl.arange(0, PADDED)
    inside = (rows[:, None] < length) & (columns[None, :] < WIDTH)
    tl.store(matrix_ptr + rows[:, None] * WIDTH + columns[None, :], values.to(matrix_ptr.dtype.element_ty), mask=inside)
