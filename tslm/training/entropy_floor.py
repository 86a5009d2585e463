"""The gap between a model and the best possible model, on the embedded corpus, whose probabilities are known exactly.

Held-out stories are scored whole: each one follows an `<|endoftext|>`, and its own `<|endoftext|>` is included. The
entropy floor is the sum of the stories' exact -log p. The gap does not depend on the tokenizer, because both sides are
sums over the same stories in nats.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from tslm.data.ngram import KneserNey
from tslm.data.toy import Story
from tslm.errors import UserError
from tslm.model import TransformerLM
from tslm.objective import token_losses
from tslm.tokenizer import END_OF_TEXT, Tokenizer


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


def measure_floor(
    model: TransformerLM, tokenizer: Tokenizer, stories: list[Story], train_ids: np.ndarray, *, batch_size: int = 32
) -> FloorReport:
    """Score whole stories with the model, and with a 5-gram model of the training tokens.

    Raises:
        UserError: a story is longer than the model's context, so its loss would not be comparable.
    """
    ids = [np.asarray(tokenizer.encode(f"{END_OF_TEXT}\n{story.text}\n{END_OF_TEXT}")) for story in stories]
    longest = max(map(len, ids)) - 1
    if longest > model.config.context_length:
        raise UserError(
            f"the longest held-out story has {longest} tokens, but the context is {model.config.context_length}: the "
            f"floor can only be compared on whole stories, for which --data.context_length must be at least {longest}"
        )
    ngram = KneserNey.fit(train_ids, vocab_size=tokenizer.vocab_size, order=5)
    # One sequence, so that the 5-gram model has its four tokens of context at the beginning of a story too.
    joined = np.concatenate([ids[0], *(story[1:] for story in ids[1:])])
    return FloorReport(
        stories=len(stories),
        tokens=sum(len(story) - 1 for story in ids),
        floor_nats=-sum(story.log_prob for story in stories),
        model_nats=model_nats(model, ids, batch_size),
        ngram_nats=-float(ngram.log_probs(joined)[1:].sum()),
    )


@torch.no_grad()
def model_nats(model: TransformerLM, sequences: list[np.ndarray], batch_size: int) -> float:
    """Return Σ -log q over all tokens but the first of each sequence; similar lengths share a batch, with padding."""
    device = next(model.parameters()).device
    ordered = sorted(sequences, key=len)
    total = 0.0
    for start in tqdm(range(0, len(ordered), batch_size), desc="scoring whole stories", unit=" batches", leave=False):
        batch = ordered[start : start + batch_size]
        padded = np.zeros((len(batch), len(batch[-1])), dtype=np.int64)
        mask = np.zeros(padded.shape, dtype=bool)  # True where there is a target
        for row, story in enumerate(batch):
            padded[row, : len(story)] = story
            mask[row, 1 : len(story)] = True
        tokens = torch.from_numpy(padded).to(device)
        losses = token_losses(model(tokens[:, :-1]).float(), tokens[:, 1:])
        total += float(losses[torch.from_numpy(mask[:, 1:]).to(device)].double().sum())
    return total
