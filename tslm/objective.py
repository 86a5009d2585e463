"""What training minimises and what a run reports: cross-entropy, perplexity, bits per byte.

`cross_entropy` is the definition; `linear_cross_entropy` joins it with the head of the model, so that the logits of a
whole batch never exist at once.

Shapes: N tokens, D d_model, V vocab_size; `...` any leading dimensions.
"""

# ruff: noqa: ANN401 - the context of an autograd function takes any attribute
from __future__ import annotations

import math
from typing import Any, overload

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tslm.model import native
from tslm.model.hardware import TRITON, matmul_dtype


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over all tokens of -log softmax(logits)[target], in nats; see `token_losses`.

    Args:
        logits: (..., V).
        targets: (...), integers in 0 … V-1.

    Returns:
        A scalar in float32 (float64 for float64 logits).

    Raises:
        ValueError: the leading dimensions differ, or there is no token.
    """
    return token_losses(logits, targets).mean()


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """-log softmax(logits)[target] of each token: (..., V) and (...) to (...), in nats.

    log Σ_j exp(l_j) - l_target with the maximum taken off every logit first, so that logits of ±1e4 neither overflow
    nor drown the sum's logarithm in rounding.

    Example: logits [0, ln 3] and target 1 give -ln(3/4) = 0.2877.

    Raises:
        ValueError: the leading dimensions differ, or there is no token.
    """
    _check_shapes("logits", logits, targets)
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    logits = logits - logits.amax(-1, keepdim=True).detach()  # the shift cancels, and so does its gradient
    return logits.exp().sum(-1).log() - logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1)


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, chunk_size: int = 1024) -> Tensor:
    """`cross_entropy(hidden @ weight.T, targets)` with the logits of only `chunk_size` tokens in memory at a time.

    The gradient of cross-entropy with respect to the logits, softmax - onehot, is known as soon as the logits are, so
    the gradients of both inputs are made during the forward pass, chunk by chunk, and the backward only scales them.
    Matmuls run in autocast's dtype where it is on; the softmax and the sums are float32.

    Args:
        hidden: (..., D).
        weight: the head's weight (V, D).
        targets: (...), integers in 0 … V-1.
        chunk_size: tokens per chunk; peak memory grows by chunk_size · V floats.

    Returns:
        A scalar in float32 (float64 for float64 inputs).

    Raises:
        ValueError: the shapes disagree, there is no token, or chunk_size is below 1.
    """
    _check_shapes("hidden", hidden, targets)
    if weight.ndim != 2 or weight.shape[1] != hidden.shape[-1]:
        raise ValueError(f"the head's weight has shape {tuple(weight.shape)}; for hidden vectors of width "
                         f"{hidden.shape[-1]} it must be (vocab_size, {hidden.shape[-1]})")
    if chunk_size < 1:
        raise ValueError(f"chunk_size is {chunk_size}; it must be at least 1")
    with_grad = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    return _LinearCrossEntropy.apply(  # type: ignore[no-any-return]
        hidden.reshape(-1, hidden.shape[-1]), weight, targets.reshape(-1), chunk_size, with_grad, matmul_dtype(hidden))


class _LinearCrossEntropy(torch.autograd.Function):
    """With P = softmax(hidden Wᵀ) and G = (P - onehot(targets)) / N: dhidden = G W and dW = Gᵀ hidden.

    The forward stores both without the factor 1 / N, whose product with P - onehot could underflow in half precision;
    the backward divides by N as it multiplies by the gradient that comes in.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunk_size: int, with_grad: bool,
                dtype: torch.dtype) -> Tensor:
        ctx.dtypes = hidden.dtype, weight.dtype
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        loss = torch.zeros((), dtype=wide, device=hidden.device)
        if with_grad:
            grad_hidden, grad_weight = torch.empty_like(hidden), torch.zeros_like(weight, dtype=wide)
        for start in range(0, len(hidden), chunk_size):
            part, target = hidden[start : start + chunk_size], targets[start : start + chunk_size]
            summed, grad = _losses_and_gradient(part @ weight.T, target, with_grad)
            loss += summed
            if grad is not None:
                grad_hidden[start : start + chunk_size] = grad @ weight
                grad_weight += grad.T @ part
        if with_grad:
            ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.count = len(hidden)
        return loss / ctx.count  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        scale = scale / ctx.count
        hidden_dtype, weight_dtype = ctx.dtypes
        return (grad_hidden * scale).to(hidden_dtype), (grad_weight * scale).to(weight_dtype), None, None, None, None


def _losses_and_gradient(logits: Tensor, targets: Tensor, with_grad: bool) -> tuple[Tensor, Tensor | None]:
    """Return the sum of -log softmax(logits)[target], and softmax(logits) - onehot(targets) in the logits' dtype.

    Overwrites the logits where it can. The compiler is given another form; a CPU and a GPU have kernels of our own.
    """
    if logits.is_cuda and TRITON:
        from tslm.model import triton_cross_entropy  # a CPU never imports it

        if triton_cross_entropy.takes(logits):
            return triton_cross_entropy.losses_and_gradient(logits, targets, with_grad)
    if native.takes(logits, logits.dtype):
        return native.losses_and_gradient(logits, targets, with_grad)
    dtype, targets = logits.dtype, targets.unsqueeze(-1)
    logits = logits.to(torch.promote_types(dtype, torch.float32))
    logits.sub_(logits.amax(-1, keepdim=True))
    picked = logits.gather(-1, targets)
    exps = logits.exp_()
    total = exps.sum(-1, keepdim=True)
    loss = (total.log() - picked).sum()
    if not with_grad:
        return loss, None
    probabilities = exps.div_(total)
    if torch.compiler.is_compiling():
        # Entry by entry, to be joined to the rest: adding at one place a row would make the compiler write the
        # probabilities down before, at four bytes an entry.
        column = torch.arange(logits.shape[-1], device=logits.device)
        return loss, torch.where(column == targets, probabilities - 1, probabilities).to(dtype)
    return loss, probabilities.scatter_add_(-1, targets, torch.full_like(picked, -1.0)).to(dtype)


@overload
def perplexity(loss: Tensor) -> Tensor: ...
@overload
def perplexity(loss: float) -> float: ...
def perplexity(loss: Tensor | float) -> Tensor | float:
    """exp(loss), where `loss` is the mean cross-entropy in nats over all tokens of a data set.

    The mean of the perplexities of batches is a different, larger number. Infinite where exp overflows.

    Example: a model that spreads its guess evenly over 8 tokens has loss ln 8 and perplexity 8.
    """
    if isinstance(loss, Tensor):
        return torch.exp(loss)
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def bits_per_byte(total_nats: float, num_bytes: int) -> float:
    """total_nats / (ln 2 · num_bytes): the summed loss of a text per byte of it, which no choice of tokenizer changes.

    Raises:
        ValueError: num_bytes is below 1.
    """
    if num_bytes < 1:
        raise ValueError(f"bits per byte needs a text of at least 1 byte, not {num_bytes}")
    return total_nats / (math.log(2) * num_bytes)


def _check_shapes(name: str, values: Tensor, targets: Tensor) -> None:
    if values.shape[:-1] != targets.shape:
        raise ValueError(f"{name} of shape {tuple(values.shape)} needs targets of shape {tuple(values.shape[:-1])}, "
                         f"one per token, not {tuple(targets.shape)}")
    if targets.numel() == 0:
        raise ValueError("the mean loss of no tokens is undefined; pass at least one target")
