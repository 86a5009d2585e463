"""An interpolated Kneser-Ney n-gram model: the baseline that sees 4 tokens back and no further.

Token ids come in, the log-probability of each token given its few predecessors goes out. Beside the exact floor of the
embedded corpus it shows what a model without a long memory can reach.
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
    """The n-grams of one length n. The number of an n-gram is its place in `keys`."""

    keys: IntArray  # (types,) sorted: number of the (n-1)-gram that precedes * vocab_size + last token
    probs: FloatArray  # (types,) p(last token | the n-1 before it), interpolated
    backoff: FloatArray  # (types of length n-1,) the mass that a context leaves to the shorter one


class KneserNey:
    """Modified Kneser-Ney smoothing (Chen and Goodman, 1998, section 3), interpolated, over token ids.

    With h the n-1 preceding tokens, h' the same without the first, and c the count of an n-gram,

        p_n(w | h) = max(c(hw) - D(c(hw)), 0) / c(h·) + gamma(h) p_{n-1}(w | h'),        p_0 = 1 / vocab_size,

    where gamma(h) returns what the discounts took. For n below `order`, c(hw) is the number of different tokens seen
    before hw, not the number of times hw was seen. D takes three values per n (for counts 1, 2, and 3 or more),
    estimated from the counts of counts. A context never seen leaves everything to the shorter one. So the
    probabilities of all tokens after any context sum to one, and none is zero.
    """

    def __init__(self, vocab_size: int, levels: list[_Level]) -> None:
        self.vocab_size = vocab_size
        self.order = len(levels)
        self._levels = levels

    @classmethod
    def fit(cls, ids: Ids, vocab_size: int, order: int = 5) -> Self:
        """Count the n-grams of `ids` (tokens,) up to length `order` and smooth them.

        Raises:
            ValueError: `ids` is shorter than `order` or holds an id outside the vocabulary.
        """
        tokens = _checked(ids, vocab_size)
        if not 1 <= order <= len(tokens):
            raise ValueError(f"order must lie between 1 and the number of tokens ({len(tokens)}), not {order}")
        # N-grams are numbered in the order of a dictionary: by their first token, then by the number of the others. So
        # the places in the order of their n-grams are the places of those others, in theirs, moved by one and sorted by
        # one more token; and tokens are small numbers, which numpy sorts by radix.
        small = tokens.astype(np.min_scalar_type(vocab_size - 1))
        numbers = np.zeros(len(tokens) + 1, np.int64)  # of the n-gram at each place; at first of empty ones
        places = np.arange(len(tokens) + 1)  # in the order of those numbers
        keys, counts = list[IntArray](), list[IntArray]()
        shorter = list[IntArray]()  # for every n-gram, the number of its last n-1 tokens
        for n in range(1, order + 1):
            places = places[places > 0] - 1
            places = places[np.argsort(small[places], kind="stable")]
            begin, rest = small[places], numbers[places + 1]
            new = np.concatenate(([True], (begin[1:] != begin[:-1]) | (rest[1:] != rest[:-1])))
            first = places[new]
            keys.append(numbers[first] * vocab_size + tokens[first + n - 1])
            counts.append(np.diff(np.flatnonzero(new), append=len(new)))
            shorter.append(rest[new])
            numbers = np.empty(len(places), np.int64)
            numbers[places] = np.cumsum(new) - 1
        levels = list[_Level]()
        lower = np.array([1 / vocab_size])
        for n in range(order):
            different = counts[n] if n + 1 == order else np.bincount(shorter[n + 1], minlength=len(keys[n]))
            contexts = len(keys[n - 1]) if n else 1
            levels.append(_smooth(keys[n], different, lower[shorter[n]], keys[n] // vocab_size, contexts))
            lower = levels[-1].probs
        return cls(vocab_size, levels)

    def log_probs(self, ids: Ids) -> FloatArray:
        """Return ln p(token | up to order-1 tokens before it) for each token of `ids` (tokens,).

        The first tokens have fewer predecessors and are scored by the shorter models. Those are made for contexts that
        were not seen, so score many documents as one sequence rather than one by one.

        Raises:
            ValueError: `ids` holds an id outside the vocabulary.
        """
        tokens = _checked(ids, self.vocab_size)
        probs = np.full(len(tokens), 1 / self.vocab_size)
        context = np.zeros(len(tokens), np.int64)  # number of the n-gram before each token; -1: never seen
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
    """Discount the counts of one length and interpolate with `lower`, what the shorter model gives each n-gram."""
    discount = _discounts(counts)[np.minimum(counts, 3)]
    total = np.bincount(context, counts, num_contexts)
    taken = np.bincount(context, discount, num_contexts)
    seen = total > 0  # a context whose n-grams nothing precedes (the very first tokens) has no counts
    backoff = np.divide(taken, total, out=np.ones(num_contexts), where=seen)
    kept = np.divide(counts - discount, total[context], out=np.zeros(len(keys)), where=seen[context])
    return _Level(keys, kept + backoff[context] * lower, backoff)


def _discounts(counts: IntArray) -> FloatArray:
    """D for counts 0, 1, 2 and 3 or more: D_k = k - (k+1) Y n_{k+1} / n_k, Y = n_1 / (n_1 + 2 n_2).

    n_k is the number of n-grams with count k. Where n_k is zero, as in tiny corpora, the formula says nothing and D is
    k/2; the bounds keep every D positive, so that some mass is always left for what was never seen.
    """
    n = np.bincount(np.minimum(counts, 5), minlength=6).astype(float)
    y = n[1] / (n[1] + 2 * n[2]) if n[1] else 0.5
    estimates = [k - (k + 1) * y * n[k + 1] / n[k] if n[k] else k / 2 for k in (1, 2, 3)]
    return np.array([0.0, *(min(max(d, 0.05), k) for k, d in enumerate(estimates, start=1))])

