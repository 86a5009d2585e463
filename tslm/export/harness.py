"""A trained model for EleutherAI's lm-evaluation-harness (https://github.com/EleutherAI/lm-evaluation-harness).

    import lm_eval
    results = lm_eval.simple_evaluate(HarnessModel("best"), tasks=["lambada_openai"])

The class has the three calls that the harness makes. It also works without the harness, on objects that have `args`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tslm.generation.decoding import generate
from tslm.generation.text import complete, default_prefix
from tslm.training.load_run import load_run
from tslm.training.scoring import score_texts, token_log_probs

try:
    from lm_eval.api.model import LM as _Base  # type: ignore[import-not-found,unused-ignore]
except ImportError:  # without the extra `harness`
    _Base = object


class Request(Protocol):
    """What the harness asks: `lm_eval.api.instance.Instance`."""

    @property
    def args(self) -> tuple[Any, ...]:
        """The arguments of the call."""


class HarnessModel(_Base):
    """A run as a model of the harness.

    Args:
        path: as for `load_run`.
        max_new_tokens: the length of generated texts, if a task states none.
    """

    def __init__(self, path: str | Path = "best", max_new_tokens: int = 128) -> None:
        super().__init__()
        run = load_run(path)
        self._model, self._tokenizer = run.model, run.tokenizer
        self._prefix = default_prefix(run.tokenizer) if run.prefix is None else run.prefix
        self._max_new_tokens = max_new_tokens

    def loglikelihood(self, requests: Sequence[Request], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return for each (context, continuation) log p(continuation | context), and whether it is the greedy one.

        White space at the end of the context belongs to the continuation, as in the harness's own models, because the
        tokens of a word begin with the space before it.
        """
        sequences, sizes = [], []
        for context, continuation in (request.args for request in requests):
            stripped = context.rstrip()
            continuation = context[len(stripped) :] + continuation
            whole = self._tokenizer.encode(stripped + continuation, allow_special=False)
            front = [*self._prefix, *self._tokenizer.encode(stripped, allow_special=False)]
            ids = [*self._prefix, *whole]
            sizes.append(max(len(ids) - max(len(front), 1), 0))
            sequences.append(np.array(ids, np.int64))
        found = token_log_probs(self._model, sequences, progress=not disable_tqdm)
        greedy = self._greedy(sequences, sizes)
        return [(float(values[len(values) - size :].sum(dtype=np.float64)), is_greedy)
                for values, size, is_greedy in zip(found, sizes, greedy, strict=True)]

    def _greedy(self, sequences: list[np.ndarray], sizes: list[int]) -> list[bool]:
        """Return for each sequence whether its last tokens are the most probable ones, one after the other."""
        results = []
        for ids, size in zip(sequences, sizes, strict=True):
            if not 0 < size < len(ids):
                results.append(size == 0)
                continue
            context, expected = ids[: len(ids) - size].tolist(), ids[len(ids) - size :].tolist()
            results.append(generate(self._model, [context], size, temperature=0.0)[0] == expected)
        return results

    def loglikelihood_rolling(self, requests: Sequence[Request], disable_tqdm: bool = False) -> list[float]:
        """Return the log-probability of each whole text, (string,)."""
        texts = [request.args[0] for request in requests]
        return [scores.total for scores in score_texts(self._model, self._tokenizer, texts, prefix=self._prefix,
                                                       progress=not disable_tqdm)]

    def generate_until(self, requests: Sequence[Request], disable_tqdm: bool = False) -> list[str]:
        """Continue each (context, settings) until one of the strings `until`, the end of the text or `max_gen_toks`."""
        texts = []
        for context, settings in (request.args for request in requests):
            until = settings.get("until", [])
            ends = [until] if isinstance(until, str) else until
            length = settings.get("max_gen_toks", self._max_new_tokens)
            sample = settings.get("do_sample", settings.get("temperature", 0.0) > 0)
            (completion,) = complete(self._model, self._tokenizer, [context], length, prefix=self._prefix,
                                     temperature=float(settings.get("temperature", 1.0)) if sample else 0.0,
                                     top_p=float(settings.get("top_p", 1.0)), stop=[end for end in ends if end])
            texts.append(completion.text)
        return texts
