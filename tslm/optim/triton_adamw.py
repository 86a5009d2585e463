"""AdamW's update of a parameter as one Triton kernel: four tensors are read once, three of them written once.

The operators of `adamw_device` go through memory some 25 times for the same numbers. `adamw_device.device_adamw_step`
comes here with float32 tensors on a CUDA GPU where Triton can be imported; nothing else imports this file. Tested under
Triton's interpreter against `adamw.adamw_step`.
"""

# ruff: noqa: ANN001, ANN202 - a kernel's arguments are Triton's own
# mypy: disable-error-code="no-untyped-def, untyped-decorator, import-untyped"
# No `from __future__ import annotations`: Triton reads the annotations of a kernel.
import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024  # entries of a program


def update(
    parameters: list[Tensor], gradients: list[Tensor], means: list[Tensor], squares: list[Tensor], rates: Tensor,
    skip: Tensor, beta1: float, beta2: float, eps: float, decay: float,
) -> None:
    """Apply the equations of `AdamW` to each parameter, in place, unless `skip` is true.

    Args:
        parameters: θ, contiguous and float32 like everything else.
        gradients: g.
        means: m.
        squares: v.
        rates: α_t of each parameter.
        skip: a boolean scalar; if true, nothing is written.
        beta1: β₁.
        beta2: β₂.
        eps: ε.
        decay: 1 - αλ.
    """
    numbers = beta1, 1 - beta1, beta2, 1 - beta2, eps, decay
    with torch.cuda.device_of(skip):
        for tensors in zip(parameters, gradients, means, squares, rates.unbind(), strict=True):
            count = tensors[0].numel()
            _update[(triton.cdiv(count, BLOCK),)](*tensors, skip, count, *numbers, BLOCK)


@triton.jit
def _update(theta_ptr, gradient_ptr, mean_ptr, square_ptr, rate_ptr, skip_ptr, count, beta1, of_gradient, beta2,
            of_square, eps, decay, BLOCK: tl.constexpr):
    if tl.load(skip_ptr) == 0:
        places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        inside = places < count
        gradient = tl.load(gradient_ptr + places, mask=inside, other=0.0)
        mean = tl.load(mean_ptr + places, mask=inside, other=0.0) * beta1 + of_gradient * gradient
        square = tl.load(square_ptr + places, mask=inside, other=0.0) * beta2 + of_square * gradient * gradient
        theta = tl.load(theta_ptr + places, mask=inside, other=0.0)
        theta = (theta - tl.load(rate_ptr) * mean / (tl.sqrt_rn(square) + eps)) * decay
        tl.store(mean_ptr + places, mean, mask=inside)
        tl.store(square_ptr + places, square, mask=inside)
        tl.store(theta_ptr + places, theta, mask=inside)
