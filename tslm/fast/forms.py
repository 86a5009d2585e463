"""The form of a call (device, dtype, autocast), and what the substitutes for several devices share: probes, errors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from tslm.fast.door import Case

# Relative errors that are accepted. Correct kernels stay below 1e-6 and 5e-3; a wrong one is off by about 1.
TOLERANCES = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}


class Form(NamedTuple):
    """The form of a call; agreement is checked once for each form.

    Attributes:
        device: "cpu" or "cuda".
        dtype: dtype of the function's first tensor.
        autocast: the dtype in which autocast runs matmuls; None if autocast is off.
    """

    device: str
    dtype: torch.dtype
    autocast: torch.dtype | None = None

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype in which a matmul runs."""
        return self.autocast or self.dtype


def form_of(x: Tensor) -> Form:
    """Return the form of a call whose first tensor is `x`."""
    device = x.device.type
    on = x.dtype != torch.float64 and not x.is_meta and torch.is_autocast_enabled(device)
    return Form(device, x.dtype, torch.get_autocast_dtype(device) if on else None)


def tolerance(form: Form) -> float:
    """Return the relative error that is accepted for a form."""
    return TOLERANCES[form.compute_dtype]


def precise(form: Form) -> Form | None:
    """Return the float32 form that must agree as well; None if `form` multiplies in float32 itself."""
    return None if form.compute_dtype == torch.float32 else Form(form.device, torch.float32)


def cpu_multiplies_bfloat16() -> bool:
    """Whether the processor has instructions that multiply bfloat16, which makes it faster than float32."""
    # The public torch.backends.cpu.get_cpu_capability knows the vector width, which ATEN_CPU_CAPABILITY may limit, but
    # not bfloat16.
    if torch.backends.cpu.get_cpu_capability() in ("AVX2", "DEFAULT"):
        return False
    probes = [getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile")]
    return any(probe() for probe in probes if probe is not None)


def forms(device: str) -> Iterator[Form]:
    """Yield the forms of calls on a device of this machine: float32, and bfloat16 if the device multiplies it."""
    if device == "cpu" or torch.cuda.is_available():
        yield Form(device, torch.float32)
        if device != "cpu" or cpu_multiplies_bfloat16():
            yield Form(device, torch.float32, torch.bfloat16)
            yield Form(device, torch.bfloat16)


def attends_to_itself(qkv: Tensor, rotation: Tensor | None, cached: tuple[object, ...]) -> bool:
    """Whether a call of `ops.self_attention` is one that kernels support: each sequence attends to itself only.

    It has no cache, no positions and no mask (all of `cached` is None), an even head dimension, and one rotation table
    (T, K/2, 2) for all sequences.
    """
    one_table = rotation is None or rotation.ndim == 3
    return one_table and qkv.shape[-1] % 2 == 0 and all(each is None for each in cached)


def drawn(*size: int, dtype: torch.dtype, device: str = "cpu", seed: int = 0, scale: float = 1.0) -> Tensor:
    """Return a leaf tensor of normal random numbers that requires a gradient, for probes and examples."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(size, generator=generator, dtype=torch.float32) * scale
    return values.to(device, dtype).requires_grad_()


def rotation_table(length: int, width: int, device: str = "cpu") -> Tensor:
    """Return cosines and sines (length, width / 2, 2) of some angles, for probes and examples."""
    angles = torch.outer(torch.arange(length, dtype=torch.float32), 0.7 ** torch.arange(width // 2))
    return torch.stack((angles.cos(), angles.sin()), -1).to(device)


def attention_case(form: Form, batch: int, length: int, heads: int, width: int, documents: bool) -> Case:
    """Return arguments of `self_attention`, for probes and examples on every device."""
    starts = torch.zeros(batch, length, dtype=torch.int64, device=form.device)
    starts[-1, 3:] = 3  # the last sequence holds two documents
    qkv = drawn(batch, length, 3, heads, width, dtype=form.dtype, device=form.device)
    return Case((qkv, rotation_table(length, width, form.device), starts if documents else None))


def attention_probes(form: Form) -> list[Case]:
    """Return probes of odd sizes: with two documents, without, and one so long that a local window would show."""
    return [attention_case(form, 2, 70, 2, 6, documents=True), attention_case(form, 2, 70, 2, 6, documents=False),
            attention_case(form, 1, 330, 1, 8, documents=False)]


def loss_case(form: Form, tokens: int, d_model: int, vocab_size: int, chunk_size: int | None) -> Case:
    """Return arguments of `linear_and_loss`, for probes and examples on every device."""
    targets = torch.arange(tokens) * 7919 % vocab_size
    weight = drawn(vocab_size, d_model, dtype=form.dtype, device=form.device, seed=1, scale=0.3)
    hidden = drawn(tokens, d_model, dtype=form.dtype, device=form.device)
    return Case((hidden, weight, targets.to(form.device), chunk_size))


def adamw_case(form: Form, skip: bool, *sizes: int) -> Case:
    """Return arguments of `adamw_step` for parameters of some sizes, for probes and examples on every device."""
    parameters, gradients, means, squares = (
        [drawn(size, dtype=form.dtype, device=form.device, seed=seed).detach().abs_() for size in sizes]
        for seed in range(4)
    )
    states = [{"step": 3 + number, "exp_avg": m, "exp_avg_sq": v}
              for number, (m, v) in enumerate(zip(means, squares, strict=True))]
    return Case((parameters, gradients, states, torch.tensor(skip, device=form.device), 0.1, 0.9, 0.95, 1e-8, 0.1))
