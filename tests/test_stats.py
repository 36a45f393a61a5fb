"""Intervals against hand-worked cases and simulated coverage; Holm's order; censoring never helps a claim."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as distributions

from bn_replication import stats
from bn_replication.stats import ANYTHING, Bounds, Interval

ABOVE_0, BELOW_0 = Bounds(low=0.0), Bounds(high=0.0)


def test_students_interval_by_hand() -> None:
    low, high = stats.t_interval([1, 2, 3], 0.05)
    assert (low, high) == pytest.approx((2 - 4.302653 / math.sqrt(3), 2 + 4.302653 / math.sqrt(3)))
    assert stats.t_interval([1.0], 0.05) == ANYTHING


@pytest.mark.parametrize("n", [3, 5])
def test_students_interval_covers_as_often_as_it_says(n: int) -> None:
    rng = np.random.default_rng(0)
    hits = [low <= 2 <= high for low, high in (stats.t_interval(rng.normal(2, 3, n), 0.05) for _ in range(2000))]
    assert 0.935 < np.mean(hits) < 0.965  # 95% with three standard errors


def test_identical_seeds_do_not_make_certainty() -> None:
    assert stats.t_interval([0.3] * 5, 0.05) == ANYTHING
    assert stats.t_interval([0.3] * 6, 0.05) == (0.3, 0.3)  # six alike: 2 / 2**6 = 0.03
    assert stats.decide(Interval(0.0, 0.0), ABOVE_0) == "contradicted"  # "higher" is strict


def test_median_interval_by_hand_and_by_coverage() -> None:
    assert stats.median_interval([3, 1, 2, 6, 5, 4], 0.05) == (1, 6)
    assert stats.median_interval([1, 2, 3, 4, 5], 0.05) == ANYTHING  # 2 / 2**5 = 0.0625
    assert stats.median_interval(range(9), 0.05) == (1, 7)  # 2 * (1 + 9) / 2**9 = 0.039
    rng = np.random.default_rng(1)
    draws = (stats.median_interval(rng.exponential(size=8), 0.05) for _ in range(1500))
    assert np.mean([low <= math.log(2) <= high for low, high in draws]) > 0.945


def test_clopper_pearson_by_hand_and_by_exact_coverage() -> None:
    assert stats.share_interval(5, 5, 0.05) == pytest.approx((0.025**0.2, 1.0))
    assert stats.share_interval(0, 3, 0.05) == pytest.approx((0.0, 1 - 0.025 ** (1 / 3)))
    assert stats.share_interval(8, 10, 0.05) == pytest.approx((0.4439, 0.9748), abs=1e-4)
    for n in (3, 5, 10):
        intervals = [stats.share_interval(k, n, 0.05) for k in range(n + 1)]
        for p in np.linspace(0.01, 0.99, 50):
            covered = [low <= p <= high for low, high in intervals]
            assert distributions.binom.pmf(np.arange(n + 1), n, p) @ covered >= 0.95


@pytest.mark.parametrize(
    ("interval", "bounds", "verdict"),
    [
        ((0.1, 0.5), ABOVE_0, "reproduced"),
        ((-0.1, 0.5), ABOVE_0, "inconclusive"),
        ((-0.5, -0.1), ABOVE_0, "contradicted"),
        ((-0.004, 0.004), Bounds(-0.01, 0.01), "reproduced"),
        ((-0.004, 0.02), Bounds(-0.01, 0.01), "inconclusive"),
        ((0.011, 0.02), Bounds(-0.01, 0.01), "contradicted"),
        ((-math.inf, -0.1), BELOW_0, "reproduced"),
        ((0.1, math.inf), BELOW_0, "contradicted"),
        (ANYTHING, ABOVE_0, "inconclusive"),
    ],
)
def test_verdicts(interval: tuple[float, float], bounds: Bounds, verdict: str) -> None:
    assert stats.decide(Interval(*interval), bounds) == verdict


def test_a_censored_effect_is_kept_and_never_helps() -> None:
    known = [-1.0, -1.1, -0.9, -1.05, -0.95]
    assert stats.decide(stats.mean_interval(known, known, 0.05), BELOW_0) == "reproduced"
    # One run that never got there may be as slow as can be: nothing is faster for sure any more.
    lows, highs = [*known[:4], 0.1], [*known[:4], math.inf]
    assert stats.decide(stats.mean_interval(lows, highs, 0.05), BELOW_0) == "inconclusive"
    # None got there, and the control did long before: slower, whatever the steps would have been.
    lows = [1.0, 1.1, 0.9, 1.05, 0.95, 1.0]
    assert stats.decide(stats.mean_interval(lows, [math.inf] * 6, 0.05), BELOW_0) == "contradicted"
    # But only by the side that each lies on: how little their bounds scatter says nothing of the steps.
    assert stats.decide(stats.mean_interval(lows[:5], [math.inf] * 5, 0.05), BELOW_0) == "inconclusive"
    p = stats.p_value(lambda alpha: stats.mean_interval(lows, [math.inf] * 6, alpha), BELOW_0)
    assert p == pytest.approx(2 / 2**6, rel=1e-6)
    mirrored = stats.mean_interval([-math.inf] * 6, [-low for low in lows], 0.05)
    assert mirrored == Interval(-math.inf, -0.9)


@given(
    st.lists(st.floats(-3, 3), min_size=2, max_size=8),
    st.lists(st.booleans(), min_size=8, max_size=8),
    st.floats(0, 5),
)
def test_censoring_a_slower_treatment_is_never_mended_by_leaving_its_end_open(
    values: list[float], censored: list[bool], beyond: float
) -> None:
    """An open end widens the interval to that side only: no censored pair ends in a claim of being faster."""
    highs = [math.inf if c else v for v, c in zip(values, censored, strict=False)]
    interval = stats.mean_interval(values, highs, 0.05)
    assert interval.low <= stats.t_interval(values, 0.05).low
    if any(censored[: len(values)]):
        assert stats.decide(interval, Bounds(high=beyond)) != "reproduced"


def test_p_value_is_the_t_tests() -> None:
    values = [0.4, 0.9, 0.5, 0.7]
    p = stats.p_value(lambda alpha: stats.t_interval(values, alpha), ABOVE_0)
    assert p == pytest.approx(distributions.ttest_1samp(values, 0).pvalue, rel=1e-6)
    six = stats.p_value(lambda alpha: stats.share_interval(6, 6, alpha), Bounds(low=0.5))
    assert six == pytest.approx(2 / 2**6, rel=1e-6)
    assert stats.p_value(lambda _: ANYTHING, ABOVE_0) == 1.0
    assert stats.p_value(lambda alpha: stats.share_interval(5, 10, alpha), Bounds(low=0.5)) == 1.0


def test_holm_by_hand() -> None:
    # In order: 0.005 against 0.05/4, 0.01 against 0.05/3, 0.03 against 0.05/2, where it stops for good.
    assert stats.holm_levels([0.01, 0.04, 0.03, 0.005], 0.05) == pytest.approx([0.05 / 3, 0.025, 0.025, 0.0125])
    assert stats.holm_levels([0.04, 0.001], 0.05) == pytest.approx([0.05, 0.025])
    # The largest would pass at 0.05, but the procedure stopped before it.
    assert stats.holm_levels([0.03, 0.045], 0.05) == pytest.approx([0.025, 0.025])
    assert stats.holm_levels([], 0.05) == []


def test_holm_bounds_the_chance_of_any_error() -> None:
    rng = np.random.default_rng(2)
    wrong = 0
    for p in rng.uniform(size=(4000, 5)):
        wrong += any(value <= level for value, level in zip(p, stats.holm_levels(list(p), 0.05), strict=True))
    assert 0.035 < wrong / 4000 < 0.06


def test_required_n_is_the_textbooks() -> None:
    one_sigma = [1 - math.sqrt(0.5), 1 + math.sqrt(0.5)]  # mean 1, standard deviation 1
    assert stats.required_n(one_sigma, ABOVE_0, 0.05) == 10
    assert stats.required_n(one_sigma, ABOVE_0, 0.005) > 10  # type: ignore[operator]
    assert stats.required_n([0.0, 1e-9, -1e-9], ABOVE_0, 0.05, most=20) is None
    assert stats.required_n([1.0], ABOVE_0, 0.05) is None
    assert stats.required_n_share(3, 3, Bounds(low=0.5), 0.05) == 6
    assert stats.required_n_share(5, 5, Bounds(low=0.5), 0.05 / 12) == 9


def decided(rng: np.random.Generator, n: int, mean: float, spread: float, bounds: Bounds, alpha: float) -> float:
    """Return how often ``n`` seeds of that mean and spread decide, over 4,000 draws: to within 2 points."""
    x = rng.normal(mean, spread, (4000, n))
    half = distributions.t.isf(alpha / 2, n - 1) * x.std(1, ddof=1) / math.sqrt(n)
    lows, highs = x.mean(1) - half, x.mean(1) + half
    reproduced = (lows > bounds.low) & (highs < bounds.high)
    return float(np.mean(reproduced | (highs <= bounds.low) | (lows >= bounds.high)))


@pytest.mark.parametrize("alpha", [0.05, 0.05 / 25])
@pytest.mark.parametrize(
    ("mean", "spread", "bounds"),
    [
        (1.0, 1.0, ABOVE_0),
        (-0.7, 1.0, ABOVE_0),  # the other way: contradicted
        (2.0, 1.0, Bounds(-1.0, 1.0)),  # outside two bounds the nearer one tells
        (0.0, 1.0, Bounds(-1.0, 1.0)),  # in their middle both must be cleared
        (0.3, 1.0, Bounds(-1.0, 1.0)),
    ],
)
def test_the_seeds_it_asks_for_decide_as_often_as_it_says(
    mean: float, spread: float, bounds: Bounds, alpha: float
) -> None:
    """By simulation, where the mean and the spread it goes by are the truth; and one seed less would not do."""
    root = spread * math.sqrt(0.5)
    n = stats.required_n([mean - root, mean + root], bounds, alpha)
    assert n is not None
    rng = np.random.default_rng(5)
    assert decided(rng, n, mean, spread, bounds, alpha) > 0.77
    assert decided(rng, n - 1, mean, spread, bounds, alpha) < 0.83


@pytest.mark.parametrize(("successes", "n"), [(3, 3), (7, 8), (1, 8), (0, 3)])
def test_so_do_the_seeds_it_asks_for_a_share(successes: int, n: int) -> None:
    bounds, share = Bounds(low=0.5), successes / n
    more = stats.required_n_share(successes, n, bounds, 0.05)
    assert more is not None
    rng = np.random.default_rng(6)
    for seeds, enough in ((more, True), (more - 1, False)):
        drawn = rng.binomial(seeds, share, 4000)
        verdicts = {k: stats.decide(stats.share_interval(k, seeds, 0.05), bounds) for k in range(seeds + 1)}
        often = np.mean([verdicts[int(k)] != "inconclusive" for k in drawn])
        assert often > 0.77 if enough else often < 0.83
    # A share that lies at the bound is never told from it.
    assert stats.required_n_share(4, 8, bounds, 0.05, most=60) is None
