"""Jobs in real processes tell a sweep how they fare; the sweep shows it, and its exit code sums it up."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from joblib.externals.loky import ProcessPoolExecutor
from rich.console import Console

from bn_replication import progress
from bn_replication.errors import UserError

JOB = """
import sys, time
from bn_replication import progress
from bn_replication.errors import UserError

how, seed = sys.argv[1], int(sys.argv[2])
with progress.job("study", f"how={how}", seed, 1000) as report:
    report(0, accuracy=0.1)
    report(500, accuracy=0.9876)
    if how == "refused":
        raise UserError("found rate=-1, expected more than 0;\\n mend it")
    if how == "failed":
        raise ZeroDivisionError("division by zero")
    if how == "hang":
        time.sleep(60)
    if how != "completed":
        report.end(how, "as it happens", step=500)
"""


def begin(how: str, seed: int = 0) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", JOB, how, str(seed)], stderr=subprocess.DEVNULL)


def work(seed: int) -> None:
    with progress.job("study", "loky", seed, 10) as report:
        report(5)


def until(condition: object, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_jobs_in_other_processes_are_told_in_plain_lines_of_fixed_width() -> None:
    stream = io.StringIO()
    hows = ("completed", "diverged", "skipped", "refused", "failed")
    with progress.Sweep(stream=stream, total=6) as sweep:
        directory = Path(os.environ["BN_PROGRESS"])
        jobs = [begin(how, seed) for seed, how in enumerate(hows)]
        for process in jobs:
            process.wait()
        # As Hydra's joblib launcher does it: a worker inherits the sweep's directory when it starts.
        with ProcessPoolExecutor(max_workers=1) as pool:
            pool.submit(work, 5).result()
        assert sweep.exit_code() == 1
    assert sweep.exit_code() == 1
    assert not directory.exists()
    assert "BN_PROGRESS" not in os.environ

    lines = stream.getvalue().splitlines()
    assert "\x1b" not in stream.getvalue()
    assert {line.split()[0] for line in lines[:6]} == set(hows)
    assert len({len(line) for line in lines[:6]}) == 1
    assert any(re.match(r"completed +study how=completed seed=0 +1000/1000 .* 98\.76% ", line) for line in lines)
    assert any(re.match(r"diverged +study how=diverged seed=1 +500/1000 ", line) for line in lines)
    assert lines[6] == "6 jobs: 2 completed, 1 diverged, 1 skipped (already complete), 1 refused, 1 failed"
    assert sorted(lines[7:]) == [
        "failed: study how=failed seed=4: ZeroDivisionError: division by zero",
        "refused: study how=refused seed=3: found rate=-1, expected more than 0;\\n mend it",  # escaped
    ]


@pytest.mark.parametrize(
    ("statuses", "total", "code"),
    [
        (["completed", "diverged", "skipped"], 3, 0),
        (["completed"], None, 0),
        ([], None, 0),
        (["completed", "refused"], None, 2),
        (["refused", "failed"], None, 1),
        (["completed"], 2, 1),  # one never started
    ],
)
def test_the_exit_code_is_that_of_the_worst_job(statuses: list[str], total: int | None, code: int) -> None:
    with progress.Sweep(stream=io.StringIO()) as sweep:
        sweep.total = total
        for seed, status in enumerate(statuses):
            progress.job("study", "arm", seed, 10).end(status)
    assert sweep.exit_code() == code


def test_a_job_that_ends_between_two_reports_ends_at_its_own_step() -> None:
    stream = io.StringIO()
    with progress.Sweep(stream=stream), progress.job("study", "arm", 0, 400) as report:
        for step in range(45):  # far within half a second
            report(step)
        report.end("failed", "stopped")
    assert "  44/400  " in stream.getvalue()


@pytest.mark.parametrize("reaped", [True, False])
def test_a_killed_job_has_failed(reaped: bool) -> None:
    stream = io.StringIO()
    with progress.Sweep(stream=stream) as sweep:
        process = begin("hang")
        until(lambda: sweep.exit_code() == 1)  # it runs
        assert sweep.counts["running"] == 1
        os.kill(process.pid, signal.SIGKILL)
        if reaped:
            process.wait()
        until(lambda: sweep.exit_code() == 1 and sweep.counts["failed"] == 1)
    process.wait()
    assert "1 job: 1 failed\nfailed: study how=hang seed=0: its process" in stream.getvalue()


def test_another_process_with_the_pid_of_a_dead_job_is_not_taken_for_it() -> None:
    with progress.Sweep(stream=io.StringIO()) as sweep:
        progress.job("study", "arm", 0, 10)
        sweep.exit_code()
        assert sweep.counts["running"] == 1
        [path] = Path(os.environ["BN_PROGRESS"]).glob("*.json")
        path.write_text(json.dumps(json.loads(path.read_text()) | {"birth": "1"}))
    assert sweep.counts["failed"] == 1


def test_a_terminal_gets_one_live_picture_within_its_width(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"COLUMNS": "100", "NO_COLOR": "1", "TERM": "xterm"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(progress, "INTERVAL", 0.1)
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    master, slave = os.openpty()
    shown = bytearray()

    def read() -> None:
        with contextlib.suppress(OSError):
            while chunk := os.read(master, 4096):
                shown.extend(chunk)

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(slave, "w") as stream:
        with (
            progress.Sweep(stream=stream, total=2) as sweep,
            progress.job("study", "norm=batch", 7, 1000) as report,
        ):
            for step in range(0, 100, 20):
                report(step, accuracy=0.5)
                time.sleep(0.11)
            assert sweep.exit_code() == 1  # not yet over
        sweep.total = 1
    reader.join()
    os.close(master)
    text = shown.decode()
    assert re.search(r"0/2 done, 1 running, 0:0\d so far, 0:\d\d left", text)
    assert re.search(r"norm=batch +7  .* \d\d/1000 +\d+\.\d +▁+ +50\.00% +50\.00% +0:\d\d", text)
    assert "2 jobs: 1 completed, 1 never started" in text
    assert not re.search(r"\x1b\[[0-9;]*m", text)  # no colour
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "\n").splitlines()
    assert max(map(len, lines)) <= 100


def told(arm: str, seed: int, accuracies: list[float], steps: int = 1600, since: int = 0) -> progress.Job:
    """A job that said so many accuracies, evenly over the first half of its steps, and is at its half."""
    job = progress.Job("study", arm, seed, steps, 1, "", 0.0)
    report = progress.Report(None, job)
    for k, accuracy in enumerate(accuracies):
        report(since + k * (steps // 2 - since) // len(accuracies), accuracy)
    job.step, job.rate = steps // 2, 10.0
    return job


def drawn(jobs: list[progress.Job], width: int, **options: Any) -> list[str]:
    best = {(job.study, job.arm): max(j.best or 0.0 for j in jobs if j.arm == job.arm) for job in jobs}
    console = Console(file=io.StringIO(), width=width, highlight=False, markup=False)
    console.print(progress.picture(jobs, best, width, **options))
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_each_run_has_a_small_curve_on_shared_axes_and_its_arms_best() -> None:
    rising = [0.1 + 0.8 * k / 7 for k in range(8)]  # the lowest and the highest of all are this one's
    jobs = [told("norm=batch", 0, rising), told("norm=none", 0, [0.5] * 3), told("norm=batch", 1, [0.9, 0.1])]
    _, first, second, third = drawn(jobs, 120)
    assert re.search(r"norm=batch +0  .* 800/1600 +10\.0  ▁▂▃▄▅▆▇██ +90\.00% +90\.00% +1:20$", first)
    # Told once, it stands until told otherwise: up to the step that the run is at, and no further.
    assert re.search(r" 10\.0  (.)\1{8}       +50\.00% +50\.00% ", second)
    assert re.search(r" 10\.0  ████▁▁▁▁▁ +10\.00% +90\.00% ", third)  # the other seed's best is the arm's
    assert progress.sparkline([None, 0.3, 0.3], 0.3, 0.3) == " ▁▁"
    # A run that went on from its half knows nothing of what was before.
    resumed = told("norm=batch", 0, [0.5], since=790)
    assert resumed.curve == [None] * 8 + [0.5]


def test_a_narrow_terminal_gives_up_the_curve_first_and_the_names_end_last() -> None:
    jobs = [told("norm=batch,optimizer.rate=0.0016", 0, [0.1, 0.5]), told("norm=none", 1, [0.2])]
    without = []
    for width in range(140, 29, -1):
        lines = drawn(jobs, width)
        assert max(map(len, lines)) <= width
        assert len(lines) == 3
        assert all("/1600" in line for line in lines[1:])
        shown = lines[0].split()
        without += [title for title in ("held-out", "steps/s", "best", "left") if title not in [*shown, *without]]
    assert without == ["held-out", "steps/s", "best", "left"]
    assert "norm=batch,op…" in drawn(jobs, 40)[1]
    assert not any("▁" in line for line in drawn(jobs, 200, blocks=False))


def test_without_news_a_job_says_nothing_twice() -> None:
    job = told("norm=batch", 0, [0.1, 0.3, 0.2])
    assert (job.accuracy, job.best) == (0.2, 0.3)
    assert job.curve == [0.1, 0.1, 0.1, 0.3, 0.3, 0.2]
    again = progress.Job(**json.loads(json.dumps(asdict(job))))  # as the sweep reads it
    assert again == job


def test_a_stream_that_closes_ends_the_display_and_not_the_sweep() -> None:
    read, write = os.pipe()
    os.close(read)
    stream = os.fdopen(write, "w")
    with progress.Sweep(stream=stream) as sweep:
        progress.job("study", "arm", 0, 10).end("completed")
    with contextlib.suppress(BrokenPipeError):
        stream.close()
    assert sweep.exit_code() == 0


def test_without_a_sweep_a_report_is_free() -> None:
    with progress.job("study", "arm", 0, 10) as report:
        costs = []
        for _ in range(5):
            begun = time.thread_time()  # of this thread alone, whatever else the machine does
            for step in range(10_000):
                report(step, 0.5)
            costs.append((time.thread_time() - begun) / 10_000)
    assert min(costs) < 5e-6


def test_a_refusal_passes_through_the_report() -> None:
    with pytest.raises(UserError, match="mend it"), progress.job("study", "arm", 0, 10):
        raise UserError("found a, expected b; mend it")
