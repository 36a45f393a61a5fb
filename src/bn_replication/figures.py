"""Figures: tidy frames of records on matplotlib axes, in one style, each with the numbers it was drawn from.

Warm colours are plain networks, cool ones are normalised by batch, in every figure (Okabe & Ito's palette,
told apart by the colour-blind; dashes and markers say the same again). A strong line is the median over
seeds, a thin one is a seed, a band spans the lowest to the highest seed: no seed is hidden, and only a bar with
caps is an interval. A run that diverges ends at its cross. Functions take axes and frames; :func:`draw_study` decides
which of them a study's records can feed, and which settings to mark by the claims of the ledger that it decides.
"""

from __future__ import annotations

import argparse
import gzip
import io
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
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
from matplotlib.transforms import offset_copy

from bn_replication import metrics, stats
from bn_replication.claims import select
from bn_replication.errors import UserError, nearest, one_line
from bn_replication.ledger import Entry, StepsTo, load_ledger
from bn_replication.records import atomic_write, load_activations, load_curves, load_runs

LARGE_TABLE = 100_000  # bytes of CSV; pandas reads a packed one as it is

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
    "batch_no_affine": Look("BN without γ, β", SKY, "-.", "v"),
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
INPUTS = {  # all feed plain nets, so none is cool
    "unit": Look("raw", GREY, "-", "o"),
    "centered": Look("centred", ORANGE, "--", "^"),
    "decorrelated": Look("decorrelated", PURPLE, "-.", "D"),
    "whitened": Look("whitened", VERMILLION, "-", "s"),
}
CHANGES = {  # Sec. 4.2.1's seven in the paper's order, as variants spell them: BN-Baseline with it, BN-x5 without it
    "rate": ("5 times the rate", "at the base rate"),
    "dropout": ("no dropout", "with dropout"),
    "l2": ("a fifth of the L2 weight", "with the full L2 weight"),
    "decay": ("decay 6 times faster", "with the slow decay"),
    "lrn": ("no LRN", "with LRN"),
    "shuffling": ("shuffling within shards", "with the same batches always"),
    "photometric": ("half the distortion", "with the full distortion"),
}
AXES = {  # of a setting's axis; any other is its key in words
    "model.dropout": "dropout, share of units",
    "model.lrn": "local response normalization",
    "model.placement": "place of BN, relative to the nonlinearity",
    "model.init_scale": "scale of the initial weights, times He's",
    "optimizer.l2_multiple": "L2 weight, times the baseline's",
    "schedule.speed": "decay of the rate, times the baseline's",
    "augment.strength": "photometric distortion, times the baseline's",
    "data.order": "order of the examples",
    "norm": "normalization",
    "batch_size": "training batch, images",
}
NAMED = {"relu": "ReLU", "sigmoid": "sigmoid", "mnist": "MNIST", "cifar10": "CIFAR-10"}  # values that need no key
OUTCOMES = {  # what a run comes to: best and final are shares, drawn in per cent
    "best": "best {}, %",
    "final": "{} at the end, %",
    "steps_to": "steps to the control's best",
}
PERCENT = FuncFormatter(lambda share, _: f"{100 * share:.4g}")
PLAIN = FuncFormatter(lambda value, _: f"{value:g}")
_DASHES = ("-", "--", ":", "-.")
_BAND = "Strong: median over seeds; thin: each seed; band: lowest to highest seed."
_BARS = "Caps: 95% interval of the mean over seeds (Student's t); few seeds give wide ones, which may run off the axes."
WITHIN = "#dcefe7"  # the shade of what a rule allows


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
    return ", ".join(_words(v) if k == "variant" else NAMED.get(v, f"{_words(k)} {v}") for k, v in kept)


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
    if isinstance(variant, str) and variant.startswith("member_"):  # one of Figure 4's six
        place = int(variant.rpartition("_")[2]) - 1
        return Look(_words(variant), (BLUE, SKY, GREEN)[place % 3], _DASHES[place // 3 % 4], "os^Dvp"[place % 6])
    if norm in NORMS:
        return NORMS[norm]
    return Look(str(norm) if isinstance(norm, str) else "run", GREY)


def _legend(found: Sequence[Look]) -> list[Look]:
    """Return each look once, in the order a legend should list them."""
    known = [look.label for look in _known()]

    def place(look: Look) -> int:
        fitting = [label for label in known if f"{look.label}, ".startswith(f"{label}, ")]
        return known.index(max(fitting, key=len)) if fitting else len(known)

    return sorted(dict.fromkeys(found), key=place)


def _known() -> list[Look]:
    return [*VARIANTS.values(), *NORMS.values()]


def _words(key: str) -> str:
    """Return ``model.init_scale`` as ``init scale``."""
    return key.rpartition(".")[2].replace("_", " ")


def spoken(key: str, value: Any) -> str:
    """Return the value of a setting as a tick or a title says it."""
    if key == "norm" and value in NORMS:
        return NORMS[value].label
    if isinstance(value, bool | np.bool_):
        return "on" if value else "off"
    if key == "optimizer.multiple":
        return f"x{value:g}"
    return NAMED.get(value, value).replace("_", " ") if isinstance(value, str) else f"{_words(key)} {value:g}"


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


def ends(runs: Frame, curves: Frame, targets: Mapping[Any, float] | None = None) -> Frame:
    """Return ``runs`` with what the claims read off a curve: ``best`` and ``final`` held-out accuracy, ``steps_to``.

    ``steps_to`` is to the accuracy that ``targets`` has for the seed, NaN if never reached. An ``initial rate`` is
    added where the runs have a rate.
    """
    column = accuracy(curves)
    own = {run: part.sort_values("step", kind="stable") for run, part in curves.groupby("run")}
    found = []
    for run, seed, budget in runs[["run", "seed", "steps_done"]].itertuples(index=False):
        if run not in own:
            found.append((np.nan, np.nan, np.nan))
            continue
        at, value = own[run]["step"], own[run][column]
        reached = metrics.steps_to(at, value, (targets or {}).get(seed, np.nan), budget)
        steps = np.nan if reached.censored else reached.step
        found.append((metrics.best(at, value), metrics.final(at, value, budget), steps))
    frame = runs.copy()
    frame[["best", "final", "steps_to"]] = np.array(found, float).reshape(-1, 3)
    if "optimizer.rate" in frame:
        frame["initial rate"] = frame["optimizer.rate"] * frame.get("optimizer.multiple", 1.0)
    return frame


def axes_of(runs: Frame) -> list[str]:
    """Return the keys that a study sweeps: those on which the names of its arms differ."""
    parts = [[token.partition("=") for token in str(arm).split(",")] for arm in runs["arm"].unique()]
    named = [{key: value for key, _, value in tokens} for tokens in parts]
    keys = list(dict.fromkeys(key for tokens in named for key in tokens))
    return [key for key in keys if len({tokens.get(key) for tokens in named}) > 1]


def setting(runs: Frame, key: str) -> Frame:
    """Return each run's value of ``key``: its choice of that group, or else its configuration's."""
    return runs[f"choice.{key}" if f"choice.{key}" in runs else key]


def questions(runs: Frame, ledger: Mapping[str, Entry]) -> list[Entry]:
    """Return the claims that a study decides by holding runs against each other."""
    studies = set(runs["study"])
    return [entry for entry in ledger.values() if entry.study in studies and entry.kind == "empirical"]


def roles(runs: Frame, entries: Sequence[Entry]) -> dict[str, str]:
    """Return which runs are the ``control`` and which the ``treatment`` of a claim, by run."""
    rows = runs.to_dict("records")
    sides = [(role, arm) for entry in entries for role, arm in _sides(entry).items()]
    return {run["run"]: role for role, arm in sides for run in select(rows, arm)}


def _sides(entry: Entry) -> dict[str, Any]:
    return {"control": entry.control, "treatment": entry.treatment} if entry.control else {"treatment": entry.treatment}


def targets(runs: Frame, curves: Frame, entries: Sequence[Entry]) -> dict[Any, float]:
    """Return by seed the accuracy that a claim on steps times its runs to: the best of its control, or else target."""
    for entry in entries:
        if isinstance(entry.metric, StepsTo):
            aimed = {run["run"] for run in select(runs.to_dict("records"), entry.metric.target or entry.control or {})}
            frame = ends(runs[runs["run"].isin(aimed)], curves)
            return dict(zip(frame["seed"], frame["best"], strict=True))
    return {}


def swept(runs: Frame) -> str | None:
    """Return the number that a study sweeps: three values or more within a norm or variant; else ``None``."""
    frame = runs.assign(line=[_base(row).label for _, row in runs.iterrows()]).infer_objects()
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


def in_percent(axis: Any) -> None:
    """Let an axis of accuracies as shares say per cent."""
    axis.set_major_formatter(PERCENT)
    said = axis.label.get_text().removesuffix(", %")
    axis.set_label_text(f"{said}, %" if said else "")


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
    bases = _lines(frame, key)
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
    lines = _legend(bases)
    for i, look in enumerate(lines):
        own = frame.loc[frame["line"] == look.label].sort_values("place")
        lost = own["diverged"] | own["drawn"].isna()
        alike = own.assign(lost=lost).groupby("place")
        middle = alike["drawn"].median().where(alike["lost"].mean() < 0.5)
        ax.plot(middle.index, middle, color=look.colour, linestyle=look.dash, linewidth=1.5, label=look.label)
        # Side by side: seeds and bars of two norms at one setting would hide each other.
        shift, figure = 4 * (i - (len(lines) - 1) / 2), ax.get_figure(root=True)
        beside: Any = offset_copy(ax.transData, figure, x=shift, units="points")
        point: Any = {"color": look.colour, "linestyle": "", "transform": beside}
        ax.plot(own["place"], own["drawn"], marker=look.marker, markersize=4, alpha=0.6, markeredgewidth=0, **point)
        # What ended without a number is stacked beyond those that did, so that it can be counted.
        died, never = own[own["diverged"]], own[lost & ~own["diverged"]]
        for lot, edge, away, marker in ((died, floor, -1, "x"), (never, ceiling, 1, "^")):
            if len(lot) and (outcome == "steps_to" or lot is died):
                heights = edge + away * 0.05 * room * lot.groupby("place").cumcount()
                ax.plot(lot["place"], heights, marker=marker, markersize=5, markerfacecolor="white", **point)
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
        for place, role in set(zip(frame["place"], frame["run"].map(marks), strict=True)):
            if role in RINGS:
                chosen = frame[(frame["place"] == place) & (frame["run"].map(marks) == role)]
                middle = chosen["drawn"].fillna(np.inf).median()
                ax.plot(place, min(middle, ceiling), "o", **RINGS[role], clip_on=False)
    ax.update_datalim([(place, floor) for place in frame["place"]])  # what was shifted aside was not counted in
    ax.autoscale_view()
    ax.set_ylim(min(reach), max(reach))
    if even:
        ax.set_xticks(range(len(values)), [f"{value:g}" for value in values])
    elif wide:
        ax.set_xscale("log")
        # The settings that were tried are the ticks, as many as have room.
        tried = values[:: -(-len(values) // 8)]
        ax.set_xticks(tried, [f"{value:g}" for value in tried])
        ax.xaxis.set_minor_locator(NullLocator())
    elif len(values) <= 5:
        ax.set_xticks(values, [f"{value:g}" for value in values])
    ax.set(xlabel=AXES.get(key, _words(key)), ylabel=OUTCOMES[outcome].format(column.replace("_", " ")))
    if outcome != "steps_to":
        in_percent(ax.yaxis)
    keep = ["line", "arm", "seed", key, outcome, "status"]
    return frame[keep].sort_values(["line", key, "seed"])


RINGS: Any = {  # of a claim's two sides
    "control": {"markersize": 11, "markerfacecolor": "none", "markeredgecolor": "#888888", "markeredgewidth": 1.2},
    "treatment": {"markersize": 11, "markerfacecolor": "none", "markeredgecolor": "#1a1a1a", "markeredgewidth": 1.8},
}


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
        look, died = _base(row), row["status"] == "diverged"
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


def loss_paths(ax: Axes, runs: Frame, curves: Frame) -> Frame:
    """Draw held-out over training loss, both in evaluation mode, a line a seed, and the gap at equal training loss.

    A seed's gap is read where either net first has the training loss that both reach: an upright from the diagonal
    (no gap) to the net's path. Return what is drawn, with the ``gap`` in the row where it was read.
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
            if (row := metrics.first_at(own["fit_loss"], own[held_out], reached)) is not None:
                here = own.iloc[row]
                frame.loc[here.name, "gap"] = here[held_out] - here["fit_loss"]
                ax.plot([here["fit_loss"]] * 2, [here["fit_loss"], here[held_out]], color=look.colour, linewidth=0.8)
                ax.plot(here["fit_loss"], here[held_out], look.marker, color=look.colour, markersize=5)
    ends_at = frame["fit_loss"].min(), frame["fit_loss"].max()
    ax.plot(ends_at, ends_at, color="#888888", linewidth=0.8, linestyle=(0, (4, 3)))
    ax.set(xlabel="training loss, nats", ylabel=f"{held_out.replace('_', ' ')}, nats")
    ax.invert_xaxis()
    return frame


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
    # Over more than some two and a half decades only their ends have room for a number.
    log = LogLocator(subs=(1, 2, 5) if kind == "ratio" and right / left < 300 else (1,))
    ax.xaxis.set_major_locator(log if kind == "ratio" else MaxNLocator(5))
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


def trained(runs: Frame) -> Frame:
    """Return ``runs`` less the records of what was evaluated after training, which have no curve (``fig4``)."""
    if "choice.evaluation" not in runs:
        return runs
    return runs[runs["choice.evaluation"].isna() | (runs["choice.evaluation"] == "one_crop")]


def draw_study(runs: Frame, ledger: Mapping[str, Entry] | None = None, without: Sequence[str] = ()) -> list[Drawing]:
    """Return every figure that the records of one study at one scale can feed, the most telling first.

    What a study measures besides its curves has a figure of its own; else a swept number is an axis, and settings that
    are no numbers stand side by side. ``ledger`` (the suite's, if not given) says which settings a claim compares;
    ``without`` names figures of curves and layers that are not wanted, which takes most of the time.
    """
    # What only runs of other studies have is no part of this one.
    runs = trained(runs).dropna(axis="columns", how="all").infer_objects()
    curves, activations = load_curves(runs), load_activations(runs)
    entries = questions(runs, load_ledger() if ledger is None else ledger)
    drawings: list[Drawing | None] = [
        draw_linear_shares(runs, activations),
        draw_jacobians(runs, activations),
        draw_statistics(runs, entries),
        *draw_inputs(runs, curves),
        draw_cost(runs, curves),
        draw_losses(runs, curves),
        draw_changes(runs, curves),
    ]
    own = any(drawings)
    if not own and "units" in activations and swept(runs) is None:
        drawings += [draw_fig1a(runs, curves), draw_fig1bc(runs, activations)]
        own = True
    elif "choice.variant" in runs and {"inception", "bn_baseline"} <= set(runs["choice.variant"]):
        drawings += [draw_fig2(runs, curves)]
    if {"b", "loss"} <= set(curves):
        drawings += [draw_detached(curves)]
    elif accuracy(curves) in curves:
        if not own:
            drawings += [draw_response(runs, curves, entries)]
            drawings += [draw_slopes(runs, curves, entries) or draw_ends(runs, curves)]
        drawings += [draw_curves(runs, curves)] if "curves" not in without else []
    drawings += [draw_layers(runs, activations)] if "layers" not in without else []
    drawings += [draw_depth(runs, activations)] if "depth" not in without else []
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
        if column.endswith("accuracy"):
            in_percent(ax.yaxis)
        if column == "train_loss" and (curves[column].dropna() > 0).all():
            ax.set_yscale("log")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(3, arms))
    return Drawing("curves", "Learning curves", f"{_BAND} A cross: the run diverged there.", figure, pd.concat(frames))


@styled
def draw_response(runs: Frame, curves: Frame, entries: Sequence[Entry] = ()) -> Drawing | None:
    """Accuracy (and steps, where a claim counts them) over the number that a study sweeps."""
    key = swept(runs)
    if key is None:
        return None
    asked = {entry.metric.name for entry in entries if entry.metric.name in OUTCOMES}
    outcomes = [name for name in OUTCOMES if name in asked or (asked and name == "best")] or ["final"]
    marks, frame = roles(runs, entries) if asked else {}, ends(runs, curves, targets(runs, curves, entries))
    figure, parts = Figure(figsize=(5.2 if len(outcomes) == 1 else 6.8, 3.2)), []
    for ax, outcome in zip(figure.subplots(1, len(outcomes), squeeze=False)[0], outcomes, strict=True):
        part = response(ax, frame, key, outcome, marks, accuracy(curves))
        parts.append(part.assign(outcome=outcome).rename(columns={outcome: "value"}))
    never = "steps_to" in outcomes and bool((frame["steps_to"].isna() & (frame["status"] != "diverged")).any())
    key_to(figure, _legend(_lines(frame, key)), runs, marks, never)
    what = "Best accuracy" if outcomes == ["best"] else "Accuracy at the end" if outcomes == ["final"] else "Accuracy"
    return Drawing(
        "response",
        f"{what}{' and speed' * ('steps_to' in outcomes)} over {AXES.get(key, _words(key)).partition(',')[0]}",
        f"A point is a run, a line joins medians over seeds; crosses on the floor are runs that diverged. {_BARS}"
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
    key = next((k for k in axes if entry and _sides(entry)["control"].get(k) != entry.treatment.get(k)), None)
    key = key or ("norm" if "norm" in axes else axes[0])
    values = sorted(set(setting(runs, key)), key=lambda value: _place(key, value))
    frame, facets = ends(runs, curves), [k for k in axes if k != key]
    claimed: dict[str, str] = {}
    if entry is not None:
        claimed = roles(runs, [entry])
        first = {role: _sides(entry)[role][key][0] for role in RINGS if key in _sides(entry)[role]}
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
    figure.supxlabel(AXES.get(key, _words(key)), fontsize=9)
    caption = "A point is a run, a thin line a seed, the strong one their mean."
    if (frame["status"] == "diverged").any():
        caption += " A cross: the run diverged, with what it had reached."
    if shaded:
        caption += " Shade: where the claim's rule wants the mean, about the mean of the setting on the left."
    return Drawing(
        "slopes",
        f"Best accuracy by {AXES.get(key, _words(key)).partition(',')[0]}",
        caption,
        figure,
        frame.assign(setting=setting(frame, key))[["facet", "setting", "arm", "seed", "best", "status"]],
    )


def _place(key: str, value: Any) -> list[Any]:
    """Return a sorting key under which norms stand in the legend's order, and 2 before 10."""
    known = key == "norm" and value in NORMS
    return _natural(str(list(NORMS).index(value))) if known else _natural(str(value))


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
                _mark_never(ax, own, rows)
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


def _mark_never(ax: Axes, frame: Frame, rows: Mapping[str, Look]) -> None:
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
    ordered = sorted(found, key=lambda c: (list(kinds).index(found[c][1]), _natural(found[c][2])))
    rows = {kinds[found[c][1]][0].format(found[c][2]): replace(kinds[found[c][1]][1], marker="o") for c in ordered}
    names = dict(zip(ordered, rows, strict=True))
    frame = runs.melt(["run", "arm", "seed"], ordered, var_name="row", value_name="accuracy")
    frame["row"] = frame["row"].map(names)
    shown = {str(run): arm for run, arm in zip(runs["run"], runs["arm"], strict=True)}
    chosen = {shown[run] for entry in entries for run in roles(runs, [entry])}
    bounds = next((b for e in entries if (b := e.bounds_at(str(runs["scale"].iloc[0]))) and np.isfinite(b).all()), None)
    arms = sorted(set(frame["arm"]), key=_natural)[:5]
    figure = Figure(figsize=(6.8, 0.9 + 0.24 * len(rows)))
    for ax, arm in zip(figure.subplots(1, len(arms), sharey=True, squeeze=False)[0], arms, strict=True):
        own = frame[frame["arm"] == arm]
        dots(ax, own, rows, "accuracy")
        middle = own.loc[own["row"] == "Algorithm 2", "accuracy"].mean()
        if arm in chosen and bounds is not None:
            ax.axvspan(middle + bounds[0], middle + bounds[1], color=WITHIN, linewidth=0)
        ax.axvline(middle, color="#888888", linewidth=0.8, linestyle=(0, (4, 3)))
        values = {AXES.get(k, _words(k)): setting(runs[runs["arm"] == arm], k).iloc[0] for k in axes_of(runs)}
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
    key_to(figure, _legend([style[arm] for arm in ordered]), runs, markers=False)
    return Drawing("inputs", "Accuracy over steps, by the shape of the inputs", _BAND, figure, pd.concat(frames))


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
        f"{_BAND} Time counts in steps of the same net with BN, timed in turns with it in one process; right: that "
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
    """Write ``drawing`` to ``directory`` in each of ``kinds``, and what it was drawn from as CSV, packed if large."""
    directory.mkdir(parents=True, exist_ok=True)
    for kind in kinds:
        atomic_write(directory / f"{drawing.name}.{kind}", render(drawing.figure, kind))
    table = drawing.frame.to_csv(index=False, float_format="%.4g", lineterminator="\n")
    plain, packed = directory / f"{drawing.name}.csv", directory / f"{drawing.name}.csv.gz"
    if len(table) > LARGE_TABLE:
        atomic_write(packed, gzip.compress(table.encode(), mtime=0))
        plain.unlink(missing_ok=True)
    else:
        atomic_write(plain, table.encode())
        packed.unlink(missing_ok=True)


@one_line()
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bn_replication.figures", description="Draw every figure as SVG and PNG, with its CSV."
    )
    parser.add_argument("studies", nargs="*", metavar="STUDY", help="which studies; all of them if none is named")
    parser.add_argument("--root", type=Path, default=Path("results/published"), help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("results/figures"), help="default: %(default)s")
    options = parser.parse_args(arguments)
    runs = load_runs(options.root)
    known = sorted(set(runs["study"])) if len(runs) else []
    for study in options.studies:
        if study not in known:
            expected = f"expected one of {', '.join(known)}{nearest(study, known)}"
            raise UserError(f"found no runs of '{study}', {expected}")
    for study in options.studies or known:
        for scale, those in runs[runs["study"] == study].groupby("scale"):
            for drawing in draw_study(those):
                save(drawing, options.out / str(scale) / study)
                print(options.out / str(scale) / study / f"{drawing.name}.png")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
