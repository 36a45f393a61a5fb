"""Figures of the studies beyond the paper that measure something besides accuracy.

Each returns ``None`` if a study's records do not hold what it shows.
"""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from bn_replication.figures.files import Drawing
from bn_replication.figures.outcomes import key_to
from bn_replication.figures.paths import learning_curves, where_diverged
from bn_replication.figures.style import AXES, BAND, Frame, in_order, look_of, looks, plain_log, spoken, styled

LANDSCAPE = {
    "landscape_loss_range": "range of the loss, nats",
    "landscape_gradient_change_relative": "change of the gradient / its length",
}


@styled
def draw_landscape(runs: Frame, curves: Frame) -> Drawing | None:
    """How much loss and gradient change along the gradient, over training."""
    if not set(LANDSCAPE) <= set(curves) or curves[list(LANDSCAPE)].isna().all(axis=None):
        return None
    figure, frames = Figure(figsize=(6.8, 3.2)), []
    for ax, (column, label) in zip(figure.subplots(1, 2), LANDSCAPE.items(), strict=True):
        # A loss that does not change at all has no place on a logarithmic axis.
        shown = curves.assign(**{column: curves[column].where(curves[column] > 0)})
        frames.append(learning_curves(ax, runs, shown, column).assign(column=column))
        ax.set(ylabel=label, yscale="log")
        plain_log(ax.yaxis, *ax.get_ylim())
    key_to(figure, list(looks(runs).values()), runs, markers=False)
    return Drawing(
        "landscape",
        "Loss and gradient along the gradient",
        f"From where training stands, half a step to four steps against the gradient of a fixed batch. Left: the "
        f"highest less the lowest loss met; right: how far, at most, the gradient moves from the one set out with. "
        f"Lower is smoother. {BAND}{where_diverged(runs)}",
        figure,
        pd.concat(frames, ignore_index=True),
    )


@styled
def draw_gradient_ratio(runs: Frame) -> Drawing | None:
    """The first layer's gradient over the last hidden one's, over depth; a panel for each nonlinearity."""
    column = "summary.gradient_ratio"
    if not {column, "model.depth", "choice.norm"} <= set(runs) or runs["model.depth"].nunique() < 2:
        return None
    acts = sorted(set(runs["model.act"]))
    figure = Figure(figsize=(6.8 if len(acts) > 1 else 4.4, 3.2))
    grid = figure.subplots(1, len(acts), squeeze=False)[0]  # orders of magnitude apart: each has its own axis
    runs = runs.assign(line=[look_of(row) for _, row in runs.iterrows()])
    depths, lines, frames = sorted(set(runs["model.depth"])), in_order(runs["line"]), []
    for ax, act in zip(grid, acts, strict=True):
        own = runs[runs["model.act"] == act]
        for look in lines:
            part = own[own["line"] == look]
            ax.plot(
                part["model.depth"], part[column], look.marker,
                color=look.colour, markersize=4, alpha=0.5, markeredgewidth=0,
            )  # fmt: skip
            middle = part.groupby("model.depth")[column].median()
            ax.plot(middle.index, middle, color=look.colour, linestyle=look.dash, linewidth=1.5)
        ax.axhline(1, color="#888888", linewidth=0.8, linestyle=(0, (4, 3)))
        ax.set(title=spoken("model.act", act), xlabel=AXES["model.depth"], xscale="log", yscale="log")
        ax.set_xticks(depths, [f"{depth:g}" for depth in depths])
        ax.xaxis.set_minor_locator(NullLocator())
        plain_log(ax.yaxis, *ax.get_ylim())
        frames.append(own[["model.act", "choice.norm", "model.depth", "seed", column]])
    grid[0].set_ylabel("gradient, first layer's / last hidden one's")
    key_to(figure, lines, runs)
    table = pd.concat(frames).sort_values(["model.act", "choice.norm", "model.depth", "seed"])
    return Drawing(
        "gradients",
        "Gradients at initialization, first layer over last",
        "Root mean square over a layer's weights, at the first step. A point is a run, a line joins medians over "
        "seeds; dashed: as large in the first layer as in the last. Above it gradients grow on their way to the "
        "input, below it they vanish.",
        figure,
        table.rename(columns={column: "gradient_ratio"}),
    )
