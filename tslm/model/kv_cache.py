"""The key-value cache: keys and values of earlier positions, in memory that is allocated once.

Shapes: B sequences, H heads, T new positions, S visible slots, C capacity, K head dimension.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tslm.model.config import TransformerConfig


class KeyValueCache:
    """Keys and values of every layer for a batch of sequences; slot p of a sequence belongs to its position p.

    Sequences may differ in length. Prompts are padded on the right: a slot after the end of a shorter sequence holds
    the keys of padding until the token at that position overwrites them. No query attends to them, because queries
    attend only to slots up to their own position.

    Args:
        config: the model's sizes.
        batch_size: number of sequences, B.
        capacity: slots per sequence, C: the largest length of a sequence, at most context_length.
        dtype: of keys and values; the one in which the model's matmuls run.
        device: where the model is.

    Attributes:
        length: slots in use, which attention reads; the caller sets it to the longest sequence of the batch.
        layers: one `LayerCache` per layer.
    """

    def __init__(self, config: TransformerConfig, batch_size: int, capacity: int, dtype: torch.dtype,
                 device: torch.device) -> None:
        shape = (config.num_layers, 2, batch_size, config.num_heads, capacity, config.head_dim)
        # Zeros, because a masked slot takes part in a product with weight 0, and 0 · NaN is NaN.
        self._memory = torch.zeros(shape, dtype=dtype, device=device)
        self.length = 0
        self.layers = [LayerCache(self, keys, values) for keys, values in self._memory]

    def keep(self, rows: list[int]) -> None:
        """Remove all sequences but those of `rows`, given in ascending order; they move up to the first rows."""
        for new, old in enumerate(rows):
            if new != old:
                self._memory[:, :, new, :, : self.length] = self._memory[:, :, old, :, : self.length]
        self._memory = self._memory[:, :, : len(rows)]
        for layer, (keys, values) in zip(self.layers, self._memory, strict=True):
            layer.keys, layer.values = keys, values


class LayerCache:
    """One layer's part of a `KeyValueCache`: keys and values, (B, H, C, K) each."""

    def __init__(self, cache: KeyValueCache, keys: Tensor, values: Tensor) -> None:
        self._cache, self.keys, self.values = cache, keys, values

    def update(self, keys: Tensor, values: Tensor, positions: Tensor | None) -> tuple[Tensor, Tensor]:
        """Store (B, H, T, K) at `positions` (B, T); return the visible slots (B, H, S, K) of both.

        Without positions the T tokens are the first of their sequences: stored from slot 0 on and returned as they are.
        """
        if positions is None:
            self.keys[:, :, : keys.shape[2]] = keys
            self.values[:, :, : values.shape[2]] = values
            return keys, values
        rows = torch.arange(len(positions), device=positions.device)[:, None]
        self.keys[rows, :, positions] = keys.transpose(1, 2)  # the index puts T before H
        self.values[rows, :, positions] = values.transpose(1, 2)
        return self.keys[:, :, : self._cache.length], self.values[:, :, : self._cache.length]
