"""What is committed must follow from the records: every way of altering one or the other is caught."""

from __future__ import annotations

import json
import lzma
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from bn_replication import verify
from bn_replication.claims import Verdict
from bn_replication.ledger import digests_for_study, load_ledger
from bn_replication.scoreboard import END, START, ours
from bn_replication.verify import main
from synthetic import climb, write

RULE = {
    "where": "Section 9",
    "says": "BN is higher.",
    "why": "By hand.",
    "kind": "empirical",
    "study": "study",
    "metric": {"name": "best"},
    "control": {"norm": "none"},
    "treatment": {"norm": "batch"},
    "effect": "difference",
    "bounds": {"above": 0.0},
}


class House:
    """A project in miniature: a ledger, published runs, a README."""

    def __init__(self, root: Path) -> None:
        self.published, self.readme, self.ledger = (
            root / "published",
            root / "README.md",
            root / "claims.yaml",
        )
        self.readme.write_text(f"# Title\n\n{START}\n{END}\n\nAfter.\n")
        self.write_rule()
        rules = digests_for_study("study", self.ledger)
        units = [[[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]] * 2
        for seed in range(3):
            write(self.published, "study", "norm=none", seed, climb(0.5, 800), rules=rules, units=units)
            write(self.published, "study", "norm=batch", seed, climb(0.6 + seed / 100, 800), rules=rules)
        packed = self.run / "activations.jsonl"
        packed.with_name("activations.jsonl.xz").write_bytes(lzma.compress(packed.read_bytes()))
        packed.unlink()

    @property
    def run(self) -> Path:
        return self.published / "laptop" / "study" / "norm=none" / "seed=0"

    def write_rule(self, **changes: object) -> None:
        self.ledger.write_text(yaml.safe_dump({"higher": RULE | changes}))

    def verify(self, *more: str) -> int:
        places = ("--published", self.published, "--readme", self.readme, "--ledger", self.ledger)
        return main([*map(str, places), *more])

    def edit_record(self, change: Callable[[dict], None]) -> None:
        path = self.run / "run.json"
        record = json.loads(path.read_text())
        change(record)
        path.write_text(json.dumps(record))


@pytest.fixture
def house(tmp_path: Path) -> House:
    built = House(tmp_path)
    assert built.verify("--write") == 0
    return built


def test_what_was_written_verifies_and_writing_again_changes_nothing(house: House, capsys) -> None:
    before = house.readme.read_text()
    assert house.verify() == 0
    assert "verified: 1 claims from 6 committed runs" in capsys.readouterr().out
    assert before.startswith("# Title")
    assert before.endswith("After.\n")
    assert "| higher | BN is higher. | — | +11 points [" in before
    assert house.verify("--write") == 0
    assert house.readme.read_text() == before


def flip_curve(house: House) -> None:
    path = house.run / "curves.jsonl"
    path.write_text(path.read_text().replace("0.5", "0.4", 1))


def flip_probe(house: House) -> None:
    path = house.run / "activations.jsonl.xz"
    path.write_bytes(lzma.compress(lzma.decompress(path.read_bytes()).replace(b"5.0", b"6.0", 1)))


def break_archive(house: House) -> None:
    path = house.run / "activations.jsonl.xz"
    path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize(
    ("alter", "line"),
    [
        (flip_curve, "curves.jsonl: altered since it was written"),
        (flip_probe, "activations.jsonl: altered since it was written"),
        (break_archive, "activations.jsonl: altered since it was written"),
        (lambda house: (house.run / "curves.jsonl").unlink(), "curves.jsonl: missing"),
        (
            lambda house: house.edit_record(lambda r: r["summary"].update(best=0.9)),
            "not the one in the manifest",
        ),
        (
            lambda house: house.edit_record(lambda r: r["files"].pop("curves.jsonl")),
            "curves.jsonl: in no record",
        ),
        (
            lambda house: house.edit_record(lambda r: r.update(seed=9)),
            "holds the record of laptop/study/norm=none/seed=9",
        ),
        (lambda house: shutil.rmtree(house.run), "not the one in the manifest"),
        (lambda house: shutil.copytree(house.run, house.run.with_name("seed=5")), "seed=5"),
        (
            lambda house: house.readme.write_text(house.readme.read_text().replace("+11", "+13")),
            "does not follow: | higher",
        ),
        (
            lambda house: (house.published / "verdicts.csv").unlink(),
            "verdicts.csv: follows and is not printed",
        ),
        (
            lambda house: (house.published / "sensitivity.csv").write_text("value,alternative\neps,made up\n"),
            "sensitivity.csv: is printed and does not follow: eps,made up",
        ),
    ],
)
def test_an_altered_record_or_page_is_caught(house: House, alter: Callable[[House], object], line: str, capsys) -> None:
    alter(house)
    capsys.readouterr()
    assert house.verify() == 1
    assert line in capsys.readouterr().out


def test_seeds_of_one_arm_run_with_other_settings_are_caught(house: House, capsys) -> None:
    house.edit_record(lambda record: record["config"].update(batch_size=7))
    run = house.run.relative_to(house.published).as_posix()
    assert house.verify("--write", "--sign", run) == 1
    line = "seed=1: has another batch_size than seed=0 of its arm"
    assert line in capsys.readouterr().out


def break_curve(house: House) -> None:
    path = house.run / "curves.jsonl"
    path.with_name("curves.jsonl.xz").write_bytes(lzma.compress(path.read_bytes())[:-9])
    path.unlink()


@pytest.mark.parametrize(
    "alter",
    [
        flip_curve,
        break_curve,
        lambda house: house.edit_record(lambda r: r["summary"].update(best=0.9)),
        lambda house: shutil.rmtree(house.run),
    ],
)
def test_writing_anew_signs_no_altered_record_but_one_that_is_named(
    house: House, alter: Callable[[House], object], capsys
) -> None:
    page = house.readme.read_text()
    alter(house)
    assert house.verify("--write") == 1
    assert "norm=none/seed=0" in capsys.readouterr().out
    assert house.readme.read_text() == page
    if not house.run.exists():
        assert house.verify("--write", "--sign", "laptop/study/norm=none/seed=0") == 0
        assert house.readme.read_text() != page


def test_a_rule_changed_after_the_runs_is_caught_and_writing_anew_does_not_hide_it(house: House, capsys) -> None:
    old = digests_for_study("study", house.ledger)["higher"]
    house.write_rule(says="BN ends higher.")
    assert house.verify("--write") == 0  # prose may be mended
    house.write_rule(bounds={"above": -1.0})
    capsys.readouterr()
    assert house.verify("--write") == 1
    assert "claim higher: its rule was changed after the first run it judges: 6 run(s)" in capsys.readouterr().out
    # In the open it may be changed: the row says so from then on.
    house.write_rule(bounds={"above": -1.0}, amendments=[{"replaces": old, "on": "2026-01-01", "why": "too strict"}])
    assert house.verify("--write") == 0
    assert "(rule amended)" in house.readme.read_text()


def test_a_rule_written_after_the_runs_or_removed_is_caught(house: House, capsys) -> None:
    house.ledger.write_text(yaml.safe_dump({"higher": RULE, "new": RULE}))
    assert house.verify("--write") == 1
    assert "claim new: its rule was written after the first run it judges" in capsys.readouterr().out
    house.ledger.write_text(yaml.safe_dump({"new": RULE}))
    assert house.verify("--write") == 1
    assert "claim higher: its rule was removed after runs had begun" in capsys.readouterr().out


def test_a_users_mistake_is_one_line_and_exit_code_2(house: House, capsys) -> None:
    house.write_rule(bounds={"abvoe": 0})
    assert house.verify() == 2
    assert "did you mean 'above'?" in capsys.readouterr().err
    house.write_rule()
    house.readme.write_text("no markers")
    assert house.verify() == 2
    assert house.verify("--write") == 2
    assert house.readme.read_text() == "no markers"
    for unknown in ("laptop/study/norm=none/seed=7", "/elsewhere"):
        assert house.verify("--sign", unknown) == 2
        assert f"--sign: found {unknown}, expected a run's folder" in capsys.readouterr().err


WITHOUT_TORCH = """
import sys
class Wall:  # not sys.modules["torch"] = None, which scipy takes for a torch that is there
    def find_spec(self, name, *_):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Wall())
from bn_replication.verify import main
sys.exit(main(sys.argv[1:]))
"""


def test_it_runs_where_there_is_no_torch(house: House) -> None:
    places = [
        "--published",
        str(house.published),
        "--readme",
        str(house.readme),
        "--ledger",
        str(house.ledger),
    ]
    command = [sys.executable, "-c", WITHOUT_TORCH, *places]
    assert subprocess.run(command, timeout=180, check=False).returncode == 0


def test_a_difference_of_accuracies_is_told_in_points() -> None:
    entry = load_ledger()["population-vs-moving"]
    verdict = Verdict(entry.id, "laptop", "inconclusive", estimate=0.004, low=-0.05, high=0.058, n=3)
    assert ours(entry, verdict) == "+0.4 points [−5, +5.8]"


@pytest.mark.skipif(not (verify.ROOT / "results/published").is_dir(), reason="a copy without its records")
def test_what_is_published_follows_from_its_records_and_its_rules(capsys: pytest.CaptureFixture[str]) -> None:
    """As ``make verify`` says: the README's scoreboard, both tables, every record and every rule."""
    assert verify.main([]) == 0, capsys.readouterr().out
