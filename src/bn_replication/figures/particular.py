"""Figures of one question: the paper's own, and what single studies measure besides their curves.

Each returns ``None`` (or no drawing) if a study's records do not hold what it shows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bn_replication.figures.files import Drawing
from bn_replication.figures.frames import accuracy, axes_of, ends, roles, setting, swept, unit_percentiles
from bn_replication.figures.outcomes import dots, key_to, mark_never, singular_values
from bn_replication.figures.paths import (
    detached,
    fig1a,
    fig2,
    in_percent,
    layer_series,
    learning_curves,
    loss_paths,
    sigmoid_inputs,
    where_diverged,
)
from bn_replication.figures.style import (
    AXES,
    BAND,
    CHANGES,
    GREY,
    INPUTS,
    NORMS,
    OUTCOMES,
    PLAIN,
    VARIANTS,
    WITHIN,
    Frame,
    Look,
    in_order,
    looks,
    natural,
    spoken,
    styled,
    words,
)
from bn_replication.ledger import Entry


@styled
def draw_fig1a(runs: Frame, curves: Frame) -> Drawing:
    """Figure 1a, and beside it what the paper's axes press into a line: the second half of training, closer."""
    figure = Figure(figsize=(6.8, 3.2))
    papers, closer = figure.subplots(1, 2)
    frame = fig1a(papers, runs, curves)
    papers.set_title("in the paper's axes")
    learning_curves(closer, runs, curves, accuracy(curves))
    late = curves.loc[curves["step"] >= curves["step"].max() / 2, accuracy(curves)].dropna()
    room = 0.1 * max(late.max() - late.min(), 0.001)
    closer.set(title="the second half, closer", xlim=(curves["step"].max() / 2, max(curves["step"].max(), 1)))
    closer.set(ylabel="", ylim=(late.min() - room, late.max() + room))
    return Drawing("fig1a", "Figure 1a: test accuracy", BAND, figure, frame)


@styled
def draw_fig1bc(runs: Frame, activations: Frame) -> Drawing | None:
    """Figure 1b and 1c, and below them the same over all units of the layer."""
    units, style = unit_percentiles(activations), looks(runs)
    arms = [arm for arm in style if arm in set(units["arm"])]
    if not arms:
        return None
    figure = Figure(figsize=(max(2.9 * len(arms), 3.2), 4.4))
    grid = figure.subplots(2, len(arms), sharex=True, sharey="row", squeeze=False)
    frames = []
    for column, arm in enumerate(arms):
        for row, every in enumerate((False, True)):
            ax, own = grid[row, column], units[units["arm"] == arm]
            frames.append(
                sigmoid_inputs(ax, own, style[arm], every).assign(
                    arm=arm, panel="all units" if every else "typical unit"
                )
            )
            ax.set_title(f"{style[arm].label}: {'all units' if every else 'one typical sigmoid'}")
            ax.label_outer()
    reached = pd.concat(frames[1::2])  # the units' own axes: in the paper's most of a plain net's would lie outside
    grid[1, 0].set_ylim(reached["low"].min() - 0.5, reached["high"].max() + 0.5)
    grid[1, 0].yaxis.set_major_locator(MaxNLocator(5))
    figure.supylabel("input of a last-layer sigmoid", fontsize=9)
    return Drawing(
        "fig1bc",
        "Figures 1b and 1c: what the last hidden layer's sigmoids receive",
        "The 15th, 50th and 85th percentiles over training. Top: in the paper's axes, which percentiles may leave, the "
        "typical unit: the one whose median travels as far as the median unit's does; the first seed strong, the "
        "others thin. Bottom: each percentile's median over all units and seeds, in a band that holds 70% of them, on "
        "axes that hold it all.",
        figure,
        pd.concat(frames, ignore_index=True).drop(columns=["run", "layer"]),
    )


@styled
def draw_fig2(runs: Frame, curves: Frame) -> Drawing:
    figure = Figure(figsize=(6.8, 3.6))
    frame = fig2(figure.add_subplot(), runs, curves)
    return Drawing(
        "fig2",
        "Figure 2: accuracy of Inception and its batch-normalized variants",
        f"{BAND} Markers: median steps to the plain net's best accuracy (dashed).{where_diverged(runs)}",
        figure,
        frame,
    )


@styled
def draw_changes(runs: Frame, curves: Frame) -> Drawing | None:
    """The ladder from BN-Baseline to BN-x5, and BN-x5 less each change: best accuracy, and steps to BN-Baseline's."""
    variants = runs.get("choice.variant", pd.Series(dtype=str))
    if not {"bn_baseline", "bn_x5"} <= set(variants) or not variants.str.contains(r"_(?:plus|less)_\d").any():
        return None
    baseline = ends(runs[variants == "bn_baseline"], curves)
    frame = ends(runs, curves, dict(zip(baseline["seed"], baseline["best"], strict=True)))
    every = list(enumerate(CHANGES.items(), 1))
    up = {"bn_baseline": "BN-Baseline"} | {f"bn_plus_{i}_{name}": f"+ {more}" for i, (name, (more, _)) in every}
    down = {"bn_x5": "BN-x5"} | {f"bn_x5_less_{i}_{name}": less for i, (name, (_, less)) in every}
    # All seven are BN-x5; BN-x5 less the seventh is the first six.
    up["bn_x5"] = f"+ {CHANGES['photometric'][0]} = BN-x5"
    down["bn_plus_6_shuffling"] = CHANGES["photometric"][1]
    parts = []
    for part, labels in (("BN-Baseline to BN-x5, one change at a time", up), ("BN-x5 with one change undone", down)):
        own = frame[frame["choice.variant"].isin(list(labels))]
        parts.append(own.assign(part=part, row=own["choice.variant"].map(labels)))
    figure = Figure(figsize=(6.8, 5.0))
    grid = figure.subplots(2, 2, sharex="col", sharey="row")
    for ways, own, labels, look in zip(grid, parts, (up, down), (NORMS["batch"], VARIANTS["bn_x5"]), strict=True):
        present = set(own["row"])
        rows = {label: look for label in labels.values() if label in present}
        reference = own[own["row"] == next(iter(labels.values()))]
        for ax, outcome in zip(ways, ("best", "steps_to"), strict=True):
            dots(ax, own, rows, outcome, joined=own is parts[0])
            ax.axvline(
                reference[outcome].fillna(np.inf).median(), color="#888888", linewidth=0.8, linestyle=(0, (4, 3))
            )
            ax.tick_params(axis="y", length=0)
            if outcome == "steps_to":
                mark_never(ax, own, rows)
        ways[0].set_title(own["part"].iloc[0], fontsize=8)
    grid[1, 0].set_xlabel(OUTCOMES["best"].format(accuracy(curves).replace("_", " ")))
    in_percent(grid[1, 0].xaxis)
    grid[1, 1].set_xlabel("steps to BN-Baseline's best")
    table = pd.concat(parts)[["part", "row", "arm", "seed", "best", "steps_to", "status"]]
    return Drawing(
        "changes",
        "The seven changes from BN-Baseline to BN-x5",
        "Top: each row adds one, in the paper's order. Bottom: each row takes one back. A point is a run, a bar the "
        "median over seeds; dashed: that of the first row. A seed is timed to the best of its own BN-Baseline; open "
        "triangles never got there.",
        figure,
        table,
    )


@styled
def draw_statistics(runs: Frame, entries: Sequence[Entry]) -> Drawing | None:
    """Accuracy of the same weights under each of the statistics that inference may use; a panel an arm."""
    pattern = r"summary\.(?:test|validation)_accuracy_(population|moving|batch)_?(.*)"
    found = {str(column): match for column in runs if (match := re.fullmatch(pattern, str(column)))}
    if not any(match[1] == "population" for match in found.values()):
        return None
    kinds = {
        "population": ("Algorithm 2", NORMS["batch"]),
        "moving": ("moving average, weight {}", NORMS["batch_no_affine"]),
        "batch": ("test batch of {}", VARIANTS["bn_x30"]),
    }
    ordered = sorted(found, key=lambda c: (list(kinds).index(found[c][1]), natural(found[c][2])))
    rows = {kinds[found[c][1]][0].format(found[c][2]): replace(kinds[found[c][1]][1], marker="o") for c in ordered}
    names = dict(zip(ordered, rows, strict=True))
    frame = runs.melt(["run", "arm", "seed"], ordered, var_name="row", value_name="accuracy")
    frame["row"] = frame["row"].map(names)
    shown = {str(run): arm for run, arm in zip(runs["run"], runs["arm"], strict=True)}
    chosen = {shown[run] for entry in entries for run in roles(runs, [entry])}
    bounds = next((b for e in entries if (b := e.bounds_at(str(runs["scale"].iloc[0]))) and np.isfinite(b).all()), None)
    arms = sorted(set(frame["arm"]), key=natural)[:5]
    figure = Figure(figsize=(6.8, 0.9 + 0.24 * len(rows)))
    for ax, arm in zip(figure.subplots(1, len(arms), sharey=True, squeeze=False)[0], arms, strict=True):
        own = frame[frame["arm"] == arm]
        dots(ax, own, rows, "accuracy")
        middle = own.loc[own["row"] == "Algorithm 2", "accuracy"].mean()
        if arm in chosen and bounds is not None:
            ax.axvspan(middle + bounds[0], middle + bounds[1], color=WITHIN, linewidth=0)
        ax.axvline(middle, color="#888888", linewidth=0.8, linestyle=(0, (4, 3)))
        values = {AXES.get(k, words(k)): setting(runs[runs["arm"] == arm], k).iloc[0] for k in axes_of(runs)}
        said = [f"{k}\n{v:g}" if isinstance(v, int | float | np.number) else f"{k}\n{v}" for k, v in values.items()]
        ax.set_title(", ".join(said) or "all runs", fontsize=8)
        ax.set_xlabel("accuracy, %")
        in_percent(ax.xaxis)
        ax.tick_params(axis="y", length=0)
    return Drawing(
        "statistics",
        "Accuracy at test time, by the statistics that normalize",
        "Each run's final weights under other statistics; panels differ in the training batch. A moving average is "
        "named by the weight of the new batch. A point is a run, a bar the median over seeds, dashed the mean under "
        "Algorithm 2; shade: how far from it the claim's rule lets the mean of its moving average be.",
        figure,
        frame.sort_values(["arm", "row", "seed"]),
    )


def draw_inputs(runs: Frame, curves: Frame) -> list[Drawing]:
    """Accuracy over steps by the shape of the inputs, and how round the inputs are; none if that was not recorded."""
    if not {"summary.input_condition", "data.input"} <= set(runs):
        return []
    return [_draw_inputs(runs, curves), _draw_conditioning(runs)]


@styled
def _draw_inputs(runs: Frame, curves: Frame) -> Drawing:
    sets = sorted(set(setting(runs, "data")), key=lambda name: (not name.startswith("mnist"), name))
    figure = Figure(figsize=(6.8 if len(sets) > 1 else 4.4, 3.2))
    style = {
        str(row["arm"]): INPUTS.get(row["data.input"], Look(str(row["data.input"]), GREY)) for _, row in runs.iterrows()
    }
    ordered = sorted(
        style, key=lambda arm: list(INPUTS.values()).index(style[arm]) if style[arm] in INPUTS.values() else 9
    )
    frames, column = [], accuracy(curves)
    for ax, name in zip(figure.subplots(1, len(sets), squeeze=False)[0], sets, strict=True):
        own = runs[setting(runs, "data") == name]
        mine = {arm: style[arm] for arm in ordered if arm in set(own["arm"])}
        seen = curves[curves["run"].isin(own["run"])]
        frames.append(learning_curves(ax, own, seen, column, mine).assign(data=name))
        ax.set_title(spoken("data", name))
        ax.set_ylabel("" if frames[1:] else ax.get_ylabel())
        in_percent(ax.yaxis)
    key_to(figure, in_order([style[arm] for arm in ordered]), runs, markers=False)
    return Drawing("inputs", "Accuracy over steps, by the shape of the inputs", BAND, figure, pd.concat(frames))


@styled
def _draw_conditioning(runs: Frame) -> Drawing:
    sets = sorted(set(setting(runs, "data")), key=lambda name: (not name.startswith("mnist"), name))
    numbers = {"input_condition": "condition number", "input_effective_rank": "effective rank, directions"}
    numbers = {name: label for name, label in numbers.items() if f"summary.{name}" in runs}
    shapes = [shape for shape in INPUTS if shape in set(runs["data.input"])]
    frame = runs.assign(
        row=[
            f"{spoken('data', d)}, {INPUTS[i].label}"
            for d, i in zip(setting(runs, "data"), runs["data.input"], strict=True)
        ]
    )
    rows = {f"{spoken('data', d)}, {INPUTS[i].label}": INPUTS[i] for d in sets for i in shapes}
    rows = {row: look for row, look in rows.items() if row in set(frame["row"])}
    figure = Figure(figsize=(6.8, 0.7 + 0.24 * len(rows)))
    for ax, (name, label) in zip(
        figure.subplots(1, len(numbers), sharey=True, squeeze=False)[0], numbers.items(), strict=True
    ):
        dots(ax, frame, rows, f"summary.{name}")
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter(PLAIN)
        ax.set_xlabel(label)
        ax.tick_params(axis="y", length=0)
    return Drawing(
        "conditioning",
        "How round the inputs are",
        "From the eigenvalues of the inputs' second moment over the training images. Condition number: the largest "
        "over the smallest of those that hold 99% of the mean square. Effective rank: (sum)² / sum of squares, 1 for "
        "one direction. Both belong to the data, not to the seed: the points of a row lie on each other.",
        figure,
        frame[["row", "arm", "seed", *(f"summary.{name}" for name in numbers)]].sort_values(["row", "seed"]),
    )


@styled
def draw_cost(runs: Frame, curves: Frame) -> Drawing | None:
    """Accuracy over steps, over the time they take in steps of BN, and that time: where a study has timed its steps."""
    timed = {"summary.seconds_per_step", "summary.seconds_per_step_batch"}
    if not timed <= set(runs) or not runs[list(timed)].notna().all(axis=1).any():
        return None
    frame = runs.assign(ratio=runs["summary.seconds_per_step"] / runs["summary.seconds_per_step_batch"])
    times, style, column = frame.groupby("arm")["ratio"].median(), looks(runs), accuracy(curves)
    figure = Figure(figsize=(6.8, 3.1))
    over_steps, over_time, cost = figure.subplots(1, 3)
    parts = [learning_curves(over_steps, runs, curves, column).assign(axis="steps")]
    # In the time of a step of BN; one ratio an arm, so that the seeds' evaluations stay above each other.
    stretched = curves.assign(step=curves["step"] * curves["arm"].map(times))
    parts.append(learning_curves(over_time, runs, stretched, column).assign(axis="time"))
    over_time.set_xlabel("time, in steps of BN")
    for ax in (over_steps, over_time):
        in_percent(ax.yaxis)
    over_time.set_ylabel("")
    dots(
        cost,
        frame.assign(row=frame["arm"].map({a: look.label for a, look in style.items()})),
        {look.label: look for look in style.values()},
        "ratio",
    )
    cost.set_xlabel("time of a step / BN's")
    cost.axvline(1, color="#888888", linewidth=0.8)
    cost.set_xlim(left=0)
    cost.tick_params(axis="y", length=0)
    key_to(figure, list(style.values()), runs, markers=False)
    table = frame.assign(axis="cost", low=frame["ratio"], median=frame["ratio"], high=frame["ratio"])
    return Drawing(
        "cost",
        "Accuracy by steps and by time, and the time of a step",
        f"{BAND} Time counts in steps of the same net with BN, timed in turns with it in one process; right: that "
        "ratio, a point a run, a bar the median.",
        figure,
        pd.concat([*parts, table[["axis", "arm", "seed", "ratio"]]], ignore_index=True),
    )


@styled
def draw_losses(runs: Frame, curves: Frame) -> Drawing | None:
    """Held-out over training loss: of a few nets whose training loss was taken in evaluation mode."""
    if "fit_loss" not in curves or len(looks(runs)) > 4 or swept(runs) is not None or curves["fit_loss"].isna().all():
        return None
    figure = Figure(figsize=(4.8, 3.4))
    frame = loss_paths(figure.add_subplot(), runs, curves)
    key_to(figure, list(looks(runs).values()), runs)
    return Drawing(
        "losses",
        "Held-out loss over training loss",
        "A line is a run, training goes to the right; both losses in evaluation mode, on undistorted images. Dashed: "
        "no gap. Uprights: a seed's gap where each net first has the training loss that both reach.",
        figure,
        frame,
    )


@styled
def draw_linear_shares(runs: Frame, activations: Frame) -> Drawing | None:
    """How much of the sigmoids' output lies in their linear part, over training."""
    parts = {"linear_share": "0.2 to 0.8", "linear_share_wide": "0.1 to 0.9"}
    if not set(parts) <= set(activations) or activations["linear_share"].isna().all():
        return None
    style, frames = looks(runs), []
    figure = Figure(figsize=(6.8, 3.2))
    for ax, (column, name) in zip(figure.subplots(1, 2, sharey=True), parts.items(), strict=True):
        frames.append(layer_series(ax, activations, column, style, np.mean).assign(outputs=name))
        ax.set(title=f"between {name.replace('to', 'and')}", ylabel="share of sigmoid outputs, %", ylim=(0, 1.02))
        ax.set_xlabel("training steps (log)")
        in_percent(ax.yaxis)
        ax.label_outer()
    key_to(figure, list(style.values()), runs, markers=False)
    return Drawing(
        "linear",
        "Sigmoid outputs in the linear part",
        "Strong: mean over layers, median over seeds; band: lowest to highest seed; faint: each layer.",
        figure,
        pd.concat(frames, ignore_index=True),
    )


@styled
def draw_jacobians(runs: Frame, activations: Frame) -> Drawing | None:
    """Singular values of layer Jacobians: by layer before training and after, and their distance from 1 over steps."""
    if "singular_values" not in activations or activations["singular_values"].isna().all():
        return None
    rows, style = activations[activations["singular_values"].notna()], looks(runs)
    last = rows["step"] == rows.groupby("run")["step"].transform("max")
    figure, frames = Figure(figsize=(6.8, 5.2)), []
    grid = figure.subplot_mosaic([["start", "end"], ["spread", "spread"]], height_ratios=[1.3, 1])
    for name, title, own in (
        ("start", "before training", rows[rows["step"] == 0]),
        ("end", "after training", rows[last]),
    ):
        frames.append(singular_values(grid[name], own, style).assign(panel=title))
        grid[name].set_title(title)
        grid[name].tick_params(axis="x", labelsize=8)
    grid["start"].set_ylabel("singular values")
    grid["end"].sharey(grid["start"])
    frames.append(layer_series(grid["spread"], rows, "log_spread", style, lambda v: float(np.sqrt((v**2).mean()))))
    grid["spread"].set(ylabel="root mean square of\nlog singular values", xlabel="training steps (log)", ylim=(0, None))
    key_to(figure, list(style.values()), runs)
    return Drawing(
        "jacobians",
        "Singular values of layer Jacobians",
        "From what one nonlinearity receives to what the next one does, named by the layer of the second. Top: thin, "
        "all values; thick, the middle half; mark, the median; each the median over seeds. Bottom: 0 where all are 1; "
        "strong: over all layers, median over seeds; band: lowest to highest seed; faint: each layer.",
        figure,
        pd.concat(frames, ignore_index=True),
    )


@styled
def draw_detached(curves: Frame) -> Drawing:
    figure = Figure(figsize=(6.8, 3.0))
    bias, loss = figure.subplots(1, 2)
    frame = detached(bias, loss, curves.dropna(subset=["b", "loss"]))
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    caption = "Section 2: with the mean outside the gradient, every step moves b and none the loss."
    return Drawing("detached", "Statistics outside the gradient", caption, figure, frame)
