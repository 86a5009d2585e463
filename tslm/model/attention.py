"""Causal multi-head self-attention, with or without rotary positions and with or without a key-value cache.

Shapes: B batch (any leading dimensions), T positions, S cached positions, D d_model, H heads, K head dimension.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor
from torch.nn import Module

from tslm.model.functional import scaled_dot_product_attention
from tslm.model.fused import causal_attention, self_attention
from tslm.model.layers import Linear, linear_together
from tslm.model.rope import rotate


class LayerCacheLike(Protocol):
    """What attention asks of one layer's key-value cache; the parts of `generation.KeyValueCache` provide it."""

    def update(self, keys: Tensor, values: Tensor, positions: Tensor | None) -> tuple[Tensor, Tensor]:
        """Store keys and values (B, H, T, K) at `positions` (B, T); return what is to be attended, (B, H, S, K) each.

        Without positions the T tokens are the first ones of their sequences.
        """
        ...


class MultiHeadSelfAttention(Module):
    """softmax(Q Kᵀ / √K) V in H heads side by side, joined by the output projection (Vaswani et al. 2017, section 3.2).

    Args:
        d_model: width D of the input and the output.
        num_heads: H; each head reads and writes K = D / H numbers.

    Raises:
        ValueError: d_model is not divisible by num_heads.
    """

    def __init__(self, d_model: int, num_heads: int) -> None:
        super().__init__()
        if d_model % num_heads:
            raise ValueError(f"d_model is {d_model}, which does not split into num_heads = {num_heads} equal heads")
        self.num_heads = num_heads
        self.q_proj = Linear(d_model, d_model)
        self.k_proj = Linear(d_model, d_model)
        self.v_proj = Linear(d_model, d_model)
        self.output_proj = Linear(d_model, d_model)

    def forward(self, x: Tensor, rotation: Tensor | None = None, cache: LayerCacheLike | None = None,
                positions: Tensor | None = None, mask: Tensor | None = None,
                documents: Tensor | None = None) -> Tensor:
        """Let every position attend to itself and what came before it.

        Args:
            x: (..., T, D).
            rotation: rows of `RotaryEmbedding.at` for the T positions, (..., T, K/2, 2); None for no RoPE.
            cache: keys and values of earlier positions; those of x are stored into it.
            positions: (B, T), where in the cache x belongs; None: at its start.
            mask: boolean (..., T, S) over the cached positions, needed with `positions`; None: causal.
            documents: (..., T), where each position's document begins (`functional.document_begins`), before which it
                attends to nothing; without a cache, a mask or positions. None: each sequence is one document.

        Returns:
            (..., T, D).
        """
        qkv = linear_together(x, self.q_proj, self.k_proj, self.v_proj).unflatten(-1, (3, self.num_heads, -1))
        if cache is None and mask is None and (rotation is None or rotation.ndim == 3):
            heads = self_attention(qkv, rotation, documents)
        else:
            assert documents is None
            q, k, v = (part.transpose(-3, -2) for part in qkv.unbind(-3))  # each (..., H, T, K)
            if rotation is not None:
                rotation = rotation.unsqueeze(-4) if rotation.ndim > 3 else rotation  # the same for every head
                q, k = rotate(q, rotation), rotate(k, rotation)
            if cache is not None:
                k, v = cache.update(k, v, positions)
            heads = (causal_attention(q, k, v) if mask is None
                     else scaled_dot_product_attention(q, k, v, mask.unsqueeze(-3))).transpose(-3, -2)
        return self.output_proj(heads.flatten(-2))  # type: ignore[no-any-return]
