"""Records -> one HTML file that opens anywhere, offline: ``python -m bn_replication.report``.

Published records and the reader's own runs stand side by side under their names and are judged apart. The
page holds the scoreboard, then every study with its figures and the claims it decides (what the paper says,
the rule as written in the ledger, the evidence, the command that reruns it), what differs from the paper, and
where the numbers come from. Curves are drawn by Vega-Lite from one bundle within the file; nothing is
fetched. ``--claim ID`` prints one claim in the terminal instead. This module only reads records.
"""

from __future__ import annotations

import argparse
import base64
import collections
import functools
import gzip
import itertools
import json
import os
import re
import sys
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import numpy as np
import pandas as pd
import vl_convert
import yaml
from markupsafe import Markup
from matplotlib.path import Path as Path2D

from bn_replication import fig4, figures, sensitivity
from bn_replication.claims import Verdict, judge
from bn_replication.errors import UserError, nearest, one_line
from bn_replication.figures import Frame
from bn_replication.ledger import (
    AMBIGUITIES,
    EXPERIMENTS,
    LEDGER,
    PAPER,
    SCALES,
    Entry,
    Grid,
    at_scale,
    load_ledger,
    read_yaml,
)
from bn_replication.records import (
    atomic_write,
    finite,
    load_activations,
    load_curves,
    load_runs,
    read_run_json,
)
from bn_replication.scoreboard import LEGEND, by_whom, counted, measured, ours, papers, tally, unadjusted

HERE = Path(__file__).parent
STUDIES, SCALE = (EXPERIMENTS.parent / "configs" / group for group in ("experiment", "scale"))
ROOTS = (Path("results/published"), Path("results/runs"))
LIMIT = 5_000_000  # bytes the page should stay below
POINTS = 150  # a run's curve is thinned to about so many rows in the interactive charts
PROBES = 10  # and its activations to about so many probes
# Lines of so few points are left as they are; how far a thinned one may lie from what it was, in points.
SHORT, TOLERANCE = 8, 0.1
PROSE = ("where", "says", "paper", "why", "amendments")
COMMANDS = {
    "exact": "python -m bn_replication.exact",
    "architecture": "python -m bn_replication.models.inception",
    "fig4_ensemble": "make ensemble",  # trains, and judges what was trained
}


@dataclass(frozen=True)
class Source:
    """A tree of records, named by whose they are, with the verdicts they support by themselves."""

    key: str  # published | yours
    name: str
    root: Path
    runs: Frame
    verdicts: dict[tuple[str, str], Verdict] = field(default_factory=dict)  # by claim and scale


def sources(roots: Sequence[Path], ledger: Mapping[str, Entry]) -> list[Source]:
    """Return what lies in each root; one named ``published`` holds the published records, others the reader's."""
    found = []
    for root in roots:
        runs = load_runs(root)
        published = root.resolve().name == "published"
        key, name = ("published", "Published records") if published else ("yours", "Your runs")
        verdicts = {(v.claim, v.scale): v for v in judge(ledger, runs)} if len(runs) else {}
        found.append(Source(key, name, root, runs, verdicts))
    return found


# --- what the template is given ----------------------------------------------------------------------------


def scoreboard(ledger: Mapping[str, Entry], paper: Mapping[str, Any], found: Sequence[Source]) -> list[dict[str, Any]]:
    """Return one row a claim and scale, with a cell a source; a claim that no source has run is one row."""
    rows = []
    for claim, entry in ledger.items():
        scales = {scale for source in found for name, scale in source.verdicts if name == claim and scale}
        for scale in sorted(scales, key=SCALES.index) or [""]:
            cells = [_cell(entry, source.verdicts.get((claim, scale))) for source in found]
            rows.append({"entry": entry, "scale": scale, "paper": papers(entry, paper), "cells": cells})
    return rows


def _cell(entry: Entry, verdict: Verdict | None) -> dict[str, Any]:
    if verdict is None:
        return {"verdict": "not run", "ours": "—", "n": "—", "row": None, "plain": ""}
    return {
        "verdict": verdict.verdict,
        "ours": ours(entry, verdict),
        "n": counted(verdict),
        "row": verdict,
        "plain": unadjusted(entry, verdict),
    }


def rule(entry: Entry, raw: Mapping[str, Any]) -> str:
    """Return the part of a ledger entry that decides, as YAML, word for word."""
    body = {key: value for key, value in raw[entry.id].items() if key not in PROSE}
    return yaml.safe_dump(body, sort_keys=False, allow_unicode=True, width=100, default_flow_style=None).strip()


def command(study: str, scale: str, seeds: int = 0) -> str:
    """Return the command that runs a study; a study that only the ledger names so far has none yet.

    Args:
        seeds: how many there are to run again, if they are more than the study has by itself.
    """
    path = STUDIES / f"{study}.yaml"
    if study not in COMMANDS and not path.exists():
        return ""
    run = COMMANDS.get(study, f"python -m bn_replication.train -m experiment={study}")
    if scale == "" or study in ("exact", "architecture"):
        return run
    if run.startswith("make "):
        return run if scale == "laptop" else f"{run} SCALE={scale}"
    own = read_yaml(SCALE / f"{scale}.yaml")["seeds"].split(",")
    words = [] if scale == "laptop" else [f"scale={scale}", "machine.device=cuda"]
    words += [f"'seed=range({seeds})'"] if "seed: ${scale.seeds}" in path.read_text() and seeds > len(own) else []
    return " ".join([run, *words])


def asks(study: str) -> str:
    """Return what a study asks, in the words at the head of its configuration; nothing if it has none."""
    path = STUDIES / f"{study}.yaml"
    lines = path.read_text().splitlines() if path.exists() else []
    head = itertools.takewhile(lambda line: line.startswith("#"), lines)
    return " ".join(line.lstrip("# ") for line in head if "@package" not in line)


def effect_svg(
    entry: Entry, row: Mapping[str, Any], paper: Mapping[str, Any], found: Sequence[Source]
) -> Markup | None:
    """Return the picture of a claim's intervals against its bounds, or ``None`` where nothing was judged."""
    bounds = entry.bounds_at(row["scale"])
    lines = [
        (source.name, cell["row"]) for source, cell in zip(found, row["cells"], strict=True) if cell["row"] is not None
    ]
    lines = [(name, v) for name, v in lines if v.n and v.low == v.low]
    if bounds is None or not lines or entry.effect == "value":
        return None
    leaf: Any = paper
    for key in entry.paper.split(".") if entry.paper else []:
        leaf = leaf[key]
    printed = None
    if entry.paper and leaf["unit"] == "times_fewer":
        printed = 1 / leaf["value"]
    elif entry.paper and leaf["unit"] == "points":
        printed = leaf["value"]
    what, times = measured(entry)
    figure = figures.draw_effect(
        [(name, v.estimate * times, v.low * times, v.high * times) for name, v in lines],
        (bounds[0] * times, bounds[1] * times),
        entry.effect,
        None if printed is None else printed * times,
        [None if v.plain is None else (v.plain[0] * times, v.plain[1] * times) for _, v in lines],
        what,
    )
    return inline(
        figures.render(figure),
        f"effect-{entry.id}-{row['scale']}",
        f"{entry.id}: interval against the rule's bounds",
    )


def inline(svg: bytes, key: str, label: str) -> Markup:
    """Return an SVG as an element of the page: short identifiers that are unique there, lines of no more points than
    show (all lie within a tenth of a point), and a name for those who cannot see it."""
    text = svg.decode()
    text = text[text.index("<svg") :].replace("xlink:href=", "href=")
    unique, numbers = f"i{zlib.crc32(key.encode()):x}", itertools.count()
    names: dict[str, str] = collections.defaultdict(lambda: f"{unique}-{next(numbers):x}")
    text = re.sub(r'( id="|href="#|url\(#)([^")]+)', lambda match: match[1] + names[match[2]], text)
    text = re.sub(r' d="M([-\d. ]+)(z?)"', lambda match: f' d="M{_fewer(match[1])}{match[2]}"', text)
    # Its own size is for paper; on the page the style sheet sets the width.
    width = float(re.search(r'width="([\d.]+)pt"', text)[1])  # type: ignore[index]
    text = re.sub(r'(<svg[^>]*?) height="[\d.]+pt"', r"\1", text, count=1)
    kind = "wide" if width > 480 else "narrow"
    head = Markup('<svg role="img" class="{}" aria-label="{}" style="--wide:{}px"').format(
        kind, label, round(width * 4 / 3)
    )
    text = re.sub(r'^<svg(.*?) width="[\d.]+pt"', lambda match: head + Markup(match[1]), text, count=1, flags=re.DOTALL)
    return Markup(text)


def _fewer(points: str) -> str:
    """Return the points of a line, ``x y x y ...``, less those that lie on it anyway."""
    line = np.array(points.split(), float).reshape(-1, 2)
    if len(line) <= SHORT:
        return points
    path = Path2D(line)
    path.should_simplify, path.simplify_threshold = True, TOLERANCE
    corners = np.asarray(path.cleaned(simplify=True).vertices, float)[:-1]  # then comes the word that it is the last
    return " ".join(f"{round(value, 1):g}" for value in corners.ravel().tolist())


def curves_data(runs: Frame) -> dict[str, Any] | None:
    """Return what an interactive chart of learning curves needs; ``None`` if there are no curves."""
    curves: Frame = load_curves(runs)
    columns = [str(c) for c in curves if str(c).endswith(("_accuracy", "_loss")) and curves[c].notna().any()]
    if not columns:
        return None
    columns.sort(key=lambda c: (c.startswith("train"), not c.endswith("accuracy")))
    style = figures.looks(runs)
    arms, series = list(style), []
    for (arm, seed), own in curves.groupby(["arm", "seed"], sort=True):
        every = -(-len(own) // POINTS)
        # The last row is kept whatever the stride: it is where a run ends.
        own = own.iloc[sorted({*range(0, len(own), every), len(own) - 1})]
        values = {c: [_digits(value) for value in own[c].tolist()] for c in columns}
        series.append({"arm": arms.index(str(arm)), "seed": int(str(seed)), "step": own["step"].tolist(), **values})
    return {"kind": "curves", "columns": columns, "arms": _arms(style), "series": series}


def layers_data(runs: Frame) -> dict[str, Any] | None:
    """Return percentiles, histograms and gradients of every layer over steps, of each arm's lowest seed.

    ``None`` where nothing was probed; earlier records have no gradients, and no run has any before its first step. A
    histogram is one character a bin, from ``0`` (empty) to ``?`` (the fullest bin of its probe): code less
    48, of 15.
    """
    lowest = runs.loc[runs.groupby("arm")["seed"].idxmin()]
    activations = load_activations(lowest)
    if activations.empty:
        return None
    bands, style = figures.layer_bands(activations), figures.looks(runs)
    bands["histogram"], bands["gradient"] = activations.get("histogram"), activations.get("gradient")
    arms, layers = list(style), bands.drop_duplicates("layer")["layer"].tolist()
    edges = {key: _one_of(lowest, f"probe.histogram.{key}") for key in ("low", "high")}
    series = []
    for (arm, layer), own in bands.groupby(["arm", "layer"], sort=False):
        # Published records have histograms at some probes only: those are shown, in every view.
        full = own["histogram"].map(lambda counts: isinstance(counts, list))
        own = own[full] if full.any() else own
        own = own.iloc[sorted({*range(0, len(own), -(-len(own) // PROBES)), len(own) - 1})]
        values = {p: [_digits(value, 3) for value in own[p].tolist()] for p in ("p15", "p50", "p85")}
        one = {"arm": arms.index(str(arm)), "layer": layers.index(layer), "step": own["step"].tolist(), **values}
        drawn = [_characters(counts) for counts in own["histogram"]]
        one |= {"bins": drawn} if any(drawn) and None not in edges.values() else {}
        gradients = [None if pd.isna(value) else _digits(value, 3) for value in own["gradient"]]
        series.append(one | ({"gradient": gradients} if any(gradients) else {}))
    return {"kind": "layers", "layers": layers, "arms": _arms(style), "edges": edges, "series": series}


def _one_of(runs: Frame, key: str) -> float | None:
    """Return the value of ``key`` that all of ``runs`` share, or ``None``."""
    values = set(runs[key].dropna()) if key in runs else set()
    return float(values.pop()) if len(values) == 1 else None


def _characters(counts: Any) -> str:
    """Return a histogram as text, neighbouring bins joined to 32 at most; nothing if there is none."""
    if not isinstance(counts, list) or not any(counts):
        return ""
    every = -(-len(counts) // 32)
    joined = [sum(counts[i : i + every]) for i in range(0, len(counts), every)]
    return "".join(chr(48 + round(15 * count / max(joined))) for count in joined)


def _arms(style: Mapping[str, figures.Look]) -> list[dict[str, Any]]:
    dashes = {"-": [], "--": [6, 3], ":": [2, 2], "-.": [6, 2, 2, 2]}
    return [{"label": look.label, "colour": look.colour, "dash": dashes[look.dash]} for look in style.values()]


def _digits(value: Any, digits: int = 4) -> float | None:
    return finite(float(f"{float(value):.{digits}g}"))


def packed(data: Any) -> Markup:
    """Return text, or data as JSON, packed and in letters that mean nothing to HTML: a quarter of the bytes.

    A chart's ``series`` are packed key by key, and not one by one, which saves a quarter of the rest: numbers of a kind
    stand together. The page's script makes rows of them again; ``null`` is a row that lacks the key.
    """
    if isinstance(data, Mapping) and "series" in data:
        rows: list[dict[str, Any]] = data["series"]
        keys = dict.fromkeys(key for row in rows for key in row)
        data = {**data, "series": {key: [row.get(key) for row in rows] for key in keys}}
    text = data if isinstance(data, str) else json.dumps(data, separators=(",", ":"), allow_nan=False)
    return Markup(base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode())


def endings(runs: Frame, curves: dict[str, Any]) -> list[dict[str, str]]:
    """Return where the curves end in numbers, for who cannot see them: median and range over seeds, an arm a row."""
    rows = []
    for index, look in enumerate(curves["arms"]):
        own = [one for one in curves["series"] if one["arm"] == index]
        row = {"arm": look["label"], "seeds": str(len(own))}
        for column in curves["columns"]:
            last = [next((v for v in reversed(one[column]) if v is not None), None) for one in own]
            ends = sorted(value for value in last if value is not None)
            row[column] = f"{pd.Series(ends).median():.4g} ({ends[0]:.4g} to {ends[-1]:.4g})" if ends else "—"
        rows.append(row)
    return rows


def rate_tables(runs: Frame, fig2: Frame, paper: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the tables of a study of rates with and without BN: its usable ranges, and what is left of the speed-up.

    ``fig2`` are the runs of Figure 2 of the same scale and source, whose networks have the paper's own multiples.
    """
    if figures.swept(runs) != "initial rate" or not {"none", "batch"} <= set(runs.get("choice.norm", ())):
        return []
    if set(figures.axes_of(runs)) - {"norm", "optimizer.rate", "optimizer.multiple"}:
        return []  # several nets a norm: neither a best rate nor a range is theirs in common
    curves = load_curves(runs)
    rule = load_ledger()["rate-range"].metric
    assert isinstance(rule, Grid)
    assert rule.keep is not None
    chance = float(at_scale(rule.chance, str(runs["scale"].iloc[0])))
    ranges = figures.usable_rates(runs, curves, chance, rule.keep)
    table = [
        {
            "net": str(net),
            "decades, median": _at_least(own["decades"].median(), bool(own["at least"].any())),
            "each seed": ", ".join(_at_least(*pair) for pair in zip(own["decades"], own["at least"], strict=True)),
            "best rate": ", ".join(f"{rate:g}" for rate in sorted(set(own["best rate"]))),
            "accuracy there": f"{100 * own['accuracy there'].median():.1f}%",
        }
        for net, own in ranges.groupby("net", sort=False)
    ]
    tables = [
        {
            "title": "The usable range of rates",
            "caption": "Decades of rate around a net’s best over which it keeps "
            f"{rule.keep:.0%} of what it can learn, as "
            "the claim rate-range counts them; “≥” where the range runs off the grid.",
            "rows": table,
        }
    ]
    speeds = [
        {
            "rates": f"BN alone, {row['BN']}",
            "plain": f"{row['plain rate']:g}",
            "BN": f"{row['BN rate']:g}",
            "times fewer steps": "—" if row["times fewer"] != row["times fewer"] else f"{row['times fewer']:.2g}x",
            "each seed": row["each seed"],
            "gain in best accuracy": _points(row["gain in best accuracy"]),
        }
        for row in figures.speed_at_best_rates(runs, curves, chance).to_dict("records")
    ]
    if len(fig2) and {"inception", "bn_baseline"} <= set(fig2["choice.variant"]):
        table = figures.fig3_table(fig2, load_curves(fig2), paper.get("fig3", {}))
        best = table.set_index("model")["accuracy, ours"]
        third = {row["model"]: row for row in fig3_rows(table)}
        speeds += [
            {
                "rates": f"Figure 2’s {model}",
                "plain": third["Inception"]["rate, ours"],
                "BN": third[model]["rate, ours"],
                "times fewer steps": third[model]["times fewer, ours"],
                "each seed": f"paper: {third[model]['times fewer, paper']}",
                "gain in best accuracy": _points(best[model] - best["Inception"]),
            }
            for model in ("BN-Baseline", "BN-x5", "BN-x30")
            if third[model]["seeds"] != "0"
        ]
    if speeds:
        caption = (
            "Steps of plain Inception to its best, over those of the BN net to the same accuracy. A seed’s best rates "
            "are chosen on the other seeds, by final accuracy. The rows of Figure 2 have the paper’s multiples of one "
            "base rate, its longer budget and, from BN-x5 on, the paper’s other changes as well."
        )
        tables.append({"title": "The speed-up, by the rate each net is given", "caption": caption, "rows": speeds})
    return tables


def _points(fraction: float) -> str:
    return f"{100 * fraction:+.1f} points".replace("-", "−")


def _at_least(decades: float, censored: bool) -> str:
    return f"{'≥ ' if censored else ''}{decades:.2f}"


def same_runs(own: Frame, published: Frame) -> bool:
    """Return whether ``own`` runs are those that were published, by the digests of the files as the runs wrote them."""

    def signed(runs: Frame) -> dict[tuple[str, int], Any]:
        records = {(str(arm), int(seed)): read_run_json(path) or {} for arm, seed, path in _places(runs)}
        return {key: record.get("published", {}).get("from") or record.get("files") for key, record in records.items()}

    # Each of the reader's has its like: what was published beside is no difference of theirs.
    theirs = signed(published)
    return all(theirs.get(key) == files and files for key, files in signed(own).items())


def amendments(runs: Frame) -> list[str]:
    """Return what was corrected in the records of ``runs`` after they were written, and why, each said once."""
    records = (read_run_json(path) or {} for path in runs["path"])
    return sorted({f"{key}: {why}" for record in records for key, why in record.get("amended", {}).items()})


def _places(runs: Frame) -> list[tuple[Any, Any, Path]]:
    return list(runs[["arm", "seed", "path"]].itertuples(index=False, name=None))


def panels(
    study: str, found: Sequence[Source], paper: Mapping[str, Any], ledger: Mapping[str, Entry] | None = None
) -> list[dict[str, Any]]:
    """Return a study's panels, one a scale and source: figures, chart data and, for Figure 3, its table."""
    result = []
    for scale in SCALES:
        published: Frame | None = None
        for source in found:
            runs = source.runs[(source.runs["study"] == study) & (source.runs["scale"] == scale)]
            if runs.empty:
                continue
            same = published is not None and same_runs(runs, published)
            published = runs if source.key == "published" else published
            key = f"{source.key}-{scale}-{study}"
            drawn = [
                {
                    "drawing": drawing,
                    "svg": inline(figures.render(drawing.figure), f"{key}-{drawing.name}", drawing.title),
                }
                # The interactive charts show the others.
                for drawing in (
                    []
                    if same or sensitivity.of_study(study)
                    else figures.draw_study(runs, ledger, without=("curves", "layers"))
                )
            ]
            table = None
            variants = set(runs["choice.variant"]) if "choice.variant" in runs else set()
            if not same and not sensitivity.of_study(study) and {"inception", "bn_baseline"} <= variants:
                table = fig3_rows(figures.fig3_table(runs, load_curves(runs), paper.get("fig3", {})))
            fig2 = source.runs[(source.runs["study"] == "fig2_inception") & (source.runs["scale"] == scale)]
            statuses = runs["status"].value_counts().to_dict()
            # A study of first steps has no curves to speak of, and one of alternatives too many to tell apart.
            few = runs["steps_done"].max() < 2 or sensitivity.of_study(study)
            curves = None if same or few else curves_data(figures.trained(runs))
            result.append(
                {
                    "key": key,
                    "source": source,
                    "scale": scale,
                    "runs": ", ".join(f"{count} {status}" for status, count in statuses.items()),
                    "seeds": runs["seed"].nunique(),
                    "steps": figures.short(runs["steps_done"].max()),
                    "amended": amendments(runs),
                    "drawn": drawn,
                    "table": table,
                    "same": same,
                    "tables": [] if same else rate_tables(runs, fig2, paper) + fig4.tables(runs, paper.get("fig4", {})),
                    "curves": curves,
                    "endings": endings(runs, curves) if curves else [],
                    "layers": None if same else layers_data(figures.trained(runs)),
                }
            )
    return result


def alternatives(
    register: Mapping[str, Any], ledger: Mapping[str, Entry], found: Sequence[Source]
) -> list[tuple[Source | None, list[dict[str, Any]]]]:
    """Return a table a source of the answers under other choices; one of no source where none has any of these runs."""
    tables = []
    for source in [*(s for s in found if s.runs["study"].map(sensitivity.of_study).any()), None]:
        if source is None and tables:
            break
        rows = sensitivity.table(register, ledger, pd.DataFrame() if source is None else source.runs)
        shown = [
            {
                "row": row,
                "what": register[row.value]["what"],
                "choice": register[row.value]["chosen"],
                "why": register[row.value]["alternatives"][row.alternative]["why"],
                **sensitivity.words(row, ledger[row.claim]),
            }
            for row in rows
        ]
        tables.append((source, shown))
    return tables


def fig3_rows(table: Frame) -> list[dict[str, str]]:
    """Return Figure 3's numbers as a reader says them; what there is none of is a dash."""

    def say(value: float, form: str) -> str:
        return "—" if value != value else form.format(value)

    rows = []
    for row in table.to_dict("records"):
        text = {"model": row["model"], "seeds": f"{row['seeds']:.0f}"}
        for side in ("paper", "ours"):
            steps = row[f"steps, {side}"]
            text[f"rate, {side}"] = say(row[f"rate, {side}"], "{:.4g}")
            text[f"steps, {side}"] = "—" if steps != steps else figures.short(steps)
            text[f"times fewer, {side}"] = say(row[f"times fewer, {side}"], "{:.3g}x")
            text[f"accuracy, {side}"] = say(100 * row[f"accuracy, {side}"], "{:.1f}%")
        if row["seeds"] and row["steps, ours"] != row["steps, ours"]:
            text["steps, ours"] = (
                f"never ({row['reached, ours']:.0f} of {row['seeds']:.0f} did)" if row["reached, ours"] else "never"
            )
        rows.append(text)
    return rows


def record_link(source: Source, scale: str, study: str, beside: Path) -> tuple[str, str]:
    """Return a place of records as a reader sees it and as a page in the folder ``beside`` links to it."""
    place = source.root / scale / study
    return str(place), quote(os.path.relpath(place, beside) + "/")


def provenance(source: Source) -> dict[str, Any]:
    """Return where a source's numbers come from: versions, machines, revisions, and the time they took."""
    seen: dict[str, set[str]] = {}
    for directory in source.runs["path"]:
        record = read_run_json(directory) or {}
        for key, value in record.get("environment", {}).items():
            if value is not None:  # what runs need not tell: an exact claim has no revision of its own
                seen.setdefault(key, set()).add(str(value)[:12] if key == "git" else str(value))
    seconds = source.runs["seconds"].astype(float).sum()
    started = source.runs["started"].dropna().astype(str).str[:10]
    studies = source.runs.groupby(["scale", "study"], sort=True).agg(
        runs=("seed", "size"),
        seconds=("seconds", "sum"),
        diverged=("status", lambda s: int((s == "diverged").sum())),
    )
    return {
        "environment": {key: ", ".join(sorted(values)) for key, values in sorted(seen.items())},
        "total": _duration(seconds),
        "dates": " to ".join(sorted({started.min(), started.max()})),
        "studies": [
            {
                "scale": scale,
                "study": study,
                "runs": row.runs,
                "diverged": row.diverged,
                "time": _duration(row.seconds),
            }
            for (scale, study), row in zip(studies.index, studies.itertuples(), strict=True)
        ],
    }


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s"


# --- the page ----------------------------------------------------------------------------------------------


def page(roots: Sequence[Path] = ROOTS, ledger_path: Path = LEDGER, beside: Path = Path("results")) -> str:
    """Return the report on the records in ``roots`` as one HTML document, to lie in the folder ``beside``."""
    raw, ledger, paper = read_yaml(ledger_path), load_ledger(ledger_path), read_yaml(PAPER)
    register = read_yaml(AMBIGUITIES) if AMBIGUITIES.exists() else {}
    every = sources(roots, ledger)
    found = [source for source in every if len(source.runs)]
    rows = scoreboard(ledger, paper, found)
    run_studies = [study for source in found for study in source.runs["study"].unique()]
    studies = []
    for study in dict.fromkeys([entry.study for entry in ledger.values()] + run_studies):
        claims = [
            {
                **row,
                "rule": rule(row["entry"], raw),
                "effect": effect_svg(row["entry"], row, paper, found),
                "measured": measured(row["entry"])[0].partition(", points")[0],
                "open": [(name, each["what"]) for name, each in register.items() if row["entry"].id in each["moves"]],
            }
            for row in rows
            if row["entry"].study == study
        ]
        shown = panels(study, found, paper, ledger)
        if shown:
            studies.append({"name": study, "asks": asks(study), "claims": claims, "panels": shown})
    waiting = [row for row in rows if row["entry"].study not in {study["name"] for study in studies}]
    bundle = vl_convert.javascript_bundle()  # pyright: ignore[reportCallIssue]  # its stub omits a default
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    counts = {
        source.key: {head: tally(some) for head, some in by_whom(source.verdicts.values(), ledger).items()}
        for source in found
    }
    text = environment.get_template("report.html.j2").render(
        sources=found,
        missing=[source for source in every if source.runs.empty],
        counts=counts,
        legend=Markup(re.sub(r"\*(.+?)\*", r"<i>\1</i>", re.sub(r"`(.+?)`", r"<code>\1</code>", LEGEND))),
        rows=rows,
        studies=studies,
        waiting=waiting,
        ambiguities=register,
        alternatives=alternatives(register, ledger, found),
        record_link=functools.partial(record_link, beside=beside),
        provenance=[(source, provenance(source)) for source in found],
        command=command,
        packed=packed,
        style=Markup((HERE / "report.css").read_text()),
        script=Markup((HERE / "report.js").read_text()),
        bundle=packed(bundle),
        icon=base64.b64encode(_ICON).decode(),
    )
    return figures.one_style(text)


_ICON = (
    b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16">'
    b'<path d="M1 14Q6 14 8 2q2 12 7 12" fill="none" stroke="#0072B2" stroke-width="2"/></svg>'
)


def show_claim(name: str, roots: Sequence[Path]) -> None:
    """Print one claim's evidence, source by source, to the terminal (colours off under NO_COLOR)."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    ledger, paper = load_ledger(), read_yaml(PAPER)
    if name not in ledger:
        raise UserError(f"found no claim '{name}', expected one of {LEDGER}{nearest(name, ledger)}")
    entry, console = ledger[name], Console(highlight=False)
    console.print(Text(f"{name} ({entry.where})", style="bold"))
    console.print(Text(f"{'The paper' if entry.of_paper else 'Beyond the paper'}: {entry.says}"))
    if printed := papers(entry, paper):
        console.print(Text("Printed: ").append(printed, style="bold"))
    console.print(Text(f"\n{rule(entry, read_yaml(LEDGER))}\n", style="dim"))
    console.print(Text(f"{entry.why}\n"))
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    notes = []
    for source in sources(roots, ledger):
        for (claim, scale), verdict in source.verdicts.items():
            if claim == name:
                cell = _cell(entry, verdict)
                # A row a fact: side by side they have no room in a narrow terminal, and are cut.
                facts = {"records": f"{source.name}, {scale} scale" if scale else source.name}
                facts |= {"verdict": cell["verdict"], "ours": cell["ours"], "n": cell["n"]}
                if verdict.level == verdict.level:
                    facts["interval"] = f"at {100 * verdict.level:.4g}%, as Holm's procedure allots it"
                if cell["plain"]:
                    facts["95%"] = f"{cell['plain']}, not adjusted for the number of claims"
                for fact, text in facts.items():
                    table.add_row(Text(fact), Text(text))
                for label, values in (
                    ("control", verdict.control),
                    ("treatment", verdict.treatment),
                    ("note", verdict.note),
                ):
                    notes += [Text(f"{source.name}, {scale}, {label}: {values}")] if values else []
        if source.runs.empty:
            notes.append(Text(f"{source.name}: none in {source.root}"))
    console.print(table if table.row_count else Text("not run"))
    for note in notes:
        console.print(note)
    console.print(Text(f"\nRun it: {command(entry.study, '') or 'no study decides it yet'}"))


@one_line()
def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bn_replication.report", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument(
        "--root",
        type=Path,
        action="append",
        help="root of records, may be repeated; default: both of results/",
    )
    parser.add_argument("--out", type=Path, default=Path("results/report.html"), help="default: %(default)s")
    parser.add_argument("--claim", metavar="ID", help="print this claim's evidence and write nothing")
    options = parser.parse_args(arguments)
    roots = options.root or list(ROOTS)
    try:
        for root in options.root or []:
            if not root.is_dir():
                raise UserError(f"found no directory {root}, expected a root of records; mend --root")
        if options.claim:
            show_claim(options.claim, roots)
            return 0
        content = page(roots, beside=options.out.parent).encode()
        options.out.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(options.out, content)
        print(f"{options.out}: {len(content) / 1e6:.1f} MB")
        if len(content) > LIMIT:
            print(
                f"warning: {options.out} is over {LIMIT / 1e6:.0f} MB; show fewer roots with --root",
                file=sys.stderr,
            )
    except OSError as error:
        print(
            f"{options.out}: found {error.strerror}, expected to write there; mend it with --out",
            file=sys.stderr,
        )
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
