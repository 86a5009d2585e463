"""AdamW for parameters that are not on a CPU: each number that changes from step to step is a tensor beside them.

So the processor never waits, a step can be skipped by a flag that it does not know, and a CUDA graph could replay it.
(It would wait for numbers that an operator wants as tensors, as torch.where does, since these are sent to the device.)
The plain form is `adamw.adamw_step`; tested against it on a CPU. In float32 on a CUDA GPU the arithmetic is one kernel
(triton_adamw.py), elsewhere that of operators over all parameters at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tslm.model.hardware import TRITON


def device_adamw_step(
    parameters: list[Tensor], gradients: list[Tensor], states: list[dict[str, Any]], skip: Tensor,
    lr: float, beta1: float, beta2: float, eps: float, weight_decay: float,
) -> None:
    """Apply the equations of `AdamW` to many parameters at once, in place, unless `skip` is true.

    A skipped step leaves every θ, m, v and t as they were, whatever the gradients hold.

    Args:
        parameters: θ, all on one device and of one dtype, which is also that of g, m and v.
        gradients: g.
        states: the optimizer's state of each parameter, with `step` made by `counter_on`.
        skip: a boolean scalar on the device.
        lr: α.
        beta1: β₁.
        beta2: β₂.
        eps: ε.
        weight_decay: λ.
    """
    steps, means, squares = ([state[name] for state in states] for name in ("step", "exp_avg", "exp_avg_sq"))
    dtype = torch.float32 if _half(parameters[0]) else parameters[0].dtype
    torch._foreach_add_(steps, skip.logical_not().float())
    t = torch.stack(steps).to(dtype)
    # α_t, where 1 - βᵗ would lose digits in float32. A skipped first step has 0/0 here, which is not taken.
    rates = (lr * torch.sqrt(_one_minus_power(beta2, t)) / _one_minus_power(beta1, t)).masked_fill_(skip, 0.0)
    update = _update_for(parameters, gradients, means, squares)
    update(parameters, gradients, means, squares, rates, skip, beta1, beta2, eps, 1 - lr * weight_decay)


def foreach_update(
    parameters: list[Tensor], gradients: list[Tensor], means: list[Tensor], squares: list[Tensor], rates: Tensor,
    skip: Tensor, beta1: float, beta2: float, eps: float, decay: float,
) -> None:
    """Do what `triton_adamw.update` does by operators that each go through all parameters, of any one dtype.

    A skipped step is one with g = 0, β₁ = β₂ = 1, α = λ = 0 and ε = 1, and leaves zeros in the gradients.
    """
    half = _half(parameters[0])

    def unless_skipped(value: float, otherwise: float) -> Tensor:
        return torch.full((), value, dtype=rates.dtype, device=skip.device).masked_fill_(skip, otherwise)

    for gradient in gradients:
        gradient.masked_fill_(skip, 0)
    # A scalar tensor counts in the dtype of the others, in which 1 - αλ would be 1: half precision is widened.
    sides = parameters, gradients, means, squares
    thetas, slopes, firsts, seconds = ([each.float() for each in side] if half else side for side in sides)
    torch._foreach_mul_(firsts, unless_skipped(beta1, 1.0))
    torch._foreach_add_(firsts, slopes, alpha=1 - beta1)
    torch._foreach_mul_(seconds, unless_skipped(beta2, 1.0))
    torch._foreach_addcmul_(seconds, slopes, slopes, value=1 - beta2)
    denominators = torch._foreach_sqrt(seconds)
    torch._foreach_add_(denominators, unless_skipped(eps, 1.0))
    moves = torch._foreach_div(firsts, denominators)
    torch._foreach_mul_(moves, list(rates.unbind()))
    torch._foreach_sub_(thetas, moves)
    torch._foreach_mul_(thetas, unless_skipped(decay, 1.0))
    if half:
        for narrow, wide in zip((parameters, means, squares), (thetas, firsts, seconds), strict=True):
            torch._foreach_copy_(narrow, wide)


def _half(tensor: Tensor) -> bool:
    return tensor.dtype in (torch.float16, torch.bfloat16)


def _update_for(*sides: list[Tensor]) -> Callable[..., None]:
    """The Triton kernel for what it takes, else the operators."""
    if TRITON and all(tensor.is_cuda and tensor.dtype == torch.float32 and tensor.is_contiguous()
                      for side in sides for tensor in side):
        from tslm.optim.triton_adamw import update  # a CPU never imports it

        return update
    return foreach_update


def counter_on(device: torch.device, step: int | Tensor) -> Tensor:
    """Return t as a float32 scalar on a device, from whatever a state dict holds; one that is so already stays itself.

    Such are the counters of torch's own AdamW, too, where it keeps them on the device.
    """
    if isinstance(step, Tensor):
        return step.to(device, torch.float32)
    return torch.full((), float(step), dtype=torch.float32, device=device)


def _one_minus_power(beta: float, t: Tensor) -> Tensor:
    """1 - βᵗ = -(e^(t ln β) - 1), exact to rounding."""
    return -torch.expm1(t * math.log(beta)) if beta else torch.ones_like(t)
