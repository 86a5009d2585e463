"""What training minimises and what a run reports: cross-entropy, perplexity, bits per byte.

Shapes: D d_model, V vocab_size; `...` any leading dimensions.
"""

from __future__ import annotations

import math
from typing import overload

import torch
from torch import Tensor

from tslm.errors import UserError
from tslm.fast import replaceable
from tslm.model.ops import linear


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over all tokens of -log softmax(logits)[target], in nats; see `token_losses`.

    Args:
        logits: (..., V).
        targets: (...), integers in 0 … V-1.

    Returns:
        A scalar in float32 (float64 for float64 logits).

    Raises:
        UserError: the leading dimensions differ, or there is no token.
    """
    return token_losses(logits, targets).mean()


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """-log softmax(logits)[target] of each token, in nats: log Σ_j exp(l_j) - l_target.

    The maximum is subtracted from every logit first, so that large logits (±1e4) neither overflow nor round the
    logarithm away.

    Shapes: logits (..., V) and targets (...) to (...).

    Raises:
        UserError: the leading dimensions differ, or there is no token.

    Example: logits [0, ln 3] and target 1 give -ln(3/4) = 0.2877.
    """
    _check_shapes("logits", logits, targets)
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    logits = logits - logits.amax(-1, keepdim=True).detach()  # the shift cancels, and so does its gradient
    return logits.exp().sum(-1).log() - logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1)


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, chunk_size: int | None = None) -> Tensor:
    """`cross_entropy(hidden Wᵀ, targets)`: the head of the model and the loss.

    The two are one function so that a substitute need not hold the logits of the whole batch: it computes those of
    `chunk_size` tokens at a time, and their gradient, which is softmax - onehot, along with them.

    Args:
        hidden: (..., D).
        weight: the head's weight W (V, D).
        targets: (...), integers in 0 … V-1.
        chunk_size: for substitutes, the number of tokens whose logits are in memory at a time; None leaves it to them.

    Returns:
        A scalar in float32 (float64 for float64 inputs).

    Raises:
        UserError: the shapes disagree, there is no token, or chunk_size is below 1.
    """
    _check_shapes("hidden", hidden, targets)
    if weight.ndim != 2 or weight.shape[1] != hidden.shape[-1]:
        raise UserError(f"the head's weight has shape {tuple(weight.shape)}; for hidden vectors of width "
                        f"{hidden.shape[-1]} it must be (vocab_size, {hidden.shape[-1]})")
    if chunk_size is not None and chunk_size < 1:
        raise UserError(f"chunk_size is {chunk_size}; it must be at least 1")
    return linear_and_loss(hidden, weight, targets, chunk_size)


@replaceable
def linear_and_loss(hidden: Tensor, weight: Tensor, targets: Tensor, chunk_size: int | None) -> Tensor:
    """`linear_cross_entropy` without its checks, from the logits of the whole batch; arguments and result as there."""
    return cross_entropy(linear(hidden, weight), targets)


@overload
def perplexity(loss: Tensor) -> Tensor: ...
@overload
def perplexity(loss: float) -> float: ...
def perplexity(loss: Tensor | float) -> Tensor | float:
    """exp(loss), where `loss` is the mean cross-entropy in nats over all tokens of a data set.

    The mean of the perplexities of batches is a different, larger number. The result is infinite where exp overflows.

    Example: a uniform guess among 8 tokens has loss ln 8 and perplexity 8.
    """
    if isinstance(loss, Tensor):
        return torch.exp(loss)
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def bits_per_byte(total_nats: float, num_bytes: int) -> float:
    """total_nats / (ln 2 · num_bytes): the loss of a text in bits per byte, comparable between tokenizers.

    Args:
        total_nats: the loss in nats, summed over all tokens of the text.
        num_bytes: length of the text in UTF-8 bytes.

    Raises:
        UserError: num_bytes is below 1.

    Example: two tokens of loss ln 2 each that encode 4 bytes give 0.5.
    """
    if num_bytes < 1:
        raise UserError(f"bits per byte needs a text of at least 1 byte, not {num_bytes}")
    return total_nats / (math.log(2) * num_bytes)


def _check_shapes(name: str, values: Tensor, targets: Tensor) -> None:
    if values.shape[:-1] != targets.shape:
        raise UserError(f"{name} of shape {tuple(values.shape)} needs targets of shape {tuple(values.shape[:-1])}, "
                        f"one per token, not {tuple(targets.shape)}")
    if targets.numel() == 0:
        raise UserError("the mean loss of no tokens is undefined; pass at least one target")
