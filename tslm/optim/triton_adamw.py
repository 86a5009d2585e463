"""AdamW's update of all parameters as one Triton kernel: four tensors are read once, three of them written once.

The operators of `adamw_device` go through memory some 25 times for the same numbers. `adamw_device.device_adamw_step`
comes here with float32 tensors on a CUDA GPU where Triton can be imported; nothing else imports this file. Tested under
Triton's interpreter against `adamw.adamw_step`.
"""

# ruff: noqa: ANN001, ANN202 - a kernel's arguments are Triton's own
# mypy: disable-error-code="no-untyped-def, untyped-decorator, import-untyped"
# No `from __future__ import annotations`: Triton reads the annotations of a kernel.
import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 2048  # entries of a program


def update(
    parameters: list[Tensor], gradients: list[Tensor], means: list[Tensor], squares: list[Tensor], rates: Tensor,
    skip: Tensor, beta1: float, beta2: float, eps: float, decay: float,
) -> None:
    """Apply the equations of `AdamW` to all parameters, in place, unless `skip` is true.

    Args:
        parameters: θ, contiguous, float32 and on one device like everything else.
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
    sides = parameters, gradients, means, squares
    addresses = _sent(tuple(tensor.data_ptr() for side in sides for tensor in side), skip.device)
    sizes, owners, blocks = tables(tuple(parameter.numel() for parameter in parameters), skip.device)
    numbers = beta1, 1 - beta1, beta2, 1 - beta2, eps, decay
    with torch.cuda.device_of(skip):
        _update[(len(owners),)](addresses, sizes, owners, blocks, rates, skip, len(parameters), *numbers, BLOCK)


@functools.lru_cache(maxsize=8)
def tables(sizes: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return the parameters' sizes, and for each program its parameter and its block in that."""
    blocks = [triton.cdiv(size, BLOCK) for size in sizes]
    owners = tuple(number for number, count in enumerate(blocks) for _ in range(count))
    within = tuple(block for count in blocks for block in range(count))
    return _sent(sizes, device), _sent(owners, device), _sent(within, device)


@functools.lru_cache(maxsize=8)  # the addresses of the gradients stay the same in a CUDA graph, else often
def _sent(numbers: tuple[int, ...], device: torch.device) -> Tensor:
    """The numbers as a tensor there; from pinned memory, so that the processor does not wait for the device."""
    table = torch.tensor(numbers, dtype=torch.int64)
    return table.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else table


@triton.jit
def _update(addresses_ptr, sizes_ptr, owners_ptr, blocks_ptr, rates_ptr, skip_ptr, count, beta1, of_gradient, beta2,
            of_square, eps, decay, BLOCK: tl.constexpr):
    if tl.load(skip_ptr) == 0:
        owner = tl.load(owners_ptr + tl.program_id(0))
        places = tl.load(blocks_ptr + tl.program_id(0)) * BLOCK + tl.arange(0, BLOCK)
        inside = places < tl.load(sizes_ptr + owner)
        theta_ptr, gradient_ptr = _of(addresses_ptr + owner), _of(addresses_ptr + count + owner)
        mean_ptr, square_ptr = _of(addresses_ptr + 2 * count + owner), _of(addresses_ptr + 3 * count + owner)
        gradient = tl.load(gradient_ptr + places, mask=inside, other=0.0)
        mean = tl.load(mean_ptr + places, mask=inside, other=0.0) * beta1 + of_gradient * gradient
        square = tl.load(square_ptr + places, mask=inside, other=0.0) * beta2 + of_square * gradient * gradient
        theta = tl.load(theta_ptr + places, mask=inside, other=0.0)
        theta = (theta - tl.load(rates_ptr + owner) * mean / (tl.sqrt_rn(square) + eps)) * decay
        tl.store(mean_ptr + places, mean, mask=inside)
        tl.store(square_ptr + places, square, mask=inside)
        tl.store(theta_ptr + places, theta, mask=inside)


@triton.jit
def _of(address_ptr):
    """The memory of a tensor; nothing is said of its alignment, as gradients may be parts of a larger buffer."""
    return tl.load(address_ptr).to(tl.pointer_type(tl.float32))
