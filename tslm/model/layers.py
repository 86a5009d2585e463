"""The layers that hold weights: Linear, Embedding, RMSNorm and the feed-forward layers.

All weights are (out, in), and no layer has a bias. The formulas are in ops.py.

Shapes: D d_model, F d_ff, V vocab_size; `...` any leading dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from tslm.model import ops
from tslm.model.init import init_embedding_, init_gain_, init_linear_


class SwiGLU(Module):
    """The gated feed-forward layer W₂(SiLU(W₁x) · W₃x) (Shazeer 2020, "GLU Variants Improve Transformer").

    Shapes: (..., D) to (..., D); the inner width is F.
    """

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__()
        self.w1 = Linear(d_model, d_ff)  # gate
        self.w2 = Linear(d_ff, d_model)  # down
        self.w3 = Linear(d_model, d_ff)  # up

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to the last dimension."""
        return ops.swiglu_linear(ops.linear(x, self.w1.weight, self.w3.weight), self.w2.weight)


class SiLUFeedForward(Module):
    """The feed-forward layer without a gate, W₂ SiLU(W₁x); as in Vaswani et al. 2017, section 3.3, with SiLU for ReLU.

    With F = 4 D it has as many weights as SwiGLU with F = 8/3 D.

    Shapes: (..., D) to (..., D); the inner width is F.
    """

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__()
        self.w1 = Linear(d_model, d_ff)
        self.w2 = Linear(d_ff, d_model)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to the last dimension."""
        return self.w2(ops.silu(self.w1(x)))  # type: ignore[no-any-return]


class RMSNorm(Module):
    """Root-mean-square normalisation of the last dimension: x / √(mean(x²) + eps) · weight (see `ops.rms_norm`).

    Shapes: (..., D) to (..., D).

    Args:
        d_model: D.
        eps: keeps the division away from 0.
    """

    def __init__(self, d_model: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = Parameter(torch.empty(d_model))
        self.eps = eps
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set every gain to 1."""
        init_gain_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        return ops.rms_norm(x, self.weight, self.eps)


class Linear(Module):
    """Linear map x Wᵀ of x (..., d_in) by `weight` W (d_out, d_in)."""

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__()
        self.weight = Parameter(torch.empty(d_out, d_in))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw a new weight (see init.py)."""
        init_linear_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., d_in) to (..., d_out)."""
        return ops.linear(x, self.weight)


class Embedding(Module):
    """The row of `weight` (V, D) for each token id: (...) to (..., D).

    An id outside 0 … V-1 raises IndexError on a CPU. On a GPU the check would cost a synchronisation, so the data
    package checks a token file when it is opened.
    """

    def __init__(self, vocab_size: int, d_model: int) -> None:
        super().__init__()
        self.weight = Parameter(torch.empty(vocab_size, d_model))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw a new table (see init.py)."""
        init_embedding_(self.weight)

    def forward(self, token_ids: Tensor) -> Tensor:
        """Look up every id."""
        if token_ids.device.type == "cpu":
            # The backward pass of weight[ids] adds rows in an order that changes from run to run on a CPU. On CUDA
            # the opposite holds: index_select adds atomically, weight[ids] sorts first.
            return self.weight.index_select(0, token_ids.flatten()).view(*token_ids.shape, -1)
        return self.weight[token_ids]
