"""The table of rotary position embedding: the cosine and sine of each position's angles.

The pair (x_2i, x_2i+1) at position p is rotated by the angle p · theta^(-2i/K), so that the dot product of a query and
a key depends on their distance only (Su et al. 2021, "RoFormer", section 3.2.2). `ops.rotate` applies the rotation.
Pairs are interleaved, as in the paper. The half-split layout of other code bases is the same map after a permutation of
the rows of W_q and W_k.

Shapes: T positions, K head dimension.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import Module

from tslm.errors import UserError
from tslm.model.ops import rotate


class RotaryEmbedding(Module):
    """Rotates queries and keys by the angles of their positions.

    The table (max_seq_len, K/2, 2) is a buffer outside the state dict, because it follows from the sizes. It stays
    float32 whatever dtype the model is cast to: bfloat16 rounds cosines near 1 to multiples of 1/256.

    Args:
        head_dim: K, even.
        max_seq_len: number of positions in the table; every position is below it.
        theta: base of the angles; pair i rotates by theta^(-2i/K) from one position to the next.

    Raises:
        UserError: head_dim is odd.
    """

    table: Tensor

    def __init__(self, head_dim: int, max_seq_len: int, theta: float = 10_000.0) -> None:
        super().__init__()
        if head_dim % 2:
            raise UserError(f"the head dimension is {head_dim}, but RoPE rotates pairs of features: choose d_model and "
                            "num_heads so that d_model / num_heads is even")
        self.head_dim, self.max_seq_len, self.theta = head_dim, max_seq_len, theta
        self.register_buffer("table", self._make_table(), persistent=False)

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """Rotate queries or keys x (..., T, K) at `positions` (..., T), or at 0 … T-1 without them.

        The leading dimensions of `positions` are broadcast with those of x.
        """
        return rotate(x, self.at(positions, x.shape[-2]))

    def at(self, positions: Tensor | None, length: int) -> Tensor:
        """Rows of the table (..., T, K/2, 2) for `positions` (..., T), or for 0 … length-1 without them."""
        return self.table[:length] if positions is None else self.table[positions]

    def _make_table(self, device: torch.device | None = None) -> Tensor:
        pair = torch.arange(0, self.head_dim, 2, dtype=torch.float64, device=device)
        position = torch.arange(self.max_seq_len, dtype=torch.float64, device=device)
        angle = torch.outer(position, self.theta ** (-pair / self.head_dim))
        return torch.stack((angle.cos(), angle.sin()), -1).float()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Module:
        """Compute the table again after a move or a cast: a cast would round it, and on `meta` it has no values."""
        super()._apply(fn, recurse)
        self.table = self._make_table(self.table.device)
        return self
