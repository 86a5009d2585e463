"""The Kneser-Ney model against a slow one of dictionaries, and against the laws of probability."""

import math
from collections import Counter, defaultdict

import numpy as np
import pytest

from tslm.data.ngram import KneserNey


class SlowKneserNey:
    """Chen and Goodman's equations, one token at a time."""

    def __init__(self, ids, vocab_size, order):
        self.vocab_size, self.order = vocab_size, order
        self.counts = {order: Counter(tuple(ids[i : i + order]) for i in range(len(ids) - order + 1))}
        for n in range(order - 1, 0, -1):
            longer = {tuple(ids[i : i + n + 1]) for i in range(len(ids) - n)}
            self.counts[n] = Counter(gram[1:] for gram in longer)
        self.followers = {n: defaultdict(dict) for n in self.counts}
        for n, counts in self.counts.items():
            for gram, count in counts.items():
                self.followers[n][gram[:-1]][gram[-1]] = count
        self.discounts = {n: self.estimate(counts) for n, counts in self.counts.items()}

    @staticmethod
    def estimate(counts):
        n = Counter(counts.values())
        y = n[1] / (n[1] + 2 * n[2]) if n[1] else 0.5
        found = {k: k - (k + 1) * y * n[k + 1] / n[k] if n[k] else k / 2 for k in (1, 2)}
        three = sum(count >= 3 for count in counts.values())
        assert three, "the formula for D_3 uses n_3 and n_4"
        found[3] = 3 - 4 * y * n[4] / n[3] if n[3] else 1.5
        return {k: min(max(d, 0.05), k) for k, d in found.items()}

    def prob(self, context, token):
        lower = self.prob(context[1:], token) if context else 1 / self.vocab_size
        n = len(context) + 1
        seen = self.followers[n].get(tuple(context))
        if not seen:
            return lower
        total = sum(seen.values())
        discount = self.discounts[n]
        left = sum(discount[min(count, 3)] for count in seen.values()) / total
        count = seen.get(token, 0)
        kept = (count - discount[min(count, 3)]) / total if count else 0.0
        return kept + left * lower


def random_ids(length, vocab_size, seed):
    rng = np.random.default_rng(seed)
    return np.minimum(rng.geometric(0.3, length) - 1, vocab_size - 1)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize("seed", [0, 1])
def test_log_probs_equal_those_of_the_slow_implementation(order, seed):
    vocab_size = 12
    train, held_out = random_ids(600, vocab_size - 2, seed), random_ids(200, vocab_size, seed + 10)
    slow = SlowKneserNey(train.tolist(), vocab_size, order)
    tokens = held_out.tolist()
    expected = [math.log(slow.prob(tokens[max(0, i - order + 1) : i], token)) for i, token in enumerate(tokens)]
    actual = KneserNey.fit(train, vocab_size, order).log_probs(held_out)
    np.testing.assert_allclose(actual, expected, rtol=1e-10)


def test_probabilities_of_all_tokens_sum_to_one_after_any_context():
    vocab_size = 40  # ids 30 and up never occur in training
    train = random_ids(3000, 30, seed=3).astype(np.uint16)
    model = KneserNey.fit(train, vocab_size)
    rng = np.random.default_rng(4)
    contexts = [train[i : i + 4] for i in rng.integers(0, len(train) - 4, 20)]  # seen
    contexts += [rng.integers(0, vocab_size, length) for length in (0, 1, 2, 3, 4, 4, 4)]  # most of them unseen
    for context in contexts:
        last = [model.log_probs(np.append(context, token).astype(np.int64))[-1] for token in range(vocab_size)]
        assert np.exp(last).sum() == pytest.approx(1, abs=1e-12)
        assert np.isfinite(last).all()


def test_a_trigram_predicts_a_sequence_that_needs_two_tokens_of_context():
    sequence = np.tile([0, 1, 2, 0, 2, 1], 300)  # two tokens determine the next one, one does not
    loss = [-KneserNey.fit(sequence, 3, order).log_probs(sequence).mean() for order in (1, 2, 3)]
    assert loss[0] == pytest.approx(math.log(3), rel=0.01)
    assert loss[1] == pytest.approx(math.log(2), rel=0.01)
    assert loss[2] < 0.05


def test_keys_of_a_large_vocabulary_do_not_overflow():
    ids = np.array([49_999, 0, 49_999, 1, 49_999, 0, 49_999, 1, 7] * 5)
    log_probs = KneserNey.fit(ids, 50_000).log_probs(ids)
    assert np.isfinite(log_probs).all()
    assert log_probs[10:].mean() > math.log(0.2)


@pytest.mark.parametrize("bad", [-1, 10])
def test_an_id_outside_the_vocabulary_is_refused(bad):
    with pytest.raises(ValueError, match=rf"token id {bad} is outside the vocabulary of 10 entries"):
        KneserNey.fit(np.array([1, 2, bad, 3, 4, 5]), 10)


def test_an_order_above_the_number_of_tokens_is_refused():
    with pytest.raises(ValueError, match="order is 5: give a value from 1 to the number of tokens, 3"):
        KneserNey.fit(np.array([1, 2, 3]), 10, order=5)
