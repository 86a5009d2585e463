"""The sizes of a model. They are checked when a `TransformerConfig` is made, so other modules can rely on them."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from tslm.errors import UserError


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of a decoder-only Transformer language model.

    Attributes:
        vocab_size: number of token ids, V.
        context_length: the longest sequence that the model reads at once, in tokens.
        d_model: width of the residual stream, D.
        num_layers: number of Transformer blocks.
        num_heads: attention heads per block, H; the head dimension is K = D / H.
        d_ff: width of the SwiGLU feed-forward layer, F; about 8/3 of d_model, a multiple of 32 or 64, is customary.
        rope_theta: base of the rotary embedding's wavelengths.

    Raises:
        UserError: a size is not a positive integer, d_model is not divisible by num_heads, the head dimension is odd,
            or rope_theta is not a positive finite number.
    """

    vocab_size: int
    context_length: int
    d_model: int
    num_layers: int
    num_heads: int
    d_ff: int
    rope_theta: float = 10_000.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "rope_theta" and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise UserError(f"{field.name} is {value!r}; it must be an integer of at least 1")
        if not 0 < self.rope_theta < math.inf:
            raise UserError(f"rope_theta is {self.rope_theta!r}; it must be a positive number, such as 10000")
        if self.d_model % self.num_heads:
            raise UserError(f"d_model is {self.d_model}, which is not divisible by num_heads = {self.num_heads}; "
                            f"choose a multiple of {2 * self.num_heads} for d_model")
        if self.head_dim % 2:
            raise UserError(f"d_model {self.d_model} over num_heads {self.num_heads} gives heads of width "
                            f"{self.head_dim}; RoPE rotates pairs, so the width must be even: choose a d_model that "
                            f"is a multiple of {2 * self.num_heads}")

    @property
    def num_parameters(self) -> int:
        """Number of trainable parameters of a model of these sizes."""
        d_model = self.d_model
        block = 4 * d_model * d_model + 3 * d_model * self.d_ff + 2 * d_model
        return 2 * self.vocab_size * d_model + self.num_layers * block + d_model

    @property
    def head_dim(self) -> int:
        """Width K of one attention head."""
        return self.d_model // self.num_heads
