"""Temperature, top-k, top-p and the draw: by hand, by their definitions, and by the frequencies that come out."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tslm.generation.sampling import SamplingRule, choose_tokens, draw

PROBABILITIES = [0.1, 0.5, 0.05, 0.3, 0.05]
LOGITS = torch.tensor([PROBABILITIES]).log()


def _kept(**options):
    return SamplingRule(**options).probabilities(LOGITS)[0].tolist()


def test_no_option_leaves_the_softmax():
    assert _kept() == pytest.approx(PROBABILITIES)


def test_temperature_divides_the_logits():
    squared = [p * p for p in PROBABILITIES]
    assert _kept(temperature=0.5) == pytest.approx([p / sum(squared) for p in squared])
    assert _kept(temperature=1e-30) == [0, 1, 0, 0, 0]
    assert _kept(temperature=1e6) == pytest.approx([0.2] * 5, abs=1e-4)


def test_top_k_keeps_the_k_most_probable_and_the_lower_id_of_equals():
    assert _kept(top_k=2) == pytest.approx([0, 0.625, 0, 0.375, 0])
    assert _kept(top_k=4) == pytest.approx([p / 0.95 for p in [0.1, 0.5, 0.05, 0.3, 0.0]])
    assert _kept(top_k=99) == pytest.approx(PROBABILITIES)


@pytest.mark.parametrize("options", [{"top_k": 3}, {"top_p": 0.00299}])
def test_the_lowest_of_many_equal_ids_are_kept(options):
    probabilities = SamplingRule(**options).probabilities(torch.zeros(2, 1000))
    assert probabilities.nonzero().tolist() == [[row, token] for row in range(2) for token in range(3)]


@pytest.mark.parametrize(("top_p", "kept"), [
    (1e-6, [1]), (0.49, [1]), (0.51, [1, 3]), (0.79, [1, 3]), (0.81, [1, 3, 0]), (0.92, [1, 3, 0, 2]),
    (0.97, [1, 3, 0, 2, 4])])
def test_top_p_keeps_the_smallest_set_that_reaches_p(top_p, kept):
    total = sum(PROBABILITIES[i] for i in kept)
    expected = [p / total if i in kept else 0 for i, p in enumerate(PROBABILITIES)]
    assert _kept(top_p=top_p) == pytest.approx(expected)


def test_top_k_comes_before_top_p():
    # Among the two that top-k keeps, the first has 0.625, which reaches 0.6; alone it has 0.5, which does not.
    assert _kept(top_k=2, top_p=0.6) == [0, 1, 0, 0, 0]
    assert _kept(top_p=0.6) == pytest.approx([0, 0.625, 0, 0.375, 0])


@pytest.mark.parametrize("options", [{"temperature": 0}, {"top_k": 1}])
def test_greedy_takes_the_first_of_the_largest(options):
    logits = torch.tensor([[1.0, 3.0, 3.0], [2.0, 0.0, 2.0]])
    rule = SamplingRule(**options)
    assert choose_tokens.plain(logits, rule.temperature, rule.top_p, rule.top_k, None) == [1, 0]
    assert rule.probabilities(logits).tolist() == [[0, 1, 0], [1, 0, 0]]


@given(st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=40), st.floats(0.01, 1.0), st.integers(1, 50),
       st.floats(0.05, 5.0))
def test_every_rule_keeps_a_distribution_over_a_smallest_set(logits, top_p, top_k, temperature):
    rule = SamplingRule(temperature, top_p, top_k)
    probabilities = rule.probabilities(torch.tensor([logits]))[0].double()
    assert probabilities.sum().item() == pytest.approx(1, abs=1e-5)
    kept = probabilities > 0
    assert 1 <= kept.sum() <= min(top_k, len(logits))
    if not rule.greedy:
        before_top_p = SamplingRule(temperature, 1.0, top_k).probabilities(torch.tensor([logits]))[0].double()
        share, least = before_top_p[kept].sum(), before_top_p[kept].min()
        assert (before_top_p[~kept] <= least).all()
        assert share >= top_p - 1e-5  # the set reaches p,
        assert share - least < top_p + 1e-5  # and without its least probable member it does not


SPREADS = {"peaked": 4.0, "flat": 0.3, "equal": 0.0}


def kept_by_hand(logits, top_p, top_k):
    """The ids that the rules keep, in Python: the most probable first, the lower id first among equals."""
    ids = sorted(range(len(logits)), key=lambda id_: (-logits[id_], id_))[:top_k]
    weights = [math.exp(logits[id_] - logits[ids[0]]) for id_ in ids]
    kept, before = set(), 0.0
    for id_, weight in zip(ids, weights, strict=True):
        if before < top_p:
            kept.add(id_)
        before += weight / math.fsum(weights)
    return kept


@pytest.mark.parametrize("spread", SPREADS.values(), ids=SPREADS.keys())
@pytest.mark.parametrize("options", [
    {"top_p": 1e-9}, {"top_p": 0.1}, {"top_p": 0.5}, {"top_p": 0.999}, {"top_k": 2}, {"top_k": 50}, {"top_k": 2999},
    {"top_k": 4000}, {"top_p": 0.7, "top_k": 40}])
def test_the_kept_tokens_are_those_of_a_plain_loop(spread, options):
    logits = torch.randn(4, 3000, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * spread
    logits = logits.round(decimals=2).float()  # with many equal ones
    probabilities = SamplingRule(**options).probabilities(logits)
    for row, expected in zip(probabilities, logits.tolist(), strict=True):
        kept = kept_by_hand(expected, options.get("top_p", 1.0), options.get("top_k"))
        differing = kept ^ set(row.nonzero().flatten().tolist())
        assert len(differing) <= 1  # rounding may move the last token across the share


def test_draw_inverts_the_distribution_function():
    probabilities = torch.tensor([[0.25, 0.0, 0.5, 0.25]]).expand(6, 4)
    uniform = torch.tensor([0.0, 0.2499, 0.25, 0.7499, 0.75, 1 - 2**-53], dtype=torch.float64)
    assert draw(probabilities, uniform).tolist() == [0, 0, 2, 2, 3, 3]


def test_draw_never_takes_a_token_of_probability_zero():
    edges = torch.tensor([[0.0, 1e-30, 0.0], [0.0, 0.1, 0.0]])
    for uniform in (0.0, 0.5, 1 - 2**-53):
        assert draw(edges, torch.full((2,), uniform, dtype=torch.float64)).tolist() == [1, 1]


def test_frequencies_follow_the_probabilities():
    count, rule = 20_000, SamplingRule(top_p=0.9)
    uniform = torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    tokens = torch.tensor(choose_tokens.plain(LOGITS.expand(count, -1), 1.0, rule.top_p, None, uniform))
    frequency = torch.bincount(tokens, minlength=5) / count
    expected = rule.probabilities(LOGITS)[0]
    assert (frequency - expected).abs().max() < 4 * 0.5 / math.sqrt(count)  # four standard deviations at most
    assert frequency[2:].tolist()[0::2] == [0, 0]


@pytest.mark.parametrize(("options", "message"), [
    ({"temperature": -0.1}, "temperature is -0.1"), ({"temperature": math.nan}, "temperature is nan"),
    ({"temperature": math.inf}, "temperature is inf"), ({"top_p": 0.0}, "top_p is 0.0"),
    ({"top_p": 1.5}, "top_p is 1.5"), ({"top_k": 0}, "top_k is 0")])
def test_options_out_of_range_are_refused_with_the_value(options, message):
    with pytest.raises(ValueError, match=message):
        SamplingRule(**options)
