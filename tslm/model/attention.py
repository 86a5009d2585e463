"""Causal multi-head self-attention, with or without rotary positions and with or without a key-value cache.

Shapes: B batch (any leading dimensions), T positions, S cached positions, D d_model, H heads, K head dimension.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import Module

from tslm.errors import UserError
from tslm.model import ops
from tslm.model.kv_cache import LayerCache
from tslm.model.layers import Linear, RMSNorm


class MultiHeadSelfAttention(Module):
    """softmax(Q Kᵀ / √K) V in H heads, joined by the output projection (Vaswani et al. 2017, section 3.2.2).

    Args:
        d_model: width D of the input and the output.
        num_heads: H; each head reads and writes K = D / H features.
        qk_norm: whether RMSNorm is applied to the queries and keys of each head, with gains that all heads share
            (Dehghani et al. 2023, "Scaling Vision Transformers to 22 Billion Parameters", section 2, and Qwen3).

    Raises:
        UserError: d_model is not divisible by num_heads.
    """

    def __init__(self, d_model: int, num_heads: int, qk_norm: bool = False) -> None:
        super().__init__()
        if d_model % num_heads:
            raise UserError(f"d_model is {d_model}, which is not divisible by num_heads = {num_heads}: choose a "
                            f"multiple of {num_heads} for d_model")
        self.num_heads = num_heads
        self.q_proj = Linear(d_model, d_model)
        self.k_proj = Linear(d_model, d_model)
        self.v_proj = Linear(d_model, d_model)
        self.output_proj = Linear(d_model, d_model)
        self.q_norm, self.k_norm = (RMSNorm(d_model // num_heads) if qk_norm else None for _ in range(2))

    def forward(self, x: Tensor, rotation: Tensor | None = None, document_starts: Tensor | None = None,
                cache: LayerCache | None = None, positions: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Let every position attend to itself and to earlier positions.

        Args:
            x: (..., T, D).
            rotation: rows of `RotaryEmbedding.at` for the T positions; None for no rotary embedding.
            document_starts: the first position of each position's document (..., T), as in `ops.self_attention`, also
                for the arguments below.
            cache: keys and values of earlier positions.
            positions: the cache slots of x (B, T).
            mask: boolean (..., T, S) over the cached positions.

        Returns:
            (..., T, D).
        """
        qkv = ops.linear(x, self.q_proj.weight, self.k_proj.weight, self.v_proj.weight)
        qkv = qkv.unflatten(-1, (3, self.num_heads, -1))  # (..., T, 3, H, K)
        if self.q_norm is not None and self.k_norm is not None:
            q, k, v = qkv.unbind(-3)
            qkv = torch.stack((self.q_norm(q), self.k_norm(k), v), -3)
        heads = ops.self_attention(qkv, rotation, document_starts, cache, positions, mask)
        return self.output_proj(heads.flatten(-2))  # type: ignore[no-any-return]
