"""An interpolated Kneser-Ney n-gram model: the baseline whose context is the last four tokens.

Together with the exact floor of the embedded corpus, it shows what a model without a long context can reach.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.integer]
IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Level:
    """The n-grams of one length n. The number of an n-gram is its index in `keys`."""

    keys: IntArray  # (types,) sorted: number of the (n-1)-gram before the last token * vocab_size + last token
    probs: FloatArray  # (types,) p(last token | the n-1 before it), interpolated
    backoff: FloatArray  # (types of length n-1,) gamma: the mass that a context leaves to the shorter model


class KneserNey:
    """Modified Kneser-Ney smoothing (Chen and Goodman, 1998, section 3), interpolated, over token ids.

    With h the n-1 preceding tokens, h' the same without the first, and c the count of an n-gram,

        p_n(w | h) = max(c(hw) - D(c(hw)), 0) / c(h·) + gamma(h) p_{n-1}(w | h'),        p_0 = 1 / vocab_size,

    where gamma(h) restores the mass that the discounts removed. For n below `order`, c(hw) is the number of different
    tokens seen before hw, not the number of times hw was seen. D takes three values per n (for counts 1, 2, and 3 or
    more), estimated from the counts of counts. An unseen context leaves all mass to the shorter model. So the
    probabilities of all tokens after any context sum to one, and none is zero.

    Example: `-KneserNey.fit(train_ids, vocab_size).log_probs(valid_ids).mean()` is the 5-gram loss in nats per token.
    """

    def __init__(self, vocab_size: int, levels: list[_Level]) -> None:
        self.vocab_size = vocab_size
        self.order = len(levels)
        self._levels = levels

    @classmethod
    def fit(cls, ids: Ids, vocab_size: int, order: int = 5) -> Self:
        """Count the n-grams of `ids` (tokens,) up to length `order` and smooth the counts.

        Raises:
            ValueError: `ids` has fewer than `order` tokens or an id outside the vocabulary.
        """
        tokens = _checked(ids, vocab_size)
        if not 1 <= order <= len(tokens):
            raise ValueError(f"order is {order}: give a value from 1 to the number of tokens, {len(tokens)}")
        # N-grams are numbered in lexicographic order: by their first token, then by the number of their last n-1
        # tokens. So sorting the positions of the (n-1)-grams, shifted by one, stably by one more token gives the
        # positions in the order of their n-grams. Tokens are small integers, for which numpy uses a radix sort.
        small = tokens.astype(np.min_scalar_type(vocab_size - 1))
        numbers = np.zeros(len(tokens) + 1, np.int64)  # number of the n-gram at each position; first of the 0-gram
        positions = np.arange(len(tokens) + 1)  # sorted by `numbers`
        keys, counts = list[IntArray](), list[IntArray]()
        shorter = list[IntArray]()  # for every n-gram, the number of its last n-1 tokens
        for n in range(1, order + 1):
            positions = positions[positions > 0] - 1
            positions = positions[np.argsort(small[positions], kind="stable")]
            begin, rest = small[positions], numbers[positions + 1]
            new = np.concatenate(([True], (begin[1:] != begin[:-1]) | (rest[1:] != rest[:-1])))
            first = positions[new]
            keys.append(numbers[first] * vocab_size + tokens[first + n - 1])
            counts.append(np.diff(np.flatnonzero(new), append=len(new)))
            shorter.append(rest[new])
            numbers = np.empty(len(positions), np.int64)
            numbers[positions] = np.cumsum(new) - 1
        levels = list[_Level]()
        lower = np.array([1 / vocab_size])
        for n in range(order):
            different = counts[n] if n + 1 == order else np.bincount(shorter[n + 1], minlength=len(keys[n]))
            contexts = len(keys[n - 1]) if n else 1
            levels.append(_smooth(keys[n], different, lower[shorter[n]], keys[n] // vocab_size, contexts))
            lower = levels[-1].probs
        return cls(vocab_size, levels)

    def log_probs(self, ids: Ids) -> FloatArray:
        """Return ln p(token | up to order-1 tokens before it) for each token of `ids`: (tokens,) → (tokens,).

        The first tokens have fewer predecessors and are scored by the shorter models. Those are estimated for unseen
        contexts and score worse, so score many documents as one sequence rather than one by one.

        Raises:
            ValueError: `ids` holds an id outside the vocabulary.
        """
        tokens = _checked(ids, self.vocab_size)
        probs = np.full(len(tokens), 1 / self.vocab_size)
        context = np.zeros(len(tokens), np.int64)  # number of the n-gram before each token; -1: unseen
        for level in self._levels:
            key = context * self.vocab_size + tokens
            number = np.minimum(np.searchsorted(level.keys, key), len(level.keys) - 1)
            found = (context >= 0) & (level.keys[number] == key)
            probs = np.where(found, level.probs[number], probs * np.where(context >= 0, level.backoff[context], 1.0))
            context = np.concatenate(([-1], np.where(found, number, -1)[:-1]))
        return np.log(probs)  # type: ignore[no-any-return]


def _checked(ids: Ids, vocab_size: int) -> IntArray:
    tokens = np.asarray(ids, dtype=np.int64)
    outside = tokens[(tokens < 0) | (tokens >= vocab_size)]
    if len(outside):
        raise ValueError(f"token id {outside[0]} is outside the vocabulary of {vocab_size} entries")
    return tokens


def _smooth(keys: IntArray, counts: IntArray, lower: FloatArray, context: IntArray, num_contexts: int) -> _Level:
    """Discount the counts of one length and interpolate them with `lower`, the shorter model's probabilities."""
    discount = _discounts(counts)[np.minimum(counts, 3)]
    total = np.bincount(context, counts, num_contexts)
    taken = np.bincount(context, discount, num_contexts)
    seen = total > 0  # a context has no counts if its n-grams have no predecessor: the very first tokens
    backoff = np.divide(taken, total, out=np.ones(num_contexts), where=seen)
    kept = np.divide(counts - discount, total[context], out=np.zeros(len(keys)), where=seen[context])
    return _Level(keys, kept + backoff[context] * lower, backoff)


def _discounts(counts: IntArray) -> FloatArray:
    """Return D for counts 0, 1, 2 and 3 or more: D_k = k - (k+1) Y n_{k+1} / n_k with Y = n_1 / (n_1 + 2 n_2).

    n_k is the number of n-grams with count k. In tiny corpora n_k can be zero and the formula undefined; D is then k/2.
    The bounds keep every D positive, so that some mass always remains for unseen tokens.
    """
    n = np.bincount(np.minimum(counts, 5), minlength=6).astype(float)
    y = n[1] / (n[1] + 2 * n[2]) if n[1] else 0.5
    estimates = [k - (k + 1) * y * n[k + 1] / n[k] if n[k] else k / 2 for k in (1, 2, 3)]
    return np.array([0.0, *(min(max(d, 0.05), k) for k, d in enumerate(estimates, start=1))])

