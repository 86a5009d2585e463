"""Gradient clipping: the gradient of one bad batch must not move the weights far."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from tslm.errors import UserError


@torch.no_grad()
def clip_gradients(parameters: Iterable[Tensor] | Tensor, max_norm: float, eps: float = 1e-6) -> Tensor:
    """Scale all gradients, in place, by one common factor if their global l2 norm reaches a maximum.

        n = √(Σ gᵢ²)  over all entries of all gradients;   n ≥ max_norm:  g ← g · max_norm / (n + eps)

    Below max_norm no bit of any gradient changes. The direction of the step does not change (Pascanu et al. 2013, "On
    the difficulty of training recurrent neural networks"). If the norm is NaN, all gradients become NaN, as with
    torch's `clip_grad_norm_`. The decision is made on the device, so that the processor does not wait for a GPU.

    A step whose gradient is not finite would spoil the weights permanently. `AdamW` skips it. In a loop of your
    own with another optimizer, skip it by the norm. `SkippedSteps` also counts such steps, without waiting for a GPU.

        >>> norm = clip_gradients(model.parameters(), max_norm=1.0)
        >>> if (norm + loss.detach()).isfinite():
        ...     optimizer.step()

    Args:
        parameters: parameters in any iterable; those without a gradient are skipped.
        max_norm: the norm from which on gradients are scaled, above 0.
        eps: added to the norm in the division, as in torch's `clip_grad_norm_`.

    Returns:
        The norm before clipping, a scalar tensor; 0 if no parameter has a gradient.

    Raises:
        UserError: max_norm is not above 0.
    """
    if not max_norm > 0:
        raise UserError(f"max_norm is {max_norm}, but it must be above 0; to train without clipping, do not call this")
    if isinstance(parameters, Tensor):
        parameters = [parameters]
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return torch.zeros(())
    # A sum of squares in bfloat16 would be right to two digits only.
    dtype = functools.reduce(torch.promote_types, {gradient.dtype for gradient in gradients}, torch.float32)
    sharded: Any = next((each for each in gradients if hasattr(each, "to_local")), None)  # DTensors, of fsdp2
    gradients = [each.to_local() if hasattr(each, "to_local") else each for each in gradients]
    norms = torch._foreach_norm(gradients, 2, dtype=dtype)
    square = torch.stack([each.to(norms[0].device) for each in norms]).square().sum()
    if sharded is not None:  # each process has a part of every gradient
        torch.distributed.all_reduce(square, group=sharded.device_mesh.get_group())
    norm = square.sqrt()
    # Multiplying by exactly 1 changes no bit, and costs less than waiting for the device to compare the norms.
    scale = (max_norm / (norm + eps)).masked_fill_(norm < max_norm, 1.0)
    for device in {gradient.device for gradient in gradients}:
        torch._foreach_mul_([each for each in gradients if each.device == device], scale.to(device))
    return norm
