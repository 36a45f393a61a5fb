"""``python -m bn_replication.verify``: does what is printed follow from what is committed?

Recomputes every verdict and the README's scoreboard from the committed records and fails if

- a record differs from the digest it was published under, or one was added or taken away since;
- the seeds of one arm were not run with the same settings;
- a rule differs from the one a run was started under, or was written after it (unless amended in the open);
- ``verdicts.csv``, ``sensitivity.csv`` or the README says anything but what the records and the rules give.

Needs no torch. Exits with 0 if all holds, 1 if anything does not, 2 if it cannot be told. ``--write`` writes the tables
and the scoreboard anew; faults of records and rules it cannot mend. A record changed or taken away on purpose is put
into the manifest by its name, ``--sign laptop/fig1_mnist/norm=none/seed=0``, and by nothing else.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

import pandas as pd

from bn_replication import records
from bn_replication.claims import judge
from bn_replication.errors import UserError
from bn_replication.ledger import (
    AMBIGUITIES,
    EXPERIMENTS,
    JUDGE_AMENDED,
    LEDGER,
    Entry,
    entry_digest,
    load_ledger,
    read_yaml,
)
from bn_replication.scoreboard import END, START, scoreboard_markdown, verdicts_csv, with_scoreboard
from bn_replication.sensitivity import sensitivity_csv, table

ROOT = EXPERIMENTS.parent
MANIFEST, VERDICTS, SENSITIVITY = "records.sha256", "verdicts.csv", "sensitivity.csv"


def manifest(published: Path, anew: Iterable[Path] | None = None) -> str:
    """Return a line for every committed ``run.json`` in the form of sha256sum, which can check it too.

    Args:
        anew: run directories whose lines are to say what is there now; all others stay as they were signed. By default,
            and where nothing was signed yet, every line is new.
    """
    signed, lines = published / MANIFEST, dict[str, str]()
    if anew is None or not signed.exists():
        anew = records.run_directories(published)
    else:
        lines = {line.partition("  ")[2]: line for line in signed.read_text().splitlines()}
    for directory in anew:
        name = (directory / records.RUN).relative_to(published).as_posix()
        lines.pop(name, None)
        if (directory / records.RUN).exists():
            lines[name] = f"{records.digest(directory / records.RUN)}  {name}"
    return "".join(f"{lines[name]}\n" for name in sorted(lines, key=PurePosixPath))


def altered_records(published: Path) -> list[str]:
    """Return a line for every record that is not what its digests say.

    A run's files are held against its ``run.json``, and that against the manifest of all.
    """
    faults = []
    for directory in records.run_directories(published):
        record = records.read_run_json(directory)
        assert record is not None  # its run.json was listed a moment ago
        if directory.relative_to(published) != (named := records.place(record)):
            faults.append(f"{directory}: holds the record of {named.as_posix()}")
        for name in {records.CURVES, records.ACTIVATIONS, records.TABLE} | set(record["files"]):
            file = records.as_written_or_packed(directory / name)
            signed = record["files"].get(name)
            content = records.readable(file) if file else None
            held = "unreadable" if content is None else records.digest(content)
            if (file and held) != signed:
                found = "altered since it was written" if file and signed else "missing" if signed else "in no record"
                faults.append(f"{directory / name}: {found}")
    listed, there = set(_read(published / MANIFEST).splitlines()), set(manifest(published).splitlines())
    for line in listed ^ there:
        change = "the manifest lists another or none such" if line in there else "not the one in the manifest"
        faults.append(f"{published / line.partition('  ')[2]}: {change}")
    return sorted(set(faults))


def mixed_arms(published: Path) -> list[str]:
    """Return a line for every run whose settings are not those of the first seed of its arm."""
    faults, first = [], dict[Path, tuple[str, dict[str, object]]]()
    for directory in records.run_directories(published):
        record = records.read_run_json(directory)
        assert record is not None
        settings = {key: value for key, value in record["config"].items() if key not in ("seed", "members")}
        name, those = first.setdefault(directory.parent, (directory.name, settings))
        if settings != those:
            other = sorted(key for key in {*settings, *those} if settings.get(key) != those.get(key))
            faults.append(f"{directory}: has another {', '.join(other)} than {name} of its arm")
    return faults


def changed_rules(published: Path, ledger: Mapping[str, Entry]) -> list[str]:
    """Return a line for every claim whose rule is not the one that its study's runs were started under."""
    faults: dict[str, list[str]] = {}
    allowed = {
        name: {entry_digest(entry), *(amendment.replaces for amendment in entry.amendments)}
        | {entry_digest(entry, version - 1) for version in JUDGE_AMENDED}
        for name, entry in ledger.items()
    }
    for directory in records.run_directories(published):
        record = records.read_run_json(directory)
        assert record is not None
        started = record["rules"]
        for name, entry in ledger.items():
            if entry.study != record["study"]:
                continue
            stored = started.get(name, "none")
            if stored not in allowed[name]:
                what = "written" if stored == "none" else "changed"
                faults.setdefault(f"claim {name}: its rule was {what} after the first run it judges", []).append(
                    f"{directory} (stored {stored[:12]})"
                )
        for name in set(started) - {name for name, entry in ledger.items() if entry.study == record["study"]}:
            faults.setdefault(f"claim {name}: its rule was removed after runs had begun", []).append(str(directory))
    return [f"{fault}: {len(where)} run(s), first {where[0]}" for fault, where in faults.items()]


def different_pages(published: Path, readme: Path, ledger: Mapping[str, Entry]) -> list[str]:
    """Return a line for every row of the tables and of the README that the records do not give."""
    runs = records.load_runs(published)
    verdicts = judge(ledger, runs)
    text = readme.read_text()
    block = START + text.partition(START)[2].partition(END)[0] + END
    computed_tables = {VERDICTS: verdicts_csv(verdicts), SENSITIVITY: _sensitivity(ledger, runs)}
    pages = [(published / name, _read(published / name), computed) for name, computed in computed_tables.items()]
    with_scoreboard(text, "")  # both markers are there
    pages.append((readme, block, scoreboard_markdown(verdicts, ledger)))
    faults = []
    for path, printed, computed in pages:
        lines = difflib.ndiff(printed.splitlines(), computed.splitlines())
        says = {"-": "is printed and does not follow", "+": "follows and is not printed"}
        faults += [f"{path}: {says[line[0]]}: {line[2:]}" for line in lines if line[0] in says]
    return faults


def _sensitivity(ledger: Mapping[str, Entry], runs: pd.DataFrame) -> str:
    return sensitivity_csv(table(read_yaml(AMBIGUITIES), ledger, runs))


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def sign(published: Path, anew: Iterable[Path]) -> None:
    """Take the run directories ``anew`` into the manifest as they are, or out of it where they are gone."""
    published.mkdir(parents=True, exist_ok=True)
    records.atomic_write(published / MANIFEST, manifest(published, anew).encode())


def signed(published: Path, run: str) -> bool:
    """Return whether a run, scale/study/arm/seed=0, stands in the manifest, as it is or otherwise."""
    return f"  {run}/{records.RUN}\n" in _read(published / MANIFEST)


def write(published: Path, readme: Path, ledger: Mapping[str, Entry]) -> None:
    """Write both tables and the README's scoreboard from the records in ``published``."""
    runs = records.load_runs(published)
    verdicts = judge(ledger, runs)
    page = with_scoreboard(readme.read_text(), scoreboard_markdown(verdicts, ledger))
    records.atomic_write(published / VERDICTS, verdicts_csv(verdicts).encode())
    records.atomic_write(published / SENSITIVITY, _sensitivity(ledger, runs).encode())
    records.atomic_write(readme, page.encode())


def _named(published: Path, runs: Iterable[str]) -> list[Path]:
    """Return the directories of ``runs``; one that neither is there nor was signed is a :class:`UserError`."""
    for run in runs:
        if not signed(published, run) and not (published / run / records.RUN).exists():
            expected = f"a run's folder as it stands below {published}, scale/study/arm/seed=0"
            raise UserError(f"--sign: found {run}, expected {expected}")
    return [published / run for run in runs]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bn_replication.verify", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--published", type=Path, default=ROOT / "results" / "published")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--ledger", type=Path, default=LEDGER)
    parser.add_argument("--write", action="store_true", help="write tables and scoreboard anew")
    parser.add_argument("--sign", metavar="RUN", nargs="+", default=[], help="take these runs as they are")
    options = parser.parse_args(arguments)
    published, readme = options.published, options.readme
    try:
        ledger = load_ledger(options.ledger)
        faults = changed_rules(published, ledger)
        if options.write or options.sign:
            sign(published, _named(published, options.sign))
        altered = altered_records(published)
        if not altered:  # what follows from records is asked of whole ones
            if options.write:
                write(published, readme, ledger)
            faults += mixed_arms(published) + different_pages(published, readme, ledger)
        faults = altered + faults
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for fault in faults:
        print(fault)
    runs = len(records.run_directories(published))
    print(f"{len(faults)} fault(s)" if faults else f"verified: {len(ledger)} claims from {runs} committed runs")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
