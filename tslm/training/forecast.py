"""What a training will need: operations and memory of a step, passes over the text. Known before the first step."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import NamedTuple

import torch

from tslm.model import TransformerConfig

# Bytes for each parameter: the gradient in float32, and what the optimizer keeps.
STATE_BYTES = {"AdamW": 4 + 8, "Muon": 4 + 8, "SGD": 4}


class Step(NamedTuple):
    """How a step is computed.

    Attributes:
        tokens: tokens whose activations are in memory at a time.
        accumulate: micro-batches of a step.
        half: whether matmuls run in a 16-bit format while the weights are in float32.
        recompute: whether the backward pass recomputes the activations of a block.
        chunk: tokens whose logits are computed at a time.
        optimizer: its name; one of the user's own counts like AdamW.
    """

    tokens: int
    accumulate: int
    half: bool
    recompute: bool
    chunk: int
    optimizer: str


def step_bytes(config: TransformerConfig, step: Step) -> int:
    """Return about how many bytes a training step adds to the memory that the model's weights take.

    The parts, with b bytes for a number of a matmul, P parameters and, for each token and layer,

        attention   the input, its norm, q, k, v, the heads, the sum: 8 D + 6 b D
        SwiGLU      gate and up: 2 b F
        logits      (4 + b) V for each token of a chunk
        weights     gradients and the optimizer's state; copies in 16 bits, 2 P; with several micro-batches 4 P for the
                    gradients that are added, 12 P in float32

    The last number, and a quarter more of activations in float32, are measured, not derived. On a CPU the forecast of
    the process's peak was within 5% for the shipped configurations and for variations of batch, precision and
    recomputation; tests/training/test_start_report.py holds 15%. It has not been compared on a GPU.
    """
    b, parameters = 2 if step.half else 4, config.num_parameters
    layer = (8 + 6 * b) * config.d_model + (2 if config.ffn == "swiglu" else 1) * b * config.d_ff
    layers = 4 * config.d_model * config.num_layers + layer if step.recompute else layer * config.num_layers
    activations = step.tokens * layers + min(step.chunk, step.tokens) * config.vocab_size * (4 + b)
    if step.half:
        activations += 2 * (parameters - config.vocab_size * config.d_model)
    else:
        activations = activations * 5 // 4
    gradients = STATE_BYTES.get(step.optimizer, 12) * parameters
    if step.accumulate > 1:
        gradients += (4 if step.half else 12) * parameters
    return activations + gradients


def matmul_flops(device: torch.device, *, half: bool, size: int = 1024) -> float:
    """Measure the operations per second of a plain matmul, the best of three, in bfloat16 (`half`) or float32."""
    matrix = torch.ones(size, size, device=device, dtype=torch.bfloat16 if half else torch.float32)
    fastest = math.inf
    for _ in range(4):  # the first one may have to load code
        start = time.perf_counter()
        product = matrix @ matrix
        product[0, 0].item()  # waits for the device
        fastest = min(fastest, time.perf_counter() - start)
    return 2 * size**3 / fastest


def used_bytes(device: torch.device) -> int | None:
    """Return the memory that this process uses on a device; None if that is not known here."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return _proc("/proc/self/status", "VmRSS")


def free_bytes(device: torch.device) -> int | None:
    """Return the memory that is free on a device; None if that is not known here."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return _proc("/proc/meminfo", "MemAvailable")


def _proc(path: str, name: str) -> int | None:
    try:
        for line in Path(path).read_text(encoding="ascii").splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return None


def amount(number: float, unit: str = "") -> str:
    """Write a number with three digits and a prefix: 1,127,296 parameters are 1.13 M.

    Example:
        >>> amount(1_127_296), amount(839_000_000, "B"), amount(12)
        ('1.13 M', '839 MB', '12')
    """
    for prefix, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:{'.3g' if number < 999.5 * size else '.0f'}} {prefix}{unit}"
    return f"{number:g} {unit}".rstrip()


def duration(seconds: float) -> str:
    """Write a time in words: 3 h 20 min, 2 min 40 s, 12 s."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{whole} s"
