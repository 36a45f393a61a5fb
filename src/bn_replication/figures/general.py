"""Figures that any study may have: its curves, where its runs end over what it sweeps, and its layers over training."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps, colors
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bn_replication.figures.files import Drawing
from bn_replication.figures.frames import (
    accuracy,
    axes_of,
    ends,
    layer_bands,
    roles,
    setting,
    sides_of,
    swept,
    targets,
    tuning,
)
from bn_replication.figures.outcomes import better_half, closer, dots, effect, key_to, response, slope
from bn_replication.figures.paths import depth_map, in_percent, layer_band, learning_curves, where_diverged
from bn_replication.figures.style import (
    AXES,
    BAND,
    BARS,
    CHOSEN,
    NORMS,
    OUTCOMES,
    RINGS,
    Frame,
    in_order,
    lines_of,
    looks,
    natural,
    plain_log,
    spoken,
    styled,
    words,
)
from bn_replication.ledger import Entry


@styled
def draw_curves(runs: Frame, curves: Frame) -> Drawing | None:
    """Held-out accuracy and training loss over steps, side by side."""
    columns = [name for name in (accuracy(curves), "train_loss") if name in curves and curves[name].notna().any()]
    arms = len(looks(runs))
    if not columns or arms > 12:  # a grid of settings is legible as a response, not as curves
        return None
    figure = Figure(figsize=(6.8, 3.1 + 0.16 * -(-arms // 3)))
    frames = []
    for ax, column in zip(figure.subplots(1, len(columns), squeeze=False)[0], columns, strict=True):
        frames.append(learning_curves(ax, runs, curves, column).assign(column=column))
        if column.endswith("accuracy"):
            in_percent(ax.yaxis)
        if column == "train_loss" and (curves[column].dropna() > 0).all():
            ax.set_yscale("log")
            plain_log(ax.yaxis, *ax.get_ylim())
        if column == "train_loss":
            ax.set_ylabel("training loss, nats")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(3, arms))
    return Drawing("curves", "Learning curves", f"{BAND}{where_diverged(runs)}", figure, pd.concat(frames))


@styled
def draw_response(runs: Frame, curves: Frame, entries: Sequence[Entry] = ()) -> Drawing | None:
    """Accuracy (and steps, where a claim counts them) over the number that a study sweeps."""
    key = swept(runs)
    if key is None:
        return None
    asked = {entry.metric.name for entry in entries if entry.metric.name in OUTCOMES}
    outcomes = [name for name in OUTCOMES if name in asked or (asked and name == "best")] or ["final"]
    marks, frame = roles(runs, entries) if asked else {}, ends(runs, curves, targets(runs, curves, entries))
    choosing = tuning(runs)
    close = better_half(frame, key, outcomes[0]) if choosing else None  # beside settings that do not learn at all
    panels = len(outcomes) + bool(close)
    figure, parts = Figure(figsize=(5.2 if panels == 1 else 6.8, 3.2)), []
    axes = figure.subplots(1, panels, squeeze=False)[0]
    for ax, outcome in zip(axes, outcomes, strict=False):
        part = response(ax, frame, key, outcome, marks, accuracy(curves))
        parts.append(part.assign(outcome=outcome).rename(columns={outcome: "value"}))
    if close:
        response(axes[-1], frame, key, outcomes[0], marks, accuracy(curves))
        closer(axes[-1], *close)
    never = "steps_to" in outcomes and bool((frame["steps_to"].isna() & (frame["status"] != "diverged")).any())
    key_to(figure, in_order(lines_of(frame, key)), runs, marks, never)
    died = bool((runs["status"] == "diverged").any())
    what = "Best accuracy" if outcomes == ["best"] else "Accuracy at the end" if outcomes == ["final"] else "Accuracy"
    return Drawing(
        "response",
        f"{what}{' and speed' * ('steps_to' in outcomes)} over {AXES.get(key, words(key)).partition(',')[0]}",
        f"A point is a run, a line joins medians over seeds{'; crosses on the floor are runs that diverged' * died}."
        + (f" {BARS}" if runs.groupby("arm")["seed"].nunique().max() > 2 else "")
        + f" {CHOSEN}" * choosing
        + " Right: the best, closer." * bool(close)
        + (" Rings: the settings that a claim compares, seed by seed." if marks else ""),
        figure,
        pd.concat(parts, ignore_index=True),
    )


@styled
def draw_ends(runs: Frame, curves: Frame) -> Drawing | None:
    """Where each arm ends: of studies whose arms are no points on one axis, and no few settings either."""
    style = looks(runs)
    if swept(runs) is not None or len(style) < 4:
        return None
    figure = Figure(figsize=(5.6, 0.9 + 0.26 * len(style)))
    frame = ends(runs, curves).assign(row=runs["arm"].map({arm: look.label for arm, look in style.items()}))
    ax = figure.add_subplot()
    dots(ax, frame[frame["status"] != "diverged"], {look.label: look for look in style.values()}, "final")
    ax.set_xlabel(OUTCOMES["final"].format(accuracy(curves).replace("_", " ")))
    in_percent(ax.xaxis)
    caption = "A point is a run, a bar an arm's median over seeds."
    if (frame["status"] == "diverged").any():
        caption += " Runs that diverged have no point."
    table = frame[["arm", "seed", "final", "status"]].sort_values(["arm", "seed"])
    return Drawing("ends", "Accuracy at the end, arm by arm", caption, figure, table)


@styled
def draw_slopes(runs: Frame, curves: Frame, entries: Sequence[Entry] = ()) -> Drawing | None:
    """Best accuracy at the settings of a key that is no axis, seed by seed; a panel for each of the other settings.

    The key is the one in which a claim's two sides differ, else the norm, else the first that is swept.
    """
    axes, number = axes_of(runs), swept(runs)
    numeric = {"optimizer.rate", "optimizer.multiple"} if number == "initial rate" else {number}
    if not axes or "variant" in axes or (number is not None and not set(axes) - numeric - {"norm"}):
        return None
    entry = next((e for e in entries if e.control and e.metric.name == "best"), None)
    key = next((k for k in axes if entry and sides_of(entry)["control"].get(k) != entry.treatment.get(k)), None)
    key = key or ("norm" if "norm" in axes else axes[0])
    values = sorted(set(setting(runs, key)), key=lambda value: _place(key, value))
    frame, facets = ends(runs, curves), [k for k in axes if k != key]
    claimed: dict[str, str] = {}
    if entry is not None:
        claimed = roles(runs, [entry])
        first = {role: sides_of(entry)[role][key][0] for role in RINGS if key in sides_of(entry)[role]}
        values.sort(key=lambda value: [value == v for v in (*first.values(), value)].index(True))
    combinations = list(zip(*(setting(frame, k) for k in facets), strict=True)) or [()] * len(frame)
    frame["facet"] = [", ".join(map(spoken, facets, values)) or "all runs" for values in combinations]
    ordered = sorted(set(combinations), key=lambda values: [_place(*pair) for pair in zip(facets, values, strict=True)])
    names = [", ".join(map(spoken, facets, values)) or "all runs" for values in ordered]
    if len(names) > 8:
        return None
    wide = 0.6 + max(1.1, 0.5 * len(values)) * len(names)
    figure = Figure(figsize=(min(max(wide, 3.4), 6.8), 3.1))
    grid = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    shaded = False
    for ax, name in zip(grid, names, strict=True):
        own = frame[frame["facet"] == name]
        allowed = None
        if entry is not None and own["run"].isin(list(claimed)).any():
            bounds = entry.bounds_at(str(own["scale"].iloc[0]))
            allowed = bounds if bounds is not None and np.isfinite(bounds).all() else None
            shaded = shaded or allowed is not None
        slope(ax, own, key, values, "best", allowed)
        if facets:
            ax.set_title(name)
        ax.label_outer()
    grid[0].set_ylabel(OUTCOMES["best"].format(accuracy(curves).replace("_", " ")))
    in_percent(grid[0].yaxis)
    figure.supxlabel(AXES.get(key, words(key)), fontsize=9)
    caption = "A point is a run, a thin line a seed, the strong one their mean."
    if (frame["status"] == "diverged").any():
        caption += " A cross: the run diverged, with what it had reached."
    if shaded:
        caption += " Shade: where the claim's rule wants the mean, about the mean of the setting on the left."
    return Drawing(
        "slopes",
        f"Best accuracy by {AXES.get(key, words(key)).partition(',')[0]}",
        caption,
        figure,
        frame.assign(setting=setting(frame, key))[["facet", "setting", "arm", "seed", "best", "status"]],
    )


def _place(key: str, value: Any) -> list[Any]:
    """Return a sorting key under which norms stand in the legend's order, and 2 before 10."""
    known = key == "norm" and value in NORMS
    return natural(str(list(NORMS).index(value))) if known else natural(str(value))


BEYOND = 10  # times what the middle arm reaches: an arm beyond has no say in the axis, or the others were flat lines


def _near(furthest: Frame) -> list[str]:
    """Return the arms that do not go :data:`BEYOND` times as far as the middle one; ``furthest`` has no gaps."""
    return furthest.index[furthest <= BEYOND * furthest.sort_values().iloc[len(furthest) // 2]].tolist()


@styled
def draw_layers(runs: Frame, activations: Frame, layers: Sequence[str] = ()) -> Drawing | None:
    """Small multiples in depth order: what some layers' nonlinearities receive, one column an arm."""
    if activations.empty:
        return None
    bands, style = layer_bands(activations), looks(runs)
    if not layers:
        every = bands.drop_duplicates("layer")["layer"].tolist()
        layers = [every[i] for i in np.unique(np.linspace(0, len(every) - 1, 6).round().astype(int))]
    arms = _some([arm for arm in style if arm in set(bands["arm"])])
    figure = Figure(figsize=(max(1.45 * len(arms) + 0.4, 3.4), 1.05 * len(layers) + 0.6))
    grid = figure.subplots(len(layers), len(arms), sharex=True, sharey="row", squeeze=False)
    for (row, layer), (column, arm) in itertools.product(enumerate(layers), enumerate(arms)):
        ax, own = grid[row, column], bands[(bands["layer"] == layer) & (bands["arm"] == arm)]
        layer_band(ax, own, style[arm])
        ax.set_xlabel("")
        ax.yaxis.set_major_locator(MaxNLocator(3))
        ax.tick_params(labelsize=7)
        if row == 0:
            ax.set_title(style[arm].label.replace(", ", "\n", 1), fontsize=8)
        if column == 0:
            ax.set_ylabel(layer.replace(".", "\n", 1), fontsize=7)
        ax.label_outer()
    drawn = bands[bands["layer"].isin(layers) & bands["arm"].isin(arms)]
    drawn = drawn.groupby(["arm", "layer", "step"], sort=False, as_index=False)[["p15", "p50", "p85"]].median()
    beyond = ""
    for row, layer in enumerate(layers):
        own = drawn[drawn["layer"] == layer]
        furthest = own[["p15", "p50", "p85"]].abs().max(axis=1).groupby(own["arm"]).max().dropna()
        if furthest.empty:
            continue
        near = _near(furthest)
        low, high = own[own["arm"].isin(near)].agg({"p15": "min", "p85": "max"})
        pad = 0.05 * (high - low) or 0.05
        grid[row, 0].set_ylim(low - pad, high + pad)
        if len(near) < len(furthest):
            beyond = f" An arm that goes {BEYOND} times as far as most leaves it."
    figure.supxlabel("training steps (log)", fontsize=8)
    return Drawing(
        "layers",
        "What the nonlinearities receive, layer by layer",
        "From the input (top) to the output (bottom), evenly chosen in depth. Line: median; band: 15th to "
        "85th percentile; of both the median over seeds. A row shares its axis." + beyond,
        figure,
        drawn,
    )


@styled
def draw_depth(runs: Frame, activations: Frame) -> Drawing | None:
    """Heat maps over depth and time: centre and spread of what every layer's nonlinearity receives."""
    if activations.empty or activations["layer"].nunique() < 5:
        return None
    bands, style = layer_bands(activations), looks(runs)
    arms = _some([arm for arm in style if arm in set(bands["arm"])])
    bands = bands[bands["arm"].isin(arms)]
    furthest = bands["p50"].abs().groupby(bands["arm"]).quantile(0.98).dropna().clip(lower=0.05)
    near = bands[bands["arm"].isin(_near(furthest))] if len(furthest) else bands
    # Neither scale is stretched until the noise of a BN layer, whose deviation is 1 by construction, looks like change.
    reach = max(float(near["p50"].abs().quantile(0.98)), 0.05)
    spread = near.loc[near["std"] > 0, "std"]
    low, high = (float(q) for q in spread.quantile([0.02, 0.98])) if len(spread) else (0.1, 1.0)
    if high < 1.5 * low:
        middle = (low * high) ** 0.5
        low, high = middle / 1.5**0.5, middle * 1.5**0.5
    scales = {
        # 64 shades are as many as an eye tells apart in a map, and pack into fewer bytes than 256.
        "p50": (colors.Normalize(-reach, reach), colormaps["PuOr"].resampled(64), "median"),
        "std": (colors.LogNorm(low, high), colormaps["cividis"].resampled(64), "standard deviation"),
    }
    figure = Figure(figsize=(max(1.3 * len(arms) + 0.9, 3.4), 5.0))
    grid = figure.subplots(2, len(arms), sharey=True, squeeze=False)
    for row, (column, (norm, cmap, label)) in enumerate(scales.items()):
        for ax, arm in zip(grid[row], arms, strict=True):
            depth_map(ax, bands[bands["arm"] == arm], column, norm, cmap)
            ax.tick_params(labelsize=7)
            if row == 0:
                ax.set_title(style[arm].label.replace(", ", "\n", 1), fontsize=8)
        grid[row, 0].set_ylabel("depth (layer)", fontsize=8)
        bar = figure.colorbar(
            ScalarMappable(norm, cmap), ax=grid[row].tolist(), label=label, extend="both", aspect=30, pad=0.01
        )
        if column == "std":
            plain_log(bar.ax.yaxis, low, high)
    grid[0, 0].set_ylim(bands["depth"].max() + 1, 0)
    figure.supxlabel("training steps, as probed", fontsize=8)
    return Drawing(
        "depth",
        "Every layer over training",
        "Each row of a map is a layer, the input at the top; colour is the median (top) or the standard "
        "deviation (bottom) of what its nonlinearity receives, the median over seeds. The ends of a scale "
        "hold what lies beyond them, at most 2% of the values each"
        + (f", and arms that go {BEYOND} times as far as most." if len(near) < len(bands) else ".")
        + (" Of the arms eight, evenly chosen." if len(arms) < activations["arm"].nunique() else ""),
        figure,
        bands.groupby(["arm", "depth", "layer", "step"], as_index=False)[["p50", "std"]].median(),
    )


def _some(arms: list[str], most: int = 8) -> list[str]:
    """Return at most so many of ``arms``, evenly chosen, the first and the last among them."""
    chosen = np.unique(np.linspace(0, len(arms) - 1, min(most, len(arms))).round().astype(int)).tolist()
    return [arms[i] for i in chosen]


@styled
def draw_effect(
    rows: Sequence[tuple[str, float, float, float]],
    bounds: tuple[float, float],
    kind: str,
    paper: float | None = None,
    plain: Sequence[tuple[float, float] | None] = (),
    what: str = "",
    sides: Sequence[str] = (),
) -> Figure:
    figure = Figure(figsize=(4.4, 0.62 + 0.26 * len(rows) + (0.18 if paper is not None else 0)))
    effect(figure.add_subplot(), rows, bounds, kind, paper, plain, what, sides)
    return figure
