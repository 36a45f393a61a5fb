"""What has run, is running and is missing, study by study: ``python -m bn_replication.status [STUDY ...]``.

A study's jobs are read from its sweep in ``configs/experiment``, its runs from ``results``; nothing is composed,
trained or locked, and torch is not imported. *To go* is what ``make STUDY`` would still take here: the recorded
seconds of the same arm, else of the same study, else of the same kind of net by the step, over the cores there
are. Colours are off where ``NO_COLOR`` is set or the output is no terminal; the width is the terminal's, or
``COLUMNS``.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Transformer
from omegaconf import DictConfig, OmegaConf

from bn_replication.errors import UserError, nearest, one_line
from bn_replication.jobs import cores
from bn_replication.ledger import STUDIES, load_ledger, swept
from bn_replication.records import CURVES, RUN, load_runs, read_run_json, run_directory

Frame: TypeAlias = Any  # to a type checker, as in figures
CONFIGS = STUDIES.parent
LOCKS = Path("/proc/locks")
RECENT = 300.0  # seconds since the last row within which a run passes for running, where locks cannot be read


@dataclass(frozen=True)
class Job:
    """One run that a study's sweep asks for."""

    study: str
    arm: str
    seed: int
    steps: int
    model: str
    overrides: tuple[tuple[str, Any], ...] = ()  # what its arm sets of the study's axes, the seed apart

    def directory(self, root: Path, scale: str) -> Path:
        return run_directory(root, scale, self.study, self.arm, self.seed)


@dataclass(frozen=True)
class State:
    """Where a study stands: its jobs, and of those how many are published, done, under way or in want of help."""

    study: str
    jobs: list[Job]
    published: int
    done: int  # by whoever reads this
    running: list[tuple[Job, float]]  # with the share of its steps that is done
    stopped: list[Job]  # begun, not ended, and nobody at work: the same command goes on
    failed: list[Job]
    seconds: float | None  # to go; None: nothing like it has been timed


# --- what a study asks for -------------------------------------------------------------------------------


def studies() -> list[str]:
    """Return the name of every study: those decided by numerics alone, then one a file of configs/experiment."""
    trained = swept()
    numeric = {entry.study for entry in load_ledger().values() if entry.kind == "exact"} - set(trained)
    return [*sorted(numeric), *trained]


def jobs(study: str, scale: str, seeds: int | None = None, steps: int | None = None) -> list[Job]:
    """Return every run that ``study`` asks for at ``scale``, in the sweep's order.

    seeds, steps: as ``make`` is given them, so many seeds from 0 on and another budget; ``None``: the scale's.

    Raises :class:`UserError` for a study or scale that there is none of.
    """
    path = STUDIES / f"{study}.yaml"
    if not path.exists():
        if study not in studies():
            raise UserError(f"found no study '{study}', expected one of configs/experiment/{nearest(study, studies())}")
        return list(_numeric_jobs(study))
    tree = _tree(path, scale)
    over = _axes(tree)
    own = over.pop("seed", [0])
    if seeds is not None:
        own = range(seeds)
    budget, model = int(tree.steps), str(OmegaConf.select(tree, "model.name"))
    if steps is not None:
        budget, over["steps"] = steps, [steps]
    found = []
    for values in itertools.product(*over.values()):
        overrides = tuple(zip(over, values, strict=True))
        arm = ",".join(f"{key}={_name(tree, key, value)}" for key, value in sorted(overrides, key=lambda pair: pair[0]))
        arm = arm.replace("/", "_") or "default"
        found += [Job(study, arm, int(seed), budget, model, overrides) for seed in own]
    return found


def axes(study: str, scale: str) -> dict[str, list[Any]]:
    """Return what a study sweeps: each override's key with its values; nothing if numerics alone decide it."""
    path = STUDIES / f"{study}.yaml"
    return _axes(_tree(path, scale)) if path.exists() else {}


def _axes(tree: DictConfig) -> dict[str, list[Any]]:
    params = OmegaConf.select(tree, "hydra.sweeper.params") or {}
    return {str(key): _values(str(key), str(params[key])) for key in params}


def _numeric_jobs(study: str) -> Iterator[Job]:
    for entry in load_ledger().values():
        if entry.study == study:
            seeds = range(5) if study == "exact" else range(1)
            for arm, seed in itertools.product(entry.treatment.get("arm", [entry.id]), seeds):
                yield Job(study, str(arm), seed, 0, study)


def _tree(path: Path, scale: str) -> DictConfig:
    """Return the few values that a study's jobs depend on: its scale's, its setting's and its own.

    Hydra's full composition takes half a second a study, all of it for values that are not needed here.
    """
    scales = sorted(file.stem for file in (CONFIGS / "scale").glob("*.yaml"))
    if scale not in scales:
        raise UserError(f"found scale '{scale}', expected one of {', '.join(scales)}{nearest(scale, scales)}")
    head = {"scale": _load(CONFIGS / "scale" / f"{scale}.yaml")}
    merged = OmegaConf.merge(head, _load(CONFIGS / "train.yaml"), *_parts(path))
    assert isinstance(merged, DictConfig)
    return merged


def _parts(path: Path) -> Iterator[Any]:
    """Yield what a study's file is laid upon, the farthest first: another study, a setting and its kind of net."""
    own = _load(path)
    for default in OmegaConf.select(own, "defaults") or []:
        if isinstance(default, str) and default != "_self_":
            yield from _parts(path.parent / f"{default}.yaml")
        for key, value in default.items_ex(resolve=False) if isinstance(default, DictConfig) else ():
            if str(key).endswith("/setting"):
                yield from _parts(CONFIGS / "setting" / f"{value}.yaml")
            elif str(key).endswith("/model"):
                yield {"model": {"name": value}}
    yield own


def _values(key: str, text: str) -> list[Any]:
    """Return what one axis of a sweep takes, as Hydra reads it: a list, a range or a single value."""
    override = OverridesParser.create().parse_override(f"{key}={text}")
    if override.is_sweep_override():
        return list(override.sweep_iterator(transformer=Transformer.identity))
    return [override.value()]


def _name(tree: DictConfig, key: str, value: Any) -> Any:
    """Return how an arm spells ``value``: a group's choice by the name that its file gives itself."""
    file = CONFIGS / key / f"{value}.yaml"
    if not file.exists():
        return value
    group = _load(file)
    if OmegaConf.is_interpolation(group, "name"):  # of the scale, to which a name may refer
        group = OmegaConf.merge({"scale": tree.scale}, group)
    return OmegaConf.select(group, "name", default=value)


@functools.cache
def _load(file: Path) -> Any:
    """Return a configuration file, read once a process: to be merged, never changed."""
    return OmegaConf.load(file)


# --- where it stands ----------------------------------------------------------------------------------------


def state(study: str, scale: str, root: Path, published: Path, runs: Frame, cores: int) -> State:
    """Return where ``study`` stands at ``scale``; ``runs`` are all records that may tell how long a run takes."""
    wanted, held, timed = jobs(study, scale), _held(), _timed(scale, runs)
    done, running, stopped, failed = 0, [], [], []
    seconds: float | None = 0.0
    takes: dict[str, float | None] = {}  # a run, by its arm
    for job in wanted:
        place = job.directory(root, scale)
        record = read_run_json(place)
        if record is not None and record["status"] != "failed":
            done += 1
            continue
        share = 0.0
        if record is not None:
            failed.append(job)
        elif (place / "started.json").exists():
            share = reached(place / CURVES) / job.steps if job.steps else 0.0
            if _at_work(place, held):
                running.append((job, share))
            else:
                stopped.append(job)
        if job.arm not in takes:
            takes[job.arm] = _expected(job, timed)
        expected = takes[job.arm]
        seconds = None if seconds is None or expected is None else seconds + (1 - share) * expected
    ready = sum((job.directory(published, scale) / RUN).exists() for job in wanted)
    to_go = None if seconds is None else seconds / max(1, min(cores, len(wanted) - done))
    return State(study, wanted, ready, done, running, stopped, failed, to_go)


def reached(curve: Path) -> int:
    """Return the step of the last whole row of a curve that may be growing; a damaged or unfinished one tells none."""
    for line in reversed(curve.read_bytes().splitlines() if curve.exists() else []):
        with contextlib.suppress(ValueError):  # no JSON, or no text at all
            row = json.loads(line)
            if isinstance(row, dict) and isinstance(row.get("step"), int):
                return row["step"]
    return 0


def _timed(scale: str, runs: Frame) -> Frame:
    """Return of the runs of ``scale`` that ended and were timed what tells how long another takes."""
    columns = ["study", "arm", "scale", "status", "seconds", "steps", "choice.model"]
    runs = runs.reindex(columns=columns)
    return runs[(runs["scale"] == scale) & (runs["status"] == "completed") & (runs["seconds"] > 0)]


def _expected(job: Job, timed: Frame) -> float | None:
    """Return the seconds ``job`` will take: the median of the nearest of the runs that were timed.

    Nearest are those of its arm, then of its study, then of its kind of net, of these the ones with a number of steps
    most like its own: what a run costs besides its steps is most of a short one.
    """
    own = timed[timed["study"] == job.study]
    if not job.steps:
        return float(own["seconds"].median()) if len(own) else None
    kin = timed[(timed["choice.model"] == job.model) & (timed["steps"] > 0)]
    apart = (kin["steps"].astype(float) / job.steps).map(math.log).abs()
    for near in (own[own["arm"] == job.arm], own, kin[apart == apart.min()]):
        if len(near):
            return float((near["seconds"] / near["steps"]).median()) * job.steps
    return None


def _held() -> set[int] | None:
    """Return the inodes of all files that some process holds a lock on, or ``None`` where that is not told."""
    try:
        return {int(line.split()[5].rpartition(":")[2]) for line in LOCKS.read_text().splitlines() if "->" not in line}
    except (OSError, ValueError, IndexError):
        return None


def _at_work(directory: Path, held: set[int] | None) -> bool:
    """Return whether a process is at work on a run; asked of the kernel, as to try the lock could refuse a run."""
    try:
        if held is not None:
            return (directory / ".lock").stat().st_ino in held
        return time.time() - (directory / CURVES).stat().st_mtime < RECENT
    except FileNotFoundError:
        return False


# --- what is printed ----------------------------------------------------------------------------------------


def clock(seconds: float | None) -> str:
    """Return a duration as a reader says it, to the minute from an hour on; ``?`` if it is not known."""
    if seconds is None:
        return "?"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def now(found: State) -> str:
    """Return in words what is under way in a study, and what stands still."""
    parts = [f"{len(found.running)} running"] * bool(found.running)
    if len(found.running) == 1:
        parts = [f"running, at {found.running[0][1]:.0%}"]
    parts += [f"{len(found.stopped)} stopped"] * bool(found.stopped)
    parts += [f"{len(found.failed)} failed"] * bool(found.failed)
    return ", ".join(parts)


def show(found: Sequence[State], scale: str, detail: bool) -> None:
    """Print a table of studies and, with ``detail``, the jobs that are under way or missing."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    narrow = console.width < 70
    table = Table(box=None, pad_edge=False, padding=(0, 1 if narrow else 2, 0, 0))
    table.add_column("study", overflow="fold")
    for heading in ("publ.", "yours") if narrow else ("published", "yours"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("now", overflow="fold")
    table.add_column("to go", justify="right", no_wrap=True)
    for each in found:
        total = len(each.jobs)
        whole = each.done == total
        style = "green" if whole else "yellow" if each.done or each.running or each.stopped else ""
        busy = Text(now(each), "red" if each.failed else "cyan" if each.running else "")
        own = Text(f"{each.done}/{total}", style)
        table.add_row(each.study, f"{each.published}/{total}", own, busy, "" if whole else clock(each.seconds))
    console.print(table)
    if detail:
        for each in found:
            for title, rows in ((title, rows) for title, rows in _details(each) if rows):
                console.print(Text(f"\n{each.study}: {title}", style="bold"))
                for row in rows:
                    console.print(Text(f"  {row}"))
    missing = [each for each in found if each.published < len(each.jobs) and each.done < len(each.jobs)]
    known = [each.seconds for each in found if each.seconds is not None]
    rest = " and what has not been timed yet" if len(known) < len(found) else ""
    console.print(
        Text(
            f"\n{scale} scale: {len(found)} stud{'y' if len(found) == 1 else 'ies'}, {len(missing)} neither published "
            f"nor yours in full; to run all of them here: about {clock(sum(known))}{rest}."
        )
    )


def _details(found: State) -> Iterator[tuple[str, list[str]]]:
    yield "running", [f"{job.arm} seed={job.seed}  {share:.0%} of {job.steps} steps" for job, share in found.running]
    for title, rows in (("stopped, the same command goes on", found.stopped), ("failed, tried again", found.failed)):
        yield title, [f"{job.arm} seed={job.seed}" for job in rows]


@one_line()
def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bn_replication.status", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("studies", nargs="*", metavar="STUDY", help="with their jobs; all studies if none is named")
    parser.add_argument("--scale", default="laptop", help="default: %(default)s")
    parser.add_argument("--root", type=Path, default=Path("results/runs"), help="your runs; default: %(default)s")
    parser.add_argument(
        "--published", type=Path, default=Path("results/published"), help="published runs; default: %(default)s"
    )
    options = parser.parse_args(arguments)
    runs = load_runs([options.root, options.published], scale=options.scale)
    found = [
        state(study, options.scale, options.root, options.published, runs, cores())
        for study in options.studies or studies()
    ]
    show(found, options.scale, detail=bool(options.studies))
    return 0


if __name__ == "__main__":
    sys.exit(main())
