"""The dtype in which a matmul runs."""

from __future__ import annotations

import torch
from torch import Tensor


def matmul_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which a matmul of `x` runs: autocast's where it is on, else that of `x`.

    A layer whose result only matmuls read returns it in this dtype. That saves the separate pass over memory in which
    autocast would cast it.
    """
    if x.dtype != torch.float64 and not x.is_meta and torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype
