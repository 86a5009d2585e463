"""Causal self-attention on a GPU by the kernels of triton_attention_kernels.py: queries, keys and values in, heads out.

They come side by side, as the projection writes them; one kernel turns them by their positions, and the others take
them from where they lie. `fused.self_attention` comes here with CUDA tensors where Triton can be imported; nothing else
imports this file, so that a CPU needs no Triton. Tested under Triton's interpreter against
`functional.scaled_dot_product_attention`.

Shapes: B batch, T positions, H heads, K head dimension.
"""

# mypy: disable-error-code="untyped-decorator, import-untyped, no-untyped-call, no-any-return"
# No `from __future__ import annotations`: torch reads the annotations of an operator.
import math
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from tslm.model import triton_attention_kernels as kernels

BLOCK_BYTES = 8192  # of the queries or keys in a block, so that all a kernel needs fits into 99 KB of shared memory
LARGEST_WIDTH = 128  # a wider head would leave room for fewer than 16 of them, the smallest side of a matmul
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def takes(qkv: Tensor) -> bool:
    """Whether the kernels are made for this dtype and head dimension."""
    return qkv.dtype in DTYPES and qkv.shape[-1] <= LARGEST_WIDTH and qkv.shape[-1] % 2 == 0


def self_attention(qkv: Tensor, rotation: Tensor | None, documents: Tensor | None = None) -> Tensor:
    """softmax(q kᵀ / √K + mask) v of each head, in which position i attends to positions 0 … i of its document.

    FlashAttention-2 (Dao 2023, algorithms 1 and 2). Blocks above the diagonal are left out, and for a block of queries
    those before the document of its first query. Forward, for a block of queries over the blocks j of keys, S = q kⱼᵀ /
    √K masked, from m = -∞, l = 0, O = 0 on:

        m' = max(m, rowmax S);  P = exp(S - m');  l ← l exp(m - m') + rowsum P;  O ← O exp(m - m') + P vⱼ;  m ← m'

    and at the end O ← O / l. What is kept for the backward is one number per query, L = m + log l, the log-sum-exp.
    Backward, with P = exp(S - L) and Δ = rowsum(dO ∘ O):

        dv = Pᵀ dO;  dP = dO vᵀ;  dS = P ∘ (dP - Δ);  dq = dS k / √K;  dk = dSᵀ q / √K

    One kernel takes a block of queries and sums dq over the keys, another takes a block of keys and sums dk and dv over
    the queries: each makes P anew, and neither adds into what the other writes, so that the result is the same bits
    every time. In the end dq and dk are turned back.

    Args:
        qkv: queries, keys and values (B, T, 3, H, K), of which `takes` is true.
        rotation: cosine and sine of each pair's angle, float32 (T, K/2, 2); see `rope.rotate`. None turns nothing.
        documents: where each position's document begins, int64 (B, T); None where each sequence is one.

    Returns:
        (B, T, H, K), in the dtype of qkv; the softmax is float32, and the matmuls of float32 inputs are too, not TF32.
    """
    rotation = None if rotation is None else rotation.contiguous()
    return _attend(qkv.contiguous(), rotation, None if documents is None else documents.contiguous())[0]


class Launch(NamedTuple):
    """A grid of one program a block of a sequence, and the arguments with which every kernel ends."""

    grid: tuple[int]
    length: int
    scale: float
    heads: int
    width: int
    padded: int  # width to a power of two
    block: int

    @classmethod
    def of(cls, qkv: Tensor) -> "Launch":
        """Choose them for queries, keys and values (B, T, 3, H, K)."""
        batch, length, _, heads, width = qkv.shape
        padded = max(16, triton.next_power_of_2(width))
        block = min(64, BLOCK_BYTES // (padded * qkv.element_size()))
        return cls((batch * heads * triton.cdiv(length, block),), length, 1 / math.sqrt(width), heads, width, padded,
                   block)


# Operators that the compiler takes as they are, instead of copying what a kernel writes into, as it does by itself.
@torch.library.custom_op("tslm::self_attention", mutates_args=())
def _attend(qkv: Tensor, rotation: Tensor | None, documents: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return the attention, the turned qkv and L (B, H, T)."""
    (grid, *rest), (batch, length, _, heads, width) = Launch.of(qkv), qkv.shape
    out = qkv.new_empty(batch, length, heads, width)
    log_sums = qkv.new_empty(batch, heads, length, dtype=torch.float32)
    turned = qkv.clone() if rotation is None else torch.empty_like(qkv)
    with torch.cuda.device_of(qkv):
        if rotation is not None:
            _launch_turn(qkv, rotation, turned, back=False)
        kernels.forward[grid](turned, documents, out, log_sums, *rest)
    return out, turned, log_sums


@torch.library.custom_op("tslm::self_attention_backward", mutates_args=())
def _attend_backward(turned: Tensor, rotation: Tensor | None, documents: Tensor | None, out: Tensor, log_sums: Tensor,
                     grad_out: Tensor) -> Tensor:
    """Return the gradient of qkv."""
    grid, *rest = Launch.of(turned)
    grad, delta, grad_out = torch.empty_like(turned), torch.empty_like(log_sums), grad_out.contiguous()
    with torch.cuda.device_of(turned):
        kernels.backward_queries[grid](turned, documents, out, grad_out, log_sums, delta, grad, *rest)
        kernels.backward_keys[grid](turned, documents, grad_out, log_sums, delta, grad, *rest, num_stages=2)
        if rotation is not None:
            _launch_turn(grad, rotation, grad, back=True)
    return grad


def _launch_turn(qkv: Tensor, rotation: Tensor, turned: Tensor, *, back: bool) -> None:
    """Turn queries and keys by their angles, or back by these, and copy the values unless they are there already."""
    batch, length, _, heads, width = qkv.shape
    size, copies = heads * width, qkv is not turned
    kernels.turn[(batch * length,)](qkv, rotation, turned, length, size, -1.0 if back else 1.0, copies, width,
                                    triton.next_power_of_2(size))


@_attend.register_fake
def _attend_shapes(qkv: Tensor, *others: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    batch, length, _, heads, width = qkv.shape
    log_sums = qkv.new_empty(batch, heads, length, dtype=torch.float32)
    return qkv.new_empty(batch, length, heads, width), torch.empty_like(qkv), log_sums


@_attend_backward.register_fake
def _attend_backward_shapes(turned: Tensor, *others: Tensor | None) -> Tensor:
    return torch.empty_like(turned)


def _save(ctx: Any, inputs: tuple[Tensor | None, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:  # noqa: ANN401
    out, turned, log_sums = output
    ctx.save_for_backward(turned, *inputs[1:], out, log_sums)


def _backward(ctx: Any, grad_out: Tensor, *unused: Tensor | None) -> tuple[Tensor, None, None]:  # noqa: ANN401
    return _attend_backward(*ctx.saved_tensors, grad_out), None, None


_attend.register_autograd(_backward, setup_context=_save)
