"""Figures of seeds that differ, one of which never gets there: none is left out or timed to the best of another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from bn_replication import figures, records
from bn_replication.figures.outcomes import dots, mark_never, slope
from bn_replication.figures.paths import layer_band
from bn_replication.figures.style import NORMS
from test_figures import figure_1, load, write_run

# The plain net of each seed has a best of its own; BN gets to it at step 100, at step 300, and never.
PLAIN = {0: [0.1, 0.2, 0.3, 0.4, 0.5], 1: [0.1, 0.2, 0.3, 0.6, 0.6], 2: [0.1, 0.7, 0.6, 0.6, 0.6]}
BN = {0: [0.1, 0.5, 0.5, 0.5, 0.5], 1: [0.1, 0.2, 0.5, 0.6, 0.65], 2: [0.1, 0.2, 0.3, 0.6, 0.65]}


def three_seeds(root: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    for seed in range(3):
        write_run(root, "fig2_inception", "variant=inception", seed, PLAIN[seed])
        write_run(root, "fig2_inception", "variant=bn_baseline", seed, BN[seed])
    return load(root, "fig2_inception")


def marks(ax: Axes, marker: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for line in ax.lines if line.get_marker() == marker for x, y in line.get_xydata()]


def test_each_seed_is_timed_to_the_best_of_its_own_plain_net(tmp_path: Path) -> None:
    reached = figures.steps_to_plain_best(*three_seeds(tmp_path)).set_index(["arm", "seed"])
    assert reached.loc["variant=bn_baseline", "target"].tolist() == [0.5, 0.6, 0.7]
    assert reached.loc["variant=bn_baseline", "steps"].tolist() == pytest.approx([100, 300, np.nan], nan_ok=True)
    assert reached.loc["variant=inception", "steps"].tolist() == [400, 300, 100]


def test_a_seed_that_never_gets_there_counts_in_the_median_of_figures_2_and_3(tmp_path: Path) -> None:
    """It is beyond every step: of 100, 300 and never the median is 300, not 200."""
    runs, curves = three_seeds(tmp_path)
    table = figures.fig3_table(runs, curves, {}).set_index("model")
    assert table.loc["BN-Baseline", ["steps, ours", "reached, ours", "times fewer, ours"]].tolist() == [300, 2, 1]
    ax = Figure().add_subplot()
    drawn = figures.fig2(ax, runs, curves).groupby("arm")["steps_to_target"].first()
    look = figures.looks(runs)["variant=bn_baseline"]
    assert (300, 0.6) in marks(ax, look.marker)
    assert drawn["variant=bn_baseline"] == 300
    # Where half of them or more never did, there is neither a mark nor a number.
    write_run(tmp_path, "fig2_inception", "variant=bn_baseline", 1, [0.1, 0.2, 0.3, 0.3, 0.3])
    runs, curves = load(tmp_path, "fig2_inception")
    ax = Figure().add_subplot()
    drawn = figures.fig2(ax, runs, curves).groupby("arm")["steps_to_target"].first()
    assert not marks(ax, look.marker)
    assert np.isnan(drawn["variant=bn_baseline"])
    assert np.isnan(figures.fig3_table(runs, curves, {}).set_index("model").loc["BN-Baseline", "steps, ours"])


def test_a_row_of_dots_has_its_median_of_all_seeds_and_a_mark_for_each_that_never_got_there() -> None:
    steps = {"two of three": [100, 300, np.nan], "one of three": [100, np.nan, np.nan], "none": [np.nan] * 3}
    frame = pd.DataFrame([{"row": row, "steps_to": value} for row, values in steps.items() for value in values])
    rows = dict.fromkeys(steps, NORMS["batch"])
    ax = Figure().add_subplot()
    dots(ax, frame, rows, "steps_to")
    bars = [(x, y) for x, y in marks(ax, "|") if np.isfinite(x)]
    assert bars == [(300, 0)]
    mark_never(ax, frame, rows)
    never = marks(ax, ">")
    assert [sum(y == place for _, y in never) for place in range(3)] == [1, 2, 3]
    assert len(set(never)) == 6  # one beside the other


def lucky_rates(root: Path) -> None:
    """Three seeds at which BN ends with one or the other of two rates; the rate that is best on all three is 0.05.

    On the others of seed 0 (medians 0.7 and 0.475) and of seed 1 (0.7 and 0.585) it is 0.01, on those of seed 2 0.05.
    Each curve falls to its end from 0.95, its best, which says nothing of a rate: at 0.01 BN is there at step 100, at
    0.05 at step 200, the plain net at 300.
    """
    ends = {
        ("none", 0.01): (0.5, 0.5, 0.5),
        ("none", 0.05): (0.1, 0.1, 0.1),
        ("batch", 0.01): (0.5, 0.5, 0.9),
        ("batch", 0.05): (0.62, 0.4, 0.55),
    }
    for (norm, rate), lasts in ends.items():
        for seed, last in enumerate(lasts):
            config: dict[str, Any] = {"optimizer": {"rate": rate, "multiple": 1.0}}
            curve = [0.1, 0.3, 0.3, 0.3, last]
            curve[3 if norm == "none" else 1 if rate == 0.01 else 2] = 0.95
            write_run(root, "rate_range", f"norm={norm},optimizer.rate={rate:g}", seed, curve, config)


def test_a_seeds_best_rate_is_that_of_the_other_seeds(tmp_path: Path) -> None:
    lucky_rates(tmp_path)
    speeds = figures.speed_at_best_rates(*load(tmp_path, "rate_range")).set_index("BN")
    assert speeds.loc["at its own best rate", "each seed"] == "3x, 3x, 1.5x"
    assert speeds.loc["at its own best rate", "BN rate"] == 0.01


def test_a_usable_rate_is_one_at_which_a_net_ends_well_not_one_at_which_it_once_did(tmp_path: Path) -> None:
    lucky_rates(tmp_path)
    widths = figures.usable_rates(*load(tmp_path, "rate_range")).set_index(["net", "seed"])
    assert widths.loc["BN", "accuracy there"].tolist() == [0.62, 0.5, 0.9]
    assert widths.loc["BN", "best rate"].tolist() == [0.05, 0.01, 0.01]


def test_a_slope_leads_from_mean_to_mean(tmp_path: Path) -> None:
    for on, ends in ((True, (0.30, 0.31, 0.38)), (False, (0.40, 0.41, 0.57))):
        for seed, end in enumerate(ends):
            config: dict[str, Any] = {"model": {"lrn": on}}
            write_run(tmp_path, "ablation_lrn", f"model.lrn={on},norm=batch", seed, [0.1, end], config)
    runs, curves = load(tmp_path, "ablation_lrn")
    ax = Figure().add_subplot()
    slope(ax, figures.ends(runs, curves), "model.lrn", [True, False], "best")
    strong = next(line for line in ax.lines if line.get_linewidth() == 1.7)
    assert list(strong.get_ydata()) == pytest.approx([0.33, 0.46])


def edges(ax: Axes, place: int, step: float) -> tuple[float, float]:
    """Return the lowest and highest point of an axes' band of that place at ``step``."""
    points = ax.collections[place].get_paths()[0].vertices
    heights = points[points[:, 0] == step][:, 1]
    return heights.min(), heights.max()


def test_the_band_of_all_units_holds_70_per_cent_of_them(tmp_path: Path) -> None:
    figure_1(tmp_path)
    runs = records.load_runs(tmp_path, "fig1_mnist")
    activations = records.load_activations(runs)
    units = figures.unit_percentiles(activations)
    ax, look = Figure().add_subplot(), figures.NORMS["none"]
    drawn = figures.sigmoid_inputs(ax, units[units["arm"] == "norm=none"], look, every_unit=True)
    row = drawn[(drawn["percentile"] == "p50") & (drawn["step"] == 100)].iloc[0]
    # Three seeds of five units at 1 to 5: of 15 in order, place 0.15 * 14 = 2.1 lies a tenth of the way from 1 to 2.
    assert (row["low"], row["median"], row["high"]) == pytest.approx((1.1, 3, 4.9))
    assert edges(ax, 1, 100) == pytest.approx((1.1, 4.9))
    assert to_hex(ax.collections[1].get_facecolor()[0]) == to_hex(look.colour)
    # And that of a layer reaches from its 15th to its 85th percentile.
    ax, bands = Figure().add_subplot(), figures.layer_bands(activations)
    layer_band(ax, bands[(bands["arm"] == "norm=none") & (bands["depth"] == 0) & (bands["seed"] == 0)], look)
    assert edges(ax, 0, 100) == pytest.approx((0, 2))
