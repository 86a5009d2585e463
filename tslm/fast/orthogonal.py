"""Muon's Newton-Schulz iterations in bfloat16, as published: a substitute for `optim.muon.orthogonalized`.

Measured, the 21 matrices of the quick start, three iterations, two cores with AVX-512: the step of Muon takes 6.8 ms
instead of 8.9. What is learned does not differ (tests/campaigns/LOG.md).
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from tslm.fast.door import Case, Substitute
from tslm.fast.forms import cpu_multiplies_bfloat16, drawn

A, B, C = 3.4445, -4.7750, 2.0315


class Products(NamedTuple):
    """Where and in which dtype is multiplied."""

    device: str
    dtype: torch.dtype


def orthogonalized(matrices: Tensor, iterations: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Substitute for `optim.muon.orthogonalized` of float32 matrices; `dtype` is that of the products."""
    x = (matrices / (matrices.square().sum((-2, -1), keepdim=True).sqrt() + 1e-7)).to(dtype)
    for _ in range(iterations):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=B, alpha=C), x, beta=A)
    return x.float()


def _is_faster(device: str) -> bool:
    return cpu_multiplies_bfloat16() if device == "cpu" else device == "cuda"


def _supports(matrices: Tensor, iterations: int) -> Products | None:
    device = matrices.device.type
    is_supported = matrices.dtype == torch.float32 and type(matrices) is Tensor and _is_faster(device)
    return Products(device, torch.bfloat16) if is_supported else None


def _precise(key: Products) -> Products | None:
    """The formula is compared with float32 products, too: bfloat16 would hide a small change of a constant."""
    return None if key.dtype == torch.float32 else Products(key.device, torch.float32)


def _case(key: Products, *size: int, iterations: int) -> Case:
    return Case((drawn(*size, dtype=torch.float32, device=key.device).detach(), iterations))


def _probes(key: Products) -> list[Case]:
    return [_case(key, 2, 5, 12, iterations=5), _case(key, 1, 20, 20, iterations=1),
            _case(key, 3, 17, 90, iterations=3)]


ORTHOGONALIZED = Substitute(
    orthogonalized, _supports, _probes, tolerance=lambda key: 1e-4 if key.dtype == torch.float32 else 5e-2,
    precise=_precise, probed=lambda key: partial(orthogonalized, dtype=key.dtype),
    examples=lambda key: _case(key, 9, 128, 352, iterations=3),
    keys=lambda: [Products(device, torch.bfloat16) for device, exists in
                  (("cpu", True), ("cuda", torch.cuda.is_available())) if exists and _is_faster(device)],
)
