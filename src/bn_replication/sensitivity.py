"""Which answers hang on a value that the paper leaves open: the ledger's rules, asked again under other choices.

The register (``experiments/ambiguities.yaml``) gives open values two alternatives each; studies named ``sensitivity_*``
train under each of them, and under what was chosen, in one budget. Here the rule of every claim that such a study can
answer is applied to those runs. The rows are no claims: each has the plain 95% interval of its own, unadjusted for
their number, and none enters Holm's family. Only records are read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from bn_replication.claims import Run, Side, Verdict, judge_alone
from bn_replication.ledger import JUDGED, Entry
from bn_replication.records import flatten
from bn_replication.scoreboard import ours, rows_csv

# The claims whose arms a study of alternatives trains.
CLAIMS = {
    "sensitivity_mnist": ("fig1-faster", "fig1-higher", "fig1-stable"),
    "sensitivity_inception": ("bn-alone", "bn-alone-not-worse", "bn-x5-speed"),
}
CHOSEN = "chosen"


@dataclass(frozen=True)
class Row:
    """One claim under one alternative, beside the same claim under what was chosen; numbers as a verdict's."""

    value: str  # the register's name of what is open
    alternative: str
    sets: str  # what the alternative changes
    claim: str
    scale: str  # "" if nothing was run
    survives: Literal["yes", "no", "undecided", "not run"]
    verdict: str
    estimate: float
    side: Side  # "", "at least" or "at most" so large, as in a verdict
    low: float
    high: float
    n: int
    chosen_verdict: str
    chosen_estimate: float
    chosen_side: Side
    chosen_low: float
    chosen_high: float
    chosen_n: int
    same_side: bool | None  # do both estimates lie on one side of the claim's bounds? None: one is not known
    note: str


def table(register: Mapping[str, Any], ledger: Mapping[str, Entry], runs: pd.DataFrame) -> list[Row]:
    """Return a row for each alternative of the register and claim of ``ledger`` that it is tested on.

    An alternative without runs has one row a claim, *not run*, with an empty scale.
    """
    rows: list[Run] = runs.to_dict("records")
    return [
        row
        for name, item in register.items()
        for study in item.get("tested", [])
        for alternative, other in item.get("alternatives", {}).items()
        for claim in CLAIMS[study]
        if claim in ledger
        for row in _rows(name, alternative, flatten(other["sets"]), study, ledger[claim], rows)
    ]


def of_study(study: str) -> bool:
    """Return whether ``study`` is one of alternatives, whose answers stand in the table and in no figure."""
    return claims_of(study) != ()


def claims_of(study: str) -> tuple[str, ...]:
    """Return the claims whose rules are asked again of the runs of ``study``; none where it is no such study."""
    return next((ids for name, ids in CLAIMS.items() if study == name or study.startswith(f"{name}_")), ())


def _rows(
    name: str, alternative: str, sets: Mapping[str, Any], study: str, entry: Entry, rows: list[Run]
) -> Iterator[Row]:
    own = [run for run in rows if run["study"] == study or str(run["study"]).startswith(f"{study}_")]
    chosen = [run for run in own if run.get("choice.alternative") == CHOSEN]
    other = [run for run in own if run.get("choice.alternative") == alternative]
    scales = [scale for scale in JUDGED if any(run["scale"] == scale for run in other)]
    if any(key.startswith("norm.") for key in sets):
        # A net without BN has no eps: its run is the same under each.
        other += [run for run in chosen if run.get("choice.norm") == "none"]
    text = ", ".join(f"{key}={value}" for key, value in sets.items())
    for scale in scales or [""]:
        pair = [judge_alone(entry, [run for run in some if run["scale"] == scale], scale) for some in (other, chosen)]
        here, there = pair
        yield Row(
            name, alternative, text, entry.id, scale, _survives(here, there),
            here.verdict, here.estimate, here.side, here.low, here.high, here.n,
            there.verdict, there.estimate, there.side, there.low, there.high, there.n,
            _same_side(entry, here, there), _notes(here, there),
        )  # fmt: skip


def _survives(here: Verdict, there: Verdict) -> Literal["yes", "no", "undecided", "not run"]:
    """Say whether two answers agree: only answers that decide something can."""
    answers = {here.verdict, there.verdict}
    if "not run" in answers:
        return "not run"
    if "inconclusive" in answers:
        return "undecided"
    return "yes" if len(answers) == 1 else "no"


def _same_side(entry: Entry, here: Verdict, there: Verdict) -> bool | None:
    bounds = entry.bounds_at(here.scale)
    if bounds is None or math.isnan(here.estimate) or math.isnan(there.estimate):
        return None
    inside = [_inside(verdict, *bounds) for verdict in (here, there)]
    return None if None in inside else inside[0] == inside[1]


def _inside(verdict: Verdict, above: float, below: float) -> bool | None:
    """Say whether an estimate is within bounds; ``None`` where it is only known to be at least or at most so large."""
    low = -math.inf if verdict.side == "at most" else verdict.estimate
    high = math.inf if verdict.side == "at least" else verdict.estimate
    if above < low and high < below:
        return True
    return False if high <= above or low >= below else None


def _notes(here: Verdict, there: Verdict) -> str:
    notes = [here.note] if here.note else []
    return "; ".join([*notes, f"under what was chosen: {there.note}"] if there.note else notes)


def words(row: Row, entry: Entry) -> dict[str, str]:
    """Return a row as a reader says it: both effects with their intervals, and whether the answer survives."""
    here = Verdict(row.claim, row.scale, "inconclusive", row.estimate, row.side, row.low, row.high, n=row.n)
    chosen = (row.chosen_estimate, row.chosen_side, row.chosen_low, row.chosen_high)
    there = Verdict(row.claim, row.scale, "inconclusive", *chosen, n=row.chosen_n)
    side = {True: "estimates on one side", False: "estimates on opposite sides", None: ""}[row.same_side]
    return {
        "chosen": ours(entry, there),
        "chosen_verdict": row.chosen_verdict,
        "here": ours(entry, here),
        "verdict": row.verdict,
        "survives": row.survives + (f", {side}" if side and row.survives == "undecided" else ""),
    }


def sensitivity_csv(rows: list[Row]) -> str:
    """Return the table as CSV, in the form of ``verdicts.csv``."""
    return rows_csv(Row, rows)
