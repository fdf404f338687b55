"""Intervals of shares, differences and ratios of odds: published numbers, SciPy, simulation."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest, ttest_1samp
from scipy.stats.contingency import odds_ratio as scipy_odds_ratio

from flowsde.tuning.intervals import (
    Interval,
    contrast,
    difference,
    effective,
    log_odds,
    odds_ratio,
    pooled,
    success,
    wilson,
)


@pytest.mark.parametrize(("wins", "n"), [(0, 48), (1, 48), (13, 48), (199, 200), (200, 200)])
def test_a_share_has_wilsons_interval(wins, n):
    found = wilson(wins / n, n)
    wanted = binomtest(wins, n).proportion_ci(method="wilson")
    assert found == pytest.approx((wins / n, wanted.low, wanted.high), abs=1e-12)


def test_a_difference_is_newcombes():
    # Newcombe, 1998, Stat. Med. 17: 873, example (a): 56 of 70 less 48 of 80.
    found = contrast(wilson(56 / 70, 70), wilson(48 / 80, 80))
    assert found == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)


def test_correlation_narrows_what_is_paired():
    a, b = Interval(0.5, 0.3, 0.7), Interval(0.4, 0.25, 0.6)
    # The larger captions' part is shared, the less is left: with r = 1 the reaches subtract.
    found = contrast(a, b, 1.0)
    assert found == pytest.approx((0.1, 0.1 - (0.2 - 0.2), 0.1 + (0.2 - 0.15)))
    assert contrast(a, a, 1.0) == pytest.approx((0.0, 0.0, 0.0))


def test_seeds_of_a_caption_tell_less_than_captions_do():
    # Seeds that always agree are one seed; those that differ as coins do are as many as there are.
    alike = np.asarray([2, 0, 2, 0, 0, 2] * 20)
    n, shares = len(alike), alike / 2
    variance = shares.var(ddof=1) / n
    assert effective(alike, 2) == pytest.approx(max(n, 0.25 / variance))
    coins = np.random.default_rng(0).binomial(2, 0.5, size=20_000)
    assert effective(coins, 2) == pytest.approx(2 * len(coins), rel=0.03)
    assert effective(np.full(24, 2), 2) == 24
    assert effective(np.full(24, 1), 2) == 48


def test_a_ratio_of_odds_is_that_of_large_tables():
    rng = np.random.default_rng(1)
    a, b = rng.binomial(1, 0.3, 4000), rng.binomial(1, 0.1, 4000)
    table = np.asarray([[a.sum(), (1 - a).sum()], [b.sum(), (1 - b).sum()]])
    made = scipy_odds_ratio(table, kind="sample")
    low, high = made.confidence_interval(0.95)
    found = odds_ratio(a, b, 1)
    assert found == pytest.approx((made.statistic, low, high), rel=0.03)


def test_without_a_success_odds_are_small_and_have_no_lower_bound():
    none, some = [0] * 100, [1] * 30 + [0] * 70
    found = log_odds(np.asarray(none), 2)
    # Captions that all agree count once.
    assert found.value == pytest.approx(math.log(0.5 / 100.5)) and found.low == -math.inf
    ratio = odds_ratio(some, none, 1)
    assert ratio.low > 4.0 and ratio.high == math.inf
    assert odds_ratio(none, some, 1).low == 0.0


@pytest.mark.slow
def test_intervals_cover():
    """Of captions with a difficulty each and two seeds: 95 % of intervals hold the truth."""
    rng = np.random.default_rng(2)
    easy = rng.beta(0.6, 1.4, size=(400, 100))
    hard = easy * 0.6
    a, b = rng.binomial(2, easy), rng.binomial(2, hard)
    p, q = 0.3, 0.18
    wanted = (p, p - q, p / (1 - p) / (q / (1 - q)))
    held = np.zeros(3)
    for one, other in zip(a, b, strict=True):
        found = success(one, 2), difference(one, other, 2), odds_ratio(one, other, 2)
        held += [i.low <= truth <= i.high for i, truth in zip(found, wanted, strict=True)]
    # Three standard errors of 400 runs are .033.
    assert np.all((held / 400 > 0.95 - 0.033) & (held / 400 < 0.95 + 0.033)), held / 400


def test_one_stratum_is_students_interval():
    values = np.random.default_rng(3).normal(size=24)
    low, high = ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert pooled([values]) == pytest.approx((values.mean(), low, high))
    # Twice the same task is no more captions' worth of difference, but half the variance.
    both = pooled([values, values])
    assert both.value == pytest.approx(values.mean()) and both.high < high
    assert pooled([np.asarray([0.5])]) == (0.5, -math.inf, math.inf)


def test_pairs_are_of_the_captions_that_both_have():
    long, short = [2, 0, 1, 2, 2, 2], [1, 0, 1]
    assert difference(long, short, 2) == difference(long[:3], short, 2)
