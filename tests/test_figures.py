"""Figures: what is drawn is what the records say, in the paper's axes, the same file from the same numbers."""

from __future__ import annotations

import base64
import io
import itertools
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from matplotlib.figure import Figure
from PIL import Image
from tests.conftest import Compose, no_room

from bn_replication import figures, metrics, panels, records, stats
from bn_replication.figures.__main__ import main
from bn_replication.figures.frames import roles
from bn_replication.ledger import load_ledger
from bn_replication.panels import rate_tables
from bn_replication.runner import run
from bn_replication.train import CONFIGS

PROBE = {"probe": {"histogram": {"low": -8.0, "high": 8.0}}}
LAYERS = [f"module{depth}.act" for depth in range(6)]


def write_run(
    root: Path,
    study: str,
    arm: str,
    seed: int,
    accuracies: list[float],
    config: dict[str, Any] | None = None,
    status: str = "completed",
    units: int = 0,
    probes: int = 0,
    layers: int = 6,
    scale: str = "laptop",
    dirty: bool = False,
    summary: dict[str, float] | None = None,
    fit: list[float] | None = None,
    of_layer: Callable[[int, int], dict[str, Any]] = lambda step, depth: {},
) -> Path:
    """Write a run evaluated every 100 steps; every layer's input has median depth + step / 100, 1 either side.

    ``fit`` are training losses in evaluation mode; ``of_layer`` makes what a probe measures besides.
    """
    directory = root / scale / study / arm / f"seed={seed}"
    directory.mkdir(parents=True, exist_ok=True)
    curve = [
        {"step": 100 * i, "rate": 0.1, "test_accuracy": value, "test_loss": 1 - value}
        | ({"train_loss": 1.01 - value, "train_accuracy": value} if i else {})
        | ({"fit_loss": fit[i]} if fit else {})
        for i, value in enumerate(accuracies)
    ]
    rows = []
    for step in range(0, 100 * probes, 100):
        for depth, layer in enumerate(LAYERS[:layers]):
            middle = depth + step / 100 + 0.0123456789 * seed
            row = {"step": step, "layer": layer, "percentiles": [middle - 1, middle, middle + 1]}
            row |= {"mean": middle, "std": 1.0, "histogram": [250, 500, 250], **of_layer(step, depth)}
            if units and depth == layers - 1:
                # Unit k travels k + 1 a probe.
                medians = [(k + 1) * step / 100 for k in range(units)]
                row["units"] = [[m - 1 for m in medians], medians, [m + 1 for m in medians]]
            rows.append(row)
    files = {}
    for name, content in ((records.CURVES, curve), (records.ACTIVATIONS, rows)):
        if content:
            text = "".join(map(records.json_line, content)).encode()
            (directory / name).write_bytes(text)
            files[name] = records.digest(text)
    choices = dict(pair.split("=") for pair in arm.split(",") if pair.split("=")[0] in ("norm", "variant", "data"))
    record = {"study": study, "arm": arm, "seed": seed, "scale": scale, "status": status, "reason": None}
    record |= {"steps_done": curve[-1]["step"], "choices": choices}
    record |= {"summary": {"test_accuracy": accuracies[-1], **(summary or {})}}
    record |= {"config": {"steps": 400, **PROBE, **(config or {})}, "rules": {}, "files": files, "seconds": 61.0}
    environment = {"python": "3.11", "device": "cpu", "git": "0123abcd", "dirty": dirty}
    records.write_run_json(directory, {**record, "environment": environment, "started": "2026-11-23T08:00:00+00:00"})
    return directory


def rewrite(directory: Path, name: str, rows: list[dict[str, Any]], **more: Any) -> None:
    """Give a run other rows in one of its files, as if it had written and signed these, and its record ``more``."""
    text = "".join(map(records.json_line, rows)).encode()
    (directory / name).write_bytes(text)
    record = json.loads((directory / records.RUN).read_text())
    record["files"][name] = records.digest(text)
    records.write_run_json(directory, record | more)


def figure_1(root: Path, seeds: int = 3, lift: float = 0.0, **more: Any) -> None:
    for seed in range(seeds):
        plain, bn = [0.1, 0.5, 0.8, 0.9, 0.95], [0.1, 0.9, 0.96, 0.97, 0.98 + lift + 0.001 * seed]
        write_run(root, "fig1_mnist", "norm=none", seed, plain, units=5, probes=4, layers=3, **more)
        write_run(root, "fig1_mnist", "norm=batch", seed, bn, units=5, probes=4, layers=3, **more)


def figure_2(root: Path, seeds: int = 3) -> None:
    curves = {
        "inception": ("none", 1, [0.1, 0.2, 0.3, 0.4, 0.5]),
        "bn_baseline": ("batch", 1, [0.1, 0.4, 0.6, 0.6, 0.6]),
        "bn_x5": ("batch", 5, [0.1, 0.5, 0.7, 0.7, 0.7]),
        "inception_x5": ("none", 5, [0.1, 0.1]),
    }
    for variant, (_, multiple, accuracies) in curves.items():
        for seed in range(seeds):
            config = {"optimizer": {"rate": 0.02, "multiple": multiple}}
            status = "completed" if len(accuracies) == 5 else "diverged"
            write_run(root, "fig2_inception", f"variant={variant}", seed, accuracies, config, status, probes=3)


def rate_range(root: Path) -> None:
    for norm, dies in (("none", 0.3), ("batch", 3.0)):
        for rate in (0.01, 0.1, 1.0):
            status = "diverged" if rate >= dies else "completed"
            for seed in range(2):
                config = {"optimizer": {"rate": rate, "multiple": 1.0}}
                arm = f"norm={norm},optimizer.rate={rate:g}"
                write_run(root, "rate_range", arm, seed, [0.1, 0.4 + seed / 10], config, status)


def load(root: Path, study: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    runs = records.load_runs(root, study)
    return runs, records.load_curves(runs)


def test_colours_tell_plain_from_bn_in_every_study(tmp_path: Path) -> None:
    figure_1(tmp_path), figure_2(tmp_path), rate_range(tmp_path)
    warm, cool = {figures.VERMILLION, figures.ORANGE}, {figures.BLUE, figures.SKY, figures.GREEN}
    for study in ("fig1_mnist", "fig2_inception"):
        runs, _ = load(tmp_path, study)
        style = figures.looks(runs)
        assert set(style) == set(runs["arm"])
        assert len({(look.colour, look.dash) for look in style.values()}) == len(style)
        for arm, look in style.items():
            assert look.colour in (cool if "batch" in arm or "bn_" in arm else warm)
    labels = {arm: look.label for arm, look in figures.looks(load(tmp_path, "rate_range")[0]).items()}
    assert labels["norm=none,optimizer.rate=0.01"] == "plain, rate 0.01"
    assert len(set(labels.values())) == 6


def test_a_legend_says_a_setting_in_a_few_words(tmp_path: Path) -> None:
    for arm in ("norm=batch,model.lrn=True", "norm=batch,model.lrn=False", "norm=batch,schedule.speed=6.0"):
        write_run(tmp_path, "s", arm, 0, [0.1, 0.2])
    labels = {look.label for look in figures.looks(records.load_runs(tmp_path)).values()}
    assert labels == {"BN, LRN on", "BN, LRN off", "BN, decay x6"}


def test_a_logarithmic_axis_of_less_than_a_decade_says_plain_numbers(tmp_path: Path) -> None:
    figure_1(tmp_path)
    (drawing,) = [d for d in figures.draw_study(records.load_runs(tmp_path), without=("layers",)) if d.name == "curves"]
    loss = drawing.figure.axes[1]
    assert loss.get_yscale() == "log"
    assert loss.get_ylabel() == "training loss, nats"
    low, high = loss.get_ylim()
    if high < 30 * low:
        assert b"\\mathdefault" not in figures.render(drawing.figure)
        assert "$" not in "".join(label.get_text() for label in loss.get_yticklabels(which="both"))


def test_below_figure_1b_every_percentile_has_its_place(tmp_path: Path) -> None:
    figure_1(tmp_path)
    runs = records.load_runs(tmp_path, "fig1_mnist")
    drawing = figures.draw_fig1bc(runs, records.load_activations(runs))
    assert drawing is not None
    low, high = drawing.figure.axes[2].get_ylim()
    every = drawing.frame[drawing.frame["panel"] == "all units"]
    assert low < every["low"].min() < every["high"].max() < high
    assert drawing.figure.axes[0].get_ylim() == (-2.0, 2.0)  # above, the paper's


def test_curves_show_median_range_and_the_end_of_a_diverged_run(tmp_path: Path) -> None:
    for seed, end in enumerate((0.5, 0.6, 0.9)):
        write_run(tmp_path, "s", "norm=none", seed, [0.1, end])
    write_run(tmp_path, "s", "norm=batch", 0, [0.1, 0.2], status="diverged")
    runs, curves = load(tmp_path, "s")
    ax = Figure().add_subplot()
    frame = figures.learning_curves(ax, runs, curves, "test_accuracy")
    at_end = frame[(frame["arm"] == "norm=none") & (frame["step"] == 100)].iloc[0]
    assert (at_end["low"], at_end["median"], at_end["high"], at_end["seeds"]) == (0.5, 0.6, 0.9, 3)
    crosses = [line for line in ax.lines if line.get_marker() == "x"]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in crosses] == [(100, 0.2)]
    strong = [line for line in ax.lines if line.get_label() == "plain"]
    assert strong[0].get_ydata().tolist() == [0.1, 0.6]


def test_figure_1_has_the_papers_axes_and_the_typical_unit_is_the_median_one(tmp_path: Path) -> None:
    figure_1(tmp_path)
    runs, curves = load(tmp_path, "fig1_mnist")
    ax = Figure().add_subplot()
    figures.fig1a(ax, runs, curves)
    assert ax.get_ylim() == (0.7, 1.0)
    units = figures.unit_percentiles(records.load_activations(runs))
    assert set(figures.typical_units(units).values()) == {2}  # units 0..4 travel 1..5 a probe
    ax = Figure().add_subplot()
    drawn = figures.sigmoid_inputs(ax, units[units["arm"] == "norm=none"], figures.NORMS["none"])
    assert ax.get_ylim() == (-2.0, 2.0)
    assert set(drawn["unit"]) == {2}
    assert drawn.loc[drawn["step"] == 300, "p85"].tolist() == [10.0] * 3
    whole = figures.sigmoid_inputs(ax, units[units["arm"] == "norm=none"], figures.NORMS["none"], every_unit=True)
    assert whole.loc[(whole["percentile"] == "p50") & (whole["step"] == 100), "median"].item() == 3.0


def test_figures_2_and_3_time_each_seed_to_the_best_of_its_own_plain_net(tmp_path: Path) -> None:
    figure_2(tmp_path)
    runs, curves = load(tmp_path, "fig2_inception")
    reached = figures.steps_to_plain_best(runs, curves).groupby("arm")["steps"].median()
    assert reached["variant=inception"] == 400
    assert reached["variant=bn_baseline"] == pytest.approx(150)  # half way from 0.4 to 0.6
    assert np.isnan(reached["variant=inception_x5"])
    ax = Figure().add_subplot()
    figures.fig2(ax, runs, curves)
    marks = sorted(line.get_xdata()[0] for line in ax.lines if line.get_markersize() == 7 and line.get_marker() != "x")
    assert marks == pytest.approx([100, 150, 400])  # BN-x5, BN-Baseline, Inception
    paper = {"inception": {"steps_to_target": {"value": 31e6}}, "bn_x5": {"steps_to_target": {"value": 2.1e6}}}
    table = figures.fig3_table(runs, curves, paper).set_index("model")
    assert table.loc["BN-x5", "times fewer, paper"] == pytest.approx(14.76, abs=0.01)
    assert table.loc["BN-x5", "times fewer, ours"] == pytest.approx(4)
    assert table.loc["BN-x5", "rate, ours"] == pytest.approx(0.1)
    assert np.isnan(table.loc["Inception at x5", "steps, ours"])


def test_a_sweep_is_drawn_over_its_setting_and_diverged_runs_stay_in_sight(tmp_path: Path) -> None:
    rate_range(tmp_path)
    runs, curves = load(tmp_path, "rate_range")
    assert figures.swept(runs) == "initial rate"
    ax = Figure().add_subplot()
    frame = figures.response(ax, figures.ends(runs, curves), "initial rate")
    assert ax.get_xscale() == "log"
    crosses = [x for line in ax.lines if line.get_marker() == "x" for x in np.atleast_1d(line.get_xdata())]
    assert crosses == [1.0, 1.0]  # both seeds of the plain net at the highest rate
    assert (frame["status"] == "diverged").sum() == 2
    plain = next(line for line in ax.lines if line.get_label() == "plain")
    assert np.isnan(plain.get_ydata()[-1])  # no accuracy is joined up where the net diverged
    figure_1(tmp_path)
    assert figures.swept(records.load_runs(tmp_path, "fig1_mnist")) is None


def known_rates(root: Path) -> None:
    """Three seeds: the plain net's best is 0.01; BN at 0.05 gets to its 0.5 at step 100, at 0.01 at step 200."""
    curves = {
        ("none", 0.01): [0.1, 0.2, 0.3, 0.4, 0.5],
        ("none", 0.05): [0.1, 0.1, 0.1, 0.1, 0.1],
        ("none", 0.25): [0.1, 0.1, 0.1, 0.1, 0.1],
        ("batch", 0.01): [0.1, 0.3, 0.5, 0.5, 0.5],
        ("batch", 0.05): [0.1, 0.5, 0.6, 0.7, 0.8],
        ("batch", 0.25): [0.1, 0.2, 0.3, 0.3, 0.3],
    }
    for (norm, rate), accuracies in curves.items():
        for seed in range(3):
            config = {"optimizer": {"rate": rate, "multiple": 1.0}}
            write_run(root, "rate_range", f"norm={norm},optimizer.rate={rate:g}", seed, accuracies, config)


def test_a_range_of_rates_and_the_speed_up_at_each_nets_own_best(tmp_path: Path) -> None:
    known_rates(tmp_path)
    runs, curves = load(tmp_path, "rate_range")
    widths = figures.usable_rates(runs, curves).set_index(["net", "seed"])
    assert widths.loc[("plain", 0), "best rate"] == 0.01
    # Kept until 0.2 of the gain is lost: a fifth of the way, in the logarithm, to the next rate; below, the grid ends.
    assert widths.loc[("plain", 0), "decades"] == pytest.approx(0.2 * np.log10(5))
    assert bool(widths.loc[("plain", 0), "at least"])
    assert not bool(widths.loc[("BN", 0), "at least"])
    speeds = figures.speed_at_best_rates(runs, curves).set_index("BN")
    assert speeds.loc["at the plain net's rate", "times fewer"] == pytest.approx(2)
    assert speeds.loc["at the rate nearest to 5x that", "BN rate"] == 0.05
    assert speeds.loc["at its own best rate", "times fewer"] == pytest.approx(4)
    assert speeds.loc["at its own best rate", "gain in best accuracy"] == pytest.approx(0.3)
    assert speeds.loc["at the rate nearest to 30x that", "each seed"] == "never, never, never"
    assert np.isnan(speeds.loc["at the rate nearest to 30x that", "times fewer"])


def test_a_speed_up_that_half_of_the_seeds_never_have_is_none(tmp_path: Path) -> None:
    known_rates(tmp_path)
    for seed in (1, 2):  # at 0.05 BN reaches 0.5 in one seed of three, then in two of four
        config = {"optimizer": {"rate": 0.05, "multiple": 1.0}}
        write_run(tmp_path, "rate_range", "norm=batch,optimizer.rate=0.05", seed, [0.1, 0.2, 0.3, 0.4, 0.4], config)
    nearest = "at the rate nearest to 5x that"
    runs, curves = load(tmp_path, "rate_range")
    two = runs[runs["seed"] < 2]
    for own in (runs, two):
        speeds = figures.speed_at_best_rates(own, curves[curves["run"].isin(own["run"])]).set_index("BN")
        assert speeds.loc[nearest, "each seed"].startswith("4x, never")
        assert np.isnan(speeds.loc[nearest, "times fewer"])


def test_a_median_between_ranges_that_end_is_no_bound() -> None:
    ranges = pd.DataFrame({"decades": [1.4, 1.1, 0.8, 1.2, 1.5], "at least": [True, False, False, False, False]})
    assert not panels._open(ranges)
    assert panels._open(ranges.assign(**{"at least": [False, True, False, False, False]}))


def test_figure_3_compares_the_same_seeds(tmp_path: Path) -> None:
    """Inception has seeds 0 to 2, the others 0 alone."""
    for seed, end in enumerate([0.5, 0.9, 0.9]):
        write_run(tmp_path, "fig2_inception", "variant=inception", seed, [0.1, end - 0.1, end])
    write_run(tmp_path, "fig2_inception", "variant=bn_baseline", 0, [0.1, 0.6, 0.7])
    table = figures.fig3_table(*load(tmp_path, "fig2_inception"), {}).set_index("model")
    assert table.loc["Inception", "accuracy, ours"] == 0.9
    assert table.loc["BN-Baseline", "gain, ours"] == pytest.approx(0.2)
    assert table.loc["BN-Baseline", "times fewer, ours"] == pytest.approx(2.5)
    assert list(table["seeds"].loc[["Inception", "BN-Baseline"]]) == [3, 1]
    assert panels.seeds_of(records.load_runs(tmp_path)) == "1 to 3 seeds an arm"


def test_the_line_over_a_setting_passes_through_the_median_of_all_seeds(tmp_path: Path) -> None:
    for rate in (0.01, 0.1):
        for seed, end in enumerate([0.2, 0.3, 0.5]):
            status, config = "diverged" if seed == 2 else "completed", {"optimizer": {"rate": rate, "multiple": 1.0}}
            write_run(tmp_path, "rates", f"norm=batch,optimizer.rate={rate:g}", seed, [0.1, end], config, status)
    runs, curves = load(tmp_path, "rates")
    ax = Figure().add_subplot()
    figures.response(ax, figures.ends(runs, curves), "initial rate")
    assert np.asarray(ax.lines[0].get_ydata(), float) == pytest.approx([0.2, 0.2])  # of 0.2, 0.3 and worse than either


def test_an_arm_named_by_its_norm_is_drawn_as_that_norm_whatever_variant_it_stands_on(tmp_path: Path) -> None:
    for norm in ("none", "batch"):
        directory = write_run(tmp_path, "ablation_dropout", f"model.dropout=0.1,norm={norm}", 0, [0.1, 0.2])
        record = records.read_run_json(directory)
        assert record is not None
        record["choices"]["variant"] = "inception"
        records.write_run_json(directory, record)
    labels = [look.label for look in figures.looks(records.load_runs(tmp_path)).values()]
    assert labels == ["plain", "BN"]


def test_arms_that_are_no_points_on_an_axis_are_drawn_side_by_side(tmp_path: Path) -> None:
    for number in range(14):
        write_run(tmp_path, "ablation_cumulative", f"variant=step_{number}", 0, [0.1, 0.2 + number / 100])
    drawings = {drawing.name: drawing for drawing in figures.draw_study(records.load_runs(tmp_path))}
    assert "curves" not in drawings
    labels = [label.get_text() for label in drawings["ends"].figure.axes[0].get_yticklabels()]
    assert len(set(labels)) == 14
    assert drawings["ends"].frame["final"].max() == pytest.approx(0.33)


def test_two_settings_of_one_norm_are_two_lines_over_a_rate(tmp_path: Path) -> None:
    for act in ("relu", "sigmoid"):
        for rate in (0.01, 0.1, 1.0):
            arm = f"model.act={act},norm=batch,optimizer.rate={rate:g}"
            write_run(tmp_path, "s", arm, 0, [0.1, 0.5], {"optimizer": {"rate": rate, "multiple": 1.0}})
    runs, curves = load(tmp_path, "s")
    frame = figures.response(Figure().add_subplot(), figures.ends(runs, curves), "initial rate")
    assert frame.groupby("line")["initial rate"].nunique().tolist() == [3, 3]


def test_layers_are_drawn_in_depth_order(tmp_path: Path) -> None:
    figure_2(tmp_path)
    runs = records.load_runs(tmp_path, "fig2_inception")
    activations = records.load_activations(runs)
    bands = figures.layer_bands(activations)
    assert bands.drop_duplicates("layer")["layer"].tolist() == LAYERS
    assert bands.loc[bands["layer"] == LAYERS[4], "depth"].unique().tolist() == [4]
    drawing = figures.draw_layers(runs, activations, [LAYERS[1], LAYERS[3]])
    assert drawing is not None
    assert len(drawing.figure.axes) == 2 * 4
    depth = figures.draw_depth(runs, activations)
    assert depth is not None
    first = depth.frame[(depth.frame["step"] == 0) & (depth.frame["arm"] == "variant=inception")]
    assert first.sort_values("depth")["p50"].round().tolist() == [0, 1, 2, 3, 4, 5]


def test_percentiles_that_were_not_finite_are_gaps(tmp_path: Path) -> None:
    directory = write_run(tmp_path, "s", "norm=none", 0, [0.1, 0.2], probes=2)
    row = {"step": 200, "layer": LAYERS[0], "percentiles": [None] * 3, "mean": None, "std": None}
    rewrite(directory, records.ACTIVATIONS, [*records.run_rows(directory, records.ACTIVATIONS), row])
    runs = records.load_runs(tmp_path)
    drawing = figures.draw_layers(runs, records.load_activations(runs))
    assert drawing is not None
    assert figures.render(drawing.figure).startswith(b"<?xml")


def test_an_arm_that_explodes_does_not_flatten_the_others(tmp_path: Path) -> None:
    for arm, width in (("norm=none", 1e30), ("norm=layer", 0.01), ("norm=batch", 1.0), ("norm=group", 1.5)):
        directory = write_run(tmp_path, "s", arm, 0, [0.1, 0.2], probes=1)
        rows = [
            {"step": step, "layer": name, "percentiles": [-far, 0.0, far], "mean": 0.0, "std": far}
            for step in (0, 100)
            for name, far in (("act1", width), ("act2", 1.0))
        ]
        rewrite(directory, records.ACTIVATIONS, rows)
    runs = records.load_runs(tmp_path)
    drawing = figures.draw_layers(runs, records.load_activations(runs))
    assert drawing is not None
    assert "leaves it" in drawing.caption
    first, second = drawing.figure.axes[0], drawing.figure.axes[4]
    assert first.get_ylim() == pytest.approx((-1.65, 1.65))
    assert second.get_ylim() == pytest.approx((-1.1, 1.1))
    calm = figures.draw_layers(runs[runs["arm"] != "norm=none"], records.load_activations(runs))
    assert calm is not None
    assert "leaves it" not in calm.caption


def tuned(root: Path, model: str = "mlp") -> tuple[pd.DataFrame, pd.DataFrame]:
    """Two nets over rates, on validation images: BN does best at 1 by the mean of its last, at 0.3 by the very last."""
    for norm, lasts in {"none": (0.97, 0.975, 0.11), "batch": (0.972, 0.976, 0.974)}.items():
        for rate, last in zip((0.1, 0.3, 1.0), lasts, strict=True):
            config = {"optimizer": {"rate": rate, "multiple": 1.0}, "data": {"split": "tune"}}
            before = [0.1, *[last - 0.01] * 8] if rate < 1 else [0.1, *[last] * 8]
            directory = write_run(
                root,
                "fig1_rate",
                f"norm={norm},optimizer.rate={rate:g}",
                100,
                [*before, last],
                config,
                summary={"validation_accuracy": last},
            )
            record = json.loads((directory / "run.json").read_text())
            record["choices"]["model"] = model
            records.write_run_json(directory, record)
    return load(root, "fig1_rate")


def test_a_study_that_chooses_a_rate_is_shown_by_what_it_chooses_by(tmp_path: Path) -> None:
    runs, curves = tuned(tmp_path)
    ends = figures.ends(runs, curves)
    assert ends["final"].tolist() == ends["summary.validation_accuracy"].tolist()
    drawing = figures.draw_response(runs, curves)
    assert drawing is not None
    full, near = drawing.figure.axes
    assert full.get_ylim()[0] < 0.11
    assert 0.96 < near.get_ylim()[0] < 0.975 < near.get_ylim()[1] < 1  # beside the one that does not learn
    assert "Caps" not in drawing.caption
    assert "crosses" not in drawing.caption
    assert len(drawing.frame) == len(runs)
    usable, speed = rate_tables(runs, runs[:0], {})
    assert [row["best rate"] for row in usable["rows"]] == ["0.3", "0.3"]
    assert "Inception" not in speed["caption"]
    assert "the same runs" in speed["caption"]


def test_figure_2_stands_beside_rates_of_inception_alone(tmp_path: Path) -> None:
    figure_2(tmp_path)
    fig2 = records.load_runs(tmp_path, "fig2_inception")
    for model, said in (("mlp", False), ("inception", True)):
        runs, _ = tuned(tmp_path / model, model)
        speed = rate_tables(runs, fig2, {})[1]
        assert any("Figure 2" in row["rates"] for row in speed["rows"]) == said
        assert ("Inception" in speed["caption"]) == said


def test_rings_are_of_one_claim_where_two_disagree(tmp_path: Path) -> None:
    for norm in ("batch", "group"):
        for size in (2, 4):
            write_run(tmp_path, "s", f"norm={norm},batch_size={size}", 0, [0.1, 0.2], {"batch_size": size})
    runs = records.load_runs(tmp_path)
    wide, narrow = load_ledger()["batch-size"], load_ledger()["batch-size-group"]
    one = roles(runs, [narrow])
    assert sorted(one.values()) == ["control", "treatment"]
    assert roles(runs, [wide, narrow]) == one
    assert roles(runs, [narrow, narrow]) == one


def test_many_diverged_runs_stay_above_zero_and_can_be_counted(tmp_path: Path) -> None:
    rate_range(tmp_path)
    for seed in range(2, 12):
        config = {"optimizer": {"rate": 1.0, "multiple": 1.0}}
        write_run(tmp_path, "rate_range", "norm=none,optimizer.rate=1", seed, [0.1, 0.2], config, "diverged")
    runs, curves = load(tmp_path, "rate_range")
    ax = Figure().add_subplot()
    figures.response(ax, figures.ends(runs, curves), "initial rate")
    piles = [line for line in ax.lines if line.get_marker() == "x" and len(line.get_xdata())]
    assert [len(pile.get_xdata()) for pile in piles if pile.get_color() == figures.VERMILLION] == [5, 5, 2]
    places = {tuple(pile.get_transform().transform((1.0, 0.2))) for pile in piles}
    assert len(places) == len(piles)
    assert min(ax.get_yticks()) >= 0


def test_the_counter_example_shows_the_size_of_b(tmp_path: Path) -> None:
    frame = pd.DataFrame({"run": "r", "seed": 0, "step": [0, 1, 2], "b": [0.0, -1.0, -2.0], "loss": 4.0})
    bias, loss = Figure().subplots(1, 2)
    drawn = figures.detached(bias, loss, frame)
    assert drawn["bias"].tolist() == [0, 1, 2]
    assert drawn["loss"].tolist() == [1, 1, 1]


def test_an_interval_is_drawn_against_its_bounds_open_ends_as_arrows() -> None:
    ax = Figure().add_subplot()
    figures.effect(ax, [("Published records", 0.1, 0.05, np.inf)], (-np.inf, 0.5), "ratio", paper=1 / 14.8)
    assert ax.get_xscale() == "log"
    assert any(line.get_marker() == ">" for line in ax.lines)
    shade = ax.patches[0].get_extents().transformed(ax.transData.inverted())
    assert shade.x1 == pytest.approx(0.5)
    assert [line.get_xdata()[0] for line in ax.lines if line.get_marker() == "D"] == [pytest.approx(1 / 14.8)]


@pytest.mark.parametrize(
    ("side", "marker", "inside"), [("at least", ">", "white"), ("at most", "<", "white"), ("", "o", "#1a1a1a")]
)
def test_an_estimate_that_is_only_a_bound_is_a_hollow_tip(side: str, marker: str, inside: str) -> None:
    ax = Figure().add_subplot()
    figures.effect(ax, [("Published records", 1.2, 0.9, 2.0)], (-np.inf, 0.5), "ratio", sides=[side])
    mark = next(line for line in ax.lines if list(line.get_xdata()) == [1.2])
    assert (mark.get_marker(), mark.get_markerfacecolor()) == (marker, inside)


@pytest.mark.slow
def test_saved_figures_are_reproducible_and_come_with_their_numbers(tmp_path: Path) -> None:
    figure_1(tmp_path / "runs", seeds=2)
    runs = records.load_runs(tmp_path / "runs")
    for folder in ("one", "two"):
        drawings = figures.draw_study(runs)
        assert [d.name for d in drawings] == ["fig1a", "fig1bc", "curves", "layers"]
        for drawing in drawings[:2]:
            figures.save(drawing, tmp_path / folder)
    one, two = sorted((tmp_path / "one").iterdir()), sorted((tmp_path / "two").iterdir())
    assert [p.name for p in one] == [f"{name}.{kind}" for name in ("fig1a", "fig1bc") for kind in ("csv", "png", "svg")]
    assert [p.read_bytes() for p in one] == [p.read_bytes() for p in two]
    svg = (tmp_path / "one" / "fig1a.svg").read_text()
    assert figures.slim(svg) == svg
    assert "<dc:date>" not in svg
    assert "test accuracy" in svg  # text is text
    assert not re.search(r'd="[^"]*\d\.\d{3}', svg)  # coordinates are short ...
    assert "0.75" in svg  # ... and tick labels whole
    table = pd.read_csv(tmp_path / "one" / "fig1a.csv")
    assert table.query("arm == 'norm=batch' and step == 400")["median"].item() == 0.9805


def places(svg: str) -> list[tuple[list[str], list[float]]]:
    """Return of each path its commands, those that only repeat the last left out, and its numbers."""
    found = []
    for data in re.findall(r' d="([^"]*)"', svg):
        commands = "".join(re.findall("[A-Za-z]", data))
        found.append(
            (re.findall(r"[A-Za-z]", re.sub(r"(?<=M)L+|(?<=L)L+", "", commands)), re.findall(r"-?[\d.]+", data))
        )
    return [(commands, [float(number) for number in numbers]) for commands, numbers in found]


def test_a_slim_figure_says_the_same_in_half_the_bytes(tmp_path: Path) -> None:
    figure_2(tmp_path)
    drawing = drawing_of(tmp_path, "fig2_inception", "fig2")
    buffer = io.StringIO()
    figures.styled(drawing.figure.savefig)(buffer, format="svg", metadata={"Date": None, "Creator": None})
    whole = buffer.getvalue()
    slim = figures.slim(whole)
    assert len(slim) < 0.6 * len(whole)
    assert figures.slim(slim) == slim
    assert re.findall(r">([^<>]*\S[^<>]*)</text>", slim) == re.findall(r">([^<>]*\S[^<>]*)</text>", whole)
    for (commands, numbers), (asked, exact) in zip(places(slim), places(whole), strict=True):
        assert commands == asked
        assert numbers == pytest.approx(exact, abs=0.0501)
    # Every element keeps its style: what its class says is what stood there.
    rules = dict(re.findall(r"\.(s[0-9a-f]{8})\{([^}]*)\}", slim))
    body = whole.partition("</style>")[2]
    styled = [re.sub(r"(?<=[:;]) ", "", style) for style in re.findall(r' style="([^"]*)"', body)]
    assert [rules[name] for name in re.findall(r' class="([^"]*)"', slim)] == styled


def test_a_map_keeps_its_colours_in_fewer_bytes(tmp_path: Path) -> None:
    for norm in ("none", "batch"):
        write_run(tmp_path, "fig1_mnist", f"norm={norm}", 0, [0.1, 0.5], probes=4)
    drawing = drawing_of(tmp_path, "fig1_mnist", "depth")
    buffer = io.StringIO()
    figures.styled(drawing.figure.savefig)(buffer, format="svg")
    whole = buffer.getvalue()
    pictures = []
    for svg in (whole, figures.slim(whole)):
        coded = re.findall(r'data:image/png;base64,([^"]*)"', svg)
        pictures.append([Image.open(io.BytesIO(base64.b64decode(text))) for text in coded])
    assert pictures[1]
    for before, after in zip(*pictures, strict=True):
        assert after.mode == "P"
        assert np.array_equal(np.asarray(before), np.asarray(after.convert("RGBA")))


def test_a_page_of_figures_has_each_rule_once(tmp_path: Path) -> None:
    figure_2(tmp_path)
    svg = figures.render(drawing_of(tmp_path, "fig2_inception", "fig2").figure).decode()
    page = figures.one_style(f"<style>p {{}}</style>{svg}<p>{svg}")
    assert page.count("<style") == 1
    for name in set(re.findall(r' class="([^"]*)"', svg)):
        assert page.count(f".{name}{{") == 1


def test_a_large_table_is_packed_and_reads_the_same(tmp_path: Path) -> None:
    frame = pd.DataFrame({"step": range(30_000), "value": 0.5})
    for rows, name in ((30_000, "one.csv.gz"), (10, "one.csv"), (30_000, "one.csv.gz")):
        figures.save(figures.Drawing("one", "", "", Figure(), frame[:rows]), tmp_path, kinds=())
        assert [path.name for path in tmp_path.iterdir()] == [name]
        pd.testing.assert_frame_equal(pd.read_csv(tmp_path / name), frame[:rows])


def test_a_table_does_not_tell_where_records_lie(tmp_path: Path) -> None:
    frame = pd.DataFrame({"run": ["/where/it/lies"], "arm": ["norm=batch"], "seed": [0]})
    figures.save(figures.Drawing("one", "", "", Figure(), frame), tmp_path, kinds=())
    assert (tmp_path / "one.csv").read_text() == "arm,seed\nnorm=batch,0\n"


@pytest.mark.slow
def test_the_command_line_draws_what_it_is_asked(tmp_path: Path, capsys: Any) -> None:
    figure_1(tmp_path / "runs")
    there = ["--root", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    assert main(["fig1_mnits", *there]) == 2
    assert "did you mean 'fig1_mnist'" in capsys.readouterr().err
    assert main(there) == 0
    written = {path.name for path in tmp_path.glob("out/*/fig1_mnist/*")}
    assert {"fig1a.svg", "fig1a.png", "fig1a.csv", "layers.png"} <= written


@pytest.mark.parametrize("root", ["nowhere", "file"])
def test_a_root_without_runs_is_told(tmp_path: Path, root: str, capsys: Any) -> None:
    (tmp_path / "file").write_text("")
    assert main(["--root", str(tmp_path / root), "--out", str(tmp_path / "out")]) == 2
    expected = "expected some; run a study first or mend --root"
    assert capsys.readouterr().err == f"found no runs in {tmp_path / root}, {expected}\n"


def test_figures_that_cannot_be_written_are_told_in_one_line(tmp_path: Path, capsys: Any) -> None:
    figure_1(tmp_path / "runs", seeds=1)
    (tmp_path / "file").write_text("")
    root = ["fig1_mnist", "--root", str(tmp_path / "runs"), "--out"]
    for out, why in ((tmp_path / "file" / "out", "Not a directory"), (tmp_path / "full", "File too large")):
        with no_room():
            assert main([*root, str(out)]) == 2
        place = out / "laptop" / "fig1_mnist"
        expected = "expected room to write; free some space or mend --out"
        assert capsys.readouterr().err == f"{place}: found '{why}', {expected}\n"
        assert not list(tmp_path.rglob(".*.tmp"))


@pytest.mark.parametrize(("script", "write"), [("fig1_mnist", figure_1), ("fig2_inception", figure_2)])
def test_the_papers_own_figures(
    tmp_path: Path, script: str, write: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    import runpy

    path = Path(__file__).parents[1] / "experiments" / f"{script}.py"
    out = tmp_path / "figure.svg"
    monkeypatch.setattr(sys, "argv", [str(path), "--root", str(tmp_path / "runs"), "--out", str(out)])
    (tmp_path / "runs").mkdir()
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(path), run_name="__main__")
    assert "found no" in capsys.readouterr().err
    write(tmp_path / "runs", seeds=2)
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(str(path), run_name="__main__")
    assert b"</svg>" in out.read_bytes()
    if script == "fig2_inception":
        assert "| BN-x5 | 2 | 0.0075 | 0.1 | 2.1M | 100 | 14.8x | 4x | 73.0% | 70.0% |" in capsys.readouterr().out


# --- the ablations: what is drawn is what the records say, and every study has its figure ----------------------------


def tree(arm: str) -> dict[str, Any]:
    """Return the configuration that an arm's name spells."""
    config: dict[str, Any] = {}
    for key, _, value in (token.partition("=") for token in arm.split(",")):
        group, _, name = key.partition(".")
        if name:
            config.setdefault(group, {})[name] = yaml.safe_load(value)
        elif group == "batch_size":
            config[group] = int(value)
    return config


def drawing_of(root: Path, study: str, name: str) -> figures.Drawing:
    drawings = {d.name: d for d in figures.draw_study(records.load_runs(root, study), without=("curves", "layers"))}
    assert name in drawings, list(drawings)
    return drawings[name]


def dropout_grid(root: Path, rates: tuple[float, ...] = (0.0, 0.1, 0.4)) -> None:
    """BN with rate r ends at 0.5 + r + seed / 100, and falls by 0.05 from its best; the plain net gets to 0.3."""
    for rate in rates:
        for seed in range(3):
            best = 0.5 + rate / 10 + seed**2 / 100
            arm = f"model.dropout={rate},norm=batch"
            write_run(root, "ablation_dropout", arm, seed, [0.1, 0.3, best, best - 0.05, best - 0.05], tree(arm))
            arm = f"model.dropout={rate},norm=none"
            write_run(root, "ablation_dropout", arm, seed, [0.1, 0.2, 0.3, 0.3, 0.3], tree(arm))


def test_a_swept_setting_is_drawn_with_the_numbers_and_the_settings_of_its_claims(tmp_path: Path) -> None:
    dropout_grid(tmp_path)
    drawing = drawing_of(tmp_path, "ablation_dropout", "response")
    frame = drawing.frame.set_index(["outcome", "line", "model.dropout", "seed"])["value"]
    assert frame["best", "BN", 0.4, 2] == pytest.approx(0.58)
    assert frame["final", "BN", 0.4, 2] == pytest.approx(0.53)
    # The claim times each seed to the best of its own BN net with 40% dropout: at 0.1, which ends lower, never.
    assert frame["steps_to", "BN", 0.4, 1] == 200
    assert np.isnan(frame["steps_to", "BN", 0.1, 1])
    assert len(drawing.figure.axes) == 3
    best = drawing.figure.axes[0]
    rings = {line.get_markeredgecolor(): line.get_xydata()[0] for line in best.lines if line.get_markersize() == 11}
    assert rings[figures.RINGS["control"]["markeredgecolor"]] == pytest.approx([0.4, 0.55])
    assert rings[figures.RINGS["treatment"]["markeredgecolor"]] == pytest.approx([0.0, 0.51])
    bars = [c.get_segments()[0][:, 1] for c in best.collections if len(c.get_segments()) == 1]
    expected = stats.t_interval([0.54, 0.55, 0.58], 0.05)
    assert any(bar == pytest.approx(list(expected)) for bar in bars)
    low, high = best.get_ylim()
    assert low < 0.3
    assert high > 0.58


def test_a_sweep_that_no_claim_judges_is_drawn_too(tmp_path: Path) -> None:
    for norm in ("none", "batch"):
        for momentum in (0.0, 0.5, 0.9):
            arm = f"norm={norm},optimizer.momentum={momentum}"
            write_run(tmp_path, "mine", arm, 0, [0.1, 0.2 + momentum / 10], tree(arm))
    drawing = drawing_of(tmp_path, "mine", "response")
    assert set(drawing.frame["outcome"]) == {"final"}
    assert drawing.figure.axes[0].get_xlabel() == "momentum"
    assert drawing.frame.groupby("line")["value"].max().to_dict() == pytest.approx({"plain": 0.29, "BN": 0.29})


@pytest.mark.parametrize(
    ("values", "scale", "ticks"),
    [
        ((0.0, 0.2, 1.0, 5.0), "linear", [0, 1, 2, 3]),  # no place for a zero among logarithms: even distances
        ((1.0, 3.0, 6.0, 12.0), "log", [1, 3, 6, 12]),
        ((0.0, 0.5, 1.0, 2.0), "linear", [0, 0.5, 1, 2]),
    ],
)
def test_every_setting_that_was_tried_has_its_tick(
    tmp_path: Path, values: tuple[float, ...], scale: str, ticks: list[float]
) -> None:
    for value in values:
        arm = f"norm=batch,optimizer.l2_multiple={value}"
        write_run(tmp_path, "s", arm, 0, [0.1, 0.2], tree(arm))
    ax = drawing_of(tmp_path, "s", "response").figure.axes[0]
    assert ax.get_xscale() == scale
    assert ax.get_xticks().tolist() == ticks
    assert [label.get_text() for label in ax.get_xticklabels()] == [f"{value:g}" for value in values]


def test_pairs_of_settings_are_slopes_and_an_equivalence_has_its_band(tmp_path: Path) -> None:
    for norm, ends in (("none", (0.30, 0.31)), ("batch", (0.40, 0.405))):
        for on, end in zip((True, False), ends, strict=True):
            arm = f"model.lrn={on},norm={norm}"
            for seed in range(3):
                status = "diverged" if (norm, on, seed) == ("none", True, 2) else "completed"
                write_run(tmp_path, "ablation_lrn", arm, seed, [0.1, end + seed / 100], tree(arm), status)
    drawing = drawing_of(tmp_path, "ablation_lrn", "slopes")
    plain, bn = drawing.figure.axes
    assert [ax.get_title(loc="left") for ax in (plain, bn)] == ["plain", "BN"]
    assert [label.get_text() for label in bn.get_xticklabels()] == ["on", "off"]  # from control to treatment
    assert not plain.collections
    shade = bn.collections[0].get_paths()[0].get_extents()
    assert (shade.y0, shade.y1) == pytest.approx(
        (0.41 - 0.01, 0.41 + 0.01)
    )  # about the mean of the setting on the left
    strong = next(line for line in bn.lines if line.get_linewidth() == 1.7)
    assert strong.get_ydata() == pytest.approx([0.41, 0.415])
    assert [line.get_xydata()[0].tolist() for line in plain.lines if line.get_marker() == "x"] == [[0.0, 0.32]]
    frame = drawing.frame.set_index(["facet", "setting", "seed"])["best"]
    assert frame["BN", False, 2] == pytest.approx(0.425)


def test_the_seven_changes_are_a_ladder_up_and_back(tmp_path: Path) -> None:
    names = [name for name, _ in figures.CHANGES.items()]
    up = ["bn_baseline", *(f"bn_plus_{i}_{name}" for i, name in enumerate(names[:6], 1)), "bn_x5"]
    down = [f"bn_x5_less_{i}_{name}" for i, name in enumerate(names[:6], 1)]
    for number, variant in enumerate([*up, *down]):
        for seed in range(2):
            end = 0.30 + number / 100 + seed / 1000 - (0.2 if variant == "bn_x5_less_4_decay" else 0)
            write_run(tmp_path, "ablation_cumulative", f"variant={variant}", seed, [0.1, end])
    drawing = drawing_of(tmp_path, "ablation_cumulative", "changes")
    rows = [[label.get_text() for label in ax.get_yticklabels()] for ax in drawing.figure.axes[::2]]
    assert [len(labels) for labels in rows] == [8, 8]
    assert rows[0][0] == "BN-Baseline"
    assert rows[0][7].endswith("= BN-x5")
    frame = drawing.frame.set_index(["row", "seed"])
    assert frame.loc[("+ no dropout", 1), "best"] == pytest.approx(0.321)
    assert frame.loc[("with the full distortion", 0), "best"] == pytest.approx(
        0.36
    )  # BN-x5 less the seventh: the sixth
    assert frame.loc[("+ no dropout", 0), "steps_to"] == pytest.approx(100 * (0.3 - 0.1) / (0.32 - 0.1))
    assert np.isnan(frame.loc[("with the slow decay", 0), "steps_to"])
    never = [line for line in drawing.figure.axes[3].lines if line.get_marker() == ">"]
    assert {line.get_ydata()[0] for line in never} == {4}


def test_the_statistics_of_inference_stand_row_by_row_against_algorithm_2(tmp_path: Path) -> None:
    under = {"population": 0.5, "moving_0.01": 0.48, "moving_0.1": 0.501, "batch_8": 0.3, "batch_128": 0.45}
    for size in (8, 32, 128):
        arm = f"batch_size={size},norm=tracking"
        for seed in range(2):
            summary = {f"test_accuracy_{name}": value + seed / 100 for name, value in under.items()}
            write_run(tmp_path, "ablation_statistics", arm, seed, [0.1, 0.5], tree(arm), summary=summary)
    drawing = drawing_of(tmp_path, "ablation_statistics", "statistics")
    frame = drawing.frame.set_index(["arm", "row", "seed"])["accuracy"]
    assert frame["batch_size=32,norm=tracking", "moving average, weight 0.1", 1] == pytest.approx(0.511)
    shades = [
        [patch.get_extents().transformed(ax.transData.inverted()) for patch in ax.patches] for ax in drawing.figure.axes
    ]
    assert [len(found) for found in shades] == [0, 1, 0]  # the claim is on batches of 32
    assert (shades[1][0].x0, shades[1][0].x1) == pytest.approx((0.505 - 0.005, 0.505 + 0.005))
    rows = [label.get_text() for label in drawing.figure.axes[0].get_yticklabels()]
    assert rows == [
        "Algorithm 2",
        *(f"moving average, weight {w}" for w in (0.01, 0.1)),
        "test batch of 8",
        "test batch of 128",
    ]


def shares(level: float) -> Callable[[int, int], dict[str, Any]]:
    return lambda step, depth: {"linear_share": level + depth / 100, "linear_share_wide": level + depth / 50}


def test_shares_of_linear_outputs_are_means_over_layers(tmp_path: Path) -> None:
    for norm, level in (("batch", 0.5), ("batch_no_affine", 0.7)):
        for seed in range(3):
            of_layer = shares(level + seed / 10)
            write_run(tmp_path, "ablation_affine", f"norm={norm}", seed, [0.1, 0.2], probes=2, of_layer=of_layer)
    frame = drawing_of(tmp_path, "ablation_affine", "linear").frame.set_index(["outputs", "arm", "step"])
    row = frame.loc[("0.2 to 0.8", "norm=batch", 100)]
    mean = np.mean([depth / 100 for depth in range(6)])
    assert row[["low", "median", "high"]].tolist() == pytest.approx([0.5 + mean, 0.6 + mean, 0.7 + mean])
    assert frame.loc[("0.1 to 0.9", "norm=batch_no_affine", 0), "median"] == pytest.approx(0.8 + 2 * mean)


def stretched(times: float) -> Callable[[int, int], dict[str, Any]]:
    """Return what the Jacobian of every second layer is measured to be: values about ``times``, more by each step."""

    def function(step: int, depth: int) -> dict[str, Any]:
        if depth % 2 == 0:
            return {}
        values = [times * (1 + step / 100) * k for k in (0.1, 0.5, 1.0, 2.0, 4.0)]
        return {"singular_values": values, "log_spread": times * depth}

    return function


def test_singular_values_by_layer_before_and_after_and_their_spread_over_layers(tmp_path: Path) -> None:
    for norm, times in (("none", 0.5), ("batch", 1.0)):
        for seed in range(3):
            of_layer = stretched(times + seed)
            write_run(tmp_path, "ablation_jacobian", f"norm={norm}", seed, [0.1, 0.2], probes=3, of_layer=of_layer)
    frame = drawing_of(tmp_path, "ablation_jacobian", "jacobians").frame
    values = frame[frame["panel"].notna()].set_index(["panel", "arm", "layer"])
    assert values.loc[("before training", "norm=none", LAYERS[1]), "p50"] == pytest.approx(1.5)  # the middle seed
    assert values.loc[("after training", "norm=none", LAYERS[5]), "highest"] == pytest.approx(1.5 * 3 * 4)
    assert len(values) == 2 * 2 * 3
    spread = frame[frame["panel"].isna()].set_index(["arm", "step"])["median"]
    assert spread["norm=batch", 0] == pytest.approx(2 * np.sqrt((1 + 9 + 25) / 3))


def test_the_gap_is_read_where_the_claim_reads_it(tmp_path: Path) -> None:
    losses = {
        "none": ([2.3, 1.5, 1.0, 0.6], [0.1, 0.2, 0.3, 0.25]),
        "batch": ([2.3, 1.0, 0.5, 0.3], [0.1, 0.4, 0.5, 0.5]),
    }
    for norm, (fit, accuracies) in losses.items():
        write_run(tmp_path, "ablation_regularizer", f"norm={norm}", 0, accuracies, fit=fit)
    frame = drawing_of(tmp_path, "ablation_regularizer", "losses").frame
    gaps = frame.dropna(subset=["gap"]).set_index("arm")
    for norm, (fit, accuracies) in losses.items():
        expected = metrics.gap_at(fit, [1 - value for value in accuracies], 0.6)
        assert gaps.loc[f"norm={norm}", "gap"] == pytest.approx(expected)


def test_inputs_have_their_curves_and_their_roundness(tmp_path: Path) -> None:
    for data in ("mnist", "cifar10"):
        for place, mode in enumerate(figures.INPUTS):
            arm = f"data={data},data.input={mode},norm=none"
            summary = {"input_condition": 1000.0 / (place + 1), "input_effective_rank": 5.0 * (place + 1)}
            end = 0.3 + place / 10 + (data == "mnist") / 10
            write_run(tmp_path, "ablation_whitening", arm, 0, [0.1, end], tree(arm), summary=summary)
    curves = drawing_of(tmp_path, "ablation_whitening", "inputs")
    assert [ax.get_title(loc="left") for ax in curves.figure.axes] == ["MNIST", "CIFAR-10"]
    at_end = curves.frame[curves.frame["step"] == 100].set_index("arm")["median"]
    assert at_end["data=cifar10,data.input=whitened,norm=none"] == pytest.approx(0.6)
    frame = drawing_of(tmp_path, "ablation_whitening", "conditioning").frame.set_index("row")
    assert frame.loc["MNIST, centred", "summary.input_condition"] == 500
    assert frame.loc["CIFAR-10, whitened", "summary.input_effective_rank"] == 20


def test_the_cost_of_a_step_is_a_ratio_and_stretches_time(tmp_path: Path) -> None:
    for norm, ratio in (("batch", 1.0), ("zca", 3.0)):
        for seed in range(3):
            summary = {"seconds_per_step": 0.1 * (ratio + seed / 10), "seconds_per_step_batch": 0.1}
            write_run(tmp_path, "ablation_whitening_layers", f"norm={norm}", seed, [0.1, 0.4], summary=summary)
    frame = drawing_of(tmp_path, "ablation_whitening_layers", "cost").frame
    ratios = frame[frame["axis"] == "cost"].groupby("arm")["ratio"].median()
    assert ratios.to_dict() == pytest.approx({"norm=batch": 1.1, "norm=zca": 3.1})
    ends = frame.groupby(["axis", "arm"])["step"].max()
    assert ends["steps", "norm=zca"] == 100
    assert ends["time", "norm=zca"] == pytest.approx(310)


def test_what_is_found_along_the_gradient_is_drawn_over_training(tmp_path: Path) -> None:
    columns = ("landscape_loss_range", "landscape_gradient_change_relative")
    for norm, values in (("none", (0.5, 2.0)), ("batch", (0.25, 0.0))):
        for seed in range(3):
            directory = write_run(tmp_path, "beyond_landscape", f"norm={norm}", seed, [0.1, 0.4])
            more = dict(zip(columns, values, strict=True))
            rewrite(directory, records.CURVES, [row | more for row in records.run_rows(directory, records.CURVES)])
    drawing = drawing_of(tmp_path, "beyond_landscape", "landscape")
    at_end = drawing.frame[drawing.frame["step"] == 100].set_index(["column", "arm"])["median"]
    assert at_end[columns[0], "norm=none"] == 0.5
    assert at_end[columns[0], "norm=batch"] == 0.25
    assert at_end[columns[1], "norm=none"] == 2.0
    assert (columns[1], "norm=batch") not in at_end.index  # 0 has no place on a logarithmic axis
    assert all(ax.get_yscale() == "log" for ax in drawing.figure.axes)


def test_gradients_over_depth_have_a_panel_for_each_nonlinearity(tmp_path: Path) -> None:
    for act, norm, depth in itertools.product(("relu", "sigmoid"), ("none", "batch"), (3, 20, 40)):
        arm = f"model.act={act},model.depth={depth},norm={norm}"
        for seed in range(3):
            ratio = (2.0 if norm == "batch" else 0.5) ** depth * (1 + seed)
            write_run(tmp_path, "beyond_depth_gradient", arm, seed, [0.1], tree(arm), summary={"gradient_ratio": ratio})
    drawing = drawing_of(tmp_path, "beyond_depth_gradient", "gradients")
    assert [ax.get_title(loc="left") for ax in drawing.figure.axes] == ["ReLU", "sigmoid"]
    for ax in drawing.figure.axes:
        strong = {line.get_color(): line for line in ax.lines if line.get_linestyle() == "-" and len(line.get_xdata())}
        assert list(strong[figures.BLUE].get_ydata()) == pytest.approx([2 * 2.0**depth for depth in (3, 20, 40)])
        assert list(strong[figures.VERMILLION].get_ydata()) == pytest.approx([2 * 0.5**depth for depth in (3, 20, 40)])
    assert len(drawing.frame) == 2 * 2 * 3 * 3


# What a study's question is drawn as.
DRAWN = {
    "ablation_affine": "linear",
    "ablation_affine_mnist": "linear",
    "ablation_bn": "slopes",
    "ablation_cumulative": "changes",
    "ablation_dropout": "response",
    "ablation_jacobian": "jacobians",
    "ablation_jacobian_mnist": "jacobians",
    "ablation_l2": "response",
    "ablation_lr_decay": "response",
    "ablation_lrn": "slopes",
    "ablation_lrn_felt": "slopes",
    "ablation_photometric": "response",
    "ablation_placement": "slopes",
    "ablation_regularizer": "losses",
    "ablation_regularizer_shuffled": "losses",
    "ablation_shuffle": "slopes",
    "ablation_statistics": "statistics",
    "ablation_whitening": "inputs",
    "ablation_whitening_layers": "cost",
}
MEASURED: dict[str, Any] = {  # what a study's `measure` adds to its records
    "linear_share": {"of_layer": shares(0.5)},
    "jacobian": {"of_layer": stretched(1.0)},
    "fit": {"fit": [2.3, 1.5, 1.0]},
    "conditioning": {"summary": {"input_condition": 9.0, "input_effective_rank": 4.0}},
    "cost": {"summary": {"seconds_per_step": 0.3, "seconds_per_step_batch": 0.1}},
    "statistics": {"summary": {"test_accuracy_population": 0.5, "test_accuracy_moving_0.1": 0.5}},
}
ABLATIONS = sorted(path.stem for path in (CONFIGS / "experiment").glob("ablation_*.yaml"))


def whole_study(root: Path, study: str) -> None:
    """Write records of every arm that a study's YAML sweeps, with all that it measures."""
    text = yaml.safe_load((CONFIGS / "experiment" / f"{study}.yaml").read_text())
    asked = {key: value for measure in text.get("measure", {}) for key, value in MEASURED[measure].items()}
    params = {key: str(value).split(",") for key, value in text["hydra"]["sweeper"]["params"].items() if key != "seed"}
    for number, values in enumerate(itertools.product(*params.values())):
        pairs = sorted((key, value.strip()) for key, value in zip(params, values, strict=True))
        arm = ",".join(f"{key}={value.capitalize() if value in ('true', 'false') else value}" for key, value in pairs)
        config = tree(arm)
        config["optimizer"] = {"rate": 0.01, "multiple": 1, **config.get("optimizer", {})}
        for seed in range(2):
            accuracies = [0.1, 0.3, 0.4 + number / 1000 + seed / 100]
            write_run(root, study, arm, seed, accuracies, config, probes=2, scale="smoke", **asked)


@pytest.mark.parametrize("study", ABLATIONS)
def test_every_ablation_has_its_figure(tmp_path: Path, study: str) -> None:
    whole_study(tmp_path, study)
    # Among the records of another study, as the report loads them: its columns are no part of this one.
    write_run(tmp_path, "other", "norm=none", 0, [0.1, 0.2], {"other": {"number": 3.0}}, scale="smoke")
    runs = records.load_runs(tmp_path)
    drawings = figures.draw_study(runs[runs["study"] == study], without=("curves", "layers", "depth"))
    assert DRAWN[study] in [drawing.name for drawing in drawings]
    for drawing in drawings:
        figures.save(drawing, tmp_path / "figures", kinds=("svg",))
        assert len(pd.read_csv(tmp_path / "figures" / f"{drawing.name}.csv")) == len(drawing.frame) > 0
        assert (tmp_path / "figures" / f"{drawing.name}.svg").stat().st_size < 250_000
        assert drawing.figure.get_supxlabel() or drawing.figure.axes[-1].get_xlabel()
    if study == "ablation_bn":  # two nonlinearities: no rate is the best of a norm
        assert rate_tables(runs[runs["study"] == study], runs[:0], {}) == []


@pytest.mark.parametrize("study", ["ablation_affine_mnist", "ablation_jacobian_mnist"])
def test_real_records_feed_the_same_figure(composed: Compose, study: str) -> None:
    params = {"ablation_affine_mnist": ("batch", "batch_no_affine"), "ablation_jacobian_mnist": ("none", "batch")}
    for norm in params[study]:
        cfg, arm = composed(
            f"experiment={study}", f"norm={norm}", "evaluate.times=2", "evaluate.examples=20", "steps=3"
        )
        assert run(cfg, arm).status == "completed"
    runs = records.load_runs(cfg.machine.results)
    (drawing,) = [d for d in figures.draw_study(runs, without=("curves", "layers")) if d.name == DRAWN[study]]
    if study == "ablation_affine_mnist":
        drawn = drawing.frame[(drawing.frame["outputs"] == "0.2 to 0.8") & (drawing.frame["step"] == 3)]
        recorded = runs.set_index("arm")["summary.linear_share"]
    else:
        drawn = drawing.frame[drawing.frame["panel"].isna() & (drawing.frame["step"] == 3)]
        recorded = runs.set_index("arm")["summary.jacobian_log_spread"]
    assert drawn.set_index("arm")["median"].to_dict() == pytest.approx(recorded.to_dict(), rel=1e-3)
