"""Axes with what runs come to: over a number that is swept, at a few settings, on a line each, against a rule.

Every seed is a point and only a bar with caps is an interval. Functions take axes and frames.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator
from matplotlib.transforms import offset_copy

from bn_replication import stats
from bn_replication.figures.frames import setting
from bn_replication.figures.paths import in_percent
from bn_replication.figures.style import (
    AXES,
    GREY,
    OUTCOMES,
    PLAIN,
    PURPLE,
    RINGS,
    WITHIN,
    Frame,
    Look,
    in_order,
    lines_of,
    look_of,
    spoken,
    words,
)


def key_to(
    figure: Figure,
    lines: Sequence[Look],
    runs: Frame,
    marks: Mapping[str, str] | None = None,
    never: bool = False,
    markers: bool = True,
) -> None:
    """Put one legend above all axes of ``figure``: their lines, and the signs among them that need a word."""
    drawn = {
        look.label: Line2D(
            [], [], color=look.colour, linestyle=look.dash, marker=look.marker if markers else "", markersize=4
        )
        for look in lines
    }
    if (runs["status"] == "diverged").any():
        drawn["diverged"] = Line2D([], [], linestyle="", marker="x", color=GREY, markeredgewidth=1.4)
    if never:
        drawn["never reached it"] = Line2D([], [], linestyle="", marker="^", color=GREY, markerfacecolor="white")
    for role in RINGS if marks else ():
        if role in marks.values():  # pyright: ignore[reportOptionalMemberAccess]
            drawn[f"the claim's {role}"] = Line2D([], [], linestyle="", marker="o", **RINGS[role])
    columns = max(1, int(figure.get_figwidth() / 1.35))
    rows = -(-len(drawn) // columns)
    figure.legend(
        list(drawn.values()), list(drawn), loc="outside upper left", ncols=-(-len(drawn) // rows), borderaxespad=0
    )


def response(
    ax: Axes,
    frame: Frame,
    key: str,
    outcome: str = "final",
    marks: Mapping[str, str] | None = None,
    column: str = "accuracy",
) -> Frame:
    """Draw what each run comes to over a swept setting, every seed a point, with an interval of each setting's mean.

    A line joins the medians over the seeds of a norm or variant, and stops where half of them or more diverged or never
    got there: crosses on the floor of the axes, open triangles on their ceiling. The setting's axis is logarithmic if
    it spans a decade; settings too close for a linear one stand at even distances. Rings mark a claim's two sides.

    Args:
        frame: of :func:`ends`.
        outcome: one of :data:`OUTCOMES`.
        marks: of :func:`roles`.
    """
    bases = lines_of(frame, key)
    frame = frame.assign(line=[base.label for base in bases], diverged=frame["status"] == "diverged")
    frame["drawn"] = frame[outcome].where(~frame["diverged"])
    values = sorted(set(frame[key].dropna()))
    positive = [value for value in values if value > 0]
    wide = bool(positive) and max(positive) >= 10 * min(positive)
    close = len(values) > 1 and min(np.diff(values)) < (max(values) - min(values)) / 7
    even = close and not (wide and len(positive) == len(values))
    frame["place"] = frame[key].map({value: i for i, value in enumerate(values)}) if even else frame[key]
    alive = frame["drawn"].dropna()
    lowest, highest = (alive.min(), alive.max()) if len(alive) else (0.0, 1.0)
    room = max(highest - lowest, 1 if outcome == "steps_to" else 0.02)
    floor, ceiling = lowest - 0.12 * room, highest + 0.12 * room
    reach = [lowest - 0.06 * room, highest + 0.06 * room]  # of the axis: what is shifted aside does not widen it
    lines, worst = in_order(bases), np.inf if outcome == "steps_to" else -np.inf
    for i, look in enumerate(lines):
        own = frame.loc[frame["line"] == look.label].sort_values("place")
        lost = own["diverged"] | own["drawn"].isna()
        # Of all seeds: those that are lost lie beyond every other, and where half of them are there is no median.
        middle = own["drawn"].fillna(worst).groupby(own["place"]).median().replace(worst, np.nan)
        ax.plot(middle.index, middle, color=look.colour, linestyle=look.dash, linewidth=1.5, label=look.label)
        # Side by side: seeds and bars of two norms at one setting would hide each other.
        shift, figure = 4 * (i - (len(lines) - 1) / 2), ax.get_figure(root=True)
        beside: Any = offset_copy(ax.transData, figure, x=shift, units="points")
        point: Any = {"color": look.colour, "linestyle": "", "transform": beside}
        ax.plot(own["place"], own["drawn"], marker=look.marker, markersize=4, alpha=0.6, markeredgewidth=0, **point)
        # What ended without a number is stacked beyond those that did, so that it can be counted: five, then the next
        # five further aside.
        died, never = own[own["diverged"]], own[lost & ~own["diverged"]]
        for lot, edge, away, marker in ((died, floor, -1, "x"), (never, ceiling, 1, "^")):
            if len(lot) and (outcome == "steps_to" or lot is died):
                pile, level = np.divmod(lot.groupby("place").cumcount(), 5)
                heights = edge + away * 0.05 * room * level
                for further, stack in lot.assign(height=heights).groupby(pile):
                    at = offset_copy(
                        ax.transData, figure, x=shift + (7 if shift >= 0 else -7) * further, units="points"
                    )
                    mark = point | {"transform": at, "marker": marker, "clip_on": False}
                    ax.plot(stack["place"], stack["height"], markersize=5, markerfacecolor="white", **mark)
                reach.append(heights.max() + 0.06 * room if away > 0 else heights.min() - 0.06 * room)
        for place, seeds in own.groupby("place"):
            low, high = stats.t_interval(seeds["drawn"].dropna(), 0.05)
            if len(seeds) > 2 and not seeds["drawn"].isna().any() and np.isfinite([low, high]).all():
                # Few seeds give wide intervals: they may run off the axes, the seeds may not.
                reach += [max(low, lowest - 0.5 * room), min(high, highest + 0.5 * room)]
                bar: Any = {"fmt": "none", "capsize": 2.5, "linewidth": 0.8, "alpha": 0.75}
                ax.errorbar(
                    [place], [(low + high) / 2], [(high - low) / 2], **bar, ecolor=look.colour, transform=beside
                )
    if marks:
        # In the order of the runs: a set has another order in each process, and so has the file.
        for place, role in dict.fromkeys(zip(frame["place"], frame["run"].map(marks), strict=True)):
            if role in RINGS:
                chosen = frame[(frame["place"] == place) & (frame["run"].map(marks) == role)]
                middle = chosen["drawn"].fillna(worst).median()
                ax.plot(place, min(max(middle, floor), ceiling), "o", **RINGS[role], clip_on=False)
    ax.update_datalim([(place, floor) for place in frame["place"]])  # what was shifted aside was not counted in
    ax.autoscale_view()
    ax.set_ylim(min(reach), max(reach))
    if even:
        ax.set_xticks(range(len(values)), [f"{value:g}" for value in values])
    elif wide:
        ax.set_xscale("log")
        # The settings that were tried are the ticks, as many as have room.
        whole: Any = ax.get_figure(root=True)
        inches = ax.get_position().width * whole.get_figwidth()
        text = 0.08 * sum(len(f"{value:g}") + 1 for value in values)  # of all of them, in inches
        tried = values[:: max(-(-len(values) // 8), math.ceil(text / inches))]
        ax.set_xticks(tried, [f"{value:g}" for value in tried])
        ax.xaxis.set_minor_locator(NullLocator())
    elif len(values) <= 5:
        ax.set_xticks(values, [f"{value:g}" for value in values])
    ax.set(xlabel=AXES.get(key, words(key)), ylabel=OUTCOMES[outcome].format(column.replace("_", " ")))
    if outcome != "steps_to":
        in_percent(ax.yaxis)
        ax.set_yticks([tick for tick in ax.get_yticks() if max(0, min(reach)) <= tick <= max(reach)])  # no accuracy < 0
    keep = ["line", "arm", "seed", key, outcome, "status"]
    return frame[keep].sort_values(["line", key, "seed"])


def slope(ax: Axes, frame: Frame, key: str, order: Sequence[Any], outcome: str, allowed: Any = None) -> Frame:
    """Draw every seed as a line over the few settings of ``key``, left to right in ``order``; their mean is strong.

    A run that diverged is a cross at what it had reached. ``allowed``, a pair of differences from the mean of the first
    setting, shades where a rule wants the mean of the second.
    """
    place = {value: i for i, value in enumerate(order)}
    frame = frame.assign(place=setting(frame, key).map(place)).sort_values("place")
    if allowed is not None:
        middle = frame.loc[frame["place"] == 0, outcome].mean()
        low, high = (middle + edge for edge in allowed)
        ax.fill_between([0.72, 1.28], low, high, color=WITHIN, linewidth=0)
        ax.plot([0, 1.28], [middle] * 2, color="#888888", linewidth=0.6, linestyle=(0, (2, 2)))
    for _, own in frame.groupby("seed"):
        ax.plot(own["place"], own[outcome], color=GREY, linewidth=0.7, alpha=0.6)
    # The mean, as what the claims judge, the mean of the seeds' differences, is the difference of the means.
    middle = frame.groupby("place")[outcome].mean()
    ax.plot(middle.index, middle, color="#1a1a1a", linewidth=1.7)
    for _, row in frame.iterrows():
        look, died = look_of(row), row["status"] == "diverged"
        marker = "x" if died else look.marker
        ax.plot(
            row["place"],
            row[outcome],
            marker,
            color=look.colour,
            markersize=5,
            alpha=0.8,
            markeredgewidth=1.4 if died else 0,
        )
    ax.set_xticks(range(len(order)), [spoken(key, value).replace(" ", "\n") for value in order])
    ax.set_xlim(-0.4, len(order) - 0.6)
    ax.grid(visible=False, axis="x")
    return frame


def dots(ax: Axes, frame: Frame, rows: Mapping[str, Look], value: str, joined: bool = False) -> None:
    """Draw ``value`` of every run on the line of its ``row``, a bar the median over seeds, first row on top.

    ``joined``: a line leads from median to median, where rows are steps of one way.
    """
    middle = []
    for place, (row, look) in enumerate(rows.items()):
        own = frame.loc[frame["row"] == row, value].astype(float)
        ax.plot(own, [place] * len(own), look.marker, color=look.colour, markersize=4, alpha=0.6, markeredgewidth=0)
        # What was never reached lies beyond everything: with half of the seeds there is no median to draw.
        middle.append(own.fillna(np.inf).median())
        middle[-1] = middle[-1] if np.isfinite(middle[-1]) else np.nan
        ax.plot(middle[-1], place, "|", color=look.colour, markersize=11, markeredgewidth=2)
    if joined:
        ax.plot(middle, range(len(rows)), color=GREY, linewidth=0.8, zorder=1)
    ax.set_yticks(range(len(rows)), list(rows))
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.xaxis.set_major_locator(MaxNLocator(5))


def mark_never(ax: Axes, frame: Frame, rows: Mapping[str, Look]) -> None:
    """Mark the runs that never reached a target at the right of the axes, one beside the other."""
    for place, (row, look) in enumerate(rows.items()):
        count = int(frame.loc[frame["row"] == row, "steps_to"].isna().sum())
        for i in range(count):
            ax.plot(
                1.03 + 0.03 * i,
                place,
                ">",
                transform=ax.get_yaxis_transform(),
                color=look.colour,
                markersize=4.5,
                markerfacecolor="white",
                clip_on=False,
            )


def better_half(frame: Frame, key: str, outcome: str) -> tuple[float, float] | None:
    """Return between what the better half of each line's settings lie, if that is little of the whole range."""
    lines = [base.label for base in lines_of(frame, key)]
    middle = frame[outcome].groupby([lines, frame[key]]).median().dropna()
    kept = middle[middle >= middle.groupby(level=0).transform("median")]
    return (kept.min(), kept.max()) if middle.max() - middle.min() > 20 * max(kept.max() - kept.min(), 0.01) else None


def closer(ax: Axes, low: float, high: float) -> None:
    """Narrow axes of :func:`response` to those of its settings that come to ``low`` to ``high``."""
    room = max(high - low, 0.01)
    ax.set_ylim(low - 0.15 * room, high + 0.25 * room)
    ax.yaxis.set_major_locator(MaxNLocator(5))
    ax.set(ylabel="", title="closer")


def singular_values(ax: Axes, rows: Frame, style: Mapping[str, Look]) -> Frame:
    """Draw quantiles of the singular values of each layer's Jacobian, an arm beside the other, medians over seeds.

    Thin: all of them; thick: the middle half; mark: the median.
    """
    every = rows.drop_duplicates("layer")["layer"].tolist()
    names = ["lowest", "p25", "p50", "p75", "highest"]
    table = rows[["arm", "layer", "seed"]].assign(**dict.fromkeys(names, 0.0)).reset_index(drop=True)
    table[names] = np.array(rows["singular_values"].tolist(), float).reshape(-1, len(names))
    middle = table.groupby(["arm", "layer"], sort=False)[names].median().reset_index()
    for i, (arm, look) in enumerate(style.items()):
        own = middle[middle["arm"] == arm]
        at = own["layer"].map(every.index) + 0.3 * (i - (len(style) - 1) / 2)
        ax.vlines(at, own["lowest"], own["highest"], color=look.colour, linewidth=0.8)
        ax.vlines(at, own["p25"], own["p75"], color=look.colour, linewidth=3.5)
        ax.plot(at, own["p50"], look.marker, color="white", markeredgecolor=look.colour, markersize=5, label=look.label)
    ax.axhline(1, color="#888888", linewidth=0.8)
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(PLAIN)
    ax.set_xticks(range(len(every)), [layer.removeprefix("inception").partition(".")[0] for layer in every])
    ax.set_xlim(-0.6, len(every) - 0.4)
    ax.grid(visible=False, axis="x")
    return middle


def effect(
    ax: Axes,
    rows: Sequence[tuple[str, float, float, float]],
    bounds: tuple[float, float],
    kind: str,
    paper: float | None = None,
    plain: Sequence[tuple[float, float] | None] = (),
    what: str = "",
    sides: Sequence[str] = (),
) -> None:
    """Draw intervals against the bounds that decide: within the shade reproduced, outside contradicted.

    Args:
        rows: label, estimate, low, high, in the effect's own unit; infinite ends run off the axis as arrows.
        bounds: in that unit too, open ends infinite.
        kind: ratio, difference or share.
        paper: the paper's number in the same unit, if it prints one.
        plain: of each row the 95% interval that is not adjusted for the number of claims, drawn thick within the other.
        what: what is compared and its unit, if any, for the axis.
        sides: of each row ``at least`` or ``at most`` where its estimate is only a bound, which a hollow tip shows.
    """
    low, high = bounds
    neutral = 1.0 if kind == "ratio" else 0.0
    ends = [v for row in rows for v in row[1:] if np.isfinite(v) and (kind != "ratio" or v > 0)]
    marks = [
        v for v in (*ends, paper, neutral, low, high) if v is not None and np.isfinite(v) and (kind != "ratio" or v > 0)
    ]
    if kind == "ratio":
        ax.set_xscale("log")
        # Beyond four decades an end is as good as unbounded, and the rest stays legible.
        left, right = max(min(marks), 1e-4) / 1.5, min(max(marks), 1e4) * 1.5
    else:
        pad = 0.08 * (max(marks) - min(marks)) or 0.1
        left, right = (min(marks) - pad, max(marks) + pad) if kind == "difference" else (0.0, 1.0)
    ax.set_xlim(left, right)
    ax.axvspan(max(low, left), min(high, right), color="#dcefe7", linewidth=0)
    ax.axvline(neutral, color="#888888", linewidth=0.8)
    for i, (label, estimate, start, end) in enumerate(rows):
        ax.plot([max(start, left), min(end, right)], [i, i], color="#1a1a1a", linewidth=1.4, solid_capstyle="butt")
        inner = plain[i] if i < len(plain) else None
        if inner is not None and max(inner[0], left) < min(inner[1], right):
            within = [max(inner[0], left), min(inner[1], right)]
            ax.plot(within, [i, i], color="#888888", linewidth=5, solid_capstyle="butt", zorder=1.5)
        for at, tip, open_end in ((left, "<", start < left), (right, ">", end > right)):
            if open_end:
                ax.plot(at, i, tip, color="#1a1a1a", markersize=6, clip_on=False)
        if np.isfinite(estimate):
            tip = {"at least": ">", "at most": "<"}.get(sides[i] if i < len(sides) else "", "o")
            inside = "#1a1a1a" if tip == "o" else "white"
            ax.plot(estimate, i, tip, color="#1a1a1a", markerfacecolor=inside, markersize=6, zorder=3)
        ax.text(-0.02, i, label, transform=ax.get_yaxis_transform(), ha="right", va="center", fontsize=8)
    if paper is not None:
        ax.plot(paper, -0.75, "D", color=PURPLE, markersize=6, clip_on=False)
        ax.annotate("paper", (paper, -0.75), (6, 0), textcoords="offset points", va="center", fontsize=8)
    ax.set(yticks=[], ylim=(len(rows) - 0.4, -1.1 if paper is not None else -0.6))
    said = {"ratio": "treatment / control", "difference": "treatment − control", "share": "share of seeds"}[kind]
    ax.set_xlabel(f"{what}, {said}" if what and kind != "share" else said, fontsize=8)
    # Over more than some two and a half decades only their ends have room for a number.
    log = LogLocator(subs=(1, 2, 5) if kind == "ratio" and right / left < 300 else (1,))
    ax.xaxis.set_major_locator(log if kind == "ratio" else MaxNLocator(5))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.4g}"))
    if kind == "ratio":
        ax.xaxis.set_minor_formatter(NullFormatter())
    ax.tick_params(labelsize=8)
    ax.grid(visible=False)
    ax.spines["left"].set_visible(False)
