"""Records to tidy frames: what the figures and the tables draw on, each number as the claims read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from bn_replication import metrics
from bn_replication.claims import select
from bn_replication.figures.style import VARIANTS, Frame, lines_of, look_of
from bn_replication.ledger import Entry, Grid, StepsTo, at_scale, load_ledger


def accuracy(curves: Frame) -> str:
    """Return which held-out accuracy ``curves`` has: the test set's, or a tuning study's on validation images."""
    return (
        "test_accuracy"
        if "test_accuracy" in curves and curves["test_accuracy"].notna().any()
        else "validation_accuracy"
    )


def trained(runs: Frame) -> Frame:
    """Return ``runs`` less the records of what was evaluated after training, which have no curve (``fig4``)."""
    if "choice.evaluation" not in runs:
        return runs
    return runs[runs["choice.evaluation"].isna() | (runs["choice.evaluation"] == "one_crop")]


def over_seeds(frame: Frame, column: str) -> Frame:
    """Return the lowest, median and highest seed of ``column`` by arm and step, with the number of seeds."""
    grouped = frame.dropna(subset=[column]).groupby(["arm", "step"], sort=True)[column]
    return grouped.agg(low="min", median="median", high="max", seeds="count").reset_index()


def tuning(runs: Frame) -> bool:
    """Whether a study's runs are there to choose a value by, on validation images."""
    return "summary.validation_accuracy" in runs and bool((runs.get("data.split", pd.Series("")) == "tune").all())


def ends(runs: Frame, curves: Frame, targets: Mapping[Any, float] | None = None) -> Frame:
    """Return ``runs`` with what the claims read off a curve: ``best`` and ``final`` held-out accuracy, ``steps_to``.

    ``steps_to`` is to the accuracy that ``targets`` has for the seed, NaN if never reached. Where a study chooses on
    validation images, ``final`` is what it chooses by: the last evaluation, on all of them. An ``initial rate`` is
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
    if tuning(runs):
        frame["final"] = frame["summary.validation_accuracy"].where(frame["final"].notna())
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
    """Return which runs are the ``control`` and which the ``treatment`` of a claim, by run.

    Where two claims disagree on a run, those of the one that is about the fewest runs.
    """
    rows = runs.to_dict("records")
    of_each = [
        {run["run"]: role for role, arm in sides_of(entry).items() for run in select(rows, arm)} for entry in entries
    ]
    together = {run: role for one in of_each for run, role in one.items()}
    disagree = any(together[run] != role for one in of_each for run, role in one.items())
    return min(filter(None, of_each), key=len) if disagree else together


def sides_of(entry: Entry) -> dict[str, Any]:
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
    frame = runs.assign(line=[look_of(row).label for _, row in runs.iterrows()]).infer_objects()
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
    """Return Figure 3 with the paper's numbers beside ours: medians over a net's seeds, ratios of steps in both.

    ``paper`` is the ``fig3`` part of experiments/paper.yaml. Accuracies are fractions, ``times fewer`` is
    Inception's steps to its best, with the same seeds, over the variant's, ``gain`` a seed's best accuracy less its
    Inception's. A median that is censored (half of the seeds or more never got there) is NaN.
    """
    reached = steps_to_plain_best(runs, curves)
    variant = runs.set_index("run")["choice.variant"]
    plain = reached[reached["run"].map(variant) == "inception"].set_index("seed")["steps"]
    initial = ends(runs, curves).set_index("run").get("initial rate", pd.Series(dtype=float))
    rows = []
    for name, look in VARIANTS.items():
        given = {key: leaf["value"] for key, leaf in paper.get(name, {}).items()}
        own = reached[reached["run"].map(variant) == name]
        steps = own["steps"].fillna(np.inf).median() if len(own) else np.nan
        base = plain.reindex(own["seed"]).median() if len(own) else np.nan
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
                "gain, ours": (own["best"] - own["target"]).median() if len(own) else np.nan,
                "times fewer, ours": base / steps if np.isfinite(steps) else np.nan,
            }
        )
    table = pd.DataFrame(rows).set_index("model").astype(float)
    table["times fewer, paper"] = table["steps, paper"].iloc[0] / table["steps, paper"]
    return table.reset_index()


def usable_rule(runs: Frame) -> tuple[float, float]:
    """Return the accuracy of chance and the share of a net's gain over it that a usable rate keeps, as the claim
    rate-range has them at the scale of ``runs``."""
    rule = load_ledger()["rate-range"].metric
    assert isinstance(rule, Grid)
    assert rule.keep is not None
    return float(at_scale(rule.chance, str(runs["scale"].iloc[0]))), rule.keep


def usable_rates(runs: Frame, curves: Frame) -> Frame:
    """Return each net's usable range of rates, one row a net and seed.

    ``decades`` is how far apart the ends lie at which a net keeps the share of its own best gain over chance that
    :func:`usable_rule` asks for; ``at least`` says that the range runs off the grid.
    """
    chance, keep = usable_rule(runs)
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
    frame = ends(runs[runs["run"].isin(curves["run"])], curves)
    finals = frame["final"].mask(frame["status"] == "diverged", chance)
    return frame.assign(net=[look.label for look in lines_of(frame, "initial rate")], final=finals)


def speed_at_best_rates(runs: Frame, curves: Frame) -> Frame:
    """Return how many times fewer steps BN needs to the plain net's best, by the rate that BN is given.

    The plain net always has its own best rate. A seed's best rates are those of the *other* seeds' median, so that
    no run is chosen by its own luck. Rows: BN at the plain net's rate, at the rates of the grid nearest to 5 and 30
    times that, and at its own best. Ratios are medians over seeds; ``each seed`` lists them, ``never`` where BN did
    not get there.
    """
    frame, column = _finals(runs, curves, usable_rule(runs)[0]), accuracy(curves)
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
        ranked = sorted(0.0 if np.isnan(t) else t for t in times)
        middle = float(np.median(ranked)) if ranked[(len(ranked) - 1) // 2] else np.nan  # half of them never did
        spoken = ["never" if np.isnan(t) else f"{t:.2g}x" for t in times]
        row = {"BN": label, **{key: float(np.median([r[key] for r in each])) for key in ("plain rate", "BN rate")}}
        rows.append(row | {"times fewer": middle, "each seed": ", ".join(spoken)})
        rows[-1]["gain in best accuracy"] = float(np.median([r["gain"] for r in each]))
    return pd.DataFrame(rows)


def _one(frame: Frame, norm: str, seed: Any, rate: float) -> Any:
    """Return the run of that norm, seed and rate, or ``None``."""
    chosen = frame[(frame["choice.norm"] == norm) & (frame["seed"] == seed) & np.isclose(frame["initial rate"], rate)]
    return next(chosen.itertuples(), None)
