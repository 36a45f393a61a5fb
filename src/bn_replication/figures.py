"""Figures: tidy frames of records on matplotlib axes, in one style, each with the numbers it was drawn from.

Warm colours are plain networks, cool ones are normalised by batch, in every figure (Okabe & Ito's palette,
told apart by the colour-blind; dashes and markers say the same again). A strong line is the median over
seeds, a thin one is a seed, a band spans the lowest to the highest seed: no seed is hidden, and no interval
is implied. A run that diverges ends at its cross. Functions take axes and frames; :func:`draw_study` decides
which of them a study's records can feed.
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from matplotlib import colors, rc_context
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from bn_replication import metrics
from bn_replication.records import atomic_write, load_activations, load_curves

# Anything to a type checker: pandas annotates each selection as a union of frame, series and array.
Frame: TypeAlias = Any

STYLE: Any = {
    "svg.hashsalt": "bn-replication",  # identifiers, and so the file, depend on the content alone
    "svg.fonttype": "none",  # text stays text: to be searched, read aloud and set in the page's own face
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Helvetica", "Arial"],
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.labelcolor": "#333333",
    "axes.edgecolor": "#888888",
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "xtick.color": "#888888",
    "ytick.color": "#888888",
    "xtick.labelcolor": "#333333",
    "ytick.labelcolor": "#333333",
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.solid_capstyle": "round",
    "figure.constrained_layout.use": True,
    "savefig.dpi": 160,
}
styled = rc_context(STYLE)


@dataclass(frozen=True)
class Look:
    """How one line is drawn, and the key it belongs to in the legend."""

    label: str
    colour: str
    dash: Any = "-"
    marker: str = "o"


VERMILLION, ORANGE, BLUE, SKY, GREEN, PURPLE, GREY = (
    "#D55E00", "#E69F00", "#0072B2", "#56B4E9", "#009E73", "#CC79A7", "#555555"
)  # fmt: skip
NORMS = {
    "none": Look("plain", VERMILLION, "-", "s"),
    "batch": Look("BN", BLUE),
    "reference": Look("BN, our own", BLUE, "--", "D"),
    "batch_no_affine": Look("BN without γ, β", SKY, "-", "v"),
    "layer": Look("layer norm", PURPLE, "-", "^"),
    "group": Look("group norm", PURPLE, "--", "P"),
    "detached": Look("statistics detached", GREY, "--", "X"),
    "tracking": Look("BN, statistics kept", BLUE, ":", "h"),
    "per_activation": Look("BN per activation", SKY, "--", "p"),
    "zca": Look("whitened layers", GREEN, "-", "D"),
}
VARIANTS = {
    "inception": Look("Inception", VERMILLION, "-", "s"),
    "bn_baseline": Look("BN-Baseline", SKY, "-", "o"),
    "bn_x5": Look("BN-x5", BLUE, "-", "^"),
    "bn_x30": Look("BN-x30", GREEN, "-", "D"),
    "bn_x5_sigmoid": Look("BN-x5-Sigmoid", BLUE, "--", "v"),
    "inception_x5": Look("Inception at x5", ORANGE, "-", "P"),
    "inception_sigmoid": Look("Inception-Sigmoid", VERMILLION, "--", "X"),
}
_DASHES = ("-", "--", ":", "-.")
_BAND = "Strong: median over seeds; thin: each seed; band: lowest to highest seed."


# --- records to tidy frames --------------------------------------------------------------------------------


def looks(runs: Frame) -> dict[str, Look]:
    """Return the look of every arm in ``runs`` (rows of one study), in the order a legend should list them.

    An arm is known by its variant, else by its norm; what else its name says is added where arms would share
    a label.
    """
    arms = runs.drop_duplicates("arm").set_index("arm", drop=False)
    bases = {str(arm): _base(row) for arm, row in arms.iterrows()}
    known = _known()
    ordered = sorted(bases, key=lambda arm: (known.index(bases[arm]) if bases[arm] in known else 99, _natural(arm)))
    result = {}
    for arm in ordered:
        base = bases[arm]
        siblings = [other for other in ordered if bases[other] == base]
        if len(siblings) > 1:
            place, last = siblings.index(arm), len(siblings) - 1
            named = _rest(arm)
            # A grid of settings runs from dark to pale; a few arms keep their colour and differ in dash.
            colour = base.colour if last < len(_DASHES) else _shade(base.colour, place / last)
            base = Look(f"{base.label}, {named}", colour, _DASHES[place % len(_DASHES)], base.marker)
        result[arm] = base
    return result


def _rest(arm: str, without: Sequence[str] = ()) -> str:
    """Return what an arm's name says besides its norm, its variant (if that has a look of its own) and ``without``."""
    tokens = [token.partition("=") for token in arm.split(",")]
    kept = [(k, v) for k, _, v in tokens if k not in ("norm", *without) and not (k == "variant" and v in VARIANTS)]
    return ", ".join(_words(v) if k == "variant" else f"{_words(k)} {v}" for k, v in kept)


def _lines(runs: Frame, key: str) -> list[Look]:
    """Return the line that each run belongs to where ``key`` is the axis: its norm or variant, and all else it sets."""
    swept_keys = ("optimizer.rate", "optimizer.multiple") if key == "initial rate" else (key,)
    bases = [_base(row) for _, row in runs.iterrows()]
    rests = [_rest(str(arm), swept_keys) for arm in runs["arm"]]
    dash = {rest: _DASHES[i % len(_DASHES)] for i, rest in enumerate(sorted(set(rests), key=_natural))}
    if len(dash) == 1:
        return bases
    labels = [f"{base.label}, {rest}" if rest else base.label for base, rest in zip(bases, rests, strict=True)]
    return [
        Look(label, base.colour, dash[rest], base.marker)
        for base, rest, label in zip(bases, rests, labels, strict=True)
    ]


def _shade(colour: str, pale: float) -> str:
    """Return ``colour`` darkened (0), itself (0.5) or paled (1)."""
    rgb = np.array(colors.to_rgb(colour))
    mixed = rgb * (0.3 + 1.4 * pale) if pale < 0.5 else rgb + (1 - rgb) * (pale - 0.5) * 1.3
    return colors.to_hex(tuple(mixed.tolist()))


def _base(row: Mapping[str, Any]) -> Look:
    """Return the look of the norm that an arm is named by, else of its variant, else of its norm; else grey.

    A study that sweeps the norm stands on a variant that says nothing of it: every arm's is plain Inception.
    """
    variant, norm = row.get("choice.variant"), row.get("choice.norm")
    named = any(token.startswith("norm=") for token in str(row.get("arm", "")).split(","))
    if variant in VARIANTS and not (named and norm in NORMS):
        return VARIANTS[variant]
    if norm in NORMS:
        return NORMS[norm]
    return Look(str(norm) if isinstance(norm, str) else "run", GREY)


def _known() -> list[Look]:
    return [*VARIANTS.values(), *NORMS.values()]


def _words(key: str) -> str:
    """Return ``model.init_scale`` as ``init scale``."""
    return key.rpartition(".")[2].replace("_", " ")


def _natural(text: str) -> list[Any]:
    """Return a sorting key under which 2 comes before 10."""
    return [(0, float(part), "") if i % 2 else (1, 0.0, part) for i, part in enumerate(re.split(r"(\d+\.?\d*)", text))]


def accuracy(curves: Frame) -> str:
    """Return which held-out accuracy ``curves`` has: the test set's, or a tuning study's on validation images."""
    return (
        "test_accuracy"
        if "test_accuracy" in curves and curves["test_accuracy"].notna().any()
        else "validation_accuracy"
    )


def over_seeds(frame: Frame, column: str) -> Frame:
    """Return the lowest, median and highest seed of ``column`` by arm and step, with the number of seeds."""
    grouped = frame.dropna(subset=[column]).groupby(["arm", "step"], sort=True)[column]
    return grouped.agg(low="min", median="median", high="max", seeds="count").reset_index()


def ends(runs: Frame, curves: Frame) -> Frame:
    """Return one row a run with its last held-out ``accuracy`` and its ``initial rate``."""
    curves = curves.sort_values("step", kind="stable")
    last = curves.dropna(subset=[accuracy(curves)]).groupby("run")[accuracy(curves)].last()
    frame = runs.assign(accuracy=runs["run"].map(last))
    if "optimizer.rate" in frame:
        frame["initial rate"] = frame["optimizer.rate"] * frame.get("optimizer.multiple", 1.0)
    return frame


def swept(runs: Frame) -> str | None:
    """Return the number that a study sweeps: three values or more within a norm or variant; else ``None``."""
    frame = runs.assign(line=[_base(row).label for _, row in runs.iterrows()])
    if {"optimizer.rate", "optimizer.multiple"} <= set(frame):
        frame["initial rate"] = frame["optimizer.rate"] * frame["optimizer.multiple"]
        frame = frame.drop(columns=["optimizer.rate", "optimizer.multiple"])
    outcome = ("summary.", "choice.")
    for key in frame.columns[::-1]:  # derived settings first
        if (
            key in ("seed", "steps_done", "seconds")
            or key.startswith(outcome)
            or not pd.api.types.is_numeric_dtype(frame[key])
        ):
            continue
        if frame.groupby("line")[key].nunique().max() >= 3 and not pd.api.types.is_bool_dtype(frame[key]):
            return key
    return None


def unit_percentiles(activations: Frame) -> Frame:
    """Return p15, p50, p85 of each unit that was probed one by one: one row a run, step, layer and unit."""
    if "units" not in activations:
        return pd.DataFrame(columns=pd.Index(["run", "arm", "seed", "step", "layer", "unit", "p15", "p50", "p85"]))
    parts = []
    rows = activations[activations["units"].map(lambda value: isinstance(value, list))]
    for run, arm, seed, step, layer, units in rows[["run", "arm", "seed", "step", "layer", "units"]].itertuples(
        index=False
    ):
        low, middle, high = np.asarray(units, float)
        part = {
            "run": run,
            "arm": arm,
            "seed": seed,
            "step": step,
            "layer": layer,
            "unit": np.arange(len(middle)),
        }
        parts.append(pd.DataFrame(part | {"p15": low, "p50": middle, "p85": high}))
    return pd.concat(parts, ignore_index=True)


def typical_units(units: Frame) -> dict[str, int]:
    """Return each run's typical unit: the one whose median travels as far as the median unit's does.

    The paper gives no rule. A unit's travel is the range of its median over training; of all units the one of
    median travel is typical (the lower of two), so that neither the calmest nor the wildest sigmoid is shown.
    """
    travel = units.groupby(["run", "unit"])["p50"].agg(lambda p: p.max() - p.min()).reset_index()
    chosen = {}
    for run, own in travel.groupby("run"):
        ranked = own.sort_values(["p50", "unit"])["unit"].to_numpy()
        chosen[str(run)] = int(ranked[(len(ranked) - 1) // 2])
    return chosen


def layer_bands(activations: Frame) -> Frame:
    """Return p15, p50, p85, mean and std of each layer's input, ``depth`` counting layers from 0."""
    depth = {layer: i for i, layer in enumerate(activations.drop_duplicates("layer")["layer"])}
    frame = activations[["run", "arm", "seed", "step", "layer", "mean", "std"]].copy()
    frame["depth"] = frame["layer"].map(depth)
    frame[["p15", "p50", "p85"]] = np.array(activations["percentiles"].tolist(), dtype=float).reshape(-1, 3)
    return frame.astype({"mean": float, "std": float})


# --- one figure's axes -------------------------------------------------------------------------------------


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


def short(number: float) -> str:
    """Return 50000 as ``50K`` and 2100000 as ``2.1M``."""
    for size, letter in ((1e6, "M"), (1e3, "K")):
        if abs(number) >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.3g}"


def learning_curves(ax: Axes, runs: Frame, curves: Frame, column: str) -> Frame:
    """Draw ``column`` over steps, every seed thin, their median strong, their range a band; return medians."""
    style, frame = looks(runs), curves.dropna(subset=[column])
    middle = over_seeds(frame, column)
    diverged = set(runs.loc[runs["status"] == "diverged", "run"])
    for arm, look in style.items():
        own = middle[middle["arm"] == arm]
        if own.empty:
            continue
        ax.fill_between(own["step"], own["low"], own["high"], color=look.colour, alpha=0.13, linewidth=0)
        for run, seed in frame[frame["arm"] == arm].groupby("run"):
            ax.plot(seed["step"], seed[column], color=look.colour, alpha=0.45, linewidth=0.5, linestyle=look.dash)
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
    for arm, look in looks(runs).items():
        step = reached.loc[reached["arm"] == arm, "steps"].fillna(np.inf).median()
        if np.isfinite(step):
            ax.plot(step, target, look.marker, color=look.colour, markersize=7, markeredgecolor="white", zorder=5)
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
    return middle.merge(
        reached.groupby("arm", as_index=False).agg(target=("target", "median"), steps_to_target=("steps", "median")),
        "left",
    )


def steps_to_plain_best(runs: Frame, curves: Frame) -> Frame:
    """Return each run's best accuracy, and the steps to that of its seed's plain Inception (NaN: never)."""
    column = accuracy(curves)
    plain = set(runs.loc[runs["choice.variant"] == "inception", "run"])
    own = {run: frame.sort_values("step") for run, frame in curves.groupby("run")}
    best = {run: metrics.best(frame["step"], frame[column]) for run, frame in own.items()}
    targets = {row.seed: best[row.run] for row in runs.itertuples() if row.run in plain and row.run in best}
    rows = []
    for row in runs[runs["run"].isin(list(own))].itertuples():
        target, frame = targets.get(row.seed, np.nan), own[row.run]
        reached = metrics.steps_to(frame["step"], frame[column], target, row.steps_done)
        steps = np.nan if reached.censored else reached.step
        rows.append(
            {
                "run": row.run,
                "arm": row.arm,
                "seed": row.seed,
                "target": target,
                "steps": steps,
                "best": best[row.run],
            }
        )
    return pd.DataFrame(rows)


def fig3_table(runs: Frame, curves: Frame, paper: Mapping[str, Any]) -> Frame:
    """Return Figure 3 with the paper's numbers beside ours: medians over seeds, ratios of steps in both.

    ``paper`` is the ``fig3`` part of experiments/paper.yaml. Accuracies are fractions, ``times fewer`` is
    Inception's steps to its best over the variant's, a median that is censored (half of the seeds or more
    never got there) is NaN.
    """
    reached = steps_to_plain_best(runs, curves)
    variant = runs.set_index("run")["choice.variant"]
    initial = ends(runs, curves).set_index("run").get("initial rate", pd.Series(dtype=float))
    rows = []
    for name, look in VARIANTS.items():
        given = {key: leaf["value"] for key, leaf in paper.get(name, {}).items()}
        own = reached[reached["run"].map(variant) == name]
        steps = own["steps"].fillna(np.inf).median() if len(own) else np.nan
        rows.append(
            {
                "model": look.label,
                "seeds": len(own),
                "rate, paper": given.get("rate"),
                "rate, ours": initial.reindex(own["run"]).median() if len(own) else np.nan,
                "steps, paper": given.get("steps_to_target"),
                "steps, ours": steps if np.isfinite(steps) else np.nan,
                "reached, ours": int(own["steps"].notna().sum()),
                "accuracy, paper": given.get("accuracy"),
                "accuracy, ours": own["best"].median() if len(own) else np.nan,
            }
        )
    table = pd.DataFrame(rows).set_index("model").astype(float)
    for side in ("paper", "ours"):
        table[f"times fewer, {side}"] = table[f"steps, {side}"].iloc[0] / table[f"steps, {side}"]
    return table.reset_index()


def response(ax: Axes, runs: Frame, curves: Frame, key: str) -> Frame:
    """Draw the accuracy each run ends with over a swept setting, every seed a point.

    A line joins the medians over the seeds of a norm or variant, and stops where half of them or more diverged;
    those are crosses on the floor of the axes. The setting's axis is logarithmic if it spans a decade.
    """
    frame = ends(runs, curves)
    bases = _lines(frame, key)
    frame = frame.assign(line=[base.label for base in bases], diverged=frame["status"] == "diverged")
    frame["drawn"] = frame["accuracy"].where(~frame["diverged"])
    alive = frame["drawn"].dropna()
    floor = alive.min() - 0.1 * max(alive.max() - alive.min(), 0.05) if len(alive) else 0.0
    for look in [look for look in _known() if look in bases] + [
        look for look in dict.fromkeys(bases) if look not in _known()
    ]:
        own = frame.loc[frame["line"] == look.label].sort_values(key)
        middle = own.groupby(key)["drawn"].median().where(own.groupby(key)["diverged"].mean() < 0.5)
        ax.plot(middle.index, middle, color=look.colour, linestyle=look.dash, linewidth=1.5, label=look.label)
        ax.plot(own[key], own["drawn"], look.marker, color=look.colour, markersize=4, alpha=0.6, markeredgewidth=0)
        died = own.loc[own["diverged"], key]
        ax.plot(died, [floor] * len(died), "x", color=look.colour, markersize=6, markeredgewidth=1.4)
    handles, labels = ax.get_legend_handles_labels()
    if frame["diverged"].any():
        handles.append(Line2D([], [], linestyle="", marker="x", color=GREY, markeredgewidth=1.4))
        labels.append("diverged")
    ax.legend(handles, labels, loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=4 if len(handles) < 5 else 2)
    values = frame[key].dropna()
    if (values > 0).all() and values.max() >= 10 * values.min():
        ax.set_xscale("log")
        # The settings that were tried are the ticks, as many as have room.
        tried = sorted(set(values))[:: -(-values.nunique() // 8)]
        ax.set_xticks(tried, [f"{value:g}" for value in tried])
        ax.xaxis.set_minor_locator(NullLocator())
    ax.set(xlabel=_words(key), ylabel="accuracy at the end")
    return frame[["line", "arm", "seed", key, "accuracy", "status"]].sort_values(["line", key, "seed"])


def usable_rates(runs: Frame, curves: Frame, chance: float = 0.1, keep: float = 0.8) -> Frame:
    """Return each net's usable range of rates, one row a net and seed, as the claim ``rate-range`` measures it.

    ``decades`` is how far apart the ends lie at which a net keeps ``keep`` of its own best gain over ``chance``;
    ``at least`` says that the range runs off the grid.
    """
    frame = _finals(runs, curves, chance).sort_values("choice.norm", ascending=False, kind="stable")  # plain first
    rows = []
    for (net, seed), own in frame.groupby(["net", "seed"], sort=False):
        own = own.sort_values("initial rate")
        grid, finals = own["initial rate"].tolist(), own["final"].tolist()
        width = metrics.usable_width(grid, finals, chance, keep)
        row = {"net": net, "seed": seed, "decades": width.decades, "at least": width.censored}
        rows.append(row | {"best rate": grid[int(np.argmax(finals))], "accuracy there": max(finals)})
    return pd.DataFrame(rows)


def _finals(runs: Frame, curves: Frame, chance: float) -> Frame:
    """Return ``runs`` with their ``net``, ``initial rate`` and ``final`` accuracy, which is chance if diverged."""
    column = accuracy(curves)
    own = {run: frame.sort_values("step") for run, frame in curves.groupby("run")}
    frame = ends(runs[runs["run"].isin(list(own))], curves)
    finals = [
        chance
        if row.status == "diverged"
        else metrics.final(own[row.run]["step"], own[row.run][column], row.steps_done)
        for row in frame.itertuples()
    ]
    return frame.assign(net=[look.label for look in _lines(frame, "initial rate")], final=finals)


def speed_at_best_rates(runs: Frame, curves: Frame, chance: float = 0.1) -> Frame:
    """Return how many times fewer steps BN needs to the plain net's best, by the rate that BN is given.

    The plain net always has its own best rate. A seed's best rates are those of the *other* seeds' median, so that
    no run is chosen by its own luck. Rows: BN at the plain net's rate, at the rates of the grid nearest to 5 and 30
    times that, and at its own best. Ratios are medians over seeds; ``each seed`` lists them, ``never`` where BN did
    not get there.
    """
    frame, column = _finals(runs, curves, chance), accuracy(curves)
    own = {run: part.sort_values("step") for run, part in curves.groupby("run")}
    found: dict[str, list[dict[str, Any]]] = {}
    for seed in sorted(set(frame["seed"])):
        others = frame[frame["seed"] != seed] if len(set(frame["seed"])) > 1 else frame
        best = {
            norm: float(part.groupby("initial rate")["final"].median().idxmax())
            for norm, part in others.groupby("choice.norm")
        }
        if not {"none", "batch"} <= set(best):
            continue
        grid = np.array(sorted(set(frame.loc[frame["choice.norm"] == "batch", "initial rate"])))
        chosen = {"at the plain net's rate": best["none"]}
        for times in (5, 30):
            nearest = float(grid[np.abs(np.log(grid / (times * best["none"]))).argmin()])
            chosen[f"at the rate nearest to {times}x that"] = nearest
        chosen["at its own best rate"] = best["batch"]
        plain = _one(frame, "none", seed, best["none"])
        if plain is None:
            continue
        target = metrics.best(own[plain.run]["step"], own[plain.run][column])
        base = metrics.steps_to(own[plain.run]["step"], own[plain.run][column], target, plain.steps)
        for label, rate in chosen.items():
            if (run := _one(frame, "batch", seed, rate)) is not None:
                reached = metrics.steps_to(own[run.run]["step"], own[run.run][column], target, run.steps)
                times = np.nan if reached.censored else base.step / reached.step
                peak = metrics.best(own[run.run]["step"], own[run.run][column])
                row = {"plain rate": best["none"], "BN rate": rate, "times": times, "gain": peak - target}
                found.setdefault(label, []).append(row)
    rows = []
    for label, each in found.items():
        times = [row["times"] for row in each]
        middle = float(np.median([0.0 if np.isnan(t) else t for t in times]))
        spoken = ["never" if np.isnan(t) else f"{t:.2g}x" for t in times]
        row = {"BN": label, **{key: float(np.median([r[key] for r in each])) for key in ("plain rate", "BN rate")}}
        rows.append(row | {"times fewer": middle or np.nan, "each seed": ", ".join(spoken)})
        rows[-1]["gain in best accuracy"] = float(np.median([r["gain"] for r in each]))
    return pd.DataFrame(rows)


def _one(frame: Frame, norm: str, seed: Any, rate: float) -> Any:
    """Return the run of that norm, seed and rate, or ``None``."""
    chosen = frame[(frame["choice.norm"] == norm) & (frame["seed"] == seed) & np.isclose(frame["initial rate"], rate)]
    return next(chosen.itertuples(), None)


def arm_ends(ax: Axes, runs: Frame, curves: Frame) -> Frame:
    """Draw the accuracy that every run of every arm ends with, one line an arm; a bar is the median over seeds."""
    frame, style = ends(runs, curves), looks(runs)
    for place, (arm, look) in enumerate(style.items()):
        own = frame[(frame["arm"] == arm) & (frame["status"] != "diverged")]
        ax.plot(own["accuracy"], [place] * len(own), look.marker, color=look.colour, markersize=4, alpha=0.6)
        if len(own):
            ax.plot(own["accuracy"].median(), place, "|", color=look.colour, markersize=13, markeredgewidth=2)
    ax.set_yticks(range(len(style)), [look.label for look in style.values()])
    ax.set(ylim=(len(style) - 0.4, -0.6), xlabel="accuracy at the end")
    return frame[["arm", "seed", "accuracy", "status"]].sort_values(["arm", "seed"])


def layer_band(ax: Axes, bands: Frame, look: Look) -> None:
    """Draw one layer's input over (log) steps: the median, and the 15th to 85th percentile as a band."""
    own = bands.groupby("step")[["p15", "p50", "p85"]].median()
    ax.fill_between(own.index, own["p15"], own["p85"], color=look.colour, alpha=0.25, linewidth=0)
    ax.plot(own.index, own["p50"], color=look.colour, linewidth=1.2)
    steps_axis(ax, log=True)


def _some(arms: list[str], most: int = 8) -> list[str]:
    """Return at most so many of ``arms``, evenly chosen, the first and the last among them."""
    chosen = np.unique(np.linspace(0, len(arms) - 1, min(most, len(arms))).round().astype(int)).tolist()
    return [arms[i] for i in chosen]


def depth_map(ax: Axes, bands: Frame, column: str, norm: colors.Normalize, cmap: str) -> None:
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
    "": ("mean detached", VERMILLION, "-"),
    "_scaled": ("mean and deviation detached", ORANGE, "--"),
    "_true": ("neither, as in BN", BLUE, "-"),
}


def detached(bias: Axes, loss: Axes, curves: Frame) -> Frame:
    """Section 2's counter-example: statistics outside the gradient, so that b grows and the loss stays.

    ``curves`` has ``b`` and ``loss`` with the suffixes of :data:`DETACHED`. The size of b is drawn (its sign
    is chance), and each loss over its own at the start; every seed thin, their median strong.
    """
    parts = []
    for suffix, (label, colour, dash) in DETACHED.items():
        if f"b{suffix}" not in curves:
            continue
        own = curves[["run", "seed", "step"]].assign(setting=label, bias=curves[f"b{suffix}"].abs())
        own["loss"] = curves[f"loss{suffix}"] / curves.groupby("run")[f"loss{suffix}"].transform("first")
        parts.append(own)
        for ax, column in ((bias, "bias"), (loss, "loss")):
            for _, seed in own.groupby("run"):
                ax.plot(seed["step"], seed[column], color=colour, linestyle=dash, linewidth=0.5, alpha=0.45)
            middle = own.groupby("step")[column].median()
            ax.plot(middle.index, middle, color=colour, linestyle=dash, linewidth=1.7, label=label)
            steps_axis(ax)
    bias.set_ylabel("size of the bias b")
    loss.set(ylabel="loss / loss at the start", ylim=(0.0, 2.0))
    return pd.concat(parts, ignore_index=True).drop(columns="run")


def effect(
    ax: Axes,
    rows: Sequence[tuple[str, float, float, float]],
    bounds: tuple[float, float],
    kind: str,
    paper: float | None = None,
) -> None:
    """Draw intervals against the bounds that decide: within the shade reproduced, outside contradicted.

    Args:
        rows: label, estimate, low, high, in the effect's own unit; infinite ends run off the axis as arrows.
        bounds: in that unit too, open ends infinite.
        kind: ratio, difference or share.
        paper: the paper's number in the same unit, if it prints one.
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
        ax.plot([max(start, left), min(end, right)], [i, i], color="#1a1a1a", linewidth=2, solid_capstyle="butt")
        for at, tip, open_end in ((left, "<", start < left), (right, ">", end > right)):
            if open_end:
                ax.plot(at, i, tip, color="#1a1a1a", markersize=6, clip_on=False)
        if np.isfinite(estimate):
            ax.plot(estimate, i, "o", color="#1a1a1a", markersize=6, zorder=3)
        ax.text(-0.02, i, label, transform=ax.get_yaxis_transform(), ha="right", va="center", fontsize=8)
    if paper is not None:
        ax.plot(paper, -0.75, "D", color=PURPLE, markersize=6, clip_on=False)
        ax.annotate("paper", (paper, -0.75), (6, 0), textcoords="offset points", va="center", fontsize=8)
    ax.set(yticks=[], ylim=(len(rows) - 0.4, -1.1 if paper is not None else -0.6))
    ax.set_xlabel(
        {"ratio": "treatment / control", "difference": "treatment − control", "share": "share of seeds"}[kind],
        fontsize=8,
    )
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if kind == "ratio" else MaxNLocator(5))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.4g}"))
    if kind == "ratio":
        ax.xaxis.set_minor_formatter(NullFormatter())
    ax.tick_params(labelsize=8)
    ax.grid(visible=False)
    ax.spines["left"].set_visible(False)


# --- whole figures, and where they go ----------------------------------------------------------------------


@dataclass(frozen=True)
class Drawing:
    """A finished figure: file name, title, what a reader must know, and the frame it was drawn from."""

    name: str
    title: str
    caption: str
    figure: Figure
    frame: Frame


def draw_study(runs: Frame) -> list[Drawing]:
    """Return every figure that the records of one study at one scale can feed, the most telling first."""
    curves, activations = load_curves(runs), load_activations(runs)
    drawings: list[Drawing | None] = []
    if "units" in activations and swept(runs) is None:
        drawings += [draw_fig1a(runs, curves), draw_fig1bc(runs, activations)]
    elif "choice.variant" in runs and {"inception", "bn_baseline"} <= set(runs["choice.variant"]):
        drawings += [draw_fig2(runs, curves)]
    if {"b", "loss"} <= set(curves):
        drawings += [draw_detached(curves)]
    elif accuracy(curves) in curves:
        drawings += [draw_response(runs, curves), draw_ends(runs, curves), draw_curves(runs, curves)]
    drawings += [draw_layers(runs, activations), draw_depth(runs, activations)]
    return [drawing for drawing in drawings if drawing is not None]


@styled
def draw_fig1a(runs: Frame, curves: Frame) -> Drawing:
    figure = Figure(figsize=(5.2, 3.2))
    frame = fig1a(figure.add_subplot(), runs, curves)
    return Drawing("fig1a", "Figure 1a: test accuracy", f"In the paper's axes. {_BAND}", figure, frame)


@styled
def draw_fig1bc(runs: Frame, activations: Frame) -> Drawing | None:
    """Figure 1b and 1c, and below them the same over all units of the layer."""
    units, style = unit_percentiles(activations), looks(runs)
    arms = [arm for arm in style if arm in set(units["arm"])]
    if not arms:
        return None
    figure = Figure(figsize=(max(2.9 * len(arms), 3.2), 4.4))
    grid = figure.subplots(2, len(arms), sharex=True, sharey=True, squeeze=False)
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
    figure.supylabel("input of a last-layer sigmoid", fontsize=9)
    return Drawing(
        "fig1bc",
        "Figures 1b and 1c: what the last hidden layer's sigmoids receive",
        "The 15th, 50th and 85th percentiles over training, in the paper's axes. Top: the typical unit, "
        "which is the one whose median travels as far as the median unit's does; the first seed strong, the "
        "others thin. Bottom: each percentile's median over all units and seeds, in a band that holds 70% of them.",
        figure,
        pd.concat(frames, ignore_index=True).drop(columns=["run", "layer"]),
    )


@styled
def draw_fig2(runs: Frame, curves: Frame) -> Drawing:
    figure = Figure(figsize=(6.8, 3.6))
    frame = fig2(figure.add_subplot(), runs, curves)
    return Drawing(
        "fig2",
        "Figure 2: accuracy of Inception and its batch-normalised variants",
        f"{_BAND} Markers: median steps to the plain net's best accuracy (dashed). A cross: diverged there.",
        figure,
        frame,
    )


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
        if column == "train_loss" and (curves[column].dropna() > 0).all():
            ax.set_yscale("log")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(3, arms))
    return Drawing("curves", "Learning curves", f"{_BAND} A cross: the run diverged there.", figure, pd.concat(frames))


@styled
def draw_response(runs: Frame, curves: Frame) -> Drawing | None:
    key = swept(runs)
    if key is None:
        return None
    if key == "initial rate":
        runs = ends(runs, curves)
    figure = Figure(figsize=(5.2, 3.2))
    frame = response(figure.add_subplot(), runs, curves, key)
    caption = "A point is a run, a line joins medians over seeds; crosses on the floor are runs that diverged."
    return Drawing("response", f"Accuracy at the end over {_words(key)}", caption, figure, frame)


@styled
def draw_ends(runs: Frame, curves: Frame) -> Drawing | None:
    """Where each arm ends: of studies whose arms are no points on one axis."""
    arms = len(looks(runs))
    if swept(runs) is not None or arms < 4:
        return None
    figure = Figure(figsize=(5.6, 0.9 + 0.26 * arms))
    frame = arm_ends(figure.add_subplot(), runs, curves)
    return Drawing(
        "ends", "Accuracy at the end, arm by arm", "A point is a run, a bar an arm's median over seeds.", figure, frame
    )


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
    figure.supxlabel("training steps (log)", fontsize=8)
    return Drawing(
        "layers",
        "What the nonlinearities receive, layer by layer",
        "From the input (top) to the output (bottom), evenly chosen in depth. Line: median; band: 15th to "
        "85th percentile; of both the median over seeds. A row shares its axis.",
        figure,
        bands[bands["layer"].isin(layers) & bands["arm"].isin(arms)]
        .groupby(["arm", "layer", "step"], sort=False, as_index=False)[["p15", "p50", "p85"]]
        .median(),
    )


@styled
def draw_depth(runs: Frame, activations: Frame) -> Drawing | None:
    """Heat maps over depth and time: centre and spread of what every layer's nonlinearity receives."""
    if activations.empty or activations["layer"].nunique() < 5:
        return None
    bands, style = layer_bands(activations), looks(runs)
    arms = _some([arm for arm in style if arm in set(bands["arm"])])
    bands = bands[bands["arm"].isin(arms)]
    reach = max(float(bands["p50"].abs().quantile(0.98)), 1e-6)
    spread = bands.loc[bands["std"] > 0, "std"]
    low, high = (float(q) for q in spread.quantile([0.02, 0.98])) if len(spread) else (0.1, 1.0)
    scales = {
        "p50": (colors.Normalize(-reach, reach), "PuOr", "median"),
        "std": (colors.LogNorm(low, max(high, low * 1.01)), "cividis", "standard deviation"),
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
        figure.colorbar(
            ScalarMappable(norm, cmap), ax=grid[row].tolist(), label=label, extend="both", aspect=30, pad=0.01
        )
    grid[0, 0].set_ylim(bands["depth"].max() + 1, 0)
    figure.supxlabel("training steps, as probed", fontsize=8)
    return Drawing(
        "depth",
        "Every layer over training",
        "Each row of a map is a layer, the input at the top; colour is the median (top) or the standard "
        "deviation (bottom) of what its nonlinearity receives, the median over seeds. The ends of a scale "
        "hold what lies beyond them, 2% of the values. Of more than eight arms, eight, evenly chosen.",
        figure,
        bands.groupby(["arm", "depth", "layer", "step"], as_index=False)[["p50", "std"]].median(),
    )


@styled
def draw_detached(curves: Frame) -> Drawing:
    figure = Figure(figsize=(6.8, 3.0))
    bias, loss = figure.subplots(1, 2)
    frame = detached(bias, loss, curves.dropna(subset=["b", "loss"]))
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    caption = "Section 2: with the mean outside the gradient, every step moves b and none the loss."
    return Drawing("detached", "Statistics outside the gradient", caption, figure, frame)


@styled
def draw_effect(
    rows: Sequence[tuple[str, float, float, float]],
    bounds: tuple[float, float],
    kind: str,
    paper: float | None = None,
) -> Figure:
    figure = Figure(figsize=(4.4, 0.62 + 0.26 * len(rows) + (0.18 if paper is not None else 0)))
    effect(figure.add_subplot(), rows, bounds, kind, paper)
    return figure


@styled
def render(figure: Figure, kind: str = "svg") -> bytes:
    """Return ``figure`` as the bytes of an SVG or PNG that depend on nothing but what it shows."""
    buffer = io.BytesIO()
    # Neither a date nor a version: the same numbers make the same file.
    metadata: Any = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
    figure.savefig(buffer, format=kind, metadata=metadata)
    if kind != "svg":
        return buffer.getvalue()

    def shorten(tag: re.Match[bytes]) -> bytes:
        return re.sub(rb"\d+\.\d{3,}", lambda number: b"%.2f" % float(number[0]), tag[0])

    # A hundredth of a point is finer than any printer, and half the bytes. In tags only: text stays.
    return re.sub(rb"<[^>]*>", shorten, buffer.getvalue())


def save(drawing: Drawing, directory: Path, kinds: Sequence[str] = ("svg", "png")) -> None:
    """Write ``drawing`` to ``directory`` in each of ``kinds``, and what it was drawn from as CSV."""
    directory.mkdir(parents=True, exist_ok=True)
    for kind in kinds:
        atomic_write(directory / f"{drawing.name}.{kind}", render(drawing.figure, kind))
    table = drawing.frame.to_csv(index=False, float_format="%.4g", lineterminator="\n")
    atomic_write(directory / f"{drawing.name}.csv", table.encode())
