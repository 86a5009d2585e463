"""The formulas of the model as plain functions: what each layer computes, written to be read.

Tensors in, tensors out, no weights held. Where training uses a form with fewer passes over memory (fused.py), the
function here is the reference that the tests hold it against.

Shapes: T queries, S keys, K head dimension, D d_model; `...` any batch dimensions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tslm.model.hardware import matmul_dtype


def softmax(x: Tensor, dim: int) -> Tensor:
    """Turn scores into probabilities along `dim`: exp(x_i - max x) / Σ_j exp(x_j - max x); shape and dtype of `x`.

    Subtracting the maximum changes nothing in exact arithmetic and keeps exp from overflowing. Half-precision input is
    computed in float32. A slice that is -inf throughout gives NaN, as 0/0 should.

    Example: softmax([0, ln 3], 0) = [1/4, 3/4].
    """
    x32 = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    exps = torch.exp(x32 - x32.amax(dim, keepdim=True))
    return (exps / exps.sum(dim, keepdim=True)).to(x.dtype)


def silu(x: Tensor) -> Tensor:
    """SiLU(x) = x · sigmoid(x), elementwise (Hendrycks and Gimpel 2016, as swish in Ramachandran et al. 2017)."""
    return x * torch.sigmoid(x)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """SiLU(gate) · up, elementwise, both of one shape: the gated activation of Shazeer (2020)."""
    return silu(gate) * up


def rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """Root-mean-square normalisation over the last dimension: x / √(mean(x²) + eps) · gain, computed in float32.

    Zhang and Sennrich 2019. Unlike layer normalisation it subtracts no mean and adds no bias.

    Shapes: x (..., D), gain (D); the result has the shape of x, and the dtype of `matmul_dtype(x)`.
    """
    x32 = x.float() if x.dtype != torch.float64 else x
    return (x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps) * gain).to(matmul_dtype(x))


def scaled_dot_product_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q kᵀ / √K) v (Vaswani et al. 2017, section 3.2.1), the softmax in float32.

    Args:
        q: queries (..., T, K).
        k: keys (..., S, K).
        v: values (..., S, any width).
        mask: boolean (..., T, S); True lets the query attend to the key. None attends everywhere. A query that may
            attend to nothing gets zeros, and passes no gradient: it has seen nothing.

    Returns:
        (..., T, width of v).
    """
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # (..., T, S)
    scores = scores.float() if scores.dtype != torch.float64 else scores
    if mask is None:
        weights = softmax(scores, -1)
    else:
        # The finite floor keeps a row without any True out of 0/0; the second fill makes such a row zero.
        floor = torch.finfo(scores.dtype).min
        weights = softmax(scores.masked_fill(~mask, floor), -1).masked_fill(~mask, 0.0)
    return weights.to(v.dtype) @ v


def causal_mask(length: int, device: torch.device | None = None) -> Tensor:
    """Boolean (length, length) mask that lets position i attend to positions 0 … i."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()


def document_begins(token_ids: Tensor, separator: int) -> Tensor:
    """Where in its sequence each token's document begins: at the last `separator` up to the token, or else at 0.

    Example: with the separator 0, the ids 5 6 0 7 0 8 give 0 0 2 2 4 4.

    Shapes: (..., T) to (..., T), int64.
    """
    places = torch.arange(token_ids.shape[-1], device=token_ids.device)
    return (places * (token_ids == separator)).cummax(-1).values


def document_mask(documents: Tensor) -> Tensor:
    """Boolean (..., T, T) mask that lets position i attend to its own document's positions up to i.

    Llama Team 2024, "The Llama 3 Herd of Models", section 3.2.

    Args:
        documents: (..., T), where each position's document begins, as `document_begins` tells.
    """
    length, device = documents.shape[-1], documents.device
    return causal_mask(length, device) & (torch.arange(length, device=device) >= documents.unsqueeze(-1))
