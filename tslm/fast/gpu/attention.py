"""Causal self-attention on a GPU by the Triton kernels of attention_kernels.py.

Queries, keys and values are read side by side, as the projection writes them. One kernel rotates queries and keys by
their positions. The substitute is an operator registered with torch, which torch.compile calls without tracing it.

Shapes: B batch, T positions, H heads, K head dimension.
"""

# mypy: disable-error-code="untyped-decorator, import-untyped, no-untyped-call, no-any-return"
# No `from __future__ import annotations`: torch reads the annotations of an operator.
import math
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from tslm.fast.door import Substitute
from tslm.fast.forms import (
    TOLERANCES,
    Form,
    attends_to_itself,
    attention_case,
    attention_probes,
    form_of,
    forms,
    precise,
    tolerance,
)
from tslm.fast.gpu import attention_kernels as kernels

BLOCK_BYTES = 8192  # bytes of the queries or keys in a block, so that a kernel fits into 99 KB of shared memory
LARGEST_WIDTH = 128  # a wider head would leave blocks of fewer than 16 queries, the smallest side of a matmul


def self_attention(
    qkv: Tensor, rotation: Tensor | None = None, document_starts: Tensor | None = None, *nothing: None
) -> Tensor:
    """Substitute for `ops.self_attention`: FlashAttention-2 (Dao 2023, algorithms 1 and 2).

    For a block of queries, two kinds of blocks of keys are skipped: those above the diagonal, and those before the
    document of the first query.
    Forward, for a block of queries over the blocks j of keys, with S = q kⱼᵀ / √K masked, starting from m = -∞, l = 0,
    O = 0:

        m' = max(m, rowmax S);  P = exp(S - m');  l ← l exp(m - m') + rowsum P;  O ← O exp(m - m') + P vⱼ;  m ← m'

    and at the end O ← O / l. One number per query is kept for the backward pass, L = m + log l, the log-sum-exp.
    Backward, with P = exp(S - L) and Δ = rowsum(dO ∘ O):

        dv = Pᵀ dO;  dP = dO vᵀ;  dS = P ∘ (dP - Δ);  dq = dS k / √K;  dk = dSᵀ q / √K

    One kernel takes a block of queries and sums dq over the keys, another takes a block of keys and sums dk and dv over
    the queries. Each computes P again, and neither adds into what the other writes, so the result is bit-identical
    every time. At the end dq and dk are rotated back.

    Shapes: as `ops.self_attention`. The softmax is float32, and so are the matmuls of float32 inputs (not TF32).
    """
    rotation = None if rotation is None else rotation.float().contiguous()
    if document_starts is not None:
        document_starts = document_starts.reshape(-1, document_starts.shape[-1]).contiguous()
    heads = _attend(qkv.reshape(-1, *qkv.shape[-4:]).contiguous(), rotation, document_starts)[0]
    return heads.view(*qkv.shape[:-3], *qkv.shape[-2:])


class Launch(NamedTuple):
    """The grid, with one program for each block of each head and sequence, and the last arguments of every kernel."""

    grid: tuple[int]
    length: int
    scale: float
    heads: int
    width: int
    padded: int  # width, rounded up to a power of two
    block: int

    @classmethod
    def of(cls, qkv: Tensor) -> "Launch":
        """Choose the grid and the arguments for queries, keys and values (B, T, 3, H, K)."""
        batch, length, _, heads, width = qkv.shape
        padded = max(16, triton.next_power_of_2(width))
        block = min(64, BLOCK_BYTES // (padded * qkv.element_size()))
        return cls((batch * heads * triton.cdiv(length, block),), length, 1 / math.sqrt(width), heads, width, padded,
                   block)


# Operators registered with torch, which the compiler does not trace: it would copy every tensor that a kernel writes.
@torch.library.custom_op("tslm::self_attention", mutates_args=())
def _attend(qkv: Tensor, rotation: Tensor | None, document_starts: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return the attention, the rotated qkv and L (B, H, T)."""
    (grid, *rest), (batch, length, _, heads, width) = Launch.of(qkv), qkv.shape
    out = qkv.new_empty(batch, length, heads, width)
    log_sums = qkv.new_empty(batch, heads, length, dtype=torch.float32)
    rotated = qkv.clone() if rotation is None else torch.empty_like(qkv)
    with torch.cuda.device_of(qkv):
        if rotation is not None:
            _launch_rotate(qkv, rotation, rotated, back=False)
        kernels.forward[grid](rotated, document_starts, out, log_sums, *rest)
    return out, rotated, log_sums


@torch.library.custom_op("tslm::self_attention_backward", mutates_args=())
def _attend_backward(rotated: Tensor, rotation: Tensor | None, document_starts: Tensor | None, out: Tensor,
                     log_sums: Tensor, grad_out: Tensor) -> Tensor:
    """Return the gradient of qkv."""
    grid, *rest = Launch.of(rotated)
    grad, delta, grad_out = torch.empty_like(rotated), torch.empty_like(log_sums), grad_out.contiguous()
    with torch.cuda.device_of(rotated):
        kernels.backward_queries[grid](rotated, document_starts, out, grad_out, log_sums, delta, grad, *rest)
        kernels.backward_keys[grid](rotated, document_starts, grad_out, log_sums, delta, grad, *rest, num_stages=2)
        if rotation is not None:
            _launch_rotate(grad, rotation, grad, back=True)
    return grad


def _launch_rotate(qkv: Tensor, rotation: Tensor, rotated: Tensor, *, back: bool) -> None:
    """Rotate queries and keys by their angles, or back; unless in place, also copy the values."""
    batch, length, _, heads, width = qkv.shape
    size, copies = heads * width, qkv is not rotated
    kernels.rotate[(batch * length,)](qkv, rotation, rotated, length, size, -1.0 if back else 1.0, copies, width,
                                    triton.next_power_of_2(size))


@_attend.register_fake
def _attend_shapes(qkv: Tensor, *others: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    batch, length, _, heads, width = qkv.shape
    log_sums = qkv.new_empty(batch, heads, length, dtype=torch.float32)
    return qkv.new_empty(batch, length, heads, width), torch.empty_like(qkv), log_sums


@_attend_backward.register_fake
def _attend_backward_shapes(rotated: Tensor, *others: Tensor | None) -> Tensor:
    return torch.empty_like(rotated)


def _save(ctx: Any, inputs: tuple[Tensor | None, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:  # noqa: ANN401
    out, rotated, log_sums = output
    ctx.save_for_backward(rotated, *inputs[1:], out, log_sums)


def _backward(ctx: Any, grad_out: Tensor, *unused: Tensor | None) -> tuple[Tensor, None, None]:  # noqa: ANN401
    return _attend_backward(*ctx.saved_tensors, grad_out), None, None


_attend.register_autograd(_backward, setup_context=_save)


def _supports(
    qkv: Tensor, rotation: Tensor | None = None, document_starts: Tensor | None = None, *cached: object
) -> Form | None:
    fits = qkv.dtype in TOLERANCES and qkv.shape[-1] <= LARGEST_WIDTH
    return form_of(qkv) if fits and attends_to_itself(qkv, rotation, cached) else None


SELF_ATTENTION = Substitute(
    self_attention, _supports, attention_probes, tolerance, precise, traceable=True,
    examples=lambda form: attention_case(form, 128, 256, 16, 32, False), keys=lambda: forms("cuda"),
)
