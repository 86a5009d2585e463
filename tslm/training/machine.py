"""What a training makes of its machine: the device, the precision, and memory that is not returned to the system."""

from __future__ import annotations

import ctypes
import sys
from typing import Literal

import lightning.pytorch as pl
import torch

from tslm.errors import UserError
from tslm.fast.forms import cpu_multiplies_bfloat16

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD in malloc.h
_NEVER = 2**31 - 1  # free bytes at the end of the heap before they are returned; mallopt takes no larger number
_LARGEST = 32 * 2**20  # bytes from which on a block gets a mapping of its own; glibc allows no larger number


def usable_accelerator(asked: str | pl.accelerators.Accelerator) -> str | pl.accelerators.Accelerator:
    """Replace `auto` by `cpu` on Apple's machines: their GPUs lack float64, in which validation losses are summed.

    Raises:
        UserError: an Apple GPU is asked for by name.
    """
    if asked == "mps" or (asked == "gpu" and torch.backends.mps.is_available()):
        raise UserError(f"trainer.accelerator is {asked!r}, but Apple's GPUs have no float64, in which losses are "
                        "summed: give --trainer.accelerator cpu")
    return "cpu" if asked == "auto" and torch.backends.mps.is_available() else asked


def auto_precision(accelerator: str) -> Literal["32-true", "bf16-mixed"]:
    """Choose bfloat16 if the hardware multiplies it, and print the choice."""
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        device, fast = torch.cuda.get_device_name(), torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        device, fast = "this processor", cpu_multiplies_bfloat16()
    precision: Literal["32-true", "bf16-mixed"] = "bf16-mixed" if fast else "32-true"
    print(f"Precision: {precision} ({device} {'computes' if fast else 'does not compute'} in bfloat16)")
    return precision


def keep_freed_memory(platform: str = sys.platform) -> bool:
    """Keep freed memory in the process, so that the next training step does not fetch it from the system again.

    A step allocates and frees hundreds of arrays of megabytes. By default glibc returns each of them to the system,
    which clears the pages when they are allocated again: 75,000 page faults in a step of the course's model, a tenth of
    the time of a step on a CPU. Two thresholds of glibc stop that; other systems and C libraries are left alone.
    The process's peak memory stays the same within a few percent; between the peaks it holds more.

    Returns:
        Whether the thresholds were set.
    """
    if not platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # musl
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST) and mallopt(_TRIM_THRESHOLD, _NEVER))
