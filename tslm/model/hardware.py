"""What there is to compute with: Triton, a processor that multiplies bfloat16, the dtype that autocast asks for."""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

TRITON = importlib.util.find_spec("triton") is not None  # whether a GPU's kernels can be had; not every system has it


def matmul_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which a matmul of `x` runs: autocast's where it is on, else that of `x`.

    A layer that ends in an elementwise pass and only feeds matmuls writes its result in this dtype at once, which
    saves the pass that autocast would spend on the cast.
    """
    if x.dtype != torch.float64 and not x.is_meta and torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


def cpu_multiplies_bfloat16() -> bool:
    """Whether the processor itself multiplies bfloat16, so that it is the faster dtype."""
    # The public torch.backends.cpu.get_cpu_capability knows the vector width but not bfloat16.
    probes = [getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile")]
    return any(probe() for probe in probes if probe is not None)
