"""Figures: what is drawn is what the records say, in the paper's axes, the same file from the same numbers."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from bn_replication import figures, records

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
) -> Path:
    """Write a run evaluated every 100 steps; every layer's input has median depth + step / 100, 1 either side."""
    directory = root / scale / study / arm / f"seed={seed}"
    directory.mkdir(parents=True, exist_ok=True)
    curve = [
        {"step": 100 * i, "rate": 0.1, "test_accuracy": value, "test_loss": 1 - value}
        | ({"train_loss": 1.01 - value, "train_accuracy": value} if i else {})
        for i, value in enumerate(accuracies)
    ]
    rows = []
    for step in range(0, 100 * probes, 100):
        for depth, layer in enumerate(LAYERS[:layers]):
            middle = depth + step / 100 + 0.0123456789 * seed
            row = {"step": step, "layer": layer, "percentiles": [middle - 1, middle, middle + 1]}
            row |= {"mean": middle, "std": 1.0, "histogram": [250, 500, 250]}
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
    choices = dict(pair.split("=") for pair in arm.split(",") if pair.split("=")[0] in ("norm", "variant"))
    record = {"study": study, "arm": arm, "seed": seed, "scale": scale, "status": status, "reason": None}
    record |= {"steps_done": curve[-1]["step"], "summary": {"test_accuracy": accuracies[-1]}, "choices": choices}
    record |= {"config": {"steps": 400, **PROBE, **(config or {})}, "rules": {}, "files": files, "seconds": 61.0}
    environment = {"python": "3.11", "device": "cpu", "git": "0123abcd", "dirty": dirty}
    records.write_run_json(directory, {**record, "environment": environment, "started": "2026-11-23T08:00:00+00:00"})
    return directory


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
    frame = figures.response(ax, figures.ends(runs, curves), curves, "initial rate")
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
    assert drawings["ends"].frame["accuracy"].max() == pytest.approx(0.33)


def test_two_settings_of_one_norm_are_two_lines_over_a_rate(tmp_path: Path) -> None:
    for act in ("relu", "sigmoid"):
        for rate in (0.01, 0.1, 1.0):
            arm = f"model.act={act},norm=batch,optimizer.rate={rate:g}"
            write_run(tmp_path, "s", arm, 0, [0.1, 0.5], {"optimizer": {"rate": rate, "multiple": 1.0}})
    runs, curves = load(tmp_path, "s")
    frame = figures.response(Figure().add_subplot(), figures.ends(runs, curves), curves, "initial rate")
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
    with (directory / records.ACTIVATIONS).open("a") as file:
        file.write(records.json_line(row))
    runs = records.load_runs(tmp_path)
    drawing = figures.draw_layers(runs, records.load_activations(runs))
    assert drawing is not None
    assert figures.render(drawing.figure).startswith(b"<?xml")


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
    assert "<dc:date>" not in svg
    assert "test accuracy" in svg  # text is text
    assert not re.search(r'd="[^"]*\d\.\d{3}', svg)  # coordinates are short ...
    assert "0.75" in svg  # ... and tick labels whole
    table = pd.read_csv(tmp_path / "one" / "fig1a.csv")
    assert table.query("arm == 'norm=batch' and step == 400")["median"].item() == 0.9805


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
        assert "| BN-x5 | 0.0075 | 0.1 | 2.1M | 100 | 14.8x | 4x | 73.0% | 70.0% |" in capsys.readouterr().out
