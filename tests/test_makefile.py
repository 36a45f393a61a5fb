"""The Makefile itself: what each target is told, and what becomes of the rest when one fails or make is ended."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

HOUSE = Path(__file__).resolve().parents[1]
# In Python's place: writes down what it was told, and does as FAILS and HANGS say with studies whose name has that.
TOLD = """#!/bin/sh
echo "begun $*" >> told
case "$*" in *"${HANGS:-no such study}"*) exec sleep 600 ;; esac
sleep 0.02
echo "$*" >> told
case "$*" in *"${FAILS:-no such study}"*) exit 1 ;; esac
"""


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """Return a folder in which make works as here, with an environment that is ready."""
    shutil.copy(HOUSE / "Makefile", tmp_path)
    (tmp_path / "configs").symlink_to(HOUSE / "configs")
    for name in ("requirements.txt", "pyproject.toml"):
        (tmp_path / name).write_text("")
        os.utime(tmp_path / name, (0, 0))
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "ready").touch()
    (tmp_path / ".venv" / "bin" / "python").write_text(TOLD)
    (tmp_path / ".venv" / "bin" / "python").chmod(0o755)
    return tmp_path


def clean() -> dict[str, str]:
    """Return the environment without what a make above, or its user, says to the one below."""
    named = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "ARGS", "RESULTS", "SCALE", "SEEDS", "STEPS", "STUDY", "JOBS")
    return {key: value for key, value in os.environ.items() if key not in named}


def make(house: Path, *words: str, code: int = 0, **environment: str) -> list[str]:
    """Return what make told Python, command by command, without ``-m bn_replication.``."""
    (house / "told").write_text("")
    found = subprocess.run(
        ["make", *words], cwd=house, env=clean() | environment, capture_output=True, text=True, timeout=120
    )
    assert found.returncode == code, found.stderr
    return [line.replace("-m bn_replication.", "", 1) for line in (house / "told").read_text().splitlines()]


def done(told: list[str]) -> list[str]:
    return [line for line in told if not line.startswith("begun ")]


@pytest.mark.parametrize("target", ["ablations", "beyond", "sensitivity"])
def test_a_study_that_fails_does_not_end_the_rest_and_each_waits_for_the_one_before(house: Path, target: str) -> None:
    first = make(house, target)
    assert len(first) >= 10
    # However many at a time make was asked for: begun, done, begun, done.
    told = make(house, "-j4", target, code=2, FAILS=done(first)[0].split()[2])
    assert told == first
    assert [line.startswith("begun ") for line in told] == [True, False] * (len(told) // 2)


@pytest.mark.parametrize("target", ["ablations", "beyond", "sensitivity", "replicate", "ensemble"])
def test_ending_make_ends_what_it_runs_and_starts_no_more(house: Path, target: str) -> None:
    process = subprocess.Popen(
        ["make", target],
        cwd=house,
        env=clean() | {"HANGS": "train"},
        start_new_session=True,
        stderr=subprocess.DEVNULL,
    )
    try:
        told = house / "told"
        until = time.monotonic() + 60
        while not (told.exists() and "train" in told.read_text()):
            assert time.monotonic() < until
            time.sleep(0.01)
        before = told.read_text()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) != 0
        time.sleep(0.2)
        with pytest.raises(ProcessLookupError):  # nobody is left in its group
            os.killpg(process.pid, 0)
        assert told.read_text() == before
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


EVERY = ("exact", "architecture", "fig1_mnist", "ensemble", "report", "status", "plan", "dashboard", "publish")
PLACES = {
    "exact": "--out={}",
    "models.inception": "--out {}",
    "train": "machine.results={}",
    "ensemble": "--root={}",
    "report": "--root results/published --root={}",
    "status": "--root={}",
    "plan": "--root={}",
    "dashboard": "--root results/published --root={}",
    "publish": "--from={}",
}


def test_where_runs_lie_is_said_once_and_told_to_all_that_write_or_read_them(house: Path) -> None:
    for words in (["RESULTS=/big disk/runs"], ["ARGS=machine.results=/big"]):
        place = words[0].rpartition("=")[2]
        told = done(make(house, *EVERY, *words))
        assert {line.split()[0] for line in told} == set(PLACES)
        for line in told:
            assert f"{PLACES[line.split()[0]].format(place)} " in f"{line} ", line
    # Where nothing is said, and where the default is, no command is told of it, but for the one that must be.
    for words in ([], ["RESULTS=results/runs"], ["RESULTS="]):
        told = done(make(house, *EVERY, *words))
        assert [line for line in told if "results" in line] == ["models.inception --out results/runs --scale laptop"]
    assert "RESULTS=" in subprocess.run(["make", "help"], cwd=house, capture_output=True, text=True, check=True).stdout


def test_what_else_is_asked_reaches_the_commands_that_train_nothing(house: Path) -> None:
    for target in ("report", "status", "publish"):
        assert done(make(house, target, "ARGS=--flag value --other=x"))[0].endswith("--flag value --other=x")
    # But not what training is told beside them.
    train, report = done(make(house, "fig1_mnist", "report", "ARGS=machine.device=cuda norm=batch"))
    assert train.endswith("machine.device=cuda norm=batch")
    assert report == "report"
