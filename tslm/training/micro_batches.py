"""A batch's loss and gradients by parts of the batch, one after another: the memory of a part instead of the whole.

Most of what a training step keeps in memory are the activations of its windows, which the backward pass needs. The mean
over a batch is a sum over its windows, so the gradients of some windows can be made and added up, and their activations
forgotten, before the next ones come. What is computed is the same, but for the rounding of a sum in another order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LossOf = Callable[[Tensor, Tensor], Tensor]


def loss_by_micro_batches(
    loss_of: LossOf, inputs: Tensor, targets: Tensor, most: int, parameters: Iterable[Tensor]
) -> Tensor:
    """Return `loss_of(inputs, targets)`, with at most `most` windows' activations in memory at a time.

    The gradients are made during the forward pass, part by part, and the backward pass only scales them. So a scale
    that is to keep float16's gradients from underflowing comes too late: use it with float32 and bfloat16 only.

    Args:
        loss_of: the mean loss of windows (B, T) against their next tokens, the mean over B · T tokens.
        inputs: (B, T).
        targets: (B, T).
        most: windows in a part; the parts of a batch are as equal as can be.
        parameters: what gradients are taken of; those that do not ask for any are left out.
    """
    count = -(-len(inputs) // most)
    if count <= 1:
        return loss_of(inputs, targets)
    parts = list(zip(inputs.tensor_split(count), targets.tensor_split(count), strict=True))
    if not torch.is_grad_enabled():
        return torch.stack([loss_of(x, y) * (y.numel() / targets.numel()) for x, y in parts]).sum()
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    return _LossByParts.apply(loss_of, parts, *trained)  # type: ignore[no-any-return]


def _part(
    loss_of: LossOf, inputs: Tensor, targets: Tensor, parameters: tuple[Tensor, ...], share: float
) -> tuple[Tensor, tuple[Tensor, ...]]:
    with torch.enable_grad():
        loss = loss_of(inputs, targets) * share
    with torch.autocast(loss.device.type, enabled=False):  # what the forward pass chose holds, as elsewhere
        return loss.detach(), torch.autograd.grad(loss, parameters)


class _LossByParts(torch.autograd.Function):
    """Σ_i n_i/n loss_of(part_i) and, already in the forward pass, Σ_i n_i/n of its gradient by each parameter."""

    @staticmethod
    def forward(ctx: Any, loss_of: LossOf, parts: list[tuple[Tensor, Tensor]], *parameters: Tensor) -> Tensor:
        tokens = sum(targets.numel() for _, targets in parts)
        total = torch.zeros((), device=parts[0][0].device)
        # Side by side and before any activation: scattered among those they would leave gaps where they cannot lie.
        sums = [torch.zeros_like(parameter) for parameter in parameters]
        for inputs, targets in parts:
            loss, gradients = _part(loss_of, inputs, targets, parameters, targets.numel() / tokens)
            total = total + loss
            for summed, gradient in zip(sums, gradients, strict=True):
                summed.add_(gradient)
            del gradients, gradient  # before the next part fills the memory
        ctx.gradients = sums
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        return None, None, *(gradient.mul_(scale) for gradient in gradients)
