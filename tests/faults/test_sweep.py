"""Sweeps as a user meets them: stopped, killed, short of memory, started twice, restarted."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from tests.faults.processes import (
    INTERRUPTED,
    MLP,
    configuration,
    ended,
    ending,
    finished,
    forked,
    place,
    processes_of,
    program,
    record_of,
    rows,
    until,
)

from bn_replication import checkpoint, records
from bn_replication.runner import run

LONG = ("experiment=fig1_mnist", "norm=batch", "steps=1000000", "evaluate.times=1000", "probe.enabled=false")
SWEEP = ("-m", *LONG, "seed=0,1,2")


def directories(results: Path) -> list[Path]:
    return sorted(results.glob("smoke/*/*/seed=*"))


def trained(results: Path, runs: int) -> bool:
    """Whether so many runs have got as far as the first row after training began."""
    return sum(len(rows(directory)) > 1 for directory in directories(results)) >= runs


@pytest.mark.parametrize(
    ("words", "number", "whom"),
    [
        pytest.param(LONG, signal.SIGINT, "group", id="Ctrl-C on a run"),
        pytest.param(LONG, signal.SIGTERM, "parent", id="SIGTERM to a run"),
        pytest.param(LONG, signal.SIGHUP, "parent", id="SIGHUP to a run"),
        pytest.param(SWEEP, signal.SIGINT, "group", id="Ctrl-C on a sweep"),
        pytest.param(SWEEP, signal.SIGINT, "parent", id="SIGINT to a sweep alone"),
        pytest.param(SWEEP, signal.SIGTERM, "parent", id="SIGTERM to a sweep alone"),
        pytest.param(SWEEP, signal.SIGHUP, "group", id="a sweep's terminal closed"),
        pytest.param(SWEEP, signal.SIGHUP, "parent", id="SIGHUP to a sweep alone"),
        pytest.param(SWEEP, signal.SIGKILL, "parent", id="a sweep killed"),
    ],
)
def test_asked_once_everything_stops_with_its_checkpoints_saved(
    words: tuple[str, ...], number: signal.Signals, whom: str, tmp_path: Path, reap: Any
) -> None:
    process = reap(program(*words, results=tmp_path))
    at_once = 2 if "-m" in words else 1
    until(lambda: trained(tmp_path, at_once), 240)
    (os.killpg if whom == "group" else os.kill)(process.pid, number)
    said = process.communicate(timeout=90)[0]
    # Whoever killed the sweep itself has no one to wait for its jobs; they notice by themselves.
    until(lambda: not processes_of(process.pid), 60)
    assert len(directories(tmp_path)) == at_once  # no job was begun after that
    for directory in directories(tmp_path):
        assert records.read_run_json(directory) is None
        state = checkpoint.load(directory)
        assert state is not None
        assert state["step"] > 1000
        assert len(rows(directory)) == state["step"] // 1000 + 1
        assert number == signal.SIGKILL or f" {state['step']}/1000000 " in said
    if number == signal.SIGKILL:
        return
    assert process.returncode == 130
    assert "Traceback" not in said
    assert said.count("stopped when asked to; what it had done is saved") == at_once
    if "-m" in words:
        assert "1 never started" in said


@pytest.mark.parametrize("words", [(), ("-m",)], ids=["a run", "a sweep"])
def test_what_nohup_started_minds_no_closed_terminal(words: tuple[str, ...], tmp_path: Path, reap: Any) -> None:
    short = (*words, *LONG[:2], "steps=4000", "evaluate.times=4", "probe.enabled=false", "seed=0")
    process = reap(program(*short, results=tmp_path, before=("nohup",)))
    until(lambda: trained(tmp_path, 1), 240)
    os.killpg(process.pid, signal.SIGHUP)
    said = process.communicate(timeout=240)[0]
    assert process.returncode == 0, said
    assert "1 job: 1 completed" in said


def test_asked_many_times_over_it_stops_as_if_asked_once(tmp_path: Path) -> None:
    """An impatient finger on Ctrl-C, and a batch system besides: signals that come while one is being answered."""
    cfg = configuration(tmp_path, *MLP, "steps=100000", "probe.enabled=false")

    def asked() -> None:
        for number in (signal.SIGINT, signal.SIGTERM):  # what still comes when it has stopped
            signal.signal(number, signal.SIG_IGN)
        run(cfg, "a")

    for _ in range(10):  # a lock taken twice, say, shows in one try of three
        with forked(asked) as pid:
            until(lambda: rows(place(cfg, "a")))
            time.sleep(0.2)
            code = None
            for count in range(20_000):
                os.kill(pid, (signal.SIGINT, signal.SIGTERM)[count % 2])
                if (code := ended(pid, 0)) is not None:
                    break
            assert (ended(pid, 90) if code is None else code) == INTERRUPTED
        assert checkpoint.load(place(cfg, "a")) is not None


def test_a_sweep_killed_and_restarted_skips_resumes_and_renumbers_nothing(tmp_path: Path, reap: Any) -> None:
    words = ("-m", *MLP, "study=t", "steps=2000", "machine.checkpoint_every=100", "seed=0,1,2,3")
    process = reap(program(*words, results=tmp_path, JOBS="1"))
    until(lambda: any(path.parent.name == "seed=1" for path in tmp_path.rglob(checkpoint.CURRENT)), 240)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    first, second = (directory for directory in directories(tmp_path))
    before = (first / records.RUN).read_bytes()
    assert records.read_run_json(second) is None

    again = reap(program(*words, results=tmp_path))
    said = again.communicate(timeout=400)[0]
    assert again.returncode == 0, said
    assert "4 jobs: 3 completed, 1 skipped (already complete)" in said
    assert (first / records.RUN).read_bytes() == before
    assert [directory.name for directory in directories(tmp_path)] == [f"seed={n}" for n in range(4)]
    cfg = configuration(tmp_path / "alone", *MLP, "steps=2000", "machine.checkpoint_every=100", "seed=1")
    assert ending(second) == finished(cfg, "alone")


def test_one_worker_or_two_compute_the_same(tmp_path: Path, reap: Any) -> None:
    words = ("-m", *MLP, "study=t", "steps=60", "norm=none,batch", "seed=0,1")
    for jobs in ("1", "2"):
        process = reap(program(*words, results=tmp_path / jobs, JOBS=jobs))
        said = process.communicate(timeout=400)[0]
        assert process.returncode == 0, said
    ones, twos = ({str(d.relative_to(tmp_path / n)): ending(d) for d in directories(tmp_path / n)} for n in "12")
    assert len(ones) == 4
    assert ones == twos


def test_a_run_that_diverges_is_a_result_and_the_sweep_goes_on(tmp_path: Path, reap: Any) -> None:
    words = ("-m", "setting=mnist", "norm=none", "study=t", "steps=30", "evaluate.times=4", "seed=0")
    written: list[bytes] = []
    for ended_so in ("2 completed, 1 diverged", "3 skipped"):
        process = reap(program(*words, "optimizer.rate=0.1,1e38,0.2", results=tmp_path, JOBS="1"))
        said = process.communicate(timeout=400)[0]
        assert process.returncode == 0, said
        assert f"3 jobs: {ended_so}" in said
        (diverged,) = [d for d in directories(tmp_path) if record_of(d)["status"] == "diverged"]
        assert f"ceased to be finite at step {record_of(diverged)['steps_done']}" in record_of(diverged)["reason"]
        written.append((diverged / records.RUN).read_bytes())
    assert written[0] == written[1]  # not repeated


def test_out_of_memory_fails_one_job_and_no_other_and_is_tried_again(tmp_path: Path, reap: Any) -> None:
    """A limit on address space, as a batch system sets one: weights of 60,000 x 60,000 do not fit, the rest does."""
    words = ("-m", *MLP, "study=t", "steps=20", "seed=0", "model.hidden=[100],[60000,60000],[50]")
    limited = ("bash", "-c", f'ulimit -v {12 * 2**20}; exec "$@"', "-")

    def sweep() -> tuple[int, str]:
        process = reap(program(*words, results=tmp_path, before=limited, JOBS="1"))
        said = process.communicate(timeout=400)[0]
        return process.returncode, said

    code, said = sweep()
    assert code == 1
    assert "3 jobs: 2 completed, 1 failed" in said
    (failed,) = [d for d in directories(tmp_path) if "60000" in str(d)]
    record = record_of(failed)
    assert record["status"] == "failed"
    assert record["reason"].startswith("out of memory (")
    assert record["config"]["batch_size"] == 60  # nothing was made smaller on the quiet
    assert {record_of(d)["status"] for d in directories(tmp_path) if d != failed} == {"completed"}
    # Tried again, and failed again; what was complete is left alone.
    code, said = sweep()
    assert code == 1
    assert "3 jobs: 2 skipped (already complete), 1 failed" in said


def test_a_job_that_is_killed_is_told_and_takes_nothing_with_it(tmp_path: Path, reap: Any) -> None:
    """As the kernel does when memory is out: the one process that is killed is a job's."""
    words = ("-m", *MLP, "study=t", "steps=3000", "machine.checkpoint_every=100", "seed=0,1,2")
    process = reap(program(*words, results=tmp_path))
    until(lambda: any(tmp_path.rglob(checkpoint.CURRENT)), 240)
    (directory,) = {path.parent for path in list(tmp_path.rglob(checkpoint.CURRENT))[:1]}
    os.kill(_holder(directory / ".lock"), signal.SIGKILL)
    said = process.communicate(timeout=400)[0]
    assert process.returncode == 1
    assert "3 jobs: 2 completed, 1 failed" in said
    assert "was killed at about step" in said
    again = reap(program(*words, results=tmp_path))
    said = again.communicate(timeout=400)[0]
    assert again.returncode == 0, said
    assert "3 jobs: 1 completed, 2 skipped" in said


def _holder(lock: Path) -> int:
    """The process that holds a file locked."""
    inode = lock.stat().st_ino
    lines = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    (pid,) = [int(line[4]) for line in lines if line[1] == "FLOCK" and line[5].endswith(f":{inode}")]
    return pid


def test_a_second_sweep_over_the_same_runs_leaves_at_once(tmp_path: Path, reap: Any) -> None:
    process = reap(program("-m", *LONG, "seed=0,1", results=tmp_path))
    until(lambda: trained(tmp_path, 2), 240)
    second = reap(program("-m", *LONG, "seed=0,1", results=tmp_path))
    said = second.communicate(timeout=120)[0]
    assert second.returncode == 2
    assert said.count("found another process at work on this run") == 2
    assert process.poll() is None
    began = time.monotonic()
    os.kill(process.pid, signal.SIGTERM)
    process.communicate(timeout=90)
    assert process.returncode == 130
    assert time.monotonic() - began < 60
