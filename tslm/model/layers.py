"""The layers that hold weights: Linear, Embedding, RMSNorm and the SwiGLU feed-forward layer.

All weights are (out, in); no layer has a bias. Leading dimensions are free.

Shapes: D d_model, F d_ff, V vocab_size.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from tslm.model import fused
from tslm.model.hardware import matmul_dtype
from tslm.model.init import init_embedding_, init_gain_, init_linear_


class Linear(Module):
    """y = x Wᵀ for x (..., d_in), y (..., d_out) and `weight` W (d_out, d_in)."""

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__()
        self.weight = Parameter(torch.empty(d_out, d_in))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weight anew."""
        init_linear_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the map to the last dimension."""
        return x @ _cast(self.weight).T


def linear_together(x: Tensor, *layers: Linear) -> Tensor:
    """The outputs of several layers on the same input side by side: (..., d_in) to (..., sum of the d_out).

    One wide matmul reads x once, and its backward makes the gradient of x in one piece instead of adding one piece per
    layer; the parameters and their names stay apart. Joining the weights costs a copy of them, which pays as soon as
    there are about as many rows as columns; below that (generation) each layer runs alone.
    """
    if x.numel() < layers[0].weight.numel():
        return torch.cat([layer(x) for layer in layers], -1)
    return x @ torch.cat([_cast(layer.weight) for layer in layers]).T


def _cast(weight: Tensor) -> Tensor:
    """What autocast would do to a weight, but before it is transposed, so that its gradient is not transposed twice."""
    return weight.to(matmul_dtype(weight))


class Embedding(Module):
    """Row lookup: token ids (...) to vectors (..., D) of `weight` (V, D).

    An id outside 0 … V-1 raises IndexError on CPU; on a GPU the check would cost a synchronisation, so the data layer
    checks token files at their first use instead.
    """

    def __init__(self, vocab_size: int, d_model: int) -> None:
        super().__init__()
        self.weight = Parameter(torch.empty(vocab_size, d_model))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the table anew."""
        init_embedding_(self.weight)

    def forward(self, token_ids: Tensor) -> Tensor:
        """Look every id up."""
        if token_ids.device.type == "cpu":
            # The backward of weight[ids] adds rows in an order that changes from run to run on CPU, and takes ten
            # times as long. On CUDA it is the other way round: index_select adds atomically, weight[ids] sorts first.
            return self.weight.index_select(0, token_ids.flatten()).view(*token_ids.shape, -1)
        return self.weight[token_ids]


class RMSNorm(Module):
    """x / √(mean(x²) + eps) · weight over the last dimension, computed in float32 (functional.rms_norm)."""

    def __init__(self, d_model: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = Parameter(torch.empty(d_model))
        self.eps = eps
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set every gain to 1."""
        init_gain_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (..., D)."""
        return fused.rms_norm(x, self.weight, self.eps)


class SwiGLU(Module):
    """w2(SiLU(w1 x) · w3 x): (..., D) to (..., D) through width F (Shazeer 2020, "GLU Variants")."""

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__()
        self.w1 = Linear(d_model, d_ff)  # gate
        self.w2 = Linear(d_ff, d_model)  # down
        self.w3 = Linear(d_model, d_ff)  # up

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to the last dimension."""
        return fused.swiglu_linear(linear_together(x, self.w1, self.w3), _cast(self.w2.weight))
