"""The architecture of a model, checked when a `TransformerConfig` is made, so that other modules can rely on it."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal, get_args, get_type_hints

from tslm.errors import UserError

Norm = Literal["pre", "post", "none"]
Position = Literal["rope", "none"]
FFNS = ("swiglu", "silu")


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes and parts of a decoder-only Transformer language model.

    Attributes:
        vocab_size: number of token ids, V.
        context_length: the longest sequence that the model reads at once, in tokens.
        d_model: width of the residual stream, D.
        num_layers: number of Transformer blocks.
        num_heads: attention heads per block, H; the head dimension is K = D / H.
        d_ff: inner width of the feed-forward layer, F; usually about 8/3 · D for SwiGLU, rounded to a multiple of 32
            or 64, and 4 · D for SiLU.
        rope_theta: base of the rotary embedding's angles.
        norm: what a block normalises: `pre`, the input of each layer; `post`, the sum of a layer's output and its
            input; `none`, nothing. With `pre` the output of the last block is normalised too.
        position: `rope`, or `none`: then the order of the tokens enters through the causal mask only.
        ffn: the feed-forward layer: `swiglu`, with three matrices; `silu`, with two; or a class of your own as
            `module.Class`, which is called with d_model and d_ff.
        tie_embeddings: whether the head uses the matrix of the token embeddings.
        qk_norm: whether queries and keys of each head are normalised before they are rotated.

    Raises:
        UserError: a size is not a positive integer, d_model is not divisible by num_heads, the head dimension is odd,
            rope_theta is not a positive finite number, or a part has another value than those listed.
    """

    vocab_size: int
    context_length: int
    d_model: int
    num_layers: int
    num_heads: int
    d_ff: int
    rope_theta: float = 10_000.0
    norm: Norm = "pre"
    position: Position = "rope"
    ffn: str = "swiglu"
    tie_embeddings: bool = False
    qk_norm: bool = False

    def __post_init__(self) -> None:
        kinds = get_type_hints(type(self))
        for name, value in ((field.name, getattr(self, field.name)) for field in fields(self)):
            if kinds[name] is int and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise UserError(f"{name} is {value!r}; it must be an integer of at least 1")
            if kinds[name] is bool and not isinstance(value, bool):
                raise UserError(f"{name} is {value!r}; it must be true or false")
            if get_args(kinds[name]) and value not in get_args(kinds[name]):
                raise UserError(f"{name} is {value!r}; it must be {' or '.join(get_args(kinds[name]))}")
        is_class = isinstance(self.ffn, str) and "." in self.ffn and all(map(str.isidentifier, self.ffn.split(".")))
        if self.ffn not in FFNS and not is_class:
            raise UserError(f"ffn is {self.ffn!r}; it must be {' or '.join(FFNS)}, or the class of a layer of your own "
                            "as module.Class")
        if not 0 < self.rope_theta < math.inf:
            raise UserError(f"rope_theta is {self.rope_theta!r}; it must be a positive number, such as 10000")
        if self.d_model % self.num_heads:
            raise UserError(f"d_model is {self.d_model}, which is not divisible by num_heads = {self.num_heads}; "
                            f"choose a multiple of {2 * self.num_heads} for d_model")
        if self.head_dim % 2 and self.position == "rope":
            raise UserError(f"d_model {self.d_model} over num_heads {self.num_heads} gives heads of width "
                            f"{self.head_dim}; RoPE rotates pairs, so the width must be even: choose a d_model that "
                            f"is a multiple of {2 * self.num_heads}")

    @property
    def num_parameters(self) -> int:
        """Number of trainable parameters, without those of a feed-forward layer of your own."""
        d_model = self.d_model
        norms = {"pre": 2 * self.num_layers + 1, "post": 2 * self.num_layers, "none": 0}[self.norm] * d_model
        block = 4 * d_model * d_model + {"swiglu": 3, "silu": 2}.get(self.ffn, 0) * d_model * self.d_ff
        block += 2 * self.head_dim if self.qk_norm else 0
        return (1 if self.tie_embeddings else 2) * self.vocab_size * d_model + self.num_layers * block + norms

    @property
    def head_dim(self) -> int:
        """Width K of one attention head."""
        return self.d_model // self.num_heads
