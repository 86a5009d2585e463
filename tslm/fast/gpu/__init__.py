"""Substitutes for a CUDA GPU, in Triton. They are imported only for tensors on a GPU.

Triton's interpreter runs the kernels on a CPU, which is how the tests check their numbers.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tslm.fast.forms import Form

# Accepted relative errors.
TOLERANCES = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}


def forms() -> Iterator[Form]:
    """Yield the forms of calls on a GPU; none if this machine has no GPU."""
    if torch.cuda.is_available():
        yield Form("cuda", torch.float32)
        yield Form("cuda", torch.bfloat16, torch.bfloat16)


def precise(form: Form) -> Form | None:
    """Return the float32 form that must agree as well; None if `form` multiplies in float32 itself."""
    return None if form.compute_dtype == torch.float32 else Form("cuda", torch.float32)
