"""The passes of cross-entropy over the logits on a GPU as one Triton kernel: logits come in, their gradient goes out.

A row of logits is read once, kept in registers, and written once, so that `objective.linear_cross_entropy`, which comes
here with CUDA tensors where Triton can be imported, is left with its matmuls. Nothing else imports this file. The plain
form is `objective.cross_entropy`.

Shapes: N tokens, V vocab_size.
"""

# ruff: noqa: ANN001, ANN202 - a kernel's arguments are Triton's own
# mypy: disable-error-code="no-untyped-def, untyped-decorator, import-untyped"
# No `from __future__ import annotations`: Triton reads the annotations of a kernel.
import torch
import triton
import triton.language as tl
from torch import Tensor

LARGEST_VOCABULARY = 2**16  # of which a program keeps a row in its registers
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LOG2_E = tl.constexpr(1.4426950408889634)  # GPUs have 2ˣ in hardware: eˣ = 2^(x · log₂ e)


def takes(logits: Tensor) -> bool:
    """Whether the kernel is made for this dtype and size of vocabulary."""
    return logits.dtype in DTYPES and logits.shape[-1] <= LARGEST_VOCABULARY


def losses_and_gradient(logits: Tensor, targets: Tensor, with_grad: bool) -> tuple[Tensor, Tensor | None]:
    """Return the sum of -log softmax(logits)[target], and softmax(logits) - onehot(targets), which overwrites `logits`.

    Args:
        logits: contiguous (N, V), of which `takes` is true; computed with in float32.
        targets: contiguous (N), integers in 0 … V-1.
        with_grad: False returns no gradient; it is made all the same, for it costs little more than the loss.
    """
    number, vocab_size = logits.shape
    losses = torch.empty(number, dtype=torch.float32, device=logits.device)
    space = triton.next_power_of_2(vocab_size)
    with torch.cuda.device_of(logits):
        _losses_and_gradient[(number,)](logits, targets, losses, vocab_size, space,
                                        num_warps=min(32, max(4, space // 2048)))
    return losses.sum(), logits if with_grad else None


@triton.jit
def _losses_and_gradient(logits_ptr, targets_ptr, losses_ptr, vocab_size, SPACE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, SPACE)
    places = logits_ptr + row * vocab_size + columns
    target = tl.load(targets_ptr + row)
    picked = tl.load(logits_ptr + row * vocab_size + target).to(tl.float32)
    logits = tl.load(places, mask=columns < vocab_size, other=float("-inf")).to(tl.float32)
    largest = tl.max(logits, 0)
    weights = tl.exp2((logits - largest) * LOG2_E)
    total = tl.sum(weights, 0)
    gradient = weights * (1 / total) - (columns == target).to(tl.float32)
    tl.store(places, gradient.to(logits_ptr.dtype.element_ty), mask=columns < vocab_size)
    tl.store(losses_ptr + row, tl.log(total) + (largest - picked))
