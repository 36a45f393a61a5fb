"""How things look: one style, and the look of every norm, variant and setting, by which all figures know it.

Warm colours are plain networks, cool ones are normalised by batch, in every figure (Okabe & Ito's palette,
told apart by the colour-blind; dashes and markers say the same again).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from matplotlib import colors, rc_context
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

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
WINE, OLIVE = "#882255", "#999933"  # Tol's, for norms of neither kind
NORMS = {
    "none": Look("plain", VERMILLION, "-", "s"),
    "batch": Look("BN", BLUE),
    "reference": Look("BN, our own", BLUE, "--", "D"),
    "batch_no_affine": Look("BN without γ and β", SKY, "-.", "v"),
    "layer": Look("layer norm", PURPLE, "-", "^"),
    "group": Look("group norm", WINE, "--", "P"),
    "detached": Look("statistics detached", GREY, "--", "X"),
    "tracking": Look("BN, statistics kept", BLUE, ":", "h"),
    "per_activation": Look("BN per activation", SKY, "--", "p"),
    "zca": Look("whitened layers", GREEN, "-", "D"),
    "weight": Look("weight norm", OLIVE, ":", "v"),
    "noisy": Look("BN with noise", GREEN, "--", "X"),
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
    "model.depth": "hidden layers",
    "model": "initial weights",
}
SHORT = {  # of a setting and its value in a legend, which has no room for its axis
    "model.lrn": "LRN {}",
    "model.placement": "placed {}",
    "model.init_scale": "weights x{}",
    "optimizer.l2_multiple": "L2 x{}",
    "optimizer.multiple": "x{}",
    "schedule.speed": "decay x{}",
    "augment.strength": "distortion x{}",
}
NAMED = {
    "relu": "ReLU",
    "sigmoid": "sigmoid",
    "mnist": "MNIST",
    "cifar10": "CIFAR-10",
    "fashion_mnist": "Fashion-MNIST",
    "mlp": "small Gaussian",
    "mlp_glorot": "Glorot x4",
}  # values that need no key
OUTCOMES = {  # what a run comes to: best and final are shares, drawn in per cent
    "best": "best {}, %",
    "final": "{} at the end, %",
    "steps_to": "steps to the control's best",
}
PERCENT = FuncFormatter(lambda share, _: f"{100 * share:.4g}")
PLAIN = FuncFormatter(lambda value, _: f"{value:g}")
DASHES = ("-", "--", ":", "-.")
BAND = "Strong: median over seeds; thin: each seed; band: lowest to highest seed."
BARS = "Caps: 95% interval of the mean over seeds (Student's t); few seeds give wide ones, which may run off the axes."
CHOSEN = "Accuracy is that of the last evaluation, by which the rate is chosen."
WITHIN = "#dcefe7"  # the shade of what a rule allows
RINGS: Any = {  # of a claim's two sides
    "control": {"markersize": 11, "markerfacecolor": "none", "markeredgecolor": "#888888", "markeredgewidth": 1.2},
    "treatment": {"markersize": 11, "markerfacecolor": "none", "markeredgecolor": "#1a1a1a", "markeredgewidth": 1.8},
}


def looks(runs: Frame) -> dict[str, Look]:
    """Return the look of every arm in ``runs`` (rows of one study), in the order a legend should list them.

    An arm is known by its variant, else by its norm; what else its name says is added where arms would share
    a label.
    """
    arms = runs.drop_duplicates("arm").set_index("arm", drop=False)
    bases = {str(arm): look_of(row) for arm, row in arms.iterrows()}
    known = _known()
    ordered = sorted(bases, key=lambda arm: (known.index(bases[arm]) if bases[arm] in known else 99, natural(arm)))
    result = {}
    for arm in ordered:
        base = bases[arm]
        siblings = [other for other in ordered if bases[other] == base]
        if len(siblings) > 1:
            place, last = siblings.index(arm), len(siblings) - 1
            named = _rest(arm)
            # A grid of settings runs from dark to pale; a few arms keep their colour and differ in dash.
            colour = base.colour if last < len(DASHES) else _shade(base.colour, place / last)
            base = Look(f"{base.label}, {named}", colour, DASHES[place % len(DASHES)], base.marker)
        result[arm] = base
    return result


def _rest(arm: str, without: Sequence[str] = ()) -> str:
    """Return what an arm's name says besides its norm, its variant (if that has a look of its own) and ``without``."""
    tokens = [token.partition("=") for token in arm.split(",")]
    kept = [(k, v) for k, _, v in tokens if k not in ("norm", *without) and not (k == "variant" and v in VARIANTS)]
    return ", ".join(words(v) if k == "variant" else NAMED.get(v) or _briefly(k, v) for k, v in kept)


def _briefly(key: str, value: str) -> str:
    """Return a setting and its value, as an arm's name spells them, in a legend's few words."""
    said = {"True": "on", "False": "off"}.get(value, value.removesuffix(".0").replace("_", " "))
    return SHORT.get(key, f"{words(key)} {{}}").format(said)


def lines_of(runs: Frame, key: str) -> list[Look]:
    """Return the line that each run belongs to where ``key`` is the axis: its norm or variant, and all else it sets."""
    swept_keys = ("optimizer.rate", "optimizer.multiple") if key == "initial rate" else (key,)
    bases = [look_of(row) for _, row in runs.iterrows()]
    rests = [_rest(str(arm), swept_keys) for arm in runs["arm"]]
    dash = {rest: DASHES[i % len(DASHES)] for i, rest in enumerate(sorted(set(rests), key=natural))}
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


def look_of(row: Mapping[str, Any]) -> Look:
    """Return the look of the norm that an arm is named by, else of its variant, else of its norm; else grey.

    A study that sweeps the norm stands on a variant that says nothing of it: every arm's is plain Inception.
    """
    variant, norm = row.get("choice.variant"), row.get("choice.norm")
    named = any(token.startswith("norm=") for token in str(row.get("arm", "")).split(","))
    if variant in VARIANTS and not (named and norm in NORMS):
        return VARIANTS[variant]
    if isinstance(variant, str) and variant.startswith("member_"):  # one of Figure 4's six
        place = int(variant.rpartition("_")[2]) - 1
        return Look(words(variant), (BLUE, SKY, GREEN)[place % 3], DASHES[place // 3 % 4], "os^Dvp"[place % 6])
    if norm in NORMS:
        return NORMS[norm]
    return Look(str(norm) if isinstance(norm, str) else "run", GREY)


def in_order(found: Sequence[Look]) -> list[Look]:
    """Return each look once, in the order a legend should list them."""
    known = [look.label for look in _known()]

    def place(look: Look) -> int:
        fitting = [label for label in known if f"{look.label}, ".startswith(f"{label}, ")]
        return known.index(max(fitting, key=len)) if fitting else len(known)

    return sorted(dict.fromkeys(found), key=place)


def _known() -> list[Look]:
    return [*VARIANTS.values(), *NORMS.values()]


def words(key: str) -> str:
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
    return NAMED.get(value, value).replace("_", " ") if isinstance(value, str) else f"{words(key)} {value:g}"


def natural(text: str) -> list[Any]:
    """Return a sorting key under which 2 comes before 10."""
    return [(0, float(part), "") if i % 2 else (1, 0.0, part) for i, part in enumerate(re.split(r"(\d+\.?\d*)", text))]


def plain_log(axis: Any, low: float, high: float) -> None:
    """Let a logarithmic axis from ``low`` to ``high`` say plain numbers, where it spans too little for powers of 10."""
    if 0 < low < high < 30 * low:
        axis.set_major_locator(MaxNLocator(5))
        axis.set_major_formatter(PLAIN)
        axis.set_minor_locator(NullLocator())


def short(number: float) -> str:
    """Return 50000 as ``50K`` and 2100000 as ``2.1M``."""
    for size, letter in ((1e6, "M"), (1e3, "K")):
        if abs(number) >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.3g}"
