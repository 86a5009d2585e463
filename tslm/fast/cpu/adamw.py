"""AdamW's update of all parameters by one call of C, which reads θ, g, m and v once and writes θ, m and v once."""

from __future__ import annotations

import ctypes
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tslm.fast.cpu import build
from tslm.fast.door import Case, Substitute
from tslm.fast.forms import Form, adamw_case, form_of

SOURCES = (Path(__file__).with_name("adamw.c"),)
_PROBED = 2**12 + 3  # entries of the probe's larger parameter


def adamw_step(
    parameters: list[Tensor], gradients: list[Tensor], states: list[dict[str, Any]], skip: Tensor | None,
    lr: float, beta1: float, beta2: float, eps: float, weight_decay: float,
) -> None:
    """Substitute for `optim.adamw.adamw_step` of contiguous float32 tensors on a CPU."""
    if skip is not None and skip:
        return
    count, rates = len(parameters), []
    for state in states:
        state["step"] = t = int(state["step"]) + 1
        rates.append(lr * math.sqrt(1 - beta2**t) / (1 - beta1**t))
    means, squares = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq"))
    addresses = [(ctypes.c_void_p * count)(*(each.data_ptr() for each in tensors))
                 for tensors in (parameters, gradients, means, squares)]
    sizes = (ctypes.c_int64 * count)(*(each.numel() for each in parameters))
    factors = (ctypes.c_float * 6)(beta1, 1 - beta1, beta2, 1 - beta2, eps, 1 - lr * weight_decay)
    build.load(SOURCES, torch.float32).adamw(
        count, sizes, *addresses, (ctypes.c_float * count)(*rates), factors, torch.get_num_threads())


def _supports(
    parameters: list[Tensor], gradients: list[Tensor], states: list[dict[str, Any]], *rest: object
) -> Form | None:
    tensors = [*parameters, *gradients, *(state[name] for state in states for name in ("exp_avg", "exp_avg_sq"))]
    supported = all(type(each) in (Tensor, torch.nn.Parameter) and each.dtype == torch.float32 and
                    each.is_contiguous() for each in tensors)
    return form_of(parameters[0])._replace(autocast=None) if supported else None


def _probes(form: Form) -> list[Case]:
    build.load(SOURCES, torch.float32)
    return [adamw_case(form, skip, 5, _PROBED) for skip in (False, True)]


ADAMW_STEP = Substitute(
    adamw_step, _supports, probes=_probes, tolerance=lambda form: 1e-5,
    examples=lambda form: adamw_case(form, False, *[2**16] * 22), keys=lambda: [Form("cpu", torch.float32)],
)
