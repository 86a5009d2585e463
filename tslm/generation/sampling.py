"""From logits to the next token: temperature, top-k, top-p, and the draw.

The rules apply in this order: the logits are divided by the temperature, top-k keeps the k most probable tokens, top-p
(nucleus) keeps the smallest set of what is left whose share reaches p, and one token is drawn from the rest.

Shapes: B sequences, V vocab_size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tslm.errors import UserError
from tslm.fast import replaceable
from tslm.model import softmax

_FIRST_RANKED = 64


@replaceable
def choose_tokens(
    logits: Tensor, temperature: float, top_p: float, top_k: int | None, uniform: Tensor | None
) -> list[int]:
    """Choose a token from each row of logits (B, V); -1 for a row if the logits are not finite.

    Among equal logits the lowest id comes first, so the choice is the same on every run.

    Args:
        logits: (B, V).
        temperature: see `SamplingRule`, as for top_p and top_k.
        top_p: share of probability kept.
        top_k: number of tokens kept.
        uniform: (B) in [0, 1), decides each draw; a greedy rule needs none.
    """
    if not torch.isfinite(logits.amax()):
        return [-1] * len(logits)
    rule = SamplingRule(temperature, top_p, top_k)
    if rule.greedy:
        return logits.argmax(-1).tolist()
    assert uniform is not None, "only a greedy rule does without random numbers"
    return draw(rule.probabilities(logits), uniform.to(logits.device)).tolist()


@dataclass(frozen=True)
class SamplingRule:
    """How a token is chosen from the logits.

    Attributes:
        temperature: divides the logits; below 1 sharpens, above 1 flattens, 0 takes the most probable token (greedy).
        top_p: share of probability that the kept tokens must reach, in (0, 1]; 1 keeps all (Holtzman et al. 2020).
        top_k: number of tokens kept; None keeps all.

    Raises:
        UserError: a value is outside its range.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise UserError(f"temperature is {self.temperature}; it must be a number of at least 0, where 0 always "
                             "takes the most probable token")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p is {self.top_p}; it must be above 0 and at most 1, where 1 keeps every token")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k is {self.top_k}; it must be at least 1, or None to keep every token")

    @property
    def greedy(self) -> bool:
        """Whether the rule leaves nothing to chance."""
        return self.temperature == 0 or self.top_k == 1

    def probabilities(self, logits: Tensor) -> Tensor:
        """The distribution (B, V) from which `choose_tokens` draws: float32, zero where a token was cut off.

        Example: logits ln [0.5, 0.3, 0.2] with top_p 0.7 keep the first two, since 0.5 alone does not reach 0.7, and
        give [0.625, 0.375, 0].
        """
        logits = logits.float()
        if self.greedy:
            return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
        # The maximum leaves first, so that a tiny temperature overflows to -inf (probability 0), never to inf.
        logits = (logits - logits.amax(-1, keepdim=True)) / self.temperature
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            logits = logits.masked_fill(~top_k_mask(logits, self.top_k), -math.inf)
        kept = softmax(logits, -1)
        if self.top_p < 1:
            kept = kept.masked_fill(~top_p_mask(kept, self.top_p), 0.0)
            kept = kept / kept.sum(-1, keepdim=True)
        return kept


def top_k_mask(logits: Tensor, k: int) -> Tensor:
    """Which of (B, V) are among the k largest of their row; among equals the lower ids.

    The plain form is `ranked_mask` with `rank < k`.
    """
    count = torch.full((len(logits),), k, device=logits.device)
    return _largest(logits, logits.topk(k, -1).values[:, -1], count)


def top_p_mask(probabilities: Tensor, p: float) -> Tensor:
    """The nucleus of each row of (B, V): the fewest of the most probable tokens whose sum reaches p, lower ids first.

    A trained model's nucleus is small, so only the largest few probabilities are ranked, and more of them as long as
    they do not reach p. The plain form is `ranked_mask` with `before < p`.
    """
    vocab_size, width = probabilities.shape[-1], _FIRST_RANKED
    while True:
        ranked = probabilities.topk(min(width, vocab_size), -1).values
        before = ranked.double().cumsum(-1) - ranked  # the share of all more probable tokens; 0 for the first
        if width >= vocab_size or bool((before[:, -1] >= p).all()):
            break
        width *= 8
    count = (before < p).sum(-1)
    return _largest(probabilities, ranked.gather(-1, count[:, None] - 1).squeeze(-1), count)


def ranked_mask(x: Tensor, keep: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Both masks by their definition, from a sort of each row of (B, V): the reference.

    Args:
        x: logits or probabilities.
        keep: given (rank, before), the ranks 0, 1, … from the largest on and, for each, the sum of all larger values,
            says which are kept.
    """
    ranked, order = torch.sort(x, dim=-1, descending=True, stable=True)
    rank = torch.arange(x.shape[-1], device=x.device).expand_as(x)
    kept = keep(rank, ranked.double().cumsum(-1) - ranked)
    return torch.zeros_like(x, dtype=torch.bool).scatter_(-1, order, kept)


def _largest(x: Tensor, least: Tensor, count: Tensor) -> Tensor:
    """Mask of the `count` (B) largest of each row of x (B, V), the smallest of which is `least` (B)."""
    above, equal = x > least[:, None], x == least[:, None]
    room = count - above.sum(-1)
    return above | equal & (equal.cumsum(-1) <= room[:, None])


def draw(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Invert the distribution function: the first token whose cumulative probability exceeds `uniform`.

    Args:
        probabilities: (B, V), of any positive sum.
        uniform: (B), in [0, 1).

    Returns:
        Token ids (B), never one of probability 0.
    """
    cumulative = probabilities.double().cumsum(-1)
    total = cumulative[..., -1:]
    # Rounding may lift uniform · total to the total itself, past which there is no token.
    point = torch.minimum(uniform.double().unsqueeze(-1) * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, point, right=True).squeeze(-1)
