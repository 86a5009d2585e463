"""The dtype in which a matmul runs."""

from __future__ import annotations

import torch
from torch import Tensor


def matmul_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which a matmul of `x` runs: autocast's where it is on, else that of `x`.

    A layer that ends in an elementwise pass and only feeds matmuls returns its result in this dtype at once, which
    saves the pass that autocast would spend on the cast.
    """
    if x.dtype != torch.float64 and not x.is_meta and torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype
