"""The head and the loss without the logits of the whole batch: a chunk of tokens at a time.

The gradient of cross-entropy with respect to the logits, softmax - onehot, is known as soon as the logits are. So the
gradients of both inputs are computed during the forward pass, chunk by chunk, and the backward pass only scales them.
Peak memory grows with chunk_size · V instead of N · V numbers.

Shapes: N tokens, D d_model, V vocab_size.
"""

# ruff: noqa: ANN401 - the context of an autograd function takes any attribute
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tslm.fast.door import Case, Substitute
from tslm.fast.forms import Form, form_of, loss_case, precise, tolerance

# Given the logits (n, V) of a chunk and its targets (n): the sum of -log softmax(logits)[target] and, if asked for,
# softmax(logits) - onehot(targets), which may overwrite the logits.
RowLosses = Callable[[Tensor, Tensor, bool], tuple[Tensor, Tensor | None]]


def loss_substitute(
    row_losses: RowLosses, chunk: int, supports: Callable[[Tensor, Tensor], Form | None], **options: Any
) -> Substitute:
    """Return a substitute for `objective.linear_and_loss`, the mean of -log softmax(hidden Wᵀ)[target] in float32.

    Args:
        row_losses: computes the loss and the gradient of a chunk.
        chunk: the number of tokens whose logits are in memory at a time, unless a call gives another.
        supports: returns the form of a call with these `hidden` and W, or None if it is not supported.
        options: further fields of the substitute.
    """

    def linear_and_loss(hidden: Tensor, weight: Tensor, targets: Tensor, chunk_size: int | None) -> Tensor:
        """Return the mean loss; the logits of `chunk_size` tokens are in memory at a time."""
        with_grad = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
        return _ChunkedCrossEntropy.apply(  # type: ignore[no-any-return]
            hidden.reshape(-1, hidden.shape[-1]), weight, targets.reshape(-1), chunk_size or chunk, with_grad,
            form_of(hidden).compute_dtype, row_losses)

    fields = {"probes": loss_probes, "tolerance": tolerance, "precise": precise} | options
    return Substitute(linear_and_loss, lambda hidden, weight, targets, chunk_size: supports(hidden, weight), **fields)


def loss_probes(form: Form) -> list[Case]:
    """Return a case of several chunks, the last of which is shorter."""
    return [loss_case(form, 67, 24, 41, 20)]


class _ChunkedCrossEntropy(torch.autograd.Function):
    """With P = softmax(hidden Wᵀ) and G = (P - onehot(targets)) / N: dhidden = G W and dW = Gᵀ hidden.

    The forward pass stores both without the factor 1 / N, whose product with P - onehot could underflow in half
    precision. The backward pass divides by N as it multiplies by the incoming gradient.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunk_size: int, with_grad: bool,
                dtype: torch.dtype, row_losses: RowLosses) -> Tensor:
        """Return the mean loss and, if `with_grad`, keep its gradients, chunk by chunk."""
        ctx.dtypes = hidden.dtype, weight.dtype
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        if with_grad:
            grad_hidden, grad_weight = torch.empty_like(hidden), torch.zeros_like(weight, dtype=torch.float32)
        for start in range(0, len(hidden), chunk_size):
            chunk, chunk_targets = hidden[start : start + chunk_size], targets[start : start + chunk_size]
            summed, grad = row_losses(chunk @ weight.T, chunk_targets, with_grad)
            loss += summed
            if grad is not None:
                grad_hidden[start : start + chunk_size] = grad @ weight
                grad_weight += grad.T @ chunk
        if with_grad:
            ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.count = len(hidden)
        return loss / ctx.count  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        """Return the kept gradients, times the gradient of the loss."""
        grad_hidden, grad_weight = ctx.saved_tensors
        scale = scale / ctx.count
        hidden_dtype, weight_dtype = ctx.dtypes
        return (grad_hidden * scale).to(hidden_dtype), (grad_weight * scale).to(weight_dtype), *[None] * 5
