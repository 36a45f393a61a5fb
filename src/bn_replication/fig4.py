"""Figure 4 in numbers, from the records that ``ensemble`` writes: the paper's beside ours. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from bn_replication import stats
from bn_replication.records import load_runs

Frame: TypeAlias = Any  # to a type checker, as in figures
ALPHA = 0.05  # of each interval by itself; verdicts share theirs out by Holm's procedure and are wider

# The table's rows: what the paper calls them, the evaluation that is ours, and the paper's entry.
MODELS = (
    ("BN-Inception single crop", "single_crop", "single_crop"),
    ("BN-Inception multicrop", "multicrop", "multicrop"),
    ("six networks, single crop", "ensemble_single_crop", None),
    ("BN-Inception ensemble", "ensemble", "ensemble"),
    ("GoogLeNet ensemble", None, "googlenet_ensemble"),
    ("Deep Image ensemble", None, "deep_image_ensemble"),
)
# Evaluations of what is evaluated already: their rows tell the same passes through the same networks.
OF_SEVERAL = ("ensemble_single_crop", "ensemble")
GAINS = (
    ("multicrop less single crop", "single_crop", "multicrop"),
    ("ensemble less multicrop", "multicrop", "ensemble"),
)


def tables(runs: Frame, paper: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return Figure 4's table and its two gains of every ensemble in ``runs``: titles, captions and rows of text.

    Args:
        runs: rows of one study at one scale; nothing comes of those that are no evaluations. Ensembles that overrides
            made have titles that say so.
        paper: ``fig4`` of ``experiments/paper.yaml``.
    """
    if "choice.evaluation" not in runs:
        return []
    own: Frame = runs[runs["choice.evaluation"].isin([name for _, name, _ in MODELS if name])]
    rest = own["arm"].map(lambda arm: ",".join(p for p in arm.split(",") if not p.startswith("evaluation=")))
    return [table for name, each in own.groupby(rest) for table in _tables(each, paper, f", {name}" if name else "")]


def _tables(own: Frame, paper: Mapping[str, Any], which: str) -> list[dict[str, Any]]:
    by_seed = {
        (name, key): own[own["choice.evaluation"] == name].set_index("seed")[f"summary.{key}"].sort_index()
        for _, name, _ in MODELS
        if name
        for key in ("top1_error", "top5_error")
    }
    rows = []
    for model, name, entry in MODELS:
        row = {"model": model, "crops": "—", "networks": "—"}
        there = own[own["choice.evaluation"] == name]
        if len(there):
            first = there.iloc[0]
            row |= {"crops": f"{first['crops']:.0f}", "networks": f"{first['models']:.0f}"}
        for key, label in (("top1_error", "top-1"), ("top5_error", "top-5")):
            value = paper.get(entry, {}).get(key, {}).get("value") if entry else None
            row[f"{label}, paper"] = "—" if value is None else f"{100 * value:.4g}%"
            row[f"{label}, ours"] = _interval(by_seed[name, key], "{:.1f}", "%") if name else "—"
        rows.append(row)
    gains = []
    for title, control, treatment in GAINS:
        difference = (by_seed[treatment, "top1_error"] - by_seed[control, "top1_error"]).dropna()  # pairs of seeds
        value = paper[treatment]["gain"]["value"]
        ours = _interval(difference, "{:+.2f}", " points")
        gains.append({"top-1 error": title, "paper": _sign(f"{100 * value:+.2f} points"), "ours": ours})
    examples = own["examples"].iloc[0]
    seeds = " to ".join(map(str, sorted({len(values) for values in by_seed.values()} - {0})))  # 3, or 2 to 3
    caption = (
        f"Errors on {examples:.0f} held-out images, the same in every row; means of {seeds} seed(s), in brackets 95% "
        "intervals, each by itself. A single network is the mean of the six networks' own errors."
    )
    return [
        {"title": f"Figure 4{which}", "caption": caption, "rows": rows},
        {"title": f"What each step gains{which}", "caption": "Paired by seed.", "rows": gains},
    ]


def _interval(values: Sequence[float], form: str, unit: str) -> str:
    """Return the mean of ``values`` (fractions) in hundredths and the interval they give, if they are several."""
    if not len(values):
        return "—"
    low, high = stats.t_interval(list(values), ALPHA)
    mean = form.format(100 * sum(values) / len(values))
    bracket = f" [{form.format(100 * low)}, {form.format(100 * high)}]" if math.isfinite(low) else ""
    return _sign(f"{mean}{unit}{bracket}")


def _sign(text: str) -> str:
    return text.replace("-", "−")


def text(root: Path, study: str, scale: str, paper: Mapping[str, Any]) -> str:
    """Return the tables of every ensemble below ``root`` as text."""
    blocks = []
    for table in tables(load_runs(root, study, scale), paper):
        cells = [list(table["rows"][0]), *(list(row.values()) for row in table["rows"])]
        width = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["  ".join([row[0].ljust(width[0]), *map(str.rjust, row[1:], width[1:])]) for row in cells]
        blocks.append("\n".join([table["title"], *lines, table["caption"]]))
    return "\n\n".join(blocks)
