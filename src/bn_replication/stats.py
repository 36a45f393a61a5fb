"""Numbers of seeds -> an interval, a p-value and a verdict.

One rule decides every claim. Its interval is compared with its bounds: inside, *reproduced*; wholly
outside, *contradicted*; else *inconclusive*. Its p-value is the smallest alpha at which the interval of
level 1 - alpha is decisive (either way), found by bisection on the interval itself, so the p-value, the
interval and the verdict cannot disagree. Holm's procedure orders the p-values of all empirical claims
judged at one scale and hands each claim the alpha at which its interval is drawn. The verdicts of a scale
are then all right together with probability 95% at least (Holm 1979; for the sides, Shaffer 1980, if the
claims are independent).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy import stats as distributions

Decision = Literal["reproduced", "contradicted", "inconclusive"]


class Interval(NamedTuple):
    low: float
    high: float


class Bounds(NamedTuple):
    """Where the claim holds: strictly above ``low`` and strictly below ``high``."""

    low: float = -math.inf
    high: float = math.inf


ANYTHING = Interval(-math.inf, math.inf)


def decide(interval: Interval, bounds: Bounds) -> Decision:
    """Return the verdict on ``interval``: inside the bounds, wholly outside them, or neither."""
    low, high = interval
    if (bounds.low == -math.inf or low > bounds.low) and (bounds.high == math.inf or high < bounds.high):
        return "reproduced"
    if high <= bounds.low or low >= bounds.high:
        return "contradicted"
    return "inconclusive"


def t_interval(values: Sequence[float], alpha: float) -> Interval:
    """Return Student's interval of level 1 - alpha for a mean (of paired differences or log-ratios).

    Identical values say nothing about spread, so they get the interval of :func:`median_interval` instead
    of one of width zero; one value gets no interval at all.
    """
    x = np.asarray(values, float)
    if len(x) < 2 or not np.isfinite(x).all():
        return ANYTHING
    spread = x.std(ddof=1)
    if spread <= 1e-12 * max(1.0, float(np.abs(x).max())):
        return median_interval(values, alpha)
    half = distributions.t.isf(alpha / 2, len(x) - 1) * spread / math.sqrt(len(x))
    return Interval(float(x.mean() - half), float(x.mean() + half))


def median_interval(values: Sequence[float], alpha: float) -> Interval:
    """Return the exact interval for a median, by order statistics (the sign test inverted); ties are safe."""
    x = np.sort(np.asarray(values, float))
    # The k-th lowest and k-th highest values miss the median with probability 2 P(Binomial(n, 1/2) < k).
    k = max(
        (k for k in range(1, len(x) // 2 + 1) if 2 * distributions.binom.cdf(k - 1, len(x), 0.5) <= alpha),
        default=0,
    )
    return Interval(float(x[k - 1]), float(x[-k])) if k else ANYTHING


def mean_interval(lows: Sequence[float], highs: Sequence[float], alpha: float) -> Interval:
    """Return an interval for the mean of effects known only to lie in [low, high] each, as censored ones do.

    Its lower end is that of the interval for the mean of the ``lows``, which is no more than the mean
    effect; its upper end is that for the ``highs``. With lows equal to highs this is Student's interval. Else
    the scatter of the lows is in part that of where a budget ended, which says nothing of the effects, so
    that the interval reaches at least as far as :func:`median_interval` does, which uses no scatter: a
    censored run counts by the side it lies on, and for no more than that.
    """
    low, high = t_interval(lows, alpha).low, t_interval(highs, alpha).high
    if tuple(lows) != tuple(highs):
        low, high = min(low, median_interval(lows, alpha).low), max(high, median_interval(highs, alpha).high)
    return Interval(low, high)


def share_interval(successes: int, n: int, alpha: float) -> Interval:
    """Return the exact (Clopper-Pearson) interval of level 1 - alpha for a probability."""
    low = distributions.beta.ppf(alpha / 2, successes, n - successes + 1) if successes else 0.0
    high = distributions.beta.isf(alpha / 2, successes + 1, n - successes) if successes < n else 1.0
    return Interval(float(low), float(high))


def p_value(interval: Callable[[float], Interval], bounds: Bounds) -> float:
    """Return the smallest alpha at which ``interval(alpha)`` is decisive, 1 if none is.

    Intervals must shrink as alpha grows. Works on the logarithm of alpha, to a relative error below 1e-9.
    """

    def decisive(exponent: float) -> bool:
        return decide(interval(math.exp(exponent)), bounds) != "inconclusive"

    low, high = math.log(1e-12), math.log(1 - 1e-9)
    if not decisive(high):
        return 1.0
    if decisive(low):
        return math.exp(low)
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (low, middle) if decisive(middle) else (middle, high)
    return math.exp(high)


def holm_levels(p_values: Sequence[float], alpha: float) -> list[float]:
    """Return for each p-value the alpha it is held against in Holm's step-down procedure, in the order given.

    The smallest of m faces alpha/m, the next alpha/(m - 1), and so on until one fails; it and all after it
    face the level at which the first failed. A claim is decided exactly if its p-value is at most its
    level.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    levels, failed = [0.0] * len(p_values), None
    for rank, i in enumerate(order):
        level = alpha / (len(p_values) - rank)
        if failed is None and p_values[i] > level:
            failed = level
        levels[i] = level if failed is None else failed
    return levels


def required_n(
    values: Sequence[float], bounds: Bounds, alpha: float, power: float = 0.8, most: int = 200
) -> int | None:
    """Return how many seeds Student's interval needs to be decisive with probability ``power``.

    Takes the mean and spread seen so far for the truth, and alpha as it stands now, so it is a plan and not a promise:
    of a few seeds both are uncertain, and Holm's procedure may hand out another alpha then. Inside two bounds it errs
    on the side of more. ``None``: more than ``most``, or no spread to go by (fewer than two values, or all the same).
    """
    x = np.asarray(values, float)
    if len(x) < 2 or not np.isfinite(x).all() or x.std(ddof=1) == 0:
        return None
    gaps = [abs(x.mean() - edge) for edge in bounds if math.isfinite(edge)]
    # Inside the bounds each must be cleared, and the chances to miss one add up at most; outside, the nearer one.
    gaps = gaps if bounds.low < x.mean() < bounds.high else [min(gaps)]
    for n in range(2, most + 1):
        edge = distributions.t.isf(alpha / 2, n - 1)
        shifts = [gap / x.std(ddof=1) * math.sqrt(n) for gap in gaps]
        if sum(float(distributions.nct.cdf(edge, n - 1, shift)) for shift in shifts) <= 1 - power:
            return n
    return None


def required_n_share(
    successes: int, n: int, bounds: Bounds, alpha: float, power: float = 0.8, most: int = 200
) -> int | None:
    """Return the least number of seeds, ``n`` or more, that would be decisive with probability ``power``.

    Takes the share seen so far for the truth, as :func:`required_n` does. ``None``: more than ``most``.
    """
    for more in range(n, most + 1):
        counts = np.arange(more + 1)
        # As share_interval, for every count at once; no success and no failure have no quantile.
        lows = np.nan_to_num(distributions.beta.ppf(alpha / 2, counts, more - counts + 1), nan=0.0)
        highs = np.nan_to_num(distributions.beta.isf(alpha / 2, counts + 1, more - counts), nan=1.0)
        intervals = map(Interval, lows.tolist(), highs.tolist())
        decisive = [decide(interval, bounds) != "inconclusive" for interval in intervals]
        if distributions.binom.pmf(counts, more, successes / n) @ decisive >= power:
            return more
    return None
