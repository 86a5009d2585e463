"""From logits to the next token: temperature, top-k, top-p, and the draw.

The rules apply in this order: the logits are divided by the temperature, top-k keeps the k most probable tokens, top-p
(nucleus) keeps the smallest set of the remaining tokens whose share reaches p, and one token is drawn from this set.

Shapes: B sequences, V vocab_size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from operator import index
from typing import SupportsFloat, SupportsIndex

import torch
from torch import Tensor

from tslm.errors import UserError
from tslm.fast import replaceable
from tslm.model import softmax


@replaceable
def choose_tokens(
    logits: Tensor, temperature: float, top_p: float, top_k: int | None, uniform: Tensor | None
) -> list[int]:
    """Choose a token from each row of logits.

    Among equal logits the lowest id comes first, so the choice is the same on every run.

    Args:
        logits: (B, V).
        temperature: see `SamplingRule`, as for top_p and top_k.
        top_p: share of probability kept.
        top_k: number of tokens kept.
        uniform: (B) in [0, 1), decides each draw; a greedy rule needs none.

    Returns:
        A token id for each row; -1 for a row whose largest logit is infinite or that holds NaN.
    """
    rule, finite = SamplingRule(temperature, top_p, top_k), logits.amax(-1).isfinite()
    logits = logits.masked_fill(~finite.unsqueeze(-1), 0.0)
    if rule.greedy:
        chosen = logits.argmax(-1)
    else:
        assert uniform is not None, "only a greedy rule does without random numbers"
        chosen = draw(rule.probabilities(logits), uniform.to(logits.device))
    return chosen.masked_fill(~finite, -1).tolist()


def is_whole(value: object, lowest: int = 0, highest: float = math.inf) -> bool:
    """Whether a value is a whole number in a range."""
    return isinstance(value, SupportsIndex) and lowest <= index(value) <= highest


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
        if not (isinstance(self.temperature, SupportsFloat) and 0 <= self.temperature < math.inf):
            raise UserError(f"temperature is {self.temperature}; it must be a number of at least 0, where 0 always "
                            "takes the most probable token")
        if not (isinstance(self.top_p, SupportsFloat) and 0 < self.top_p <= 1):
            raise UserError(f"top_p is {self.top_p}; it must be a number above 0 and at most 1, where 1 keeps "
                            "every token")
        if self.top_k is not None and not is_whole(self.top_k, 1):
            raise UserError(f"top_k is {self.top_k}; it must be a whole number of at least 1, or None to keep every "
                            "token")

    @property
    def greedy(self) -> bool:
        """Whether the rule always takes the most probable token."""
        return self.temperature == 0 or self.top_k == 1

    def probabilities(self, logits: Tensor) -> Tensor:
        """The distribution (B, V) from which `choose_tokens` draws: float32, zero for a token that is not kept.

        Example: logits ln [0.5, 0.3, 0.2] with top_p 0.7 keep the first two, since 0.5 alone does not reach 0.7, and
        give [0.625, 0.375, 0].
        """
        logits = logits.float()
        if self.greedy:
            return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
        ranked, ids = torch.sort(logits, dim=-1, descending=True, stable=True)
        # The maximum is subtracted first, so that a tiny temperature overflows to -inf (probability 0), never to inf.
        ranked = (ranked - ranked[:, :1]) / self.temperature
        if self.top_k is not None:
            ranked[:, self.top_k :] = -math.inf
        kept = softmax(ranked, -1)
        if self.top_p < 1:
            before = kept.double().cumsum(-1) - kept  # the share of all more probable tokens; 0 for the first
            kept = kept.masked_fill(before >= self.top_p, 0.0)
            kept = kept / kept.sum(-1, keepdim=True)
        return torch.empty_like(kept).scatter_(-1, ids, kept)


def draw(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Draw by the inverse distribution function: the first token whose cumulative probability exceeds `uniform`.

    Args:
        probabilities: (B, V), of any positive sum.
        uniform: (B), in [0, 1).

    Returns:
        Token ids (B), never one of probability 0.
    """
    cumulative = probabilities.double().cumsum(-1)
    total = cumulative[..., -1:]
    # Rounding may lift uniform · total to the total itself, and no token is beyond that.
    point = torch.minimum(uniform.double().unsqueeze(-1) * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, point, right=True).squeeze(-1)
