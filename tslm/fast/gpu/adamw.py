"""AdamW's update of all parameters in one Triton kernel, which reads θ, g, m and v once and writes θ, m and v once.

t, α_t and the skip flag are tensors on the device. So the processor never waits for the GPU, not even to learn whether
a step is skipped.
"""

# ruff: noqa: ANN001, ANN202 - a kernel's arguments are Triton's own
# mypy: disable-error-code="no-untyped-def, untyped-decorator, import-untyped"
# No `from __future__ import annotations`: Triton reads the annotations of a kernel.
import functools
import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tslm.fast.door import Substitute
from tslm.fast.forms import Form, adamw_case, form_of, forms

BLOCK = 2048  # entries that one program updates


def adamw_step(
    parameters: list[Tensor], gradients: list[Tensor], states: list[dict[str, Any]], skip: Tensor | None,
    lr: float, beta1: float, beta2: float, eps: float, weight_decay: float,
) -> None:
    """Substitute for `optim.adamw.adamw_step`: a skipped step leaves every θ, m, v and t unchanged."""
    device = parameters[0].device
    if skip is None:
        skip = torch.zeros((), dtype=torch.bool, device=device)
    for state in states:
        state["step"] = counter_on(device, state["step"])
    taken = skip.logical_not().float()
    torch._foreach_add_([state["step"] for state in states], [taken] * len(states))  # a single tensor would be read
    t = torch.stack([state["step"] for state in states])
    # α_t. In a skipped first step t = 0 gives 0/0, which the mask replaces.
    rates = (lr * torch.sqrt(one_minus_power(beta2, t)) / one_minus_power(beta1, t)).masked_fill_(skip, 0.0)
    means, squares = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq"))
    tensors = [*parameters, *gradients, *means, *squares]
    addresses = _sent(tuple(each.data_ptr() for each in tensors), device)
    sizes, owners, blocks = tables(tuple(parameter.numel() for parameter in parameters), device)
    numbers = beta1, 1 - beta1, beta2, 1 - beta2, eps, 1 - lr * weight_decay
    with torch.cuda.device_of(skip):
        _update[(len(owners),)](addresses, sizes, owners, blocks, rates, skip, len(parameters), *numbers, BLOCK)


def counter_on(device: torch.device, step: int | Tensor) -> Tensor:
    """Return t as a float32 scalar tensor on a device, as `torch.optim.AdamW` keeps it; such a tensor is not copied."""
    if isinstance(step, Tensor):
        return step.to(device, torch.float32)
    return torch.full((), float(step), dtype=torch.float32, device=device)


def one_minus_power(beta: float, t: Tensor) -> Tensor:
    """Return 1 - βᵗ = -(e^(t ln β) - 1), exact to rounding also where βᵗ is close to 1."""
    return -torch.expm1(t * math.log(beta)) if beta else torch.ones_like(t)


@functools.lru_cache(maxsize=8)
def tables(sizes: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return the parameters' sizes and, for each program, the index of its parameter and of its block in it."""
    blocks = [triton.cdiv(size, BLOCK) for size in sizes]
    owners = tuple(number for number, count in enumerate(blocks) for _ in range(count))
    within = tuple(block for count in blocks for block in range(count))
    return _sent(sizes, device), _sent(owners, device), _sent(within, device)


@functools.lru_cache(maxsize=8)  # the addresses of the gradients stay the same in a CUDA graph, and often elsewhere
def _sent(numbers: tuple[int, ...], device: torch.device) -> Tensor:
    """Copy numbers to a device, from pinned memory, so that the processor does not wait."""
    table = torch.tensor(numbers, dtype=torch.int64)
    return table.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else table


@triton.jit
def _update(addresses_ptr, sizes_ptr, owners_ptr, blocks_ptr, rates_ptr, skip_ptr, count, beta1, of_gradient, beta2,
            of_square, eps, decay, BLOCK: tl.constexpr):
    if tl.load(skip_ptr) == 0:
        owner = tl.load(owners_ptr + tl.program_id(0))
        at = tl.load(blocks_ptr + tl.program_id(0)) * BLOCK + tl.arange(0, BLOCK)
        inside = at < tl.load(sizes_ptr + owner)
        theta_ptr, gradient_ptr = _of(addresses_ptr + owner), _of(addresses_ptr + count + owner)
        mean_ptr, square_ptr = _of(addresses_ptr + 2 * count + owner), _of(addresses_ptr + 3 * count + owner)
        gradient = tl.load(gradient_ptr + at, mask=inside, other=0.0)
        mean = tl.load(mean_ptr + at, mask=inside, other=0.0) * beta1 + of_gradient * gradient
        square = tl.load(square_ptr + at, mask=inside, other=0.0) * beta2 + of_square * gradient * gradient
        theta = tl.load(theta_ptr + at, mask=inside, other=0.0)
        theta = (theta - tl.load(rates_ptr + owner) * mean / (tl.sqrt_rn(square) + eps)) * decay
        tl.store(mean_ptr + at, mean, mask=inside)
        tl.store(square_ptr + at, square, mask=inside)
        tl.store(theta_ptr + at, theta, mask=inside)


@triton.jit
def _of(address_ptr):
    """Return a pointer to a tensor; its alignment is not assumed, because gradients may be parts of a larger buffer."""
    return tl.load(address_ptr).to(tl.pointer_type(tl.float32))


def _supports(
    parameters: list[Tensor], gradients: list[Tensor], states: list[dict[str, Any]], *rest: object
) -> Form | None:
    tensors = [*parameters, *gradients, *(state[name] for state in states for name in ("exp_avg", "exp_avg_sq"))]
    supported = all(each.dtype == torch.float32 and each.is_contiguous() for each in tensors)
    return form_of(parameters[0])._replace(autocast=None) if supported else None


ADAMW_STEP = Substitute(
    adamw_step, _supports, probes=lambda form: [adamw_case(form, skip, 5, BLOCK + 3) for skip in (False, True)],
    tolerance=lambda form: 1e-5, examples=lambda form: adamw_case(form, False, *[2**20] * 22),
    keys=lambda: [*forms("cuda")][:1],
)
