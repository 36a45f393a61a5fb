"""One function judges every claim: runs in, verdicts out.

An entry of the ledger selects runs; they are paired by seed; each run becomes a number
(:mod:`bn_replication.metrics`); the numbers become an interval and a verdict (:mod:`bn_replication.stats`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import pandas as pd

from bn_replication import metrics, records, stats
from bn_replication.errors import UserError, nearest
from bn_replication.ledger import (
    ALPHA,
    JUDGED,
    LEDGER,
    SCALES,
    AgainstChance,
    Best,
    Drift,
    Entry,
    Final,
    GapAtLoss,
    Grid,
    Scalar,
    StepsTo,
    Summary,
    at_scale,
    digests_for_study,
    entry_digest,
    load_ledger,
)

# The ledger's own functions are at hand here too.
__all__ = ["Evidence", "Measured", "Verdict", "evidence", "judge", "judge_alone", "select"]
__all__ += ["digests_for_study", "entry_digest", "load_ledger"]

Run = dict[str, Any]  # one row of records.load_runs


class Measured(NamedTuple):
    """A run's number, known to lie in [low, high]: a censored one has one open end, an unknown one two."""

    low: float
    high: float


UNKNOWN = Measured(-math.inf, math.inf)


@dataclass(frozen=True)
class Evidence:
    """What the runs say about one claim at one scale: one effect a seed (a ratio's as its logarithm)."""

    seeds: list[int]
    effects: list[Measured]
    control: list[Measured]
    treatment: list[Measured]
    steps: int | None = None
    censored: int = 0
    diverged: int = 0
    notes: list[str] = field(default_factory=list)


Side: TypeAlias = Literal["", "at least", "at most"]


@dataclass(frozen=True)
class Verdict:
    """One row of the scoreboard; estimate and interval are in the effect's own unit (a ratio is a ratio)."""

    claim: str
    scale: str  # "" if the claim's study has no runs anywhere
    verdict: Literal["reproduced", "contradicted", "inconclusive", "not run"]
    estimate: float = math.nan
    side: Side = ""  # what is known of the effect, where censored runs are in the mean
    low: float = math.nan
    high: float = math.nan
    level: float = math.nan  # confidence of the interval, as Holm's procedure allots it
    p: float = math.nan
    n: int = 0
    steps: int | None = None
    censored: int = 0
    diverged: int = 0
    needs: int | None = None  # seeds that would decide an inconclusive claim, going by these
    control: str = ""  # every seed's number: >x is censored at x, ? unknown
    treatment: str = ""
    note: str = ""
    # The interval at 95% whatever the number of claims. It decides nothing, so verdicts.csv leaves it out.
    plain: tuple[float, float] | None = None


class Ambiguous(Exception):
    """An arm of the ledger fits several runs of one seed."""


def judge(ledger: Mapping[str, Entry], runs: pd.DataFrame) -> list[Verdict]:
    """Return the verdict on every claim at every scale at which its study has runs, in the ledger's order.

    A claim whose study has no runs at any judged scale gets one row, *not run*, with an empty scale.

    Args:
        ledger: from :func:`bn_replication.ledger.load_ledger`.
        runs: from :func:`bn_replication.records.load_runs`; their curves are read as needed.

    Raises:
        UserError: the ledger names a key or a column that the runs do not have.
    """
    rows: list[Run] = runs.to_dict("records")
    verdicts: list[Verdict] = []
    empirical: dict[str, list[tuple[Entry, Evidence]]] = {}
    for entry in ledger.values():
        study = [run for run in rows if run["study"] == entry.study]
        found = {run["scale"] for run in study}
        scales = [scale for scale in SCALES if scale in found and (entry.kind == "exact" or scale in JUDGED)]
        if not scales:
            verdicts.append(Verdict(entry.id, "", "not run"))
        for scale in scales:
            try:
                seen = evidence(entry, [run for run in study if run["scale"] == scale], scale)
            except Ambiguous as error:
                note = f"{error}; the claim needs one: give the others a study of their own"
                verdicts.append(Verdict(entry.id, scale, "inconclusive", note=note))
                continue
            if not seen.seeds or entry.bounds_at(scale) is None:
                note = "; ".join(seen.notes) or "the ledger sets no bounds at this scale"
                verdicts.append(Verdict(entry.id, scale, "not run", note=note))
            elif entry.kind == "exact":
                verdicts.append(_exact(entry, seen, scale))
            else:
                empirical.setdefault(scale, []).append((entry, seen))
    for scale, family in empirical.items():
        cases = [(entry, seen, _interval(entry, seen), _bounds(entry, scale)) for entry, seen in family]
        p_values = [stats.p_value(interval, bounds) for _, _, interval, bounds in cases]
        for case, p, alpha in zip(cases, p_values, stats.holm_levels(p_values, ALPHA), strict=True):
            verdicts.append(_empirical(*case, scale, p, alpha))
    order = {name: i for i, name in enumerate(ledger)}
    return sorted(verdicts, key=lambda v: (order[v.claim], SCALES.index(v.scale) if v.scale else 0))


def judge_alone(entry: Entry, runs: Sequence[Run], scale: str, alpha: float = ALPHA) -> Verdict:
    """Return what an empirical claim's rule says of ``runs`` of one scale by themselves, whatever their study.

    The interval has level 1 - alpha, with no allowance for any other claim: a look beside, never the scoreboard's.
    """
    try:
        seen = evidence(entry, runs, scale) if runs else Evidence([], [], [], [], notes=["no runs"])
    except Ambiguous as error:
        return Verdict(entry.id, scale, "inconclusive", note=str(error))
    if not seen.seeds or entry.bounds_at(scale) is None:
        return Verdict(entry.id, scale, "not run", note="; ".join(seen.notes))
    interval, bounds = _interval(entry, seen), _bounds(entry, scale)
    return _empirical(entry, seen, interval, bounds, scale, stats.p_value(interval, bounds), alpha)


# --- runs -> effects ---------------------------------------------------------------------------------------


def evidence(entry: Entry, runs: Sequence[Run], scale: str) -> Evidence:
    """Return the effects of ``runs``, which are those of the claim's study at one scale, paired by seed.

    Failed runs are no results and are left out; diverged ones are results. All arms must have run the same
    number of steps: of several budgets the largest that has pairs counts (two pairs at least, if any has).

    Raises:
        Ambiguous: an arm fits several runs of one seed.
        UserError: the ledger names a key or a column that the runs do not have.
    """
    arms = {"treatment": entry.treatment}
    if entry.control is not None:
        arms["control"] = entry.control
    if isinstance(entry.metric, StepsTo):
        arms["target"] = entry.metric.target or entry.control or {}
    chosen, notes = {}, []
    for role, arm in arms.items():
        fitting = select(runs, arm)
        chosen[role] = [run for run in fitting if run["status"] != "failed"]
        if not fitting:
            notes.append(f"no run fits the {role}, {_spell(arm)}")
        elif role != "target" and len(fitting) > len(chosen[role]):
            notes.append(f"{len(fitting) - len(chosen[role])} failed run(s) of the {role} left out")
    if isinstance(entry.metric, Summary) and entry.kind == "exact":
        numbers = [_summary(run, entry.metric.key) for run in chosen["treatment"]]
        return Evidence([run["seed"] for run in chosen["treatment"]], numbers, [], numbers, notes=notes)

    budgets = sorted({int(run["steps"]) for rows in chosen.values() for run in rows}, reverse=True)
    tried = []
    for steps in budgets:
        same = {role: [run for run in rows if run["steps"] == steps] for role, rows in chosen.items()}
        tried.append(_paired(entry, same, scale, steps))
    best = next((e for enough in (2, 1, 0) for e in tried if len(e.seeds) >= enough), Evidence([], [], [], []))
    if best.seeds and len(budgets) > 1:
        others = ", ".join(str(steps) for steps in budgets if steps != best.steps)
        notes.append(f"judged at {best.steps} steps; runs of {others} steps are not mixed in")
    best.notes[:0] = notes
    return best


def select(runs: Sequence[Run], arm: Mapping[str, Sequence[Scalar]]) -> list[Run]:
    """Return the runs whose group choices, or else configuration, have one of the values that ``arm`` names.

    Raises:
        UserError: no run of the study has such a choice or key; a misspelt one would read *not run* for ever.
    """
    chosen = list(runs)
    for key, wanted in arm.items():
        name = next((n for n in (f"choice.{key}", key) if any(_present(run.get(n)) for run in runs)), None)
        if name is None:
            known = {str(n).removeprefix("choice.") for run in runs for n in run}
            where = f"a key of study {runs[0]['study']}" if runs else "a key"
            raise UserError(f"found '{key}' in a claim, expected {where}{nearest(key, known)}; mend it in {LEDGER}")
        chosen = [run for run in chosen if any(_same(run.get(name), value) for value in wanted)]
    return chosen


def _present(cell: Any) -> bool:
    # Runs of other studies leave NaN in the columns that this one does not have.
    return cell is not None and cell == cell


def _same(cell: Any, value: Scalar) -> bool:
    if isinstance(value, str):
        # YAML reads 1e-5, without a point, as text.
        return str(cell) == value or (_is_number(cell) and _is_number(value) and _same(cell, float(value)))
    if isinstance(value, bool) or isinstance(cell, bool | np.bool_):
        return isinstance(cell, bool | np.bool_) and isinstance(value, bool) and bool(cell) == value
    return isinstance(cell, int | float) and math.isclose(cell, value, rel_tol=1e-9)


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return not isinstance(value, bool | np.bool_)


def _spell(arm: Mapping[str, Sequence[Scalar]]) -> str:
    return ", ".join(f"{key}={'|'.join(map(str, values))}" for key, values in arm.items())


def _ranges(seeds: Sequence[int]) -> str:
    """Return whole numbers in order as text, three or more in a row as a range."""
    runs: list[list[int]] = []
    for seed in seeds:
        if runs and seed == runs[-1][-1] + 1:
            runs[-1].append(seed)
        else:
            runs.append([seed])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)


def _paired(entry: Entry, chosen: Mapping[str, Sequence[Run]], scale: str, steps: int) -> Evidence:
    """Pair the arms by seed, measure every run and take the effect of each pair."""
    arms: dict[str, dict[int, list[Run]]] = {role: {} for role in chosen}
    for role, rows in chosen.items():
        for run in rows:
            arms[role].setdefault(int(run["seed"]), []).append(run)
    anywhere = {seed for groups in arms.values() for seed in groups}
    whole = _whole_grids(entry.metric, arms) if isinstance(entry.metric, Grid) else _whole_arms(entry, arms)
    seeds = sorted(whole)
    notes = []
    if left := sorted(anywhere - whole):
        notes.append(f"seed{'s' * (len(left) > 1)} {_ranges(left)} left out: a run is missing in an arm")

    measured = {
        role: [_measure(entry, role, {r: groups[seed] for r, groups in arms.items()}, scale) for seed in seeds]
        for role in arms
        if role != "target"
    }
    treatment = measured["treatment"]
    if isinstance(entry.metric, Summary) and entry.metric.against:
        measured["control"] = [_summary(arms["treatment"][seed][0], entry.metric.against) for seed in seeds]
    control = measured.get("control", [Measured(0.0, 0.0)] * len(seeds))
    if unknown := sum(m == UNKNOWN for m in itertools.chain(control, treatment)):
        notes.append(f"{unknown} number(s) could not be read off: no finite value is there")
    used = [run for role in arms if role != "target" for seed in seeds for run in arms[role][seed]]
    return Evidence(
        seeds=seeds,
        effects=[_effect(entry, c, t) for c, t in zip(control, treatment, strict=True)],
        control=measured.get("control", []),
        treatment=treatment,
        steps=steps,
        censored=sum(m.low != m.high and m != UNKNOWN for m in itertools.chain(control, treatment)),
        diverged=sum(run["status"] == "diverged" for run in used),
        notes=notes,
    )


def _whole_arms(entry: Entry, arms: Mapping[str, Mapping[int, Sequence[Run]]]) -> set[int]:
    """Return the seeds for which every arm has its run: one, or for a yes/no claim one a combination of
    values."""
    whole = set.intersection(*(set(groups) for groups in arms.values()))
    for role, groups in arms.items():
        arm = {"treatment": entry.treatment, "control": entry.control}.get(role)
        wanted = math.prod(len(values) for values in arm.values()) if entry.effect == "share" and arm else 1
        for seed, runs in groups.items():
            if len(runs) > wanted:
                names = ", ".join(sorted(str(run["arm"]) for run in runs))
                raise Ambiguous(f"the {role} fits {len(runs)} runs of seed {seed} ({names})")
            if len(runs) < wanted:
                whole.discard(seed)
    return whole


def _whole_grids(metric: Grid, arms: Mapping[str, Mapping[int, Sequence[Run]]]) -> set[int]:
    """Return the seeds for which every arm has every setting that any arm has, three at least."""
    found: dict[tuple[str, int], set[float]] = {}
    for role, groups in arms.items():
        for seed, runs in groups.items():
            settings = [_setting(metric, run) for run in runs]
            if len(settings) > len(set(settings)):
                raise Ambiguous(f"the {role} has several runs of seed {seed} at one {' x '.join(metric.grid)}")
            found[role, seed] = set(settings)
    every = {setting for settings in found.values() for setting in settings}
    seeds = {seed for _, seed in found}
    return {seed for seed in seeds if len(every) > 2 and all(found.get((role, seed)) == every for role in arms)}


def _setting(metric: Grid, run: Run) -> float:
    """Return a run's place on the grid, rounded so that equal settings compare equal."""
    cells = {key: _cell(run, key) for key in metric.grid}
    for key, cell in cells.items():
        if not _is_number(cell) or (metric.keep is not None and float(cell) <= 0):
            expected = "a number" if metric.keep is None else "a number above 0, as its range is told in decades"
            raise UserError(f"found {key}={cell} in {run['run']}, expected {expected}; mend the grid in {LEDGER}")
    return float(f"{math.prod(map(float, cells.values())):.9g}")


def _cell(run: Run, name: str) -> Any:
    if name not in run:
        known = [str(key) for key in run if str(key).partition(".")[0] == name.partition(".")[0]]
        raise UserError(f"found no '{name}' in {run['run']}{nearest(name, known)}; mend the metric in {LEDGER}")
    return run[name]


def _effect(entry: Entry, control: Measured, treatment: Measured) -> Measured:
    if entry.effect == "share":
        holds = float(treatment.low == 1 and control.high == 0)
        return Measured(holds, holds)
    if entry.effect == "ratio":
        control, treatment = (Measured(_log(m.low), _log(m.high)) for m in (control, treatment))
    low, high = treatment.low - control.high, treatment.high - control.low
    # Infinity less infinity: nothing is known on that side.
    return Measured(-math.inf if math.isnan(low) else low, math.inf if math.isnan(high) else high)


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf


# --- a run, or a grid of runs, -> a number -----------------------------------------------------------------


def _measure(entry: Entry, role: str, arms: Mapping[str, Sequence[Run]], scale: str) -> Measured:
    """Return the metric of one role at one seed.

    Args:
        arms: the runs of that seed by role; all roles, since some metrics hold one arm against another.
    """
    metric, runs = entry.metric, arms[role]
    match metric:
        case Summary():
            return _summary(runs[0], metric.key)
        case Best():
            return _known(metrics.best(*_curve(runs[0], metric.of)))
        case Final():
            return _known(_final(entry, metric, runs[0], scale))
        case StepsTo():
            target = metrics.best(*_curve(arms["target"][0], metric.of))
            reached = metrics.steps_to(*_curve(runs[0], metric.of), target, int(runs[0]["steps"]))
            if math.isnan(target):
                return UNKNOWN
            return Measured(reached.step, math.inf if reached.censored else reached.step)
        case AgainstChance():
            answers = [_against_chance(entry, metric, run, scale) for run in runs]
            # The treatment must answer yes in every run, the control in none.
            return _known(float(all(answers) if role == "treatment" else any(answers)))
        case Drift():
            return _known(_drift(runs[0]))
        case GapAtLoss():
            fits = {r: _curve(arms[r][0], metric.train) for r in arms}
            lowest = max(float(np.min(metrics.trained(*fit)[1], initial=math.inf)) for fit in fits.values())
            if lowest == math.inf:  # of a net that ended before its first evaluation, which is not read untrained
                return UNKNOWN
            return _known(metrics.gap_at(fits[role][1], _curve(arms[role][0], "test_loss")[1], lowest))
        case Grid():
            finals = {_setting(metric, run): _final(entry, metric, run, scale) for run in runs}
            grid = sorted(finals)
            accuracies = [finals[setting] for setting in grid]
            if any(map(math.isnan, accuracies)):
                return UNKNOWN
            if metric.keep is None:
                return _known(metrics.grid_spread(accuracies))
            width = metrics.usable_width(grid, accuracies, _here(entry, metric.chance, scale), metric.keep)
            return Measured(width.decades, math.inf if width.censored else width.decades)


def _known(value: float) -> Measured:
    return Measured(value, value) if math.isfinite(value) else UNKNOWN


def _summary(run: Run, key: str) -> Measured:
    value = _cell(run, f"summary.{key}")
    return UNKNOWN if value is None else _known(float(value))


def _here(entry: Entry, table: Mapping[str, Any], scale: str) -> Any:
    value = at_scale(table, scale)
    if value is None:
        raise UserError(f"claim '{entry.id}': found no default and no value at scale {scale}; mend it in {LEDGER}")
    return value


def _curve(run: Run, column: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps and the values of one column of a run's curve; what is missing in a row is NaN."""
    rows = records.run_rows(Path(run["run"]), records.CURVES)
    if rows and not any(column in row for row in rows):
        known = {name for row in rows for name in row}
        raise UserError(f"found no {column} in the curve of {run['run']}{nearest(column, known)}; mend it in {LEDGER}")
    values = [math.nan if row.get(column) is None else float(row[column]) for row in rows]
    return np.array([float(row["step"]) for row in rows]), np.array(values)


def _final(entry: Entry, metric: Final | Grid, run: Run, scale: str) -> float:
    if run["status"] == "diverged":
        # Parameters that are not finite give every image the same answer, which is right by chance.
        return float(_here(entry, metric.chance, scale))
    return metrics.final(*_curve(run, metric.of), int(run["steps"]), metric.tail)


def _against_chance(entry: Entry, metric: AgainstChance, run: Run, scale: str) -> bool:
    chance, held_out = _here(entry, metric.chance, scale), _here(entry, metric.held_out, scale)
    # A run may evaluate on the first so many held-out examples only (0: all); guessing does better on fewer.
    examples = int(run.get("evaluate.examples") or 0)
    count = min(examples or held_out, held_out)
    steps, values = _curve(run, metric.of)
    if metric.name == "fails":
        return metrics.fails(steps, values, run["status"] == "diverged", chance, count)
    return metrics.at_chance(steps, values, chance, count)


def _drift(run: Run) -> float:
    rows = [row for row in records.run_rows(Path(run["run"]), records.ACTIVATIONS) if row.get("units")]
    if not rows:
        return math.nan
    last = rows[-1]["layer"]  # the rows of one step stand in depth order
    return metrics.drift([row["units"] for row in rows if row["layer"] == last])


# --- effects -> a verdict ----------------------------------------------------------------------------------


def _bounds(entry: Entry, scale: str) -> stats.Bounds:
    """Return the bounds on the effect as it is judged: a ratio's on its logarithm."""
    edges = entry.bounds_at(scale)
    assert edges is not None
    return stats.Bounds(*map(_log, edges)) if entry.effect == "ratio" else stats.Bounds(*edges)


def _interval(entry: Entry, seen: Evidence) -> Callable[[float], stats.Interval]:
    lows, highs = [e.low for e in seen.effects], [e.high for e in seen.effects]
    if entry.effect == "share":
        return lambda alpha: stats.share_interval(round(sum(lows)), len(lows), alpha)
    return lambda alpha: stats.mean_interval(lows, highs, alpha)


def _exact(entry: Entry, seen: Evidence, scale: str) -> Verdict:
    """Judge the span of all runs: an identity holds in every one, or it does not hold."""
    low, high = min(m.low for m in seen.effects), max(m.high for m in seen.effects)
    verdict = stats.decide(stats.Interval(low, high), _bounds(entry, scale))
    # One run outside the bounds is a counter-example; a number that is not finite is outside any.
    verdict = "reproduced" if verdict == "reproduced" else "contradicted"
    note = "; ".join(seen.notes)
    return Verdict(entry.id, scale, verdict, estimate=high, low=low, high=high, n=len(seen.effects), note=note)


def _empirical(
    entry: Entry,
    seen: Evidence,
    interval: Callable[[float], stats.Interval],
    bounds: stats.Bounds,
    scale: str,
    p: float,
    alpha: float,
) -> Verdict:
    drawn, plain = interval(alpha), interval(ALPHA)
    verdict = stats.decide(drawn, bounds)
    lows, highs = [e.low for e in seen.effects], [e.high for e in seen.effects]
    # The mean of censored effects is known only to lie between these two; the finite one is shown, with its side.
    means = (sum(lows) / len(lows), sum(highs) / len(highs))
    estimate = next((mean for mean in means if math.isfinite(mean)), math.nan)
    side: Side = "at least" if estimate == means[0] else "at most"
    if means[0] == means[1] or math.isnan(estimate):
        side = ""
    needs = None
    if verdict == "inconclusive" and entry.effect == "share":
        needs = stats.required_n_share(round(sum(lows)), len(lows), bounds, alpha)
    elif verdict == "inconclusive" and lows == highs:
        needs = stats.required_n(lows, bounds, alpha)
    natural = _exp if entry.effect == "ratio" else float
    return Verdict(
        claim=entry.id,
        scale=scale,
        verdict=verdict,
        estimate=natural(estimate),
        side=side,
        low=natural(drawn.low),
        high=natural(drawn.high),
        level=1 - alpha,
        p=p,
        n=len(seen.seeds),
        steps=seen.steps,
        censored=seen.censored,
        diverged=seen.diverged,
        needs=needs,
        control=_listed(seen.control),
        treatment=_listed(seen.treatment),
        note="; ".join(seen.notes),
        plain=(natural(plain.low), natural(plain.high)),
    )


def _exp(value: float) -> float:
    return math.inf if value >= 700 else math.exp(value)


def _listed(measured: Iterable[Measured]) -> str:
    return " ".join("?" if m == UNKNOWN else f"{m.low:.5g}" if m.low == m.high else f">{m.low:.5g}" for m in measured)
