"""The gap between a model and the best possible model, on the embedded corpus, whose probabilities are known exactly.

Held-out stories are scored whole: each one follows an `<|endoftext|>`, and its own `<|endoftext|>` is included. The
entropy floor is the sum of the stories' exact -log p. The gap does not depend on the tokenizer, because both sides are
sums over the same stories in nats.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tslm.data.ngram import KneserNey
from tslm.data.toy import Story
from tslm.errors import UserError
from tslm.model import TransformerLM
from tslm.tokenizer import END_OF_TEXT, Tokenizer
from tslm.training.scoring import token_log_probs


class FloorReport(NamedTuple):
    """Sums of -log probability over the same stories, in nats, and the number of stories and tokens."""

    stories: int
    tokens: int
    floor_nats: float
    model_nats: float
    ngram_nats: float

    @property
    def floor_gap(self) -> float:
        """The model's relative excess over the floor: (Σ -log q - Σ -log p) / Σ -log p; 0 is perfect."""
        return (self.model_nats - self.floor_nats) / self.floor_nats

    @property
    def ngram_gap(self) -> float:
        """The 5-gram model's relative excess over the floor."""
        return (self.ngram_nats - self.floor_nats) / self.floor_nats


def measure_floor(model: TransformerLM, tokenizer: Tokenizer, stories: list[Story],
                  train_ids: np.ndarray) -> FloorReport:
    """Score whole stories with the model, and with a 5-gram model of the training tokens.

    Raises:
        UserError: a story is longer than the model's context, so its loss would not be comparable.
    """
    ids = [np.asarray(tokenizer.encode(f"{END_OF_TEXT}\n{story.text}\n{END_OF_TEXT}")) for story in stories]
    longest = max(map(len, ids)) - 1
    if longest > model.config.context_length:
        raise UserError(f"the longest held-out story has {longest} tokens, but the context is "
                        f"{model.config.context_length}: the floor can only be compared on whole stories, for which "
                        f"--data.context_length must be at least {longest}")
    ngram = KneserNey.fit(train_ids, vocab_size=tokenizer.vocab_size, order=5)
    # One sequence, so that the 5-gram model has its four tokens of context at the beginning of a story too.
    joined = np.concatenate([ids[0], *(story[1:] for story in ids[1:])])
    log_probs = token_log_probs(model, ids, progress=True)
    return FloorReport(stories=len(stories), tokens=sum(len(story) - 1 for story in ids),
                       floor_nats=-sum(story.log_prob for story in stories),
                       model_nats=-sum(float(each.sum(dtype=np.float64)) for each in log_probs),
                       ngram_nats=-float(ngram.log_probs(joined)[1:].sum()))
