"""Metrics on curves small enough to work by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as distributions

from bn_replication import metrics
from bn_replication.ledger import Final, Grid

STEPS = [0, 100, 200, 300, 400]
CURVE = [0.1, 0.5, 0.7, 0.6, 0.65]


def test_best_is_the_highest_evaluation_after_training_began() -> None:
    assert metrics.best(STEPS, CURVE) == 0.7
    assert metrics.best([0, 100], [0.9, 0.5]) == 0.5
    assert metrics.best([0], [0.1]) == 0.1  # diverged before its first evaluation
    assert metrics.best([0, 100, 200], [0.1, 0.4, math.nan]) == 0.4
    assert math.isnan(metrics.best([], []))


def test_final_averages_the_last_stretch_of_the_budget() -> None:
    assert metrics.final(STEPS, CURVE, 400, tail=0.5) == pytest.approx((0.6 + 0.65) / 2)
    assert metrics.final(STEPS, CURVE, 400, tail=0.1) == 0.65
    # Twice as many evaluations of one curve do not weigh more.
    fine = np.interp(range(0, 401, 50), STEPS, CURVE)
    assert metrics.final(range(0, 401, 50), fine, 400, tail=0.25) == pytest.approx((0.625 + 0.65) / 2)


def test_the_last_stretch_is_a_tenth_of_the_budget_unless_a_claim_says_otherwise() -> None:
    steps = range(0, 1001, 50)
    assert metrics.final(steps, [step / 1000 for step in steps], 1000) == pytest.approx((0.95 + 1.0) / 2)
    # The figures take this one where the claims take the ledger's.
    assert Final(name="final", chance={}).tail == Grid(name="grid_spread", grid=[], chance={}).tail == 0.1


def test_steps_to_interpolates_the_first_crossing() -> None:
    assert metrics.steps_to(STEPS, CURVE, 0.6, 400) == (150.0, False)
    assert metrics.steps_to(STEPS, CURVE, 0.3, 400) == (pytest.approx(50), False)
    assert metrics.steps_to(STEPS, CURVE, 0.7, 400) == (
        200.0,
        False,
    )  # a curve reaches its own best at its step
    assert metrics.steps_to([0, 100], [0.9, 0.95], 0.5, 100) == (100.0, False)  # never at step 0
    assert metrics.steps_to([0, 100, 200], [0.1, math.nan, 0.5], 0.3, 200) == (pytest.approx(100), False)


def test_a_run_that_never_gets_there_is_censored_at_the_budget() -> None:
    assert metrics.steps_to(STEPS, CURVE, 0.71, 400) == (400.0, True)
    assert metrics.steps_to([0, 100], [0.1, 0.5], 0.6, 400) == (400.0, True)  # diverged after 100 of 400
    assert metrics.steps_to([], [], 0.6, 400) == (400.0, True)


def test_chance_ceiling_is_what_guessing_exceeds_once_in_a_thousand() -> None:
    ceiling = metrics.chance_ceiling(0.1, 10_000, 1)
    assert distributions.binom.sf(round(ceiling * 10_000), 10_000, 0.1) <= 0.001
    assert distributions.binom.sf(round(ceiling * 10_000) - 1, 10_000, 0.1) > 0.001
    assert metrics.chance_ceiling(0.1, 10_000, 30) > ceiling
    assert metrics.chance_ceiling(0.1, 1_000, 1) > ceiling


def test_at_chance_asks_every_evaluation_and_fails_the_last() -> None:
    rose_and_fell = ([0, 100, 200], [0.1, 0.3, 0.1])
    assert not metrics.at_chance(*rose_and_fell, 0.1, 10_000)
    assert metrics.fails(*rose_and_fell, False, 0.1, 10_000)
    assert metrics.at_chance([0, 100, 200], [0.1, 0.1002, 0.1], 0.1, 10_000)
    assert not metrics.fails(STEPS, CURVE, False, 0.1, 10_000)
    assert metrics.fails(STEPS, CURVE, True, 0.1, 10_000)  # it diverged after all


def test_the_best_of_many_guesses_is_held_against_more_than_the_last_one_is() -> None:
    steps, once, often = range(21), metrics.chance_ceiling(0.1, 1_000, 1), metrics.chance_ceiling(0.1, 1_000, 20)
    between = (once + often) / 2
    assert once < between < often
    curve = [0.1] * 20 + [between]
    assert metrics.at_chance(steps, curve, 0.1, 1_000)  # one of twenty may well be so high
    assert not metrics.fails(steps, curve, False, 0.1, 1_000)  # the last, looked at alone, may not


def test_drift_is_the_mean_range_over_percentiles_and_units() -> None:
    probes = np.zeros((3, 3, 2))  # (probes, percentiles, units)
    probes[:, 0, 0] = [0, 1, -1]  # range 2
    probes[:, 2, 1] = [1, 2, 5]  # range 4
    assert metrics.drift(probes) == pytest.approx(6 / 6)
    assert metrics.drift(2 * probes) == pytest.approx(2)
    assert metrics.drift(probes + 7) == pytest.approx(1)
    # Probing more often along the same path changes nothing.
    assert metrics.drift(np.repeat(probes, 3, axis=0)) == pytest.approx(1)
    assert math.isnan(metrics.drift(probes[:1]))


def test_gap_is_taken_at_equal_training_loss() -> None:
    assert metrics.gap_at([2.0, 1.0, 0.5], [2.1, 1.3, 1.2], 1.0) == pytest.approx(0.3)
    assert metrics.gap_at([math.nan, 1.0], [2.0, 1.5], 1.2) == pytest.approx(0.5)
    # A quarter of the way from the row before, and past a row that lacks a loss: 1.4 less 1.25 training loss.
    assert metrics.gap_at([1.5, 1.4, 0.5], [1.5, math.nan, 1.1], 1.25) == pytest.approx(1.4 - 1.25)
    # Two nets on one path have one gap there, however far apart their rows are.
    path = [2.0, 1.75, 1.5, 1.25, 1.0], [2.1, 2.0, 1.9, 1.8, 1.7]
    assert metrics.gap_at(*path, 1.25) == pytest.approx(metrics.gap_at(path[0][::2], path[1][::2], 1.25))
    assert math.isnan(metrics.gap_at([2.0, 1.0], [2.1, 1.3], 0.9))


def test_usable_width_counts_decades_around_the_best() -> None:
    grid = [0.001, 0.01, 0.1, 1.0, 10.0]
    # Gains over 0.1: 0, .4, .5, 0, .5 (of equals the lower). Bar at .4: from 0.01 to a fifth of the way to 1.
    width = metrics.usable_width(grid, [0.1, 0.5, 0.6, 0.1, 0.6], 0.1, 0.8)
    assert width.decades == pytest.approx(1 + 0.2)
    assert not width.censored
    assert metrics.usable_width(grid, [0.1] * 5, 0.1, 0.8) == (0.0, False)
    assert metrics.usable_width(grid, [0.6] * 5, 0.1, 0.8) == (4.0, True)


def test_grid_spread() -> None:
    assert metrics.grid_spread([0.5, 0.1, 0.3]) == pytest.approx(0.4)
