"""AdamW, the optimizer that trains the language model: the size of a step hardly depends on the gradient's scale.

`adamw_step` holds the update equations.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from tslm.errors import UserError
from tslm.fast import replaceable


class AdamW(Optimizer):
    r"""Adam with decoupled weight decay (Kingma & Ba 2015; Loshchilov & Hutter 2019).

        m ← β₁ m + (1 - β₁) g                   the mean of recent gradients
        v ← β₂ v + (1 - β₂) g²                  the mean of their squares
        α_t = α √(1 - β₂ᵗ) / (1 - β₁ᵗ)          undoes the bias from m = v = 0; t counts from 1
        θ ← θ - α_t m / (√v + ε)
        θ ← θ - α λ θ                           the decay, at the scheduled rate α

    `torch.optim.AdamW` differs in two places: it decays before the step, and it divides √v by √(1 - β₂ᵗ) before it adds
    ε, which equals the equation above with ε multiplied by that root.

    The state of a parameter has the names of `torch.optim.AdamW`: `step` (t, an integer; a float32 scalar tensor once
    the GPU substitute has run, as with torch's `capturable`), `exp_avg` (m) and `exp_avg_sq` (v).

    Attributes:
        skip: a boolean scalar tensor on the parameters' device; while it is true, steps change nothing, t included.
            Where it is None, a step with a gradient that is not finite changes nothing, and on a CPU a warning says so.

    Args:
        params: parameters, or parameter groups as dictionaries.
        lr: α, the learning rate.
        betas: (β₁, β₂). The papers have β₂ = 0.999; language models are trained with 0.95 (Brown et al. 2020, appendix
            B), which averages over 20 steps instead of 1,000 and so forgets the large gradients of the first steps.
        eps: ε, keeps the division away from 0.
        weight_decay: λ.

    Raises:
        UserError: an argument is outside its range.

    Example: after the first step m = (1 - β₁) g and v = (1 - β₂) g², so every entry moves by α · g / |g|: with lr = 0.1
        and no decay a parameter 1 with gradient 5 becomes 0.9.
    """

    skip: Tensor | None = None

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        beta1, beta2 = betas
        if not lr >= 0:
            raise UserError(f"lr is {lr}, but a learning rate must be 0 or more")
        if not (0 <= beta1 < 1 and 0 <= beta2 < 1):
            raise UserError(f"betas are ({beta1}, {beta2}), but both must be at least 0 and below 1")
        if not eps >= 0:
            raise UserError(f"eps is {eps}, but it must be 0 or more")
        if not weight_decay >= 0:
            raise UserError(f"weight_decay is {weight_decay}, but it must be 0 or more")
        super().__init__(params, {"lr": lr, "betas": (beta1, beta2), "eps": eps, "weight_decay": weight_decay})

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step; `closure`, if given, recomputes the loss and the gradients first, and its loss is returned.

        Parameters without a gradient stay as they are, their t included.

        Raises:
            UserError: a gradient is sparse; then nothing has changed.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        gradients = [parameter.grad for group in self.param_groups for parameter in group["params"]
                     if parameter.grad is not None]
        self._check_dense(gradients)
        skip = self.skip if self.skip is not None else self._any_not_finite(gradients)
        for group in self.param_groups:
            self._step_group(group, skip)
        return loss

    def _step_group(self, group: dict[str, Any], skip: Tensor | None) -> None:
        alike: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
        for parameter in group["params"]:
            if parameter.grad is not None:
                if not (state := self.state[parameter]):  # its first step
                    state["step"] = 0
                    state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
                    state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
                alike.setdefault((parameter.device, parameter.dtype), []).append(parameter)
        for parameters in alike.values():
            gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
            states = [self.state[parameter] for parameter in parameters]
            beta1, beta2 = group["betas"]
            adamw_step(parameters, gradients, states, skip, group["lr"], beta1, beta2, group["eps"],
                       group["weight_decay"])

    def _any_not_finite(self, gradients: list[Tensor]) -> Tensor | None:
        """Return whether an entry of a gradient is not finite, on the device of the first; a GPU is not waited for.

        A sum is finite only if all its terms are. Sums of finite gradients overflow float32 only far above 10¹⁹, where
        their squares overflow, too.
        """
        sums = [each.sum(dtype=torch.promote_types(each.dtype, torch.float32)) for each in gradients]
        if not sums:
            return None
        skip = ~torch.stack([each.to(sums[0]) for each in sums]).isfinite().all()
        if skip.device.type == "cpu" and skip:
            warnings.warn(f"a gradient is not finite, so {type(self).__name__} skips the step", stacklevel=4)
        return skip

    def _check_dense(self, gradients: list[Tensor]) -> None:
        for gradient in gradients:
            if gradient.is_sparse:
                raise UserError(
                    f"the gradient of a parameter of shape {tuple(gradient.shape)} is sparse, but "
                    f"{type(self).__name__} moves every entry at every step: use an embedding with a dense gradient"
                )


@replaceable
def adamw_step(
    parameters: list[Tensor], gradients: list[Tensor], states: list[dict[str, Any]], skip: Tensor | None,
    lr: float, beta1: float, beta2: float, eps: float, weight_decay: float,
) -> None:
    """Apply the equations of `AdamW` to parameters of one device and dtype, in place, unless `skip` is true.

    Args:
        parameters: θ.
        gradients: g, each of the shape of its parameter.
        states: t, m and v of each parameter as `step`, `exp_avg` and `exp_avg_sq`.
        skip: a boolean scalar tensor; None never skips. To read it the processor waits for a GPU; the substitute for
            GPUs does not read it.
        lr: α.
        beta1: β₁.
        beta2: β₂.
        eps: ε.
        weight_decay: λ.
    """
    if skip is not None and skip:
        return
    for parameter, gradient, state in zip(parameters, gradients, states, strict=True):
        state["step"] = t = int(state["step"]) + 1
        mean, square = state["exp_avg"], state["exp_avg_sq"]
        mean.mul_(beta1).add_(gradient, alpha=1 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        rate = lr * math.sqrt(1 - beta2**t) / (1 - beta1**t)
        parameter.addcdiv_(mean, square.sqrt().add_(eps), value=-rate)
        parameter.mul_(1 - lr * weight_decay)
