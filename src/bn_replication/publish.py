"""Promote runs to the committed records: ``python -m bn_replication.publish [STUDY ...]``.

A run is checked (its record is whole, its files are the ones it signed, it did not fail) and compacted to at
most 100 kB: files are packed, the curve as it is, to the byte; activations column by column, rounded to 3 significant
digits, a layer's percentiles to the decimals of the largest of them and its mean to those of its standard deviation (a
mean of 1e-8 beside a deviation of 1 is rounding noise); histograms become parts per thousand and stay with one seed an
arm, the lowest, at every second probe or, where that is too much, at every fourth or eighth, and at the last; the
percentiles of single units stay where a claim reads them, and elsewhere with that one seed. What was done is written
into the published ``run.json`` under ``published``, with the digests of the files as the run wrote them. A run that is
published already is left as it stands; one that differs is refused. Nothing is written unless every run asked for
passes. Figures, verdicts and the README's scoreboard follow. ``--again`` compacts what is published anew, where an
older version of this file kept more.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bn_replication import figures, sensitivity, verify
from bn_replication.errors import UserError, nearest, one_line, writing
from bn_replication.ledger import load_ledger
from bn_replication.records import (
    ACTIVATIONS,
    PACKED,
    RUN,
    TABLE,
    as_written_or_packed,
    atomic_write,
    digest,
    load_runs,
    pack,
    read_rows,
    read_run_json,
    refuse_misfiled,
    run_directories,
    signed_content,
    table,
    unpacked,
    write_run_json,
)
from bn_replication.scoreboard import with_scoreboard

LIMIT = 100_000  # bytes a published run takes
DIGITS = 3
EVERY = 2  # probes: one of so many keeps its histograms
_TOLD = ("rules", "environment", "started", "seconds")  # besides what every record has


@dataclass(frozen=True)
class Promotion:
    """A run that passed: from where to where, its record and files once compacted, and any warning."""

    source: Path
    target: Path
    record: dict[str, Any]
    files: dict[str, bytes]
    state: str  # new | unchanged | replaced
    warning: str = ""

    @property
    def study(self) -> tuple[str, str]:
        """Scale and study."""
        return self.record["scale"], self.record["study"]

    @property
    def drawn(self) -> bool:
        return (self.target.parents[1] / "figures").is_dir()


def check(directory: Path, failed: bool = False) -> dict[str, Any]:
    """Return a run's record; refuse one that is damaged, altered, misfiled or (unless ``failed``) failed."""
    record = read_run_json(directory)
    if record is None:
        raise UserError(f"{directory}: found no {RUN}, expected a run that has ended; finish it first")
    missing = [key for key in _TOLD if key not in record]
    if missing:
        raise UserError(f"{directory}: found no {', '.join(missing)} in {RUN}, expected a whole record; run it again")
    refuse_misfiled(directory, record)
    if record["status"] == "failed" and not failed:
        raise UserError(f"{directory}: found a failed run, expected one that ended; run it again or give --failed")
    for name, signed in record["files"].items():
        signed_content(directory, name, signed)
    return record


def rounded(value: Any) -> Any:
    """Return numbers, in lists of any depth, with :data:`DIGITS` significant digits."""
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def together(*values: Any) -> list[Any]:
    """Return numbers of one layer with the decimals that the largest has at :data:`DIGITS` significant digits."""
    slim = rounded(list(values))
    largest = max((abs(value) for value in slim if value is not None and math.isfinite(value)), default=0.0)
    decimals = DIGITS - 1 - math.floor(math.log10(largest)) if largest else 0
    return [value if value is None else round(value, decimals) + 0.0 for value in slim]  # no minus zero


def slimmed(row: dict[str, Any]) -> dict[str, Any]:
    """Return an activation record with its numbers rounded as they are published."""
    slim = {key: rounded(value) for key, value in row.items()}
    if "percentiles" in row:
        slim["percentiles"] = together(*row["percentiles"])
    if "mean" in row:
        slim["mean"] = together(row["mean"], row.get("std"))[0]
    return slim


def compact(rows: Sequence[dict[str, Any]], every: int, units: bool = True) -> bytes:
    """Return activation records as a table, rounded, with histograms at every ``every``-th probe and the last only
    (0: none), and with the percentiles of single units or without.
    """
    left_out = {"histogram"} if units else {"histogram", "units"}
    kept, seen = [], dict[int, int]()
    for row in rows:
        probe = seen.setdefault(row["step"], len(seen))
        slim = slimmed({key: value for key, value in row.items() if key not in left_out})
        if row.get("histogram") and every and (probe % every == 0 or row["step"] == rows[-1]["step"]):
            slim["histogram"] = row["histogram"]
        kept.append(slim)
    return table(kept)


def thousandths(counts: Sequence[int]) -> list[int]:
    """Return a histogram as whole parts per thousand of what it counted."""
    total = sum(counts) or 1
    return [round(1000 * count / total) for count in counts]


@functools.cache  # the ledger is read and checked once a study, not once a run
def claimed_units(study: str) -> bool:
    """Whether a claim reads the percentiles of single units in the runs of ``study``."""
    asked = sensitivity.claims_of(study)
    return any(e.metric.name == "drift" and (e.study == study or e.id in asked) for e in load_ledger().values())


def prepare(source: Path, target: Path, record: dict[str, Any], lowest: bool) -> Promotion:
    """Return a checked run as it will be published, or raise :class:`UserError` if it does not fit.

    lowest: is it the lowest seed of its arm, with which histograms and units stay?
    """
    contents = _read(source, record)
    rows = list(read_rows(source / ACTIVATIONS)) if ACTIVATIONS in record["files"] else []
    rows = [row | {"histogram": thousandths(row["histogram"])} if row.get("histogram") else row for row in rows]
    histograms, units = lowest and any("histogram" in row for row in rows), lowest or claimed_units(record["study"])
    size, head = 0, len(json.dumps(record, indent=1)) + 1_000
    for every in (EVERY, 4, 8, 0) if histograms else (0,):
        if rows:
            contents[TABLE] = compact(rows, every, units)
        files = _packed(contents)
        size = head + sum(map(len, files.values()))
        if size <= LIMIT:
            how = _how(record["files"], every, units)
            warning = "its code had uncommitted changes" if record["environment"].get("dirty") else ""
            if histograms and every != EVERY:
                warning += (
                    "; " if warning else ""
                ) + f"histograms thinned to {f'every {every}th probe' if every else 'none'}"
            slim = {**record, "files": _signed(contents), "published": how}
            return Promotion(source, target, slim, files, "new", warning)
    raise UserError(
        f"{source}: found {size:,} bytes once compacted, expected at most {LIMIT:,}; evaluate or probe less"
    )


def _how(written: Mapping[str, str], every: int, units: bool) -> dict[str, Any]:
    """Return what a published record tells of its compaction; ``written``: digests of the files before it."""
    return {
        "from": written,
        "digits": DIGITS,
        "decimals": "of the largest",
        "histogram_every": every,
        "units": units,
    }


def again(target: Path) -> int:
    """Compact every published run anew by today's rule, and sign it; return how many changed. No file of rows grows."""
    changed = 0
    for directory in run_directories(target):
        record = check(directory, failed=True)
        how = record.get("published")
        if how is None or not {ACTIVATIONS, TABLE} & set(record["files"]):
            continue
        lowest = directory == _lowest(directory.parent)
        units = how.get("units", True) and (lowest or claimed_units(record["study"]))
        every = how["histogram_every"] and max(how["histogram_every"], EVERY)
        rows = list(read_rows(directory / ACTIVATIONS))
        contents = _read(directory, record) | {TABLE: compact(rows, every, units)}
        how = {**_how(how["from"], every, units), "digits": min(how["digits"], DIGITS)}
        if (_signed(contents), how) != (record["files"], record["published"]):
            slim = {**record, "files": _signed(contents), "published": how}
            with writing(directory, "--to"):
                promote(Promotion(directory, directory, slim, _packed(contents), "replaced"))
                verify.sign(target, [directory])
            changed += 1
    return changed


def _read(directory: Path, record: dict[str, Any]) -> dict[str, bytes]:
    """Return the files that a run signed, but for its activations, unpacked."""
    names = [name for name in record["files"] if name not in (ACTIVATIONS, TABLE)]
    return {name: unpacked(path) for name in names if (path := as_written_or_packed(directory / name))}


def _packed(contents: Mapping[str, bytes]) -> dict[str, bytes]:
    return {name + PACKED: pack(content) for name, content in contents.items()}


def _signed(contents: Mapping[str, bytes]) -> dict[str, str]:
    return {name: digest(content) for name, content in contents.items()}


def _lowest(*arms: Path) -> Path:
    """Return the directory of the lowest seed that has ended in any of the places of one arm."""
    seeds = [seed for arm in arms for seed in arm.glob("seed=*") if (seed / RUN).exists()]
    return min(seeds, key=lambda seed: int(seed.name.partition("=")[2]))


def promote(promotion: Promotion) -> None:
    """Put a prepared run in its place: it appears whole, under its name, or not at all."""
    target = promotion.target
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=target.parent, prefix=".publish-"))
    try:
        whole, old = staging / "new", staging / "old"
        whole.mkdir()
        for name, content in promotion.files.items():
            atomic_write(whole / name, content)
        write_run_json(whole, promotion.record)
        if target.exists():
            os.rename(target, old)
        try:
            os.rename(whole, target)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.rename(old, target)
            raise
    finally:
        shutil.rmtree(staging)


def plan(
    source: Path, target: Path, studies: Sequence[str] = (), replace: bool = False, failed: bool = False
) -> tuple[list[Promotion], list[UserError]]:
    """Return what publishing would do and why it may not: nothing is written here."""
    directories = run_directories(source)
    known = {directory.parts[-3] for directory in directories}
    for study in studies:
        if study not in known:
            among = ", ".join(sorted(known)) or "none"
            raise UserError(f"found no runs of '{study}' in {source}, expected one of: {among}{nearest(study, known)}")
    promotions, refusals = [], []
    for directory in directories:
        if studies and directory.parts[-3] not in studies:
            continue
        place = target / directory.relative_to(source)
        try:
            record = check(directory, failed)
            lowest = _lowest(directory.parent, place.parent).name == directory.name
            promotion = prepare(directory, place, record, lowest)
            state = _against(place, record)
            if state == "replaced" and not replace:
                raise UserError(f"{place}: found another run published, expected none or this one; give --replace")
            promotions.append(Promotion(**{**vars(promotion), "state": state}))
        except UserError as refusal:
            refusals.append(refusal)
    return promotions, refusals


def _against(place: Path, record: dict[str, Any]) -> str:
    """Say how a run stands to what is published in its place: by numbers and configuration, not clock."""
    published = read_run_json(place)
    if published is None:
        return "new"
    files = published.get("published", {}).get("from") == record["files"]
    told = all(published.get(key) == record[key] for key in ("config", "status", "steps_done"))
    return "unchanged" if files and told and _numbers(published) == _numbers(record) else "replaced"


def _numbers(record: dict[str, Any]) -> dict[str, float]:
    return {key: value for key, value in record["summary"].items() if not key.startswith("seconds")}


def draw(root: Path, studies: Iterable[tuple[str, str]]) -> list[Path]:
    """Write the figures (SVG, CSV) of (scale, study) pairs from the records in ``root``; return their folders.

    A figure that an earlier state of the records gave and this one does not is removed. A study of alternatives has
    none: one figure of some twenty arms shows nothing, and its answers are a table.
    """
    folders = []
    for scale, study in studies:
        runs = load_runs(root, study, scale)
        folder = root / scale / study / "figures"
        drawings = [] if sensitivity.of_study(study) else figures.draw_study(runs)
        with writing(folder, "--to"):
            for drawing in drawings:
                figures.save(drawing, folder, kinds=("svg",))
            for path in folder.glob("*.*"):
                if path.name.partition(".")[0] not in {drawing.name for drawing in drawings}:
                    path.unlink()
        folders.append(folder)
    return folders


def publish(
    source: Path, target: Path, studies: Sequence[str] = (), replace: bool = False, failed: bool = False
) -> list[Promotion]:
    """Check, promote and sign runs; return what was done. If any run is refused, nothing is written."""
    promotions, refusals = plan(source, target, studies, replace, failed)
    if refusals:
        for refusal in refusals[1:]:
            print(refusal, file=sys.stderr)
        raise UserError(
            f"{refusals[0]} ({len(refusals)} of {len(refusals) + len(promotions)} refused, nothing published)"
        )
    if not promotions:
        raise UserError(f"found no runs in {source}, expected some; run a study first or mend --from")
    for promotion in promotions:
        with writing(promotion.target, "--to"):
            if promotion.state != "unchanged":
                promote(promotion)
            run = promotion.target.relative_to(target).as_posix()
            if promotion.state != "unchanged" or not verify.signed(target, run):
                verify.sign(target, [promotion.target])  # at once: what is cut off here can be typed again
    return promotions


def _refuse_altered(target: Path, done: str) -> None:
    """Raise :class:`UserError`, which says what was ``done``, where a record is not the one that was signed."""
    if altered := verify.altered_records(target):
        raise UserError(f"{altered[0]} ({len(altered)} in all); {done}: `make verify` lists them")


@one_line()
def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bn_replication.publish", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("studies", nargs="*", metavar="STUDY", help="which studies; all of them if none is named")
    parser.add_argument("--from", dest="source", type=Path, default=Path("results/runs"), help="default: %(default)s")
    parser.add_argument(
        "--to", dest="target", type=Path, default=Path("results/published"), help="default: %(default)s"
    )
    parser.add_argument("--replace", action="store_true", help="replace published runs that differ")
    parser.add_argument("--again", action="store_true", help="compact the published runs anew, and publish nothing")
    parser.add_argument("--failed", action="store_true", help="publish failed runs too")
    parser.add_argument("--readme", type=Path, default=Path("README.md"), help="whose scoreboard is written anew")
    options = parser.parse_args(arguments)
    if not options.readme.is_file():
        raise UserError(f"found no file {options.readme}, expected the page with the scoreboard; mend --readme")
    with_scoreboard(options.readme.read_text(), "")  # before anything is written: are its markers there?
    pages = writing(f"{options.target} or {options.readme}", "--to or --readme")
    if options.again:
        _refuse_altered(options.target, "nothing compacted")
        print(f"{again(options.target)} published runs compacted anew")
        with pages:
            verify.write(options.target, options.readme, load_ledger())
        return 0
    promotions = publish(options.source, options.target, options.studies, options.replace, options.failed)
    for promotion in promotions:
        size = sum(file.stat().st_size for file in promotion.target.iterdir())
        warning = f"  warning: {promotion.warning}" if promotion.warning else ""
        print(f"{promotion.state:<9} {size / 1000:5.0f} kB  {promotion.target}{warning}")
    # What stands as it stood needs no new figures, unless it never had any.
    draw(options.target, sorted({p.study for p in promotions if p.state != "unchanged" or not p.drawn}))
    _refuse_altered(options.target, "published, but the tables stay as they were")
    with pages:
        verify.write(options.target, options.readme, load_ledger())
    for fault in verify.changed_rules(options.target, load_ledger()):
        print(f"warning: {fault}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
