"""Four Triton kernels of causal self-attention, in which the T × T weights never reach memory.

`rotate` rotates queries and keys by their positions, and `forward` is the forward pass. The backward pass has two
kernels, `backward_queries` and `backward_keys`. attention.py has the formulas and launches the kernels.

Shapes: B batch, T positions, H heads, K head dimension.
"""

# ruff: noqa: ANN001, ANN201, ANN202 - a kernel's arguments are Triton's own
# mypy: disable-error-code="no-untyped-def, untyped-decorator, import-untyped, no-untyped-call, no-any-return"
# No `from __future__ import annotations`: Triton reads the annotations of a kernel.
import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
LOG2_E = tl.constexpr(1.4426950408889634)  # GPUs have 2ˣ in hardware: eˣ = 2^(x · log₂ e)
# The score of a masked key. With -∞ a query whose first block of keys is fully masked would compute ∞ - ∞. With this
# value the masked keys are summed at first, and the first visible key multiplies their sum by 2^HIDDEN, which is 0.
HIDDEN = tl.constexpr(-1e30)


@triton.jit
def rotate(qkv_ptr, rotation_ptr, rotated_ptr, length, size, sign, COPIES: tl.constexpr, WIDTH: tl.constexpr,
           SPACE: tl.constexpr):
    """One program rotates the queries and keys of all heads at one position, and copies the values if `COPIES`."""
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
        tl.store(rotated_ptr + start + part * size + places, pairs.to(rotated_ptr.dtype.element_ty), mask=inside)
    if COPIES:
        values = tl.load(qkv_ptr + start + 2 * size + places, mask=inside, other=0.0)
        tl.store(rotated_ptr + start + 2 * size + places, values, mask=inside)


@triton.jit
def forward(qkv_ptr, starts_ptr, out_ptr, log_sums_ptr, length, SCALE: tl.constexpr,
            HEADS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr):
    """One program computes the outputs of a block of queries, and their log-sum-exps to base 2."""
    first, sequence, head, rows = _position(length, HEADS, BLOCK)
    q_ptr = qkv_ptr + _in_qkv(sequence, head, length, HEADS, WIDTH)
    k_ptr, v_ptr = q_ptr + HEADS * WIDTH, q_ptr + 2 * HEADS * WIDTH
    queries = first + tl.arange(0, BLOCK)
    q = _load(q_ptr, queries, length, 3 * HEADS, WIDTH, PADDED)
    starts = _starts_of(starts_ptr, sequence, queries, length)
    largest = tl.full([BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    out = tl.zeros([BLOCK, PADDED], tl.float32)
    for start in range(_first_key(starts_ptr, starts, BLOCK), first + BLOCK, BLOCK):
        keys = start + tl.arange(0, BLOCK)
        k = _load(k_ptr, keys, length, 3 * HEADS, WIDTH, PADDED)
        v = _load(v_ptr, keys, length, 3 * HEADS, WIDTH, PADDED)
        scores = _dot(q, tl.trans(k)) * (SCALE * LOG2_E)
        scores = tl.where(_mask(starts_ptr, queries, keys, starts), scores, HIDDEN)
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
def backward_queries(qkv_ptr, starts_ptr, out_ptr, grad_out_ptr, log_sums_ptr, delta_ptr, grad_ptr, length,
                     SCALE: tl.constexpr, HEADS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr,
                     BLOCK: tl.constexpr):
    """One program sums dq of a block of queries. It also writes Δ, which the other kernel reads."""
    first, sequence, head, rows = _position(length, HEADS, BLOCK)
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
    starts = _starts_of(starts_ptr, sequence, queries, length)
    grad_q = tl.zeros([BLOCK, PADDED], tl.float32)
    for start in range(_first_key(starts_ptr, starts, BLOCK), first + BLOCK, BLOCK):
        keys = start + tl.arange(0, BLOCK)
        k = _load(k_ptr, keys, length, 3 * HEADS, WIDTH, PADDED)
        v = _load(v_ptr, keys, length, 3 * HEADS, WIDTH, PADDED)
        mask = _mask(starts_ptr, queries, keys, starts)
        _weights, grad_scores = _gradients_of_scores(q, k, v, grad_out, mask, log_sums, delta, SCALE)
        grad_q += _dot(grad_scores.to(k.dtype), k)
    to_q = grad_ptr + _in_qkv(sequence, head, length, HEADS, WIDTH)
    _store(to_q, queries, grad_q * SCALE, length, 3 * HEADS, WIDTH, PADDED)


@triton.jit
def backward_keys(qkv_ptr, starts_ptr, grad_out_ptr, log_sums_ptr, delta_ptr, grad_ptr, length,
                  SCALE: tl.constexpr, HEADS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr,
                  BLOCK: tl.constexpr):
    """One program sums dk and dv of a block of keys. Padding queries read zeros for dO and Δ, so their dS is 0."""
    first, sequence, head, rows = _position(length, HEADS, BLOCK)
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
        mask = _mask(starts_ptr, queries, keys, _starts_of(starts_ptr, sequence, queries, length))
        weights, grad_scores = _gradients_of_scores(q, k, v, grad_out, mask, log_sums, delta, SCALE)
        grad_v += _dot(tl.trans(weights.to(v.dtype)), grad_out)
        grad_k += _dot(tl.trans(grad_scores.to(q.dtype)), q)
    to_q = grad_ptr + _in_qkv(sequence, head, length, HEADS, WIDTH)
    _store(to_q + HEADS * WIDTH, keys, grad_k * SCALE, length, 3 * HEADS, WIDTH, PADDED)
    _store(to_q + 2 * HEADS * WIDTH, keys, grad_v, length, 3 * HEADS, WIDTH, PADDED)


@triton.jit
def _gradients_of_scores(q, k, v, grad_out, mask, log_sums, delta, SCALE: tl.constexpr):
    """Return P and dS of a block."""
    scores = _dot(q, tl.trans(k)) * (SCALE * LOG2_E)
    weights = tl.where(mask, tl.exp2(scores - log_sums[:, None]), 0.0)
    grad_weights = _dot(grad_out, tl.trans(v))
    return weights, weights * (grad_weights - delta[:, None])


@triton.jit
def _starts_of(starts_ptr, sequence, queries, length):
    """Return the first position of each query's document; for padding queries their own position."""
    if starts_ptr is None:
        starts = queries * 0
    else:
        places = starts_ptr + sequence * length + queries
        starts = tl.where(queries < length, tl.load(places, mask=queries < length, other=0).to(tl.int32), queries)
    return starts


@triton.jit
def _first_key(starts_ptr, starts, BLOCK: tl.constexpr):
    """Return the start of the first block of keys that some query of a block attends to."""
    return 0 if starts_ptr is None else tl.min(starts) // BLOCK * BLOCK


@triton.jit
def _mask(starts_ptr, queries, keys, starts):
    """Return the mask. Padding keys follow every query, so the causal mask drops them."""
    mask = queries[:, None] >= keys[None, :]
    return mask if starts_ptr is None else mask & (keys[None, :] >= starts[:, None])


@triton.jit
def _dot(a, b):
    """Multiply matrices and sum in float32. The interpreter would multiply the bits of bfloat16, so it gets float32."""
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def _position(length, HEADS: tl.constexpr, BLOCK: tl.constexpr):
    """Return this program's first position, its sequence and head, and their offset in a (B, H, T) array."""
    blocks = tl.cdiv(length, BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64)  # a batch may have more entries than an int32 counts
    return tl.program_id(0) % blocks * BLOCK, row // HEADS, row % HEADS, row * length


@triton.jit
def _in_qkv(sequence, head, length, HEADS: tl.constexpr, WIDTH: tl.constexpr):
    """Return the offset of a head's queries in (B, T, 3, H, K); keys and values follow at H · K each."""
    return (sequence * length * 3 * HEADS + head) * WIDTH


@triton.jit
def _load(matrix_ptr, rows, length, STEP: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    """Load rows of a (T, K) matrix that are STEP rows apart; zeros pad them to `PADDED` columns and past row T - 1."""
    columns = tl.arange(0, PADDED)
    inside = (rows[:, None] < length) & (columns[None, :] < WIDTH)
    return tl.load(matrix_ptr + rows[:, None] * (STEP * WIDTH) + columns[None, :], mask=inside, other=0.0)


@triton.jit
def _store(matrix_ptr, rows, values, length, STEP: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    """Store rows where `_load` would read them, in the dtype of the matrix."""
    columns = tl.arange(0, PADDED)
    inside = (rows[:, None] < length) & (columns[None, :] < WIDTH)
    to = matrix_ptr + rows[:, None] * (STEP * WIDTH) + columns[None, :]
    tl.store(to, values.to(matrix_ptr.dtype.element_ty), mask=inside)
