"""Count the parameters, memory and floating-point operations of a Transformer; accounting_page.py prints the result.

Every count is a product of sizes, written as "2 L T D D". The same text is evaluated and printed, so that a printed
formula and its number cannot differ.

Letters: V vocab_size, T context_length, L num_layers, D d_model, H heads, F d_ff, K = D / H, P parameters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal, NamedTuple

from tslm.errors import UserError
from tslm.model import TransformerConfig

Form = Literal["swiglu", "silu"]
FORMS: dict[Form, str] = {"swiglu": "three matrices", "silu": "two matrices"}
BYTES = 4  # of a float32
GIGA = 10**9

# GPT-2 (Radford et al. 2019): layers, d_model, heads.
SIZES = {"small": (12, 768, 12), "medium": (24, 1024, 16), "large": (36, 1280, 20), "xl": (48, 1600, 25)}
GPT2_VOCABULARY, GPT2_CONTEXT = 50_257, 1_024

# Operations per parameter, as the equations of `optim.AdamW` are written.
ADAMW = {
    "m ← β₁ m + (1 - β₁) g": 3,
    "v ← β₂ v + (1 - β₂) g²": 4,
    "θ ← θ - α_t m / (√v + ε)": 5,
    "θ ← θ - α λ θ": 2,
}


class Part(NamedTuple):
    """One row of a count: what is counted, its formula, and the number."""

    name: str
    formula: str
    number: int


@dataclass(frozen=True)
class Account:
    """The counts of a model.

    Attributes:
        config: its sizes and parts; `ffn` is swiglu or silu.
        parameters: numbers of weights.
        activations: numbers of floats for one sequence of T tokens that the backward pass needs.
        flops: floating-point operations of the matmuls in a forward pass over one sequence of T tokens; a product of
            (m, n) and (n, p) takes 2 m n p.
    """

    config: TransformerConfig
    parameters: list[Part]
    activations: list[Part]
    flops: list[Part]

    @property
    def num_parameters(self) -> int:
        """P."""
        return total(self.parameters)

    @property
    def state_bytes(self) -> int:
        """Bytes of weights, gradients and AdamW's two moments in float32: 16 P. It is b in a · batch + b."""
        return 4 * BYTES * self.num_parameters

    @property
    def sequence_bytes(self) -> int:
        """Bytes of the activations of one sequence in float32. It is a in a · batch + b."""
        return BYTES * total(self.activations)

    @property
    def forward_flops(self) -> int:
        """Operations of the matmuls in a forward pass over one sequence."""
        return total(self.flops)

    @property
    def adamw_flops(self) -> int:
        """Operations of one AdamW step."""
        return sum(ADAMW.values()) * self.num_parameters

    def memory_bytes(self, batch_size: int) -> int:
        """Bytes of training with a batch of sequences: a · batch + b."""
        return self.sequence_bytes * batch_size + self.state_bytes

    def largest_batch(self, memory_bytes: float) -> int:
        """The largest batch that fits into a memory; 0 if not even one sequence does."""
        return max(0, math.floor((memory_bytes - self.state_bytes) / self.sequence_bytes))

    def seconds(self, steps: int, batch_size: int, flops_per_second: float, utilisation: float) -> float:
        """The time of a training in which the backward pass takes twice the operations of the forward pass."""
        return 3 * self.forward_flops * batch_size * steps / (utilisation * flops_per_second)


def total(parts: list[Part]) -> int:
    """Return the sum of a count."""
    return sum(part.number for part in parts)


def account(config: TransformerConfig, form: Form | None = None) -> Account:
    """Count a model.

    The activations are those that the question of the course names, each once. The cross-entropy counts the
    probability of each token of the vocabulary, which its gradient needs.

    Args:
        config: sizes and parts.
        form: count this feed-forward layer instead of the config's.

    Raises:
        UserError: the feed-forward layer is a class of one's own, whose formula is not known.
    """
    config = config if form is None else replace(config, ffn=form)
    if config.ffn not in FORMS:
        raise UserError(f"ffn is {config.ffn!r}, whose operations are not known: give a model with "
                        f"{' or '.join(FORMS)}")
    sizes = letters(config)
    is_gated, has_norms = config.ffn == "swiglu", config.norm != "none"

    def parts(rows: list[tuple[str, str, bool]]) -> list[Part]:
        """Return the rows of parts that the model has, with their values."""
        return [Part(name, formula, evaluate(formula, sizes)) for name, formula, is_there in rows if is_there]

    parameters = parts([
        ("token embedding", "V D", True),
        ("attention: Q, K, V, output", "4 L D D", True),
        ("feed-forward", "3 L D F" if is_gated else "2 L D F", True),
        ("RMSNorms of the blocks", "2 L D", has_norms),
        ("RMSNorms of Q and K", "2 L K", config.qk_norm),
        ("final RMSNorm", "D", config.norm == "pre"),
        ("output embedding", "V D", not config.tie_embeddings),
    ])
    activations = parts([
        ("RMSNorms of the blocks", "2 L T D", has_norms),
        ("Q, K, V", "3 L T D", True),
        ("RMSNorms of Q and K", "2 L T D", config.qk_norm),
        ("Q Kᵀ", "L H T T", True),
        ("softmax", "L H T T", True),
        ("weighted sum of V", "L T D", True),
        ("output projection", "L T D", True),
        ("W₁", "L T F", True),
        ("SiLU", "L T F", True),
        ("W₃", "L T F", is_gated),
        ("SiLU(W₁x) · W₃x", "L T F", is_gated),
        ("W₂", "L T D", True),
        ("final RMSNorm", "T D", config.norm == "pre"),
        ("output embedding", "T V", True),
        ("cross-entropy", "T V", True),
    ])
    flops = parts([
        ("Q, K, V projections", "6 L T D D", True),
        ("Q Kᵀ", "2 L T T D", True),
        ("weighted sum of V", "2 L T T D", True),
        ("output projection", "2 L T D D", True),
        ("W₁", "2 L T D F", True),
        ("W₃", "2 L T D F", is_gated),
        ("W₂", "2 L T D F", True),
        ("output embedding", "2 T D V", True),
    ])
    return Account(config, parameters, activations, flops)


def letters(config: TransformerConfig) -> dict[str, int]:
    """Return the sizes by their letters."""
    return {"V": config.vocab_size, "T": config.context_length, "L": config.num_layers, "D": config.d_model,
            "H": config.num_heads, "F": config.d_ff, "K": config.head_dim}


def evaluate(formula: str, sizes: Mapping[str, int]) -> int:
    """Return the product of a formula's factors.

    Example: "2 L D D" for L = 3 and D = 10 is 600.
    """
    return math.prod(int(factor) if factor.isdigit() else sizes[factor] for factor in formula.split())


def shown(formula: str) -> str:
    """Return a formula for a reader: "2 L D D" is 2·L·D²."""
    groups = ((factor, len([*times])) for factor, times in groupby(formula.split()))
    return "·".join(factor + {1: "", 2: "²"}[times] for factor, times in groups)


def gpt2(size: str, d_ff: int | None = None, context_length: int | None = None) -> TransformerConfig:
    """Return a GPT-2 size with SwiGLU.

    Args:
        size: a key of `SIZES`.
        d_ff: F; None for 4 D, as in GPT-2.
        context_length: T; None for 1,024.
    """
    layers, width, heads = SIZES[size]
    return TransformerConfig(GPT2_VOCABULARY, GPT2_CONTEXT if context_length is None else context_length, width, layers,
                             heads, 4 * width if d_ff is None else d_ff)
