"""Causal self-attention on a GPU as four Triton kernels of our own, in which the T × T weights never reach memory.

Queries, keys and values come side by side, as the projection writes them; one kernel turns them by their positions, and
the others take them from where they lie. `fused.self_attention` comes here with CUDA tensors where Triton can be
imported; nothing else imports this file, so that a CPU needs no Triton. Tested under Triton's interpreter against
`functional.scaled_dot_product_attention`.

Shapes: B batch, T positions, H heads, K head dimension.
"""

# ruff: noqa: ANN001, ANN202 - a kernel's arguments are Triton's own
# mypy: disable-error-code="no-untyped-def, untyped-decorator, import-untyped, no-untyped-call, no-any-return"
# No `from __future__ import annotations`: Triton reads the annotations of a kernel, and torch those of an operator.
import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_BYTES = 8192  # of the queries or keys in a block, so that all a kernel needs fits into 99 KB of shared memory
LARGEST_WIDTH = 128  # a wider head would leave room for fewer than 16 of them, the smallest side of a matmul
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
LOG2_E = tl.constexpr(1.4426950408889634)  # GPUs have 2ˣ in hardware: eˣ = 2^(x · log₂ e)
# The score of a key that is not seen. Were it -∞, a query that sees none of its first keys would come to ∞ - ∞; so it
# counts them, but the first key that it does see shrinks what it has by 2^HIDDEN, to 0.
HIDDEN = tl.constexpr(-1e30)


def takes(qkv: Tensor) -> bool:
    """Whether the kernels are made for this dtype and head dimension."""
    return qkv.dtype in DTYPES and qkv.shape[-1] <= LARGEST_WIDTH and qkv.shape[-1] % 2 == 0


def self_attention(qkv: Tensor, rotation: Tensor | None, documents: Tensor | None = None) -> Tensor:
    """softmax(q kᵀ / √K + mask) v of each head, in which position i attends to positions 0 … i of its document.

    FlashAttention-2 (Dao 2023, algorithms 1 and 2), with blocks above the diagonal left out, as are those before the
    document of a block's first query. Forward, for a block of
    queries over the blocks j of keys, S = q kⱼᵀ / √K masked, from m = -∞, l = 0, O = 0 on:

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
        _forward[grid](turned, documents, out, log_sums, *rest)
    return out, turned, log_sums


@torch.library.custom_op("tslm::self_attention_backward", mutates_args=())
def _attend_backward(turned: Tensor, rotation: Tensor | None, documents: Tensor | None, out: Tensor, log_sums: Tensor,
                     grad_out: Tensor) -> Tensor:
    """Return the gradient of qkv."""
    grid, *rest = Launch.of(turned)
    grad, delta, grad_out = torch.empty_like(turned), torch.empty_like(log_sums), grad_out.contiguous()
    with torch.cuda.device_of(turned):
        _backward_queries[grid](turned, documents, out, grad_out, log_sums, delta, grad, *rest)
        _backward_keys[grid](turned, documents, grad_out, log_sums, delta, grad, *rest, num_stages=2)
        if rotation is not None:
            _launch_turn(grad, rotation, grad, back=True)
    return grad


def _launch_turn(qkv: Tensor, rotation: Tensor, turned: Tensor, *, back: bool) -> None:
    """Turn queries and keys by their angles, or back by these, and copy the values unless they are there already."""
    batch, length, _, heads, width = qkv.shape
    size, copies = heads * width, qkv is not turned
    _turn[(batch * length,)](qkv, rotation, turned, length, size, -1.0 if back else 1.0, copies, width,
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


@triton.jit
def _turn(qkv_ptr, rotation_ptr, turned_ptr, length, size, sign, COPIES: tl.constexpr, WIDTH: tl.constexpr,
          SPACE: tl.constexpr):
    """One program turns the queries and keys of all heads at one position, and copies the values if `COPIES`."""
    position = tl.program_id(0)
    angles = rotation_ptr + position % length * WIDTH + tl.arange(0, SPACE // 2) % (WIDTH // 2) * 2
    cosine, sine = tl.load(angles), sign * tl.load(angles + 1)
    places = tl.arange(0, SPACE)
    inside = places < size
    start = position.to(tl.int64) * 3 * size
    for part in tl.static_range(2):
        pairs = tl.load(qkv_ptr + start + part * size + places, mask=inside, other=0.0).to(tl.float32)
        a, b = tl.split(tl.reshape(pairs, [SPACE // 2, 2]))
        pairs = tl.reshape(tl.join(a * cosine - b * sine, a * sine + b * cosine), [SPACE])
        tl.store(turned_ptr + start + part * size + places, pairs.to(turned_ptr.dtype.element_ty), mask=inside)
    if COPIES:
        values = tl.load(qkv_ptr + start + 2 * size + places, mask=inside, other=0.0)
        tl.store(turned_ptr + start + 2 * size + places, values, mask=inside)


@triton.jit
def _forward(qkv_ptr, documents_ptr, out_ptr, log_sums_ptr, length, SCALE: tl.constexpr,
             HEADS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr):
    first, sequence, head, rows = _place(length, HEADS, BLOCK)
    q_ptr = qkv_ptr + _in_qkv(sequence, head, length, HEADS, WIDTH)
    k_ptr, v_ptr = q_ptr + HEADS * WIDTH, q_ptr + 2 * HEADS * WIDTH
    queries = first + tl.arange(0, BLOCK)
    q = _load(q_ptr, queries, length, 3 * HEADS, WIDTH, PADDED)
    begins = _begins(documents_ptr, sequence, queries, length)
    largest = tl.full([BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    out = tl.zeros([BLOCK, PADDED], tl.float32)
    for start in range(_first_key(documents_ptr, begins, BLOCK), first + BLOCK, BLOCK):
        keys = start + tl.arange(0, BLOCK)
        k = _load(k_ptr, keys, length, 3 * HEADS, WIDTH, PADDED)
        v = _load(v_ptr, keys, length, 3 * HEADS, WIDTH, PADDED)
        scores = _dot(q, tl.trans(k)) * (SCALE * LOG2_E)
        scores = tl.where(_seen(documents_ptr, queries, keys, begins), scores, HIDDEN)
        larger = tl.maximum(largest, tl.max(scores, 1))
        weights = tl.exp2(scores - larger[:, None])
        shrink = tl.exp2(largest - larger)
        total = total * shrink + tl.sum(weights, 1)
        out = out * shrink[:, None] + _dot(weights.to(v.dtype), v)
        largest = larger
    out_ptr += (sequence * length * HEADS + head) * WIDTH
    _store(out_ptr, queries, out / total[:, None], length, HEADS, WIDTH, PADDED)
    tl.store(log_sums_ptr + rows + queries, largest + tl.log2(total), mask=queries < length)


@triton.jit
def _backward_queries(qkv_ptr, documents_ptr, out_ptr, grad_out_ptr, log_sums_ptr, delta_ptr, grad_ptr, length,
                      SCALE: tl.constexpr, HEADS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr,
                      BLOCK: tl.constexpr):
    """Sums dq; writes Δ as well, which the other kernel reads."""
    first, sequence, head, rows = _place(length, HEADS, BLOCK)
    q_ptr = qkv_ptr + _in_qkv(sequence, head, length, HEADS, WIDTH)
    k_ptr, v_ptr = q_ptr + HEADS * WIDTH, q_ptr + 2 * HEADS * WIDTH
    queries = first + tl.arange(0, BLOCK)
    q = _load(q_ptr, queries, length, 3 * HEADS, WIDTH, PADDED)
    of_head = (sequence * length * HEADS + head) * WIDTH
    grad_out = _load(grad_out_ptr + of_head, queries, length, HEADS, WIDTH, PADDED)
    out = _load(out_ptr + of_head, queries, length, HEADS, WIDTH, PADDED)
    delta = tl.sum(out.to(tl.float32) * grad_out.to(tl.float32), 1)
    tl.store(delta_ptr + rows + queries, delta, mask=queries < length)
    log_sums = tl.load(log_sums_ptr + rows + queries, mask=queries < length, other=0.0)
    begins = _begins(documents_ptr, sequence, queries, length)
    grad_q = tl.zeros([BLOCK, PADDED], tl.float32)
    for start in range(_first_key(documents_ptr, begins, BLOCK), first + BLOCK, BLOCK):
        keys = start + tl.arange(0, BLOCK)
        k = _load(k_ptr, keys, length, 3 * HEADS, WIDTH, PADDED)
        v = _load(v_ptr, keys, length, 3 * HEADS, WIDTH, PADDED)
        seen = _seen(documents_ptr, queries, keys, begins)
        _weights, grad_scores = _gradients_of_scores(q, k, v, grad_out, seen, log_sums, delta, SCALE)
        grad_q += _dot(grad_scores.to(k.dtype), k)
    to_q = grad_ptr + _in_qkv(sequence, head, length, HEADS, WIDTH)
    _store(to_q, queries, grad_q * SCALE, length, 3 * HEADS, WIDTH, PADDED)


@triton.jit
def _backward_keys(qkv_ptr, documents_ptr, grad_out_ptr, log_sums_ptr, delta_ptr, grad_ptr, length,
                   SCALE: tl.constexpr, HEADS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr,
                   BLOCK: tl.constexpr):
    """Sums dk and dv. Queries behind the last one read zeros, so that their dO and Δ, and so their dS, are 0."""
    first, sequence, head, rows = _place(length, HEADS, BLOCK)
    q_ptr = qkv_ptr + _in_qkv(sequence, head, length, HEADS, WIDTH)
    k_ptr, v_ptr = q_ptr + HEADS * WIDTH, q_ptr + 2 * HEADS * WIDTH
    keys = first + tl.arange(0, BLOCK)
    k = _load(k_ptr, keys, length, 3 * HEADS, WIDTH, PADDED)
    v = _load(v_ptr, keys, length, 3 * HEADS, WIDTH, PADDED)
    grad_out_ptr += (sequence * length * HEADS + head) * WIDTH
    grad_k = tl.zeros([BLOCK, PADDED], tl.float32)
    grad_v = tl.zeros([BLOCK, PADDED], tl.float32)
    for start in range(first, length, BLOCK):
        queries = start + tl.arange(0, BLOCK)
        q = _load(q_ptr, queries, length, 3 * HEADS, WIDTH, PADDED)
        grad_out = _load(grad_out_ptr, queries, length, HEADS, WIDTH, PADDED)
        log_sums = tl.load(log_sums_ptr + rows + queries, mask=queries < length, other=0.0)
        delta = tl.load(delta_ptr + rows + queries, mask=queries < length, other=0.0)
        seen = _seen(documents_ptr, queries, keys, _begins(documents_ptr, sequence, queries, length))
        weights, grad_scores = _gradients_of_scores(q, k, v, grad_out, seen, log_sums, delta, SCALE)
        grad_v += _dot(tl.trans(weights.to(v.dtype)), grad_out)
        grad_k += _dot(tl.trans(grad_scores.to(q.dtype)), q)
    to_q = grad_ptr + _in_qkv(sequence, head, length, HEADS, WIDTH)
    _store(to_q + HEADS * WIDTH, keys, grad_k * SCALE, length, 3 * HEADS, WIDTH, PADDED)
    _store(to_q + 2 * HEADS * WIDTH, keys, grad_v, length, 3 * HEADS, WIDTH, PADDED)


@triton.jit
def _gradients_of_scores(q, k, v, grad_out, seen, log_sums, delta, SCALE: tl.constexpr):
    """P and dS of a block."""
    scores = _dot(q, tl.trans(k)) * (SCALE * LOG2_E)
    weights = tl.where(seen, tl.exp2(scores - log_sums[:, None]), 0.0)
    grad_weights = _dot(grad_out, tl.trans(v))
    return weights, weights * (grad_weights - delta[:, None])


@triton.jit
def _begins(documents_ptr, sequence, queries, length):
    """Where the documents of a block's queries begin; of those behind the last query, where they are themselves."""
    if documents_ptr is None:
        begins = queries * 0
    else:
        places = documents_ptr + sequence * length + queries
        begins = tl.where(queries < length, tl.load(places, mask=queries < length, other=0).to(tl.int32), queries)
    return begins


@triton.jit
def _first_key(documents_ptr, begins, BLOCK: tl.constexpr):
    """Where the first block of keys begins of which a block's queries see any."""
    return 0 if documents_ptr is None else tl.min(begins) // BLOCK * BLOCK


@triton.jit
def _seen(documents_ptr, queries, keys, begins):
    """Which keys a query attends to; keys behind the last one come behind every query, so they are not among them."""
    seen = queries[:, None] >= keys[None, :]
    return seen if documents_ptr is None else seen & (keys[None, :] >= begins[:, None])


@triton.jit
def _dot(a, b):
    """Matmul summed in float32. Triton's interpreter would multiply bfloat16's bits as integers, so it gets floats."""
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def _place(length, HEADS: tl.constexpr, BLOCK: tl.constexpr):
    """The first position of this program's block, its sequence and head, and where these begin in (B, H, T)."""
    blocks = tl.cdiv(length, BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64)  # a batch may have more entries than an int32 counts
    return tl.program_id(0) % blocks * BLOCK, row // HEADS, row % HEADS, row * length


@triton.jit
def _in_qkv(sequence, head, length, HEADS: tl.constexpr, WIDTH: tl.constexpr):
    """Where the queries of a head begin in (B, T, 3, H, K); keys and values are H · K further, each."""
    return (sequence * length * 3 * HEADS + head) * WIDTH


@triton.jit
def _load(matrix_ptr, rows, length, STEP: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    """Rows of a (T, K) matrix, which are STEP rows apart, with zeros up to `PADDED` columns and behind row T - 1."""
    columns = tl.arange(0, PADDED)
    inside = (rows[:, None] < length) & (columns[None, :] < WIDTH)
    return tl.load(matrix_ptr + rows[:, None] * (STEP * WIDTH) + columns[None, :], mask=inside, other=0.0)


@triton.jit
def _store(matrix_ptr, rows, values, length, STEP: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    """Write what `_load` would read, in the dtype of the matrix."""
    columns = tl.arange(0, PADDED)
    inside = (rows[:, None] < length) & (columns[None, :] < WIDTH)
    to = matrix_ptr + rows[:, None] * (STEP * WIDTH) + columns[None, :]
    tl.store(to, values.to(matrix_ptr.dtype.element_ty), mask=inside)
