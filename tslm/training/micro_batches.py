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

Part = tuple[Tensor, Tensor]  # inputs and targets


def loss_by_micro_batches(
    loss_of: Callable[[Tensor, Tensor], Tensor], inputs: Tensor, targets: Tensor, most: int,
    parameters: Iterable[Tensor],
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

    def share_of(part: Part) -> Tensor:
        return loss_of(*part) * (part[1].numel() / targets.numel())

    if not torch.is_grad_enabled():
        return torch.stack([share_of(part) for part in parts]).sum()
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    return _LossByParts.apply(share_of, parts, *trained)  # type: ignore[no-any-return]


class _LossByParts(torch.autograd.Function):
    """Σ_i share_of(part_i) and, already in the forward pass, the sum of its gradients by each parameter."""

    @staticmethod
    def forward(ctx: Any, share_of: Callable[[Part], Tensor], parts: list[Part], *parameters: Tensor) -> Tensor:
        # Side by side and before any activation: scattered among those they would leave gaps where they cannot lie.
        ctx.sums = [torch.zeros_like(parameter) for parameter in parameters]
        return torch.stack([_add_gradients(ctx.sums, share_of, part, parameters) for part in parts]).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        sums, ctx.sums = ctx.sums, None  # one that nobody else holds becomes the parameter's gradient uncopied
        return None, None, *(summed.mul_(scale) for summed in sums)


def _add_gradients(
    sums: list[Tensor], share_of: Callable[[Part], Tensor], part: Part, parameters: tuple[Tensor, ...]
) -> Tensor:
    """Return the loss of a part; activations and gradients are forgotten before the next part fills the memory."""
    with torch.enable_grad():
        loss = share_of(part)
    with torch.autocast(loss.device.type, enabled=False):  # what the forward pass chose holds, as elsewhere
        gradients = torch.autograd.grad(loss, parameters)
    for summed, gradient in zip(sums, gradients, strict=True):
        summed.add_(gradient)
    return loss.detach()
