"""Four Triton kernels of causal self-attention, in which the T × T weights never reach memory.

One turns queries and keys by their positions, one goes forward, and two go backward: along the queries and along the
keys. triton_attention.py has the formulas, launches them, and is what torch sees.

Shapes: B batch, T positions, H heads, K head dimension.
"""

# ruff: noqa: ANN001, ANN201, ANN202 - a kernel's arguments are Triton's own
# mypy: disable-error-code="no-untyped-def, untyped-decorator, import-untyped, no-untyped-call, no-any-return"
# No `from __future__ import annotations`: Triton reads the annotations of a kernel.
import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
LOG2_E = tl.constexpr(1.4426950408889634)  # GPUs have 2ˣ in hardware: eˣ = 2^(x · log₂ e)
# The score of a key that is not seen. Were it -∞, a query that sees none of its first keys would come to ∞ - ∞; so it
# counts them, but the first key that it does see shrinks what it has by 2^HIDDEN, to 0.
HIDDEN = tl.constexpr(-1e30)


@triton.jit
def turn(qkv_ptr, rotation_ptr, turned_ptr, length, size, sign, COPIES: tl.constexpr, WIDTH: tl.constexpr,
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
def forward(qkv_ptr, documents_ptr, out_ptr, log_sums_ptr, length, SCALE: tl.constexpr,
            HEADS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr):
    """One program takes a block of queries; writes their outputs and log-sum-exps."""
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
def backward_queries(qkv_ptr, documents_ptr, out_ptr, grad_out_ptr, log_sums_ptr, delta_ptr, grad_ptr, length,
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
def backward_keys(qkv_ptr, documents_ptr, grad_out_ptr, log_sums_ptr, delta_ptr, grad_ptr, length,
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
