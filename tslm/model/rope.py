"""Rotary position embedding: queries and keys are turned by an angle that grows with their position.

Su et al. 2021, "RoFormer". The pair (x_2i, x_2i+1) at position p turns by p · theta^(-2i/K), so that the dot product of
a query and a key depends on their distance only. Pairs are interleaved, as in the paper; the half-rotated layout of
other code bases is the same map after a permutation of the rows of W_q and W_k.

Shapes: T positions, K head dimension.
"""

# ruff: noqa: ANN401 - the context of an autograd function takes any attribute
from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import Module


class RotaryEmbedding(Module):
    """The table of cosines and sines for every position, and the rotation by it.

    The table (max_seq_len, K/2, 2) is a buffer outside the state dict: it follows from the sizes. It stays float32
    whatever the model is cast to, because bfloat16 cannot tell positions above 256 apart.

    Args:
        head_dim: K, even.
        max_seq_len: number of positions in the table; a position is below it.
        theta: base of the wavelengths; pair i turns by theta^(-2i/K) from one position to the next.

    Raises:
        ValueError: head_dim is odd.
    """

    table: Tensor

    def __init__(self, head_dim: int, max_seq_len: int, theta: float = 10_000.0) -> None:
        super().__init__()
        if head_dim % 2:
            raise ValueError(f"the head dimension is {head_dim}; RoPE turns pairs, so it must be even")
        self.head_dim, self.max_seq_len, self.theta = head_dim, max_seq_len, theta
        self.register_buffer("table", self._make_table(), persistent=False)

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """Turn queries or keys (..., T, K), which sit at `positions` (..., T), or at 0 … T-1 without them."""
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
        """Follow the model to its device, but make the table anew there, neither cast nor left empty (meta device)."""
        super()._apply(fn, recurse)
        self.table = self._make_table(self.table.device)
        return self


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Turn each pair of x (..., T, K) by the angle whose cosine and sine stand in `table` (..., T, K/2, 2).

    A pair is one complex number, and turning it is one multiplication: in eager mode that is a single pass, seven times
    as fast as `rotate_pairs`. The compiler fuses real arithmetic only, so it is given another form: `rotate_words` in
    bfloat16, else the plain one.
    """
    if torch.compiler.is_compiling() and x.dtype == torch.bfloat16 and sys.byteorder == "little":
        return rotate_words(x, table)
    if torch.compiler.is_compiling() or x.dtype == torch.float64:
        return rotate_pairs(x, table)
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * torch.view_as_complex(table)).flatten(-2).to(x.dtype)


def rotate_pairs(x: Tensor, table: Tensor) -> Tensor:
    """The rotation in real arithmetic: (a, b) becomes (a cos - b sin, a sin + b cos). The reference."""
    cos, sin = table[..., 0], table[..., 1]
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2).to(x.dtype)


def rotate_words(x: Tensor, table: Tensor) -> Tensor:
    """The rotation of bfloat16 pairs, each read and written as one 32-bit word; the same bits as `rotate_pairs`.

    Taking every other number of an array apart and putting them together again is what processors are slow at. The
    upper half of a float32's bits is the bfloat16 next to it, so a shift makes a number of one half of the word and a
    mask of the other, and the compiler turns the whole into one loop over words: three times as fast as that of the
    plain form. Its gradient is the rotation by the opposite angle.
    """
    return _RotateWords.apply(x, table)  # type: ignore[no-any-return]


class _RotateWords(torch.autograd.Function):
    """y = R x and dx = Rᵀ dy, where R turns by the angle and Rᵀ by its opposite."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, table: Tensor) -> Tensor:
        ctx.save_for_backward(table)
        return _turn_words(x, table[..., 0], table[..., 1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, None]:
        (table,) = ctx.saved_tensors
        return _turn_words(grad_y, table[..., 0], -table[..., 1]), None


def _turn_words(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    words = x.view(torch.int32)  # of which the lower half is the pair's first number
    a, b = (words << 16).view(torch.float32), (words & _UPPER_HALF).view(torch.float32)
    low, high = (_round_to_upper_half(y.view(torch.int32)) for y in (a * cos - b * sin, a * sin + b * cos))
    return ((low >> 16 & 0xFFFF) | (high & _UPPER_HALF)).view(torch.bfloat16)


def _round_to_upper_half(bits: Tensor) -> Tensor:
    """Round a float32's bits to nearest, ties to even, as bfloat16 does: what is to be kept is the upper half."""
    return bits + 0x7FFF + (bits >> 16 & 1)


_UPPER_HALF = -0x10000  # 0xFFFF0000 as a signed 32-bit number
