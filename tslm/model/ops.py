"""Every formula of the model, once, in the form that a textbook prints. The layers call these functions.

A function marked `@replaceable` may run as a faster substitute (`tslm/fast/`) that has been compared with the function
as it is written here. After an edit the two differ, so the edited formula is the one that trains.

Shapes: B batch (any leading dimensions), T positions or queries, S keys, D d_model, H heads, K head dimension, F d_ff.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tslm.fast import replaceable
from tslm.model.dtypes import matmul_dtype
from tslm.model.kv_cache import LayerCache


def linear(x: Tensor, *weights: Tensor) -> Tensor:
    """Linear map x Wᵀ; with several weights the outputs of all of them, concatenated in the last dimension.

    One wide matmul reads x once, and its backward pass makes the gradient of x in one piece. Concatenating the weights
    copies them, which costs more than it saves where x has fewer rows than the first weight (generation).

    Shapes: x (..., d_in), each W (d_out, d_in); returns (..., sum of the d_out), in the dtype in which a matmul runs.
    """
    # Cast before transposing: autocast would cast the transpose, and the backward pass would then transpose the
    # weight's gradient a second time.
    weights = tuple(weight.to(matmul_dtype(weight)) for weight in weights)
    if len(weights) > 1 and x.numel() < weights[0].numel():
        return torch.cat([x @ weight.T for weight in weights], -1)
    return x @ (weights[0] if len(weights) == 1 else torch.cat(weights)).T


def softmax(x: Tensor, dim: int) -> Tensor:
    """Softmax along `dim`, scores to probabilities: exp(x_i - max x) / Σ_j exp(x_j - max x).

    Subtracting the maximum changes nothing in exact arithmetic and keeps exp from overflowing. Half-precision input is
    computed in float32. A slice that is -inf throughout gives NaN, as 0/0 should.

    Shapes: any; the result has the shape and dtype of `x`.

    Example: softmax([0, ln 3], 0) = [1/4, 3/4].
    """
    x32 = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    exps = torch.exp(x32 - x32.amax(dim, keepdim=True))
    return (exps / exps.sum(dim, keepdim=True)).to(x.dtype)


def silu(x: Tensor) -> Tensor:
    """SiLU, elementwise: x · sigmoid(x) (Hendrycks and Gimpel 2016; "swish" in Ramachandran et al. 2017).

    Example: silu(0) = 0, silu(1) = 0.7311.
    """
    return x * torch.sigmoid(x)


@replaceable
def rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """RMSNorm over the last dimension, in float32: x / √(mean(x²) + eps) · gain (Zhang and Sennrich 2019).

    It subtracts no mean and adds no bias, unlike layer normalisation.

    Shapes: x (..., D), gain (D); the result has the shape of x and the dtype in which the next matmul runs.

    Example: x = [3, 4] has the root mean square √12.5 = 3.536; with gain 1 and eps 0 the result is [0.849, 1.131].
    """
    x32 = x if x.dtype == torch.float64 else x.float()
    mean_square = x32.square().mean(-1, keepdim=True)
    return (x32 / torch.sqrt(mean_square + eps) * gain).to(matmul_dtype(x))


@replaceable
def swiglu_linear(gate_up: Tensor, weight: Tensor) -> Tensor:
    """(SiLU(gate) · up) Wᵀ: the gated activation and the down projection of SwiGLU (Shazeer 2020, "GLU Variants").

    The two are one function so that a substitute need not keep the activation for the backward pass.

    Args:
        gate_up: W₁x and W₃x, concatenated in the last dimension: (..., 2F).
        weight: the down projection W₂ (D, F).

    Returns:
        (..., D).
    """
    gate, up = gate_up.chunk(2, -1)
    return linear(silu(gate) * up, weight)


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotate each pair of features by its angle: (a, b) → (a cos - b sin, a sin + b cos).

    Rotary position embedding (Su et al. 2021, "RoFormer", equation 34). A pair is two neighbouring features,
    (x_2i, x_2i+1).

    Args:
        x: queries or keys (..., T, K).
        rotation: cosine and sine of each position's angles (..., T, K/2, 2), see `rope.RotaryEmbedding`.

    Returns:
        (..., T, K), in the dtype of x; computed in the wider dtype of the two arguments.
    """
    cos, sin = rotation[..., 0], rotation[..., 1]
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2).to(x.dtype)


def scaled_dot_product_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q kᵀ / √K) v, the softmax in float32 (Vaswani et al. 2017, section 3.2.1).

    The dot product of two vectors of K independent entries of variance 1 has variance K; dividing by √K makes it 1.

    Args:
        q: queries (..., T, K).
        k: keys (..., S, K).
        v: values (..., S, any width).
        mask: boolean (..., T, S); True lets the query attend to the key. None attends everywhere. A query that may
            attend to no key gets zeros and passes no gradient.

    Returns:
        (..., T, width of v).
    """
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # (..., T, S)
    scores = scores if scores.dtype == torch.float64 else scores.float()
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)  # finite: a row without any True is not 0/0
    weights = softmax(scores, -1)
    if mask is not None:
        weights = weights.masked_fill(~mask, 0.0)  # a row without any True becomes zero
    return weights.to(v.dtype) @ v


@replaceable
def self_attention(
    qkv: Tensor, rotation: Tensor | None = None, document_starts: Tensor | None = None,
    cache: LayerCache | None = None, positions: Tensor | None = None, mask: Tensor | None = None,
) -> Tensor:
    """Causal self-attention of each head, with rotated queries and keys, in training and in generation.

    Position i attends to the positions 0 … i of its sequence or, given `document_starts`, of its document.

    Args:
        qkv: queries, keys and values (..., T, 3, H, K).
        rotation: cosine and sine of each position's angles, (T, K/2, 2) or (..., T, K/2, 2), see `rotate`; None
            rotates nothing.
        document_starts: the first position of each position's document, int64 (..., T), see `document_starts_of`.
            None if each sequence is one document. Not together with a cache or a mask.
        cache: keys and values of earlier positions, which this call extends by those of qkv (see kv_cache.py).
        positions: the cache slots of qkv (B, T); None if qkv holds the first T tokens of its sequences.
        mask: boolean (..., T, S) over the cached positions, needed with `positions`; None for a causal mask.

    Returns:
        The heads' outputs (..., T, H, K).
    """
    q, k, v = (part.transpose(-3, -2) for part in qkv.unbind(-3))  # each (..., H, T, K)
    if rotation is not None:
        rotation = rotation.unsqueeze(-4) if rotation.ndim > 3 else rotation  # the same for every head
        q, k = rotate(q, rotation), rotate(k, rotation)
    if cache is not None:
        k, v = cache.update(k, v, positions)  # (..., H, S, K)
    if mask is None and document_starts is not None:
        mask = document_mask(document_starts)
    mask = causal_mask(qkv.shape[-4], qkv.device) if mask is None else mask.unsqueeze(-3)  # the same for every head
    return scaled_dot_product_attention(q, k, v, mask).transpose(-3, -2)


def causal_mask(length: int, device: torch.device | None = None) -> Tensor:
    """Boolean (length, length) mask that lets position i attend to the positions 0 … i.

    Example: for length 2, [[True, False], [True, True]].
    """
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()


def document_starts_of(token_ids: Tensor, separator: int) -> Tensor:
    """The position at which each token's document starts: the last `separator` up to the token, or else 0.

    Shapes: (..., T) to (..., T), int64.

    Example: with the separator 0, the ids 5 6 0 7 0 8 give 0 0 2 2 4 4.
    """
    positions = torch.arange(token_ids.shape[-1], device=token_ids.device)
    return (positions * (token_ids == separator)).cummax(-1).values


def document_mask(document_starts: Tensor) -> Tensor:
    """Boolean (..., T, T) mask that lets position i attend to the positions of its own document up to i.

    Source: Llama Team 2024, "The Llama 3 Herd of Models", section 3.2.

    Args:
        document_starts: the first position of each position's document (..., T), see `document_starts_of`.

    Example: for the starts [0, 1], [[True, False], [False, True]].
    """
    length, device = document_starts.shape[-1], document_starts.device
    return causal_mask(length, device) & (torch.arange(length, device=device) >= document_starts.unsqueeze(-1))
