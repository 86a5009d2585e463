"""The log-probability that a model gives to the tokens of a text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from tslm.errors import UserError
from tslm.generation.decoding import check_model
from tslm.generation.sampling import is_whole
from tslm.generation.text import check_tokenizer, default_prefix
from tslm.model import TransformerLM
from tslm.objective import bits_per_byte, perplexity, token_losses
from tslm.tokenizer import Tokenizer

LogProbs = npt.NDArray[np.float32]

_LOGITS = 1 << 24  # the largest number of logits in memory at a time, unless one window has more


class Scores(NamedTuple):
    """The tokens of a text, and the natural logarithms of their probabilities.

    Attributes:
        ids: the ids of the tokens. If nothing precedes the text, its first token is left out.
        log_probs: log p(token | all that precedes it), one for each id.
        num_bytes: the bytes of these tokens.
        alternatives: for each token the likeliest ones at its place, as (id, log-probability), if they were asked for.
    """

    ids: list[int]
    log_probs: list[float]
    num_bytes: int
    alternatives: list[list[tuple[int, float]]] = []  # noqa: RUF012 - never changed

    @classmethod
    def joined(cls, parts: Sequence[Scores]) -> Scores:
        """Return the scores of several texts as those of one, without alternatives."""
        return cls([id_ for each in parts for id_ in each.ids], [value for each in parts for value in each.log_probs],
                   sum(each.num_bytes for each in parts))

    @property
    def total(self) -> float:
        """The sum of the log-probabilities, in nats."""
        return math.fsum(self.log_probs)

    @property
    def perplexity(self) -> float:
        """Exp of the mean loss of a token; 1.0 for no token."""
        return perplexity(-self.total / max(len(self.ids), 1))

    @property
    def bits_per_byte(self) -> float:
        """-total / (ln 2 · num_bytes).

        Raises:
            UserError: no token was scored.
        """
        return bits_per_byte(-self.total, self.num_bytes)


def score(model: TransformerLM, tokenizer: Tokenizer, text: str, *, prefix: Sequence[int] | None = None,
          allow_special: bool = False, num_alternatives: int = 0) -> Scores:
    """Return the log-probability of every token of a text, which the model reads as a document from its beginning.

    In a text longer than the context, each token is predicted from at least half a context: windows of T tokens start
    every ⌈T/2⌉ tokens, and each predicts what the one before it did not.

    Args:
        model: the language model.
        tokenizer: the tokenizer that it was trained with.
        text: the text.
        prefix: the ids that preceded documents in training; None for `generation.text.default_prefix`.
        allow_special: whether special tokens are recognized in the text; else their spelling is text.
        num_alternatives: how many of the likeliest tokens at each place are returned too.

    Raises:
        UserError: an argument has another type, or the text cannot be encoded.

    Example:
        >>> run = tslm.load_run("best")
        >>> tslm.score(run.model, run.tokenizer, "Once upon a time", prefix=run.prefix).bits_per_byte
    """
    check_model(model)
    check_tokenizer(tokenizer)
    if not isinstance(text, str):
        raise UserError(f"text is a {type(text).__name__}, but it must be a text: call tslm.score for each text alone")
    if not is_whole(num_alternatives):
        raise UserError(f"num_alternatives is {num_alternatives}; it must be a whole number of at least 0")
    if prefix is not None and not all(map(is_whole, prefix)):
        raise UserError(f"prefix is {str(prefix)[:60]}, but it must be a list of token ids")
    (scores,) = score_texts(model, tokenizer, [text], prefix=prefix, allow_special=allow_special,
                            num_alternatives=num_alternatives)
    return scores


def score_texts(model: TransformerLM, tokenizer: Tokenizer, texts: Sequence[str], *,
                prefix: Sequence[int] | None = None, allow_special: bool = False, progress: bool = False,
                num_alternatives: int = 0) -> list[Scores]:
    """Score several texts, each as `score` does; windows of similar length share a batch."""
    front = list(default_prefix(tokenizer) if prefix is None else prefix)
    encoded = [tokenizer.encode(text, allow_special=allow_special) for text in texts]
    sequences = [np.array([*front, *ids], np.int64) for ids in encoded]
    size = min(num_alternatives, tokenizer.vocab_size)
    best = [np.zeros((max(len(ids) - 1, 0), size, 2)) for ids in sequences] if size else None
    predicted = _predict(model, sequences, progress, best, tokenizer.vocab_size)
    found = []
    for number, (ids, log_probs) in enumerate(zip(encoded, predicted, strict=True)):
        scored = ids if front else ids[1:]
        values = log_probs[len(log_probs) - len(scored) :].tolist()
        others = [] if best is None else best[number][len(log_probs) - len(scored) :].tolist()
        found.append(Scores(scored, values, sum(len(tokenizer.vocab[id_]) for id_ in scored),
                            [[(int(id_), value) for id_, value in each] for each in others]))
    return found


def token_log_probs(model: TransformerLM, sequences: Sequence[npt.NDArray[np.int64]], *,
                    progress: bool = False) -> list[LogProbs]:
    """Return the log-probability of each token but the first of each sequence of ids.

    Sequences longer than the context are scored in windows, as `score` says.

    Raises:
        UserError: an id is not in the vocabulary of the model, or a loss is not finite.
    """
    return _predict(model, sequences, progress)


@torch.no_grad()
def _predict(model: TransformerLM, sequences: Sequence[npt.NDArray[np.int64]], progress: bool,
             best: list[npt.NDArray[np.float64]] | None = None, vocab_size: int = 0) -> list[LogProbs]:
    """Do as `token_log_probs`, and fill `best` (T, k, 2) of each sequence with the likeliest ids and their log-probs.

    Only ids below `vocab_size` are among the likeliest.
    """
    highest = max((int(sequence.max(initial=0)) for sequence in sequences), default=0)
    if highest >= model.config.vocab_size:
        raise UserError(f"the text has the token id {highest}, but the model's ids go up to "
                        f"{model.config.vocab_size - 1}: use the tokenizer that it was trained with")
    found = [np.zeros(max(len(sequence) - 1, 0), np.float32) for sequence in sequences]
    windows = [window for number, sequence in enumerate(sequences)
               for window in _windows(number, len(sequence) - 1, model.config.context_length)]
    windows.sort(key=lambda window: window.stop - window.start)
    device = next(model.parameters()).device
    with tqdm(total=sum(window.stop - window.first for window in windows), desc="scoring", unit=" tokens",
              unit_scale=True, disable=not progress) as bar:
        while windows:
            longest = windows[-1].stop - windows[-1].start
            number = max(1, min(_LOGITS // (longest * model.config.vocab_size), 1 << 10))
            batch, windows = windows[-number:], windows[:-number]
            rows = np.zeros((len(batch), longest + 1), np.int64)  # padding follows the tokens, which cannot see it
            for row, window in zip(rows, batch, strict=True):
                ids = sequences[window.sequence][window.start : window.stop + 1]
                row[: len(ids)] = ids
            tokens = torch.from_numpy(rows).to(device)
            logits = model(tokens[:, :-1])
            losses = token_losses(logits, tokens[:, 1:]).float().cpu().numpy()
            if not np.isfinite(losses).all():
                raise UserError("the model's losses are not finite, because its training diverged or its file is "
                                "damaged: use an earlier checkpoint")
            for index, window in enumerate(batch):
                used = slice(window.first - window.start, window.stop - window.start)
                found[window.sequence][window.first : window.stop] = -losses[index, used]
                if best is not None:
                    here = best[window.sequence][window.first : window.stop]
                    values = logits[index, used].float()
                    top = values[:, :vocab_size].topk(here.shape[1])
                    here[..., 0] = top.indices.cpu()
                    here[..., 1] = (top.values - torch.logsumexp(values, -1, keepdim=True)).cpu()
            bar.update(sum(window.stop - window.first for window in batch))
    return found


class _Window(NamedTuple):
    """Inputs `start` to `stop` of a sequence, of which the predictions from `first` on are used."""

    sequence: int
    start: int
    first: int
    stop: int


def _windows(sequence: int, targets: int, context: int) -> Iterator[_Window]:
    """Yield windows that predict each target once: inputs i predicts target i, which is token i + 1."""
    first = 0
    for start in range(0, max(targets, 0), (context + 1) // 2):
        stop = min(start + context, targets)
        if stop > first:
            yield _Window(sequence, start, first, stop)
            first = stop
