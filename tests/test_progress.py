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
from pathlib import Path

import pytest
from joblib.externals.loky import ProcessPoolExecutor

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
        "refused: study how=refused seed=3: found rate=-1, expected more than 0; mend it",
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
    assert re.search(r"norm=batch seed=7 .* \d\d/1000 +\d+\.\d steps/s +50\.00% +0:\d\d left", text)
    assert "2 jobs: 1 completed, 1 never started" in text
    assert not re.search(r"\x1b\[[0-9;]*m", text)  # no colour
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "\n").splitlines()
    assert max(map(len, lines)) <= 100


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
            begun = time.perf_counter()
            for step in range(10_000):
                report(step, 0.5)
            costs.append((time.perf_counter() - begun) / 10_000)
    assert min(costs) < 5e-6


def test_a_refusal_passes_through_the_report() -> None:
    with pytest.raises(UserError, match="mend it"), progress.job("study", "arm", 0, 10):
        raise UserError("found a, expected b; mend it")
