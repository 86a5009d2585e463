"""Cross-entropy on a GPU: one Triton kernel turns a row of logits into its loss and its gradient.

A row is read once, kept in registers, and written once. Besides the kernel, `chunked_loss` has only matmuls; the
kernel does not check that targets are in 0 … V-1.

Shapes: N tokens, V vocab_size.
"""

# ruff: noqa: ANN001, ANN202 - a kernel's arguments are Triton's own
# mypy: disable-error-code="no-untyped-def, untyped-decorator, import-untyped"
# No `from __future__ import annotations`: Triton reads the annotations of a kernel.
import torch
import triton
import triton.language as tl
from torch import Tensor

from tslm.fast.chunked_loss import loss_substitute
from tslm.fast.forms import TOLERANCES, Form, form_of, forms, loss_case

CHUNK_SIZE = 16_384  # tokens whose logits are in memory at a time
LARGEST_VOCABULARY = 2**16  # a program keeps a row in its registers
LOG2_E = tl.constexpr(1.4426950408889634)  # GPUs have 2ˣ in hardware: eˣ = 2^(x · log₂ e)


def row_losses(logits: Tensor, targets: Tensor, with_grad: bool) -> tuple[Tensor, Tensor | None]:
    """Return the sum of -log softmax(logits)[target], and softmax(logits) - onehot(targets), which overwrites `logits`.

    Args:
        logits: contiguous (N, V); the kernel computes in float32.
        targets: contiguous (N), integers in 0 … V-1.
        with_grad: False returns None for the gradient, which the kernel computes anyway, because it costs little.
    """
    number, vocab_size = logits.shape
    losses = torch.empty(number, dtype=torch.float32, device=logits.device)
    padded = triton.next_power_of_2(vocab_size)
    with torch.cuda.device_of(logits):
        _row_losses[(number,)](logits, targets, losses, vocab_size, padded, num_warps=min(32, max(4, padded // 2048)))
    return losses.sum(), logits if with_grad else None


@triton.jit
def _row_losses(logits_ptr, targets_ptr, losses_ptr, vocab_size, PADDED: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, PADDED)
    at = logits_ptr + row * vocab_size + columns
    target = tl.load(targets_ptr + row)
    picked = tl.load(logits_ptr + row * vocab_size + target).to(tl.float32)
    logits = tl.load(at, mask=columns < vocab_size, other=float("-inf")).to(tl.float32)
    largest = tl.max(logits, 0)
    weights = tl.exp2((logits - largest) * LOG2_E)
    total = tl.sum(weights, 0)
    gradient = weights * (1 / total) - (columns == target).to(tl.float32)
    tl.store(at, gradient.to(logits_ptr.dtype.element_ty), mask=columns < vocab_size)
    tl.store(losses_ptr + row, tl.log(total) + (largest - picked))


def _supports(hidden: Tensor, weight: Tensor) -> Form | None:
    form = form_of(hidden)
    fits = form.compute_dtype in TOLERANCES and weight.dtype in TOLERANCES and len(weight) <= LARGEST_VOCABULARY
    return form if fits else None


LINEAR_AND_LOSS = loss_substitute(
    row_losses, CHUNK_SIZE, _supports, examples=lambda form: loss_case(form, 32_768, 512, 10_000, None),
    keys=lambda: forms("cuda"),
)
