"""Verdicts on paper: the README's scoreboard in Markdown, and ``verdicts.csv``."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, get_args, get_type_hints

from bn_replication.claims import Verdict
from bn_replication.errors import UserError
from bn_replication.ledger import JUDGE_AMENDED, PAPER, Entry, Summary, load_ledger, read_yaml

START, END = "<!-- scoreboard -->", "<!-- /scoreboard -->"

LEGEND = (
    "In brackets: the interval that decides, at the confidence that Holm's procedure allots the claim among all "
    "those judged at its scale (given in `verdicts.csv`), so that all verdicts of a scale hold together with 95% "
    "confidence, if effects scatter about normally, claims err independently of one another and the seeds were "
    "fixed beforehand; where seeds were added because the first left a claim open, which LOG.md tells, an error is "
    "up to some three times as likely as that level says. *n*: pairs of seeds, or runs. *Censored* runs never "
    "reached the target (of a range: it goes on beyond the grid), so that an effect is known to be *at least* or "
    "*at most* so large, and the interval is no narrower than the sign test's, which of few runs excludes nothing; "
    "*diverged* ones ceased to be finite; both are counted. *Needs*: how many seeds would decide with a probability"
    " of 80%, if the mean and scatter of these few are the truth. A ratio's interval is told in the direction of "
    "its estimate: of *fewer steps*, 0.5x is twice as many and 0 is never; of *more steps*, 0.5x is half as many "
    "and ∞ is never." + "".join(f" All rules were amended on {day}: {why}." for day, why in JUDGE_AMENDED.values())
)

# What a ratio below and above 1 is called, by metric.
_RATIO = {"steps_to": ("fewer steps", "more steps"), "drift": ("less drift", "more drift")}
_TOLD = {
    "steps_to": "steps to the target",
    "final": "accuracy at the end",
    "best": "best accuracy",
    "usable_width": "usable range of rates",
    "gap_at_equal_loss": "gap at equal training loss",
}
_INVERTED = {"at least": "at most", "at most": "at least", "": ""}
_UNIT = {"usable_width": " decades", "gap_at_equal_loss": " nats"}


def tally(verdicts: Sequence[Verdict]) -> str:
    """Return how many verdicts there are of each kind, in words."""
    kinds = get_args(get_type_hints(Verdict)["verdict"])
    return ", ".join(f"{sum(v.verdict == kind for v in verdicts)} {kind}" for kind in kinds)


def by_whom(verdicts: Iterable[Verdict], ledger: Mapping[str, Entry]) -> dict[str, list[Verdict]]:
    """Return the verdicts on the paper's own claims and those on later publications', each under its heading."""
    every = list(verdicts)
    headings = {"Of the paper": True, "Asked of it afterwards": False}
    return {head: [v for v in every if ledger[v.claim].of_paper is own] for head, own in headings.items()}


def counted(verdict: Verdict) -> str:
    """Return how many pairs or runs a verdict rests on, and which of them are not what they might be."""
    marks = [f"{getattr(verdict, mark)} {mark}" for mark in ("censored", "diverged") if getattr(verdict, mark)]
    marks += [f"needs {verdict.needs}"] * bool(verdict.needs)
    return str(verdict.n or "—") + (f" ({', '.join(marks)})" if marks else "")


def ours(entry: Entry, verdict: Verdict) -> str:
    """Return an effect with its interval as a reader says it: ``2.1x fewer steps [1.8, 2.5]``."""
    estimate, low, high, side = verdict.estimate, verdict.low, verdict.high, verdict.side
    if verdict.n == 0:
        return "—"
    if entry.effect == "value":
        low_text, high_text = map(_number, (low, high))
        text = high_text if low == high or abs(high) < 0.01 else f"{low_text} to {high_text}"
    elif entry.effect == "share":
        text = f"{round(estimate * verdict.n)} of {verdict.n} seeds [{low:.0%}, {high:.0%}]"
    elif entry.effect == "ratio":
        less, more = _RATIO.get(entry.metric.name, ("lower", "higher"))
        if estimate < 1:
            estimate, low, high = _inverse(estimate), _inverse(high), _inverse(low)
            more, side = less, _INVERTED[side]
        text = f"{estimate:.3g}x {more} [{_times(low)}, {_times(high)}]"
    else:
        times, unit = (100, " points") if _is_fraction(entry) else (1, _UNIT.get(entry.metric.name, ""))
        text = f"{estimate * times:+.3g}{unit} [{low * times:+.3g}, {high * times:+.3g}]"
    if math.isnan(estimate):
        text = f"unknown [{low:.3g}, {high:.3g}]"
    return f"{side} {text}".lstrip().replace("inf", "∞").replace("-", "−")


def unadjusted(entry: Entry, verdict: Verdict) -> str:
    """Return the 95% interval that is not adjusted for the number of claims, in the words of :func:`ours`."""
    if verdict.plain is None or not verdict.n:
        return ""
    low, high = verdict.plain
    said = ours(entry, replace(verdict, low=low, high=high))
    return said[said.index("[") :]


def _number(value: float) -> str:
    if abs(value) >= 1000 and math.isfinite(value):
        return f"{value:,.0f}"
    return f"{value:.2g}" if abs(value) < 0.01 else f"{value:.3g}"


def _times(value: float) -> str:
    return f"{value:,.0f}" if 1000 <= value < 1e6 else f"{value:.3g}"


def _inverse(value: float) -> float:
    return 1 / value if value else math.inf


def measured(entry: Entry) -> tuple[str, float]:
    """Return what a claim compares, in words with its unit, and how many of those units the number 1 is."""
    name = entry.metric.key if isinstance(entry.metric, Summary) else entry.metric.name
    words = _TOLD.get(name, name.replace("_", " "))
    if entry.effect == "difference" and _is_fraction(entry):
        return f"{words}, points", 100
    unit = _UNIT.get(name, "").strip()
    return (f"{words}, {unit}" if unit and entry.effect == "difference" else words), 1


def _is_fraction(entry: Entry) -> bool:
    name = entry.metric.key if isinstance(entry.metric, Summary) else entry.metric.name
    return name in ("best", "final", "grid_spread") or "accuracy" in name or name.endswith(("error", "share"))


def papers(entry: Entry, paper: Mapping[str, Any]) -> str:
    """Return the paper's number for a claim in words, ``""`` if it prints none."""
    if entry.paper is None:
        return ""
    leaf: Any = paper
    for key in entry.paper.split("."):
        if not isinstance(leaf, Mapping) or key not in leaf:
            raise UserError(f"claim '{entry.id}': found no '{entry.paper}' in {PAPER}; mend one of the two")
        leaf = leaf[key]
    value, unit = leaf["value"], leaf["unit"]
    if unit == "times_fewer":
        return f"{value:.3g}x fewer" if value >= 1 else f"{1 / value:.3g}x more"
    if unit == "points":
        return f"{100 * value:+.3g} points".replace("-", "−")
    if unit == "fraction":
        return f"{100 * value:.3g}%"
    return f"{value:.3g}x" if unit == "times" else f"{_number(value)} {unit}"


def scoreboard_markdown(
    verdicts: Sequence[Verdict],
    ledger: Mapping[str, Entry] | None = None,
    paper: Mapping[str, Any] | None = None,
) -> str:
    """Return the scoreboard in Markdown, markers included: the paper's claims in one table, later publications' in one.

    A claim has a row for each scale at which it has runs.
    """
    ledger = load_ledger() if ledger is None else ledger
    paper = read_yaml(PAPER) if paper is None else paper
    lines = [START, ""]
    parts = by_whom(verdicts, ledger).items()
    for (head, some), says in zip(parts, ("the paper says", "who asks what"), strict=True):
        if some:
            lines += [f"**{head}:** {tally(some)}.", ""]
            lines += [f"| claim | {says} | paper | ours | verdict | n | scale |", "| --- " * 7 + "|"]
            lines += [_row(ledger[verdict.claim], verdict, paper) for verdict in some] + [""]
    return "\n".join([*lines, LEGEND, "", END])


def _row(entry: Entry, verdict: Verdict, paper: Mapping[str, Any]) -> str:
    cells = [
        verdict.claim,
        entry.says if entry.of_paper else f"{entry.where}: {entry.says}",
        papers(entry, paper) or "—",
        ours(entry, verdict),
        verdict.verdict + (" (rule amended)" if entry.amendments else ""),
        counted(verdict),
        verdict.scale or "—",
    ]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def verdicts_csv(verdicts: Sequence[Verdict]) -> str:
    """Return the verdicts as CSV."""
    return rows_csv(Verdict, verdicts)


def rows_csv(kind: type, rows: Sequence[Any]) -> str:
    """Return dataclass rows of one ``kind`` as CSV, numbers to six significant digits; what does not apply is empty."""

    def cell(value: Any) -> str:
        if value is None or value != value:
            return ""
        return f"{value:.6g}" if isinstance(value, float) else str(value)

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = [column.name for column in fields(kind) if column.name != "plain"]  # a look beside, which decides nothing
    writer.writerow(columns)
    for row in rows:
        writer.writerow(cell(getattr(row, column)) for column in columns)
    return text.getvalue()


def with_scoreboard(readme: str, block: str) -> str:
    """Return the README's text with ``block`` where its scoreboard stands.

    Raises:
        UserError: the text does not hold the two markers once each, in order.
    """
    before, start, rest = readme.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end or START in rest or END in after:
        raise UserError(
            f"found no single scoreboard, expected one block from '{START}' to '{END}'; mend it in README.md"
        )
    return before + block + after
