"""Axes with training on them: accuracies, losses and what the nonlinearities receive, step by step.

A strong line is the median over seeds, a thin one is a seed, a band spans the lowest to the highest seed: no seed is
hidden. A run that diverges ends at its cross. Functions take axes and frames and return what they drew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colors
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from bn_replication import metrics
from bn_replication.figures.frames import accuracy, over_seeds, steps_to_plain_best, typical_units
from bn_replication.figures.style import BLUE, ORANGE, PERCENT, VERMILLION, Frame, Look, looks, short

FEW = 6  # seeds; the lines of more are thinner still


def steps_axis(ax: Axes, log: bool = False) -> None:
    """Label the x axis with training steps, thousands as K as the paper does."""
    ax.set_xlabel("training steps")
    if log:
        ax.set_xscale("symlog", linthresh=1, linscale=0.3)
        ax.xaxis.set_major_locator(FixedLocator([0, 10, 1e3, 1e5, 1e7]))
        ax.xaxis.set_minor_locator(FixedLocator([10.0**power for power in range(8)]))
    else:
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: short(x)))


def where_diverged(runs: Frame) -> str:
    """Return what a caption says of the crosses that :func:`learning_curves` draws; nothing if there are none."""
    return " A cross: the run diverged there." if (runs["status"] == "diverged").any() else ""


def in_percent(axis: Any) -> None:
    """Let an axis of accuracies as shares say per cent."""
    axis.set_major_formatter(PERCENT)
    said = axis.label.get_text().removesuffix(", %")
    axis.set_label_text(f"{said}, %" if said else "")


def learning_curves(
    ax: Axes, runs: Frame, curves: Frame, column: str, style: Mapping[str, Look] | None = None
) -> Frame:
    """Draw ``column`` over steps, every seed thin, their median strong, their range a band; return medians."""
    style, frame = looks(runs) if style is None else style, curves.dropna(subset=[column])
    middle = over_seeds(frame, column)
    diverged = set(runs.loc[runs["status"] == "diverged", "run"])
    for arm, look in style.items():
        own = middle[middle["arm"] == arm]
        if own.empty:
            continue
        ax.fill_between(own["step"], own["low"], own["high"], color=look.colour, alpha=0.13, linewidth=0)
        seeds = frame[frame["arm"] == arm].groupby("run")
        width = 0.5 if len(seeds) <= FEW else 0.2
        for run, seed in seeds:
            ax.plot(seed["step"], seed[column], color=look.colour, alpha=0.45, linewidth=width, linestyle=look.dash)
            if run in diverged:
                last = seed.iloc[-1]
                ax.plot(
                    last["step"],
                    last[column],
                    "x",
                    color=look.colour,
                    markersize=7,
                    markeredgewidth=1.6,
                    clip_on=False,
                )
        ax.plot(
            own["step"],
            own["median"],
            color=look.colour,
            linewidth=1.7,
            linestyle=look.dash,
            label=look.label,
        )
    steps_axis(ax)
    ax.set_ylabel(column.replace("_", " "))
    return middle


def fig1a(ax: Axes, runs: Frame, curves: Frame) -> Frame:
    """Figure 1a in the paper's axes: test accuracy, 0.7 to 1, over 50,000 steps."""
    middle = learning_curves(ax, runs, curves, accuracy(curves))
    ax.set(ylim=(0.7, 1), xlim=(0, max(curves["step"].max(), 1)))
    ax.legend(loc="lower right")
    return middle


def sigmoid_inputs(ax: Axes, units: Frame, look: Look, every_unit: bool = False) -> Frame:
    """Figure 1b or 1c in the paper's axes: the {15, 50, 85}th percentiles of a sigmoid's input over time.

    One line a percentile and run for the typical unit; with ``every_unit`` each percentile's median over all
    units of all runs, in a band that holds 70% of them.
    """
    if every_unit:
        long = units.melt(["step"], ["p15", "p50", "p85"], var_name="percentile", value_name="input")
        values = long.groupby(["percentile", "step"])["input"]
        ends = {name: values.quantile(q) for name, q in (("low", 0.15), ("median", 0.5), ("high", 0.85))}
        drawn = pd.DataFrame(ends).reset_index()
        for percentile, own in drawn.groupby("percentile"):
            ax.fill_between(own["step"], own["low"], own["high"], color=look.colour, alpha=0.16, linewidth=0)
            ax.plot(own["step"], own["median"], color=look.colour, linewidth=1.7 if percentile == "p50" else 1.0)
    else:
        unit = typical_units(units)
        drawn = units[units["unit"] == units["run"].map(unit)].reset_index(drop=True)
        for i, (_, own) in enumerate(drawn.groupby("seed")):
            for percentile in ("p15", "p50", "p85"):
                width = (1.7 if percentile == "p50" else 1.0) if i == 0 else 0.5
                ax.plot(
                    own["step"],
                    own[percentile],
                    color=look.colour,
                    linewidth=width,
                    alpha=1 if i == 0 else 0.35,
                )
    steps_axis(ax)
    ax.set(ylim=(-2, 2), xlim=(0, max(units["step"].max(), 1)))
    ax.set_yticks([-2, 0, 2])
    return drawn


def fig2(ax: Axes, runs: Frame, curves: Frame) -> Frame:
    """Figure 2: held-out accuracy over steps, a marker where each variant reaches Inception's best.

    The dashed line is the median over seeds of the plain net's best accuracy, as each marker is the median
    over seeds of the steps to the plain net's best *of the same seed* (Figure 3), drawn only if more than
    half of the seeds got there.
    """
    middle = learning_curves(ax, runs, curves, accuracy(curves))
    reached = steps_to_plain_best(runs, curves)
    target = reached["target"].median()
    ax.axhline(target, color=VERMILLION, linewidth=0.8, linestyle=(0, (4, 3)))
    # A seed that never got there is beyond every step: with half of them there is no median to tell.
    reached["steps"] = reached["steps"].fillna(np.inf)
    medians = reached.groupby("arm").agg(target=("target", "median"), steps_to_target=("steps", "median"))
    medians = medians.replace(np.inf, np.nan)
    for arm, look in looks(runs).items():
        step = medians["steps_to_target"].get(arm, np.nan)
        if np.isfinite(step):
            # Whole where it stands at the very end of the axis.
            style = {"markersize": 7, "markeredgecolor": "white", "zorder": 5, "clip_on": False}
            ax.plot(step, target, look.marker, color=look.colour, **style)
    handles = [
        Line2D(
            [],
            [],
            color=look.colour,
            linestyle=look.dash,
            marker=look.marker,
            markeredgecolor="white",
            label=look.label,
        )
        for look in looks(runs).values()
    ]
    ax.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    ax.set_xlim(0, max(curves["step"].max(), 1))
    return middle.merge(medians.reset_index(), "left")


def layer_series(
    ax: Axes, rows: Frame, column: str, style: Mapping[str, Look], over_layers: Callable[[Frame], float]
) -> Frame:
    """Draw a number that each layer has over (log) steps: layers faint, over all of them strong, seeds a band.

    ``over_layers`` makes one number of those of all layers of a run at a step.
    """
    rows = rows.dropna(subset=[column]).astype({column: float})
    whole = rows.groupby(["arm", "run", "step"])[column].agg(over_layers).reset_index()
    middle = over_seeds(whole, column)
    for arm, look in style.items():
        for _, own in rows[rows["arm"] == arm].groupby("layer"):
            layer = own.groupby("step")[column].median()
            ax.plot(layer.index, layer, color=look.colour, linestyle=look.dash, linewidth=0.4, alpha=0.35)
        own = middle[middle["arm"] == arm]
        ax.fill_between(own["step"], own["low"], own["high"], color=look.colour, alpha=0.25, linewidth=0)
        ax.plot(own["step"], own["median"], color=look.colour, linestyle=look.dash, linewidth=1.9, label=look.label)
    steps_axis(ax, log=True)
    return middle


def loss_paths(ax: Axes, runs: Frame, curves: Frame) -> Frame:
    """Draw held-out over training loss, both in evaluation mode, a line a seed, and the gap at equal training loss.

    A seed's gap is read where either net first has the training loss that both reach: an upright from the diagonal
    (no gap) to the net's path. Return what is drawn, with the ``gap`` in the first row that is not before it.
    """
    held_out = accuracy(curves).replace("accuracy", "loss")
    frame = curves.dropna(subset=["fit_loss", held_out]).sort_values("step", kind="stable")
    frame = frame[["run", "arm", "seed", "step", "fit_loss", held_out]].assign(gap=np.nan)
    style = looks(runs)
    for _, nets in frame.groupby("seed"):
        reached = nets.groupby("run")["fit_loss"].min().max() if len(set(nets["run"])) > 1 else np.nan
        for _, own in nets.groupby("run"):
            look = style[str(own["arm"].iloc[0])]
            ax.plot(own["fit_loss"], own[held_out], color=look.colour, linestyle=look.dash, linewidth=1.1, alpha=0.75)
            if (at := metrics.at_loss(own["fit_loss"], own[held_out], reached)) is not None:
                frame.loc[own.index[at.row], "gap"] = at.held_out - at.train
                ax.plot([at.train] * 2, [at.train, at.held_out], color=look.colour, linewidth=0.8)
                ax.plot(at.train, at.held_out, look.marker, color=look.colour, markersize=5)
    ends_at = frame["fit_loss"].min(), frame["fit_loss"].max()
    ax.plot(ends_at, ends_at, color="#888888", linewidth=0.8, linestyle=(0, (4, 3)))
    ax.set(xlabel="training loss, nats", ylabel=f"{held_out.replace('_', ' ')}, nats")
    ax.invert_xaxis()
    return frame


def layer_band(ax: Axes, bands: Frame, look: Look) -> None:
    """Draw one layer's input over (log) steps: the median, and the 15th to 85th percentile as a band."""
    own = bands.groupby("step")[["p15", "p50", "p85"]].median()
    ax.fill_between(own.index, own["p15"], own["p85"], color=look.colour, alpha=0.25, linewidth=0)
    ax.plot(own.index, own["p50"], color=look.colour, linewidth=1.2)
    steps_axis(ax, log=True)


def depth_map(ax: Axes, bands: Frame, column: str, norm: colors.Normalize, cmap: colors.Colormap) -> None:
    """Draw ``column`` of every layer (input at the top) over the probes (columns)."""
    table = bands.pivot_table(index="depth", columns="step", values=column, aggfunc="median")
    # One pixel a cell, enlarged by whoever shows it: a hundredth of the bytes of a drawn mesh.
    ax.imshow(
        table,
        norm=norm,
        cmap=cmap,
        aspect="auto",
        interpolation="none",
        extent=(0, table.shape[1], table.shape[0], 0),
    )
    ticks = np.unique(np.linspace(0, table.shape[1] - 1, 4).round().astype(int))
    ax.set_xticks(ticks + 0.5, [short(table.columns[i]) for i in ticks])
    ax.grid(visible=False)


DETACHED = {  # suffix of the columns: label, colour, dash
    "": ("mean detached", VERMILLION, ":"),
    "_scaled": ("mean and deviation detached", ORANGE, "--"),
    "_true": ("neither, as in BN", BLUE, "-"),
}


def detached(bias: Axes, loss: Axes, curves: Frame) -> Frame:
    """Section 2's counter-example: statistics outside the gradient, so that b grows and the loss stays.

    ``curves`` has ``b`` and ``loss`` with the suffixes of :data:`DETACHED`. The size of b is drawn (its sign
    is chance), and each loss over its own at the start; every seed thin, their median strong.
    """
    parts = []
    for place, (suffix, (label, colour, dash)) in enumerate(DETACHED.items()):
        if f"b{suffix}" not in curves:
            continue
        own = curves[["run", "seed", "step"]].assign(setting=label, bias=curves[f"b{suffix}"].abs())
        own["loss"] = curves[f"loss{suffix}"] / curves.groupby("run")[f"loss{suffix}"].transform("first")
        parts.append(own)
        for ax, column in ((bias, "bias"), (loss, "loss")):
            for _, seed in own.groupby("run"):
                ax.plot(seed["step"], seed[column], color=colour, linestyle=dash, linewidth=0.5, alpha=0.45)
            middle = own.groupby("step")[column].median()
            # Where lines lie on each other the broken ones are above, so that all are seen.
            above = 3 - 0.1 * place
            ax.plot(middle.index, middle, color=colour, linestyle=dash, linewidth=1.7, label=label, zorder=above)
            steps_axis(ax)
    bias.set_ylabel("size of the bias b")
    loss.set(ylabel="loss / loss at the start", ylim=(0.0, 2.0))
    return pd.concat(parts, ignore_index=True).drop(columns="run")
