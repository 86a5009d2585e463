import math

import numpy as np
import pytest

from tslm.studies.statistics import Interval, group_interval, in_blocks, ratio_interval, student_quantile


@pytest.mark.parametrize(
    ("freedom", "quantile"),  # a table of Student's distribution, two-sided 95%
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (10, 2.228), (30, 2.042), (120, 1.980), (1e7, 1.960)],
)
def test_quantiles_of_students_distribution(freedom, quantile):
    assert student_quantile(freedom) == pytest.approx(quantile, abs=6e-4)
    assert student_quantile(freedom, 0.5) < student_quantile(freedom, 0.9) < student_quantile(freedom)


def test_the_interval_of_a_ratio_by_hand():
    # Differences of 1, 2, 3 nats in windows of ten tokens: mean 0.2, standard error sqrt(3/2 · 2) / 30 = 0.0577.
    interval = ratio_interval([1, 2, 3], [10, 10, 10])
    assert interval == pytest.approx((0.2, 4.30265 * math.sqrt(3) / 30), rel=1e-4)
    assert str(interval) == "0.20 ± 0.25"
    assert not interval.excludes_zero
    assert ratio_interval([5], [10]) == (0.5, math.inf)


def test_the_interval_of_two_groups_by_hand():
    # Welch: means 2 and 6; variances of the means 1/3 and 4/3; degrees of freedom (5/3)² / (1/18 + 16/18) = 2.941.
    interval = group_interval([1, 2, 3], [4, 6, 8])
    assert interval.mean == -4
    assert interval.half == pytest.approx(student_quantile(25 / 9 / (17 / 18)) * math.sqrt(5 / 3), rel=1e-9)
    assert group_interval([1], [2, 3]).half == math.inf
    assert group_interval([1, 1], [1, 1]) == (0, 0)


def test_intervals_print_two_digits_of_their_half_width():
    assert [str(Interval(*each)) for each in ((0.0131, 0.0042), (1.2, 0.55), (0.5, math.inf), (0.0, 0.0))] == [
        "0.0131 ± 0.0042", "1.20 ± 0.55", "0.5000 ± inf", "0.0000 ± 0.0000",
    ]  # fmt: skip


def test_consecutive_units_are_joined():
    sums, sizes = in_blocks(np.arange(10), np.ones(10), 3)
    assert (sums.tolist(), sizes.tolist()) == ([6, 15, 24], [4, 3, 3])
    assert in_blocks([1, 2], [3, 4], 200)[0].tolist() == [1, 2]


def window_differences(rng, number):
    """Differences of two models in nats, for windows of several lengths, with heavy tails as real ones have."""
    sizes = rng.choice([64, 128, 256], number).astype(float)
    return sizes * 0.01 + np.sqrt(sizes) * 0.3 * rng.standard_t(5, number), sizes


def test_intervals_of_random_halves_cover_the_difference_on_all_windows_about_95_times_in_100():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(1000):
        sums, sizes = window_differences(rng, 200)
        half = rng.permutation(200)[:100]
        interval = ratio_interval(sums[half], sizes[half], population=200)
        covered += abs(interval.mean - sums.sum() / sizes.sum()) <= interval.half
    assert 930 <= covered <= 970  # three standard deviations of a binomial distribution are 21


def test_intervals_over_an_unlimited_supply_of_windows_cover_the_true_difference():
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(1000):
        interval = ratio_interval(*in_blocks(*window_differences(rng, 600)))
        covered += abs(interval.mean - 0.01) <= interval.half
    assert 930 <= covered <= 970


def test_blocks_hold_what_dependent_neighbours_would_spoil():
    rng = np.random.default_rng(3)
    covered = {True: 0, False: 0}
    for _ in range(500):
        noise = np.convolve(rng.standard_normal(4010), np.ones(10) / 10, "valid")[:4000]  # neighbours are alike
        for joined in covered:
            units = in_blocks(noise, np.ones(4000), 100) if joined else (noise, np.ones(4000))
            interval = ratio_interval(*units)
            covered[joined] += abs(interval.mean) <= interval.half
    assert covered[True] >= 450
    assert covered[False] < 350


@pytest.mark.parametrize(("first", "second"), [(3, 3), (5, 3), (8, 8)])
def test_groups_of_equal_runs_are_called_different_about_5_times_in_100(first, second):
    rng = np.random.default_rng(first)
    called = sum(
        group_interval(rng.normal(1.5, 0.01, first), rng.normal(1.5, 0.01, second)).excludes_zero for _ in range(4000)
    )
    assert 100 <= called <= 260  # 2.5 to 6.5 in 100; Welch's test is a little cautious for three runs


def test_groups_of_different_runs_are_told_apart():
    rng = np.random.default_rng(9)
    seen = sum(group_interval(rng.normal(1.5, 0.01, 3), rng.normal(1.45, 0.01, 3)).excludes_zero for _ in range(200))
    assert seen > 180
