"""Sampling on a CPU in C, which finds the thresholds of top-k and top-p without sorting the vocabulary.

Shapes: B sequences, V vocab_size.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from tslm.fast.cpu import build
from tslm.fast.door import Case, Substitute
from tslm.fast.forms import Form, drawn

SOURCES = (Path(__file__).with_name("sampling.c"),)


def choose_tokens(
    logits: Tensor, temperature: float, top_p: float, top_k: int | None, uniform: Tensor | None
) -> list[int]:
    """Substitute for `sampling.choose_tokens`, for logits (B, V) in float32."""
    tokens = (ctypes.c_int32 * len(logits))()
    size = logits.shape[1]
    logits = logits.clone(memory_format=torch.contiguous_format)  # the kernel overwrites them
    uniform = None if uniform is None else uniform.to("cpu", torch.float64)
    build.load(SOURCES, torch.float32).sample(
        ctypes.c_void_p(logits.data_ptr()), len(logits), size, logits.stride(0), ctypes.c_double(temperature),
        ctypes.c_double(top_p), size if top_k is None else min(top_k, size),
        ctypes.c_void_p(None if uniform is None else uniform.data_ptr()), tokens, torch.get_num_threads())
    return list(tokens)


def _supports(
    logits: Tensor, temperature: float, top_p: float, top_k: int | None, uniform: Tensor | None
) -> Form | None:
    return Form("cpu", torch.float32) if logits.dtype == torch.float32 else None


def _case(temperature: float, top_p: float, top_k: int | None, rows: int = 16, vocab_size: int = 131) -> Case:
    uniform = (torch.arange(rows, dtype=torch.float64) + 0.5) / rows
    logits = drawn(rows, vocab_size, dtype=torch.float32, scale=3).detach()
    return Case((logits, temperature, top_p, top_k, uniform))


def _probes(form: Form) -> list[Case]:
    build.load(SOURCES, torch.float32)
    cases = [_case(0.8, 0.95, None), _case(1.0, 1.0, 10), _case(1.3, 0.5, 40), _case(0.0, 1.0, None)]
    for case in cases[::2]:
        case.arguments[0][1, 5] = torch.nan
        case.arguments[0][2] = torch.where(torch.arange(131) < 9, case.arguments[0][2], -torch.inf)
    return cases


CHOOSE_TOKENS = Substitute(
    choose_tokens, _supports, _probes, tolerance=lambda form: 0.0,
    examples=lambda form: _case(0.8, 0.95, None, rows=1, vocab_size=10_000), keys=lambda: [Form("cpu", torch.float32)],
)
