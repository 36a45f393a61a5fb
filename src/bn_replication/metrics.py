"""A run's curve or probe records -> one number: what the claims of the paper are judged on.

Curves are two arrays: ``steps`` (optimiser updates done, increasing, with a row at 0 before any training) and
``values`` (one evaluation each). Evaluations that are not finite are passed over. Accuracies are fractions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats as distributions

Array = NDArray[np.float64]


class Reached(NamedTuple):
    """The step at which a curve reached a target, or, if ``censored``, the last step at which it had not."""

    step: float
    censored: bool


class Width(NamedTuple):
    """Decades of usable settings; ``censored`` if they run off the grid, so that there may be more."""

    decades: float
    censored: bool


def trained(steps: ArrayLike, values: ArrayLike) -> tuple[Array, Array]:
    """Return the finite evaluations after the first update: the row at step 0 is no result of training."""
    at, value = np.asarray(steps, float), np.asarray(values, float)
    keep = (at > 0) & np.isfinite(value)
    return at[keep], value[keep]


def best(steps: ArrayLike, values: ArrayLike) -> float:
    """Return the highest evaluation, which is the paper's "max accuracy".

    A run that diverged keeps what it reached before, if only as an untrained net. NaN: no evaluation at all.
    """
    _, value = trained(steps, values)
    untrained = np.asarray(values, float)
    value = value if value.size else untrained[np.isfinite(untrained)]
    return float(value.max()) if value.size else math.nan


def final(steps: ArrayLike, values: ArrayLike, budget: int, tail: float = 0.1) -> float:
    """Return the mean of the evaluations in the last ``tail`` of the ``budget``, and of one at least.

    A window in steps, so that how often a run was evaluated does not matter. For completed runs: what a
    diverged run ends with is chance, which the judge fills in. NaN if there is no evaluation.
    """
    at, value = trained(steps, values)
    if not value.size:
        return math.nan
    return float(value[(at > (1 - tail) * budget) | (at == at[-1])].mean())


def steps_to(steps: ArrayLike, values: ArrayLike, target: float, budget: int) -> Reached:
    """Return when a curve first reaches ``target``, interpolated linearly from the evaluation before.

    One evaluation suffices, as in the paper's own reading of its curves; arms of a claim are read alike. A
    run that never gets there is censored at the ``budget``, and so is one that diverged before: it would
    not have got there by then either. The crossing is never put at step 0, whose ratio to anything has no
    logarithm.
    """
    at, value = np.asarray(steps, float), np.asarray(values, float)
    at, value = at[np.isfinite(value)], value[np.isfinite(value)]
    hits = np.flatnonzero((at > 0) & (value >= target))
    if not hits.size or not math.isfinite(target):
        return Reached(float(budget), True)
    i = hits[0]
    if i == 0 or value[i - 1] >= target:  # what stands before the first hit and exceeds it is the row at step 0
        return Reached(float(at[i]), False)
    share = (target - value[i - 1]) / (value[i] - value[i - 1])
    return Reached(float(at[i - 1] + share * (at[i] - at[i - 1])), False)


def chance_ceiling(chance: float, held_out: int, evaluations: int, risk: float = 0.001) -> float:
    """Return the accuracy that guessing on ``held_out`` examples exceeds in none of ``evaluations`` tries.

    The exact binomial quantile; ``risk`` bounds the probability that any one of the tries exceeds it
    (Bonferroni).
    """
    return float(distributions.binom.isf(risk / max(evaluations, 1), held_out, chance)) / held_out


def at_chance(steps: ArrayLike, values: ArrayLike, chance: float, held_out: int) -> bool:
    """Return whether no evaluation rises above what guessing can reach."""
    _, value = trained(steps, values)
    return not value.size or bool(value.max() <= chance_ceiling(chance, held_out, value.size))


def fails(steps: ArrayLike, values: ArrayLike, diverged: bool, chance: float, held_out: int) -> bool:
    """Return whether a run failed: it diverged, or its last evaluation is no better than guessing."""
    _, value = trained(steps, values)
    return diverged or not value.size or bool(value[-1] <= chance_ceiling(chance, held_out, 1))


def drift(percentiles: ArrayLike) -> float:
    """Return how far a layer's input distribution travels over training, in units of that input.

    Every unit's every percentile has a trajectory over the probes, from before the first update to the last;
    its range (highest less lowest) is averaged over percentiles and units. A range, because a total variation
    would grow with every probe added and would weigh the stretches that are probed densely. Raw units, not
    those of the distribution's own spread, because a sigmoid saturates at a fixed input, and because the
    paper draws both networks on one raw axis (-2..2). NaN if there are fewer than two probes.

    Args:
        percentiles: (probes, percentiles, units).
    """
    trajectory = np.asarray(percentiles, float)
    assert trajectory.ndim == 3, trajectory.shape
    return float(np.ptp(trajectory, axis=0).mean()) if len(trajectory) > 1 else math.nan


class Losses(NamedTuple):
    """Training and held-out loss of a net at one moment, and the first row of its curve that is not before it."""

    train: float
    held_out: float
    row: int


def at_loss(train: ArrayLike, held_out: ArrayLike, target: float) -> Losses | None:
    """Return the losses where that of training first comes down to ``target``, if it does.

    Interpolated linearly from the row before, as :func:`steps_to` is: nets whose rows lie far apart are then compared
    at one training loss, and none is read at a lower one than the other. Rows that lack either loss are passed over.
    """
    fit, other = np.asarray(train, float), np.asarray(held_out, float)
    known = np.flatnonzero(np.isfinite(fit) & np.isfinite(other))
    hits = np.flatnonzero(fit[known] <= target)
    if not hits.size:
        return None
    row = known[hits[0]]
    if hits[0] == 0:
        return Losses(float(fit[row]), float(other[row]), int(row))
    before = known[hits[0] - 1]
    share = (fit[before] - target) / (fit[before] - fit[row])
    return Losses(float(target), float(other[before] + share * (other[row] - other[before])), int(row))


def gap_at(train: ArrayLike, held_out: ArrayLike, target: float) -> float:
    """Return held-out less training loss where the latter first comes down to ``target``; NaN if nowhere."""
    found = at_loss(train, held_out, target)
    return math.nan if found is None else found.held_out - found.train


def usable_width(grid: Sequence[float], accuracies: Sequence[float], chance: float, keep: float) -> Width:
    """Return how many decades of a setting keep a share ``keep`` of the best gain over chance.

    The range is the one that holds the best setting without a break; its ends are interpolated in the
    logarithm of the setting. A net that gains nothing anywhere has no usable range: 0.

    Args:
        grid: settings, positive, increasing.
        accuracies: final accuracy at each, chance where the run diverged.
    """
    x, gain = np.log10(np.asarray(grid, float)), np.asarray(accuracies, float) - chance
    top = int(gain.argmax())
    if gain[top] <= 0:
        return Width(0.0, False)
    bar = keep * gain[top]

    def end(indices: range) -> tuple[float, bool]:
        for inner, outer in itertools.pairwise(indices):
            if gain[outer] < bar:
                share = (gain[inner] - bar) / (gain[inner] - gain[outer])
                return float(x[inner] + share * (x[outer] - x[inner])), False
        return float(x[indices[-1]]), True

    (low, off_low), (high, off_high) = end(range(top, -1, -1)), end(range(top, len(x)))
    return Width(high - low, off_low or off_high)


def grid_spread(accuracies: Sequence[float]) -> float:
    """Return the highest less the lowest final accuracy over a grid: how much the setting matters."""
    return float(np.ptp(np.asarray(accuracies, float)))
