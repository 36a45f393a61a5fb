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
import functools
import gzip
import itertools
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import pandas as pd
import vl_convert
import yaml
from markupsafe import Markup

from bn_replication import fig4, figures, panels, sensitivity
from bn_replication.claims import Verdict, judge
from bn_replication.errors import UserError, nearest, one_line, writing
from bn_replication.ledger import (
    AMBIGUITIES,
    LEDGER,
    PAPER,
    SCALES,
    STUDIES,
    Entry,
    load_ledger,
    read_yaml,
)
from bn_replication.panels import Source
from bn_replication.records import atomic_write, load_runs, read_run_json
from bn_replication.scoreboard import LEGEND, by_whom, counted, measured, ours, papers, tally, unadjusted
from bn_replication.status import axes

HERE = Path(__file__).parent
ROOTS = (Path("results/published"), Path("results/runs"))
LIMIT = 5_000_000  # bytes the page should stay below
PROSE = ("where", "says", "paper", "why", "amendments")
COMMANDS = {
    "exact": "python -m bn_replication.exact",
    "architecture": "python -m bn_replication.models.inception",
    "fig4_ensemble": "make ensemble",  # trains, and judges what was trained
}


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


def command(study: str, scale: str, seeds: int = 0, precision: str = "float32", entry: Entry | None = None) -> str:
    """Return the command that runs a study; a study that only the ledger names so far has none yet.

    Args:
        seeds: how many there are to run again, if they are more than the study has by itself.
        precision: that of the records.
        entry: the claim whose seeds they are: then no other arms are run as often.
    """
    path = STUDIES / f"{study}.yaml"
    if study not in COMMANDS and not path.exists():
        return ""
    run = COMMANDS.get(study, f"python -m bn_replication.train -m experiment={study}")
    if scale == "" or study in ("exact", "architecture"):
        return run
    own = axes(study, scale)["seed"]
    more = own[0] == 0 and seeds > len(own)
    if run.startswith("make "):
        return " ".join([run, *[f"SCALE={scale}"] * (scale != "laptop"), *[f"SEEDS={seeds}"] * more])
    words = [] if scale == "laptop" else [f"scale={scale}", "machine.device=cuda"]
    words += [f"precision={precision}"] if precision != "float32" else []
    words += [*(_compared(entry, scale) if entry else []), f"'seed=range({seeds})'"] if more else []
    return " ".join([run, *words])


def _compared(entry: Entry, scale: str) -> list[str]:
    """Return the overrides that leave of a study's sweep the settings that a claim compares."""
    selections = [one for one in (entry.control, entry.treatment, getattr(entry.metric, "target", None)) if one]
    words = []
    for key, values in axes(entry.study, scale).items():
        asked = {value for selection in selections for value in selection.get(key, values)}
        if asked < set(values):
            words.append(f"{key}={','.join(str(value) for value in values if value in asked)}")
    return words


def precision(study: str, scale: str, found: Sequence[Source]) -> str:
    """Return in what precision the runs of a study are, float32 where that is not one for all."""
    every = [source.runs for source in found if "precision" in source.runs]
    of_study = [runs.loc[(runs["study"] == study) & (runs["scale"] == scale), "precision"].dropna() for runs in every]
    own = set(itertools.chain.from_iterable(of_study))
    return str(own.pop()) if len(own) == 1 else "float32"


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
        [v.side for _, v in lines],
    )
    return panels.inline(
        figures.render(figure),
        f"effect-{entry.id}-{row['scale']}",
        f"{entry.id}: interval against the rule's bounds",
    )


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


def record_link(source: Source, scale: str, study: str, beside: Path) -> tuple[str, str]:
    """Return a place of records as a reader sees it and as a page in the folder ``beside`` links to it."""
    place = source.root / scale / study
    return str(place), quote(os.path.relpath(place, beside) + "/")


def provenance(source: Source) -> dict[str, Any]:
    """Return where a source's numbers come from: versions, machines, revisions, and the time they took."""
    seen: dict[str, set[str]] = {}
    elsewhere = 0
    for directory in source.runs["path"]:
        record = read_run_json(directory) or {}
        for key, value in record.get("environment", {}).items():
            if key == "resumed":
                elsewhere += 1
            elif value is not None:  # what runs need not tell: an exact claim has no revision of its own
                seen.setdefault(key, set()).add(str(value)[:12] if key == "git" else str(value))
    runs = source.runs.assign(seconds=source.runs["seconds"].astype(float))
    if "choice.evaluation" in runs:
        runs.loc[runs["choice.evaluation"].isin(fig4.OF_SEVERAL), "seconds"] = 0.0
    started = source.runs["started"].dropna().astype(str).str[:10]
    studies = runs.groupby(["scale", "study"], sort=True).agg(
        runs=("seed", "size"),
        seconds=("seconds", "sum"),
        diverged=("status", lambda s: int((s == "diverged").sum())),
    )
    return {
        "environment": {
            **{key: ", ".join(sorted(values)) for key, values in sorted(seen.items())},
            **({"resumed": f"{elsewhere} of the runs in another environment than they began in"} if elsewhere else {}),
        },
        "total": _duration(runs["seconds"].sum()),
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
    run = dict.fromkeys(study for source in found for study in source.runs["study"].unique())
    # In the ledger's order, and after those what no claim is about.
    ordered = [entry.study for entry in ledger.values() if entry.study in run]
    studies = []
    for study, shown in panels.every(list(dict.fromkeys([*ordered, *run])), found, paper, ledger).items():
        claims = [
            {
                **row,
                "rule": rule(row["entry"], raw),
                "effect": effect_svg(row["entry"], row, paper, found),
                "measured": measured(row["entry"])[0].partition(", points")[0],
                "precision": precision(study, row["scale"], found),
                "open": [(name, each["what"]) for name, each in register.items() if row["entry"].id in each["moves"]],
            }
            for row in rows
            if row["entry"].study == study
        ]
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
    for root in options.root or []:
        if not root.is_dir():
            raise UserError(f"found no directory {root}, expected a root of records; mend --root")
    if options.claim:
        show_claim(options.claim, roots)
        return 0
    content = page(roots, beside=options.out.parent).encode()
    with writing(options.out, "--out"):
        options.out.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(options.out, content)
    print(f"{options.out}: {len(content) / 1e6:.1f} MB")
    if len(content) > LIMIT:
        print(f"warning: {options.out} is over {LIMIT / 1e6:.0f} MB; show fewer roots with --root", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
