"""Muon: each weight matrix moves by its momentum, orthogonalised, so that all singular values are near 1."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from tslm.errors import UserError
from tslm.optim.adamw import AdamW

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_MATCH_ADAMW = 0.2  # the root mean square of AdamW's updates (Liu et al. 2025, section 2.2)


class Muon(AdamW):
    r"""Momentum with orthogonalised updates for matrices; AdamW for the rest.

        b ← μ b + g;   o ← orthogonal(g + μ b);   θ ← θ - 0.2 √max(d_out, d_in) · α · o;   θ ← θ - α λ θ

    A momentum has a few large singular values. Orthogonalised, it moves the weights as far in its other directions.
    The factor 0.2 √max(d_out, d_in) gives the update the size of one of AdamW, so that both use the same α and λ.

    Sources: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"
    (https://kellerjordan.github.io/posts/muon/); Liu et al. 2025, "Muon is Scalable for LLM Training"
    (https://arxiv.org/abs/2502.16982), for the factor and the decay.

    Args:
        params: parameters, or parameter groups as dictionaries. In a group with `orthogonalize` False, and for
            parameters that are not matrices, the step is that of AdamW. `Muon.groups` divides a language model.
        lr: α.
        betas: β₁, β₂ of AdamW.
        eps: ε of AdamW.
        weight_decay: λ.
        momentum: μ.
        iterations: Newton-Schulz iterations.

    Raises:
        UserError: an argument is outside its range.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        momentum: float = 0.95,
        iterations: int = 5,
    ) -> None:
        if not isinstance(momentum, int | float) or not 0 <= momentum < 1:
            raise UserError(f"momentum is {momentum!r}, but it must be a number of at least 0 and below 1")
        if not isinstance(iterations, int) or iterations < 1:
            raise UserError(f"iterations is {iterations!r}, but it must be a whole number of at least 1")
        super().__init__(params, lr, betas, eps, weight_decay)
        own = {"momentum": momentum, "iterations": iterations, "orthogonalize": True}
        self.defaults |= own
        for group in self.param_groups:
            group.update(own | group)

    @staticmethod
    def groups(model: Module) -> list[dict[str, Any]]:
        """Divide the parameters of a language model: the matrices of its blocks are orthogonalised, and no others.

        A row of the embedding or of the head belongs to one token, so these matrices are not linear maps of the
        residual stream.
        """
        tables = {id(weight) for name, weight in model.named_parameters(remove_duplicate=False)
                  if name.endswith(("token_embeddings.weight", "lm_head.weight"))}
        matrices: list[Tensor] = []
        rest: list[Tensor] = []
        for each in model.parameters():
            (matrices if each.ndim == 2 and id(each) not in tables else rest).append(each)
        return [{"params": matrices}, {"params": rest, "orthogonalize": False}]

    def _step_group(self, group: dict[str, Any], skip: Tensor | None) -> None:
        rest: list[Tensor] = []
        alike: dict[tuple[Any, ...], list[Tensor]] = {}  # matrices of one shape or its transpose
        for each in group["params"]:
            if not group["orthogonalize"] or each.ndim != 2:
                rest.append(each)
            elif each.grad is not None:
                alike.setdefault((*sorted(each.shape), each.device, each.dtype), []).append(each)
        if skip is None or not skip:
            for matrices in alike.values():
                muon_step(matrices, [each.grad for each in matrices], [self.state[each] for each in matrices],
                          group["lr"], group["momentum"], group["iterations"], group["weight_decay"])
        super()._step_group(group | {"params": rest}, skip)


def muon_step(
    parameters: list[Tensor], gradients: list[Any], states: list[dict[str, Any]], lr: float, momentum: float,
    iterations: int, weight_decay: float,
) -> None:
    """Apply the equations of `Muon` to matrices of one shape or its transpose, in place.

    A state holds b as `momentum_buffer`. All matrices are orthogonalised together, the tall ones as their transposes,
    because small products waste a processor.
    """
    directions = []
    for parameter, gradient, state in zip(parameters, gradients, states, strict=True):
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer = state["momentum_buffer"]
        buffer.mul_(momentum).add_(gradient)
        direction = _wide(gradient + momentum * buffer)
        directions.append(direction.float() if direction.element_size() < 4 else direction)
    rate = lr * _MATCH_ADAMW * math.sqrt(max(parameters[0].shape))
    for parameter, update in zip(parameters, orthogonalized(torch.stack(directions), iterations), strict=True):
        _wide(parameter).add_(update.to(parameter.dtype), alpha=-rate)
        parameter.mul_(1 - lr * weight_decay)


def _wide(matrix: Tensor) -> Tensor:
    """Return a matrix with at least as many columns as rows: itself or its transpose."""
    return matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix


def orthogonalized(matrices: Tensor, iterations: int) -> Tensor:
    r"""Return matrices with the same singular vectors and singular values near 1, by Newton-Schulz iterations.

        X ← G / ‖G‖;   repeat:  X ← a X + (b A + c A²) X  with A = X Xᵀ and (a, b, c) = (3.4445, -4.7750, 2.0315)

    Each iteration maps a singular value s to a s + b s³ + c s⁵. The coefficients let small values grow fast: after five
    iterations all from 0.002 to 1 are between 0.68 and 1.21, which is close enough (Jordan et al. 2024).

    The products are in float32. In bfloat16, as published, they take 2 of the 49 ms of a quick start's step less, on a
    processor that multiplies it; its models were not better for that (tests/campaigns/LOG.md).

    Shapes: (batch, rows, columns), with at least as many columns as rows, so that A is the smaller product.
    """
    x = matrices / (matrices.square().sum((-2, -1), keepdim=True).sqrt() + 1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(iterations):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x
