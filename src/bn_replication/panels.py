"""What the report shows of one study's records: figures, data for its interactive charts, and tables of numbers.

Studies know nothing of one another but Figure 2's base of comparison, so that :func:`every` draws them side by side.
This module only reads records.
"""

from __future__ import annotations

import collections
import itertools
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.path import Path as Path2D

from bn_replication import fig4, figures, sensitivity
from bn_replication.claims import Verdict
from bn_replication.figures import Frame
from bn_replication.ledger import SCALES, Entry
from bn_replication.records import finite, load_activations, load_curves, read_run_json

POINTS = 150  # a run's curve is thinned to about so many rows in the interactive charts
PROBES = 10  # and its activations to about so many probes
# Lines of so few points are left as they are; how far a thinned one may lie from what it was, in points.
SHORT, TOLERANCE = 8, 0.1
WORTH = 4  # studies that take as long to draw as it takes another process to start
BASE = "fig2_inception"  # whose speed-ups the studies of rates show beside their own


@dataclass(frozen=True)
class Source:
    """A tree of records, named by whose they are, with the verdicts they support by themselves."""

    key: str  # published | yours
    name: str
    root: Path
    runs: Frame
    verdicts: dict[tuple[str, str], Verdict] = field(default_factory=dict)  # by claim and scale


def every(
    studies: Sequence[str], found: Sequence[Source], paper: Mapping[str, Any], ledger: Mapping[str, Entry]
) -> dict[str, list[dict[str, Any]]]:
    """Return the panels of each study, drawn on all cores where there are enough of them to be worth it."""

    def own(study: str) -> list[Source]:
        return [
            replace(source, runs=source.runs[source.runs["study"].isin([study, BASE])], verdicts={}) for source in found
        ]

    cores = min(joblib.cpu_count(), len(studies) // WORTH) or 1
    workers = joblib.Parallel(n_jobs=cores, batch_size=1)  # pyright: ignore[reportArgumentType]  # or a word
    drawn: Any = workers(joblib.delayed(panels)(study, own(study), paper, ledger) for study in studies)
    return dict(zip(studies, drawn, strict=True))


def panels(
    study: str, found: Sequence[Source], paper: Mapping[str, Any], ledger: Mapping[str, Entry]
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
                    "title": drawing.title,
                    "caption": drawing.caption,
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
                # Only Figure 2's own study misses what has not run yet; others never meant to.
                table = [row for row in table if study == BASE or row["seeds"] != "0"]
            fig2 = source.runs[(source.runs["study"] == BASE) & (source.runs["scale"] == scale)]
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
                    "seeds": seeds_of(runs),
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


def seeds_of(runs: Frame) -> str:
    """Return how many seeds the arms of a study have, in words."""
    counts = runs.groupby("arm")["seed"].nunique()
    least, most = counts.min(), counts.max()
    return f"{most} seed{'s' if most > 1 else ''}" if least == most else f"{least} to {most} seeds an arm"


def same_runs(own: Frame, published: Frame) -> bool:
    """Return whether ``own`` runs are those that were published, by the digests of the files as the runs wrote them."""

    def signed(runs: Frame) -> dict[tuple[str, int], Any]:
        records = {(str(arm), int(seed)): read_run_json(path) or {} for arm, seed, path in _places(runs)}
        return {key: record.get("published", {}).get("from") or record.get("files") for key, record in records.items()}

    # Each of the reader's has its like: what was published beside is no difference of theirs.
    theirs = signed(published)
    return all(theirs.get(key) == files and files for key, files in signed(own).items())


def _places(runs: Frame) -> list[tuple[Any, Any, Path]]:
    return list(runs[["arm", "seed", "path"]].itertuples(index=False, name=None))


def amendments(runs: Frame) -> list[str]:
    """Return what was corrected in the records of ``runs`` after they were written, and why, each said once."""
    records = (read_run_json(path) or {} for path in runs["path"])
    return sorted({f"{key}: {why}" for record in records for key, why in record.get("amended", {}).items()})


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
    columns.sort(key=lambda c: (c.startswith(("train", "fit")), c.startswith("train"), not c.endswith("accuracy")))
    style = figures.looks(runs)
    arms, series = list(style), []
    for (arm, seed), own in curves.groupby(["arm", "seed"], sort=True):
        every = -(-len(own) // POINTS)
        # The last row is kept whatever the stride: it is where a run ends.
        own = own.iloc[sorted({*range(0, len(own), every), len(own) - 1})]
        values = {c: [_digits(value) for value in own[c].tolist()] for c in columns}
        series.append({"arm": arms.index(str(arm)), "seed": int(str(seed)), "step": own["step"].tolist(), **values})
    names = {column: _named(column) for column in columns}
    return {"kind": "curves", "columns": columns, "names": names, "arms": _arms(style), "series": series}


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


def endings(runs: Frame, curves: dict[str, Any]) -> list[dict[str, str]]:
    """Return where the curves end in numbers, for who cannot see them: median and range over seeds, an arm a row."""
    rows = []
    for index, look in enumerate(curves["arms"]):
        own = [one for one in curves["series"] if one["arm"] == index]
        row = {"arm": look["label"], "seeds": str(len(own))}
        for column in curves["columns"]:
            last = [next((v for v in reversed(one[column]) if v is not None), None) for one in own]
            ends = sorted(value for value in last if value is not None)
            row[curves["names"][column]] = (
                f"{pd.Series(ends).median():.4g} ({ends[0]:.4g} to {ends[-1]:.4g})" if ends else "—"
            )
        rows.append(row)
    return rows


def _named(column: str) -> str:
    """Return what a curve is called. What is measured under ``fit`` judges training images as held-out ones are judged;
    ``train`` is the mean over the batches that were trained on.
    """
    kind, _, what = column.partition("_")
    of = {"fit": f"{what} on training images", "train": f"{what} of training batches"}
    return of.get(kind, column).replace("_", " ")


def rate_tables(runs: Frame, fig2: Frame, paper: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the tables of a study of rates with and without BN: its usable ranges, and what is left of the speed-up.

    ``fig2`` are the runs of Figure 2 of the same scale and source, whose networks have the paper's own multiples.
    """
    if figures.swept(runs) != "initial rate" or not {"none", "batch"} <= set(runs.get("choice.norm", ())):
        return []
    if set(figures.axes_of(runs)) - {"norm", "optimizer.rate", "optimizer.multiple"}:
        return []  # several nets a norm: neither a best rate nor a range is theirs in common
    curves = load_curves(runs)
    ranges = figures.usable_rates(runs, curves)
    table = [
        {
            "net": str(net),
            "decades, median": _at_least(own["decades"].median(), _open(own)),
            "each seed": ", ".join(_at_least(*pair) for pair in zip(own["decades"], own["at least"], strict=True)),
            "best rate": ", ".join(f"{rate:g}" for rate in sorted(set(own["best rate"]))),
            "accuracy there": f"{100 * own['accuracy there'].median():.1f}%",
        }
        for net, own in ranges.groupby("net", sort=False)
    ]
    tables = [
        {
            "title": "The usable range of rates",
            "caption": f"Decades of rate around a net’s best over which it keeps {figures.usable_rule(runs)[1]:.0%} of "
            "what it can learn, as the claim rate-range counts them; “≥” where the range runs off the grid."
            + f" {figures.CHOSEN}"
            * figures.tuning(runs),
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
        for row in figures.speed_at_best_rates(runs, curves).to_dict("records")
    ]
    inception = not any(str(model).startswith("mlp") for model in runs.get("choice.model", ()))
    beside = inception and len(fig2) > 0 and {"inception", "bn_baseline"} <= set(fig2["choice.variant"])
    if beside:
        table = figures.fig3_table(fig2, load_curves(fig2), paper.get("fig3", {}))
        gain = table.set_index("model")["gain, ours"]
        third = {row["model"]: row for row in fig3_rows(table)}
        speeds += [
            {
                "rates": f"Figure 2’s {model}",
                "plain": third["Inception"]["rate, ours"],
                "BN": third[model]["rate, ours"],
                "times fewer steps": third[model]["times fewer, ours"],
                "each seed": f"paper: {third[model]['times fewer, paper']}",
                "gain in best accuracy": _points(gain[model]),
            }
            for model in ("BN-Baseline", "BN-x5", "BN-x30")
            if third[model]["seeds"] != "0"
        ]
    if speeds:
        which = "the other seeds" if len(set(runs["seed"])) > 1 else "the same runs, as there is one seed"
        caption = (
            f"Steps of {'plain Inception' if inception else 'the plain net'} to its best, over those of the BN net to "
            f"the same accuracy. A seed’s best rates are chosen on {which}, by final accuracy."
        )
        if beside:
            caption += (
                " The rows of Figure 2 have the paper’s multiples of one base rate, its longer budget and, from BN-x5 "
                "on, the paper’s other changes as well."
            )
        tables.append({"title": "The speed-up, by the rate each net is given", "caption": caption, "rows": speeds})
    return tables


def _points(fraction: float) -> str:
    return f"{100 * fraction:+.1f} points".replace("-", "−")


def _open(ranges: Frame) -> bool:
    """Return whether the median of ranges would be another if those that run off the grid went on."""
    return ranges["decades"].mask(ranges["at least"], np.inf).median() != ranges["decades"].median()


def _at_least(decades: float, censored: bool) -> str:
    return f"{'≥ ' if censored else ''}{decades:.2f}"


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
