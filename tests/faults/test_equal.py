"""What only watches changes no bit: probes, logging, W&B, checkpoints, the clock, the time zone.

One pair is equal only to rounding and not to the bit: a convolution that computes several branches at once and
those branches computed alone (the matrix product picks its kernel by its width). It is held to 1e-9 in float64
in tests/test_inception.py, and there is no switch to tell the two apart: every run computes the joined form.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.faults.processes import INCEPTION, configuration, finished, place, program, record_of, rows, until

from bn_replication import records
from bn_replication.runner import run

WATCHED = {
    "the same again": [],
    "no probes": ["probe.enabled=false"],
    "more probes": ["probe.points=20", "probe.examples=48"],
    "other evaluations": ["evaluate.times=24", "evaluate.examples=32"],
    "evaluated in other batches": ["evaluate.batch_size=16"],
    "a checkpoint each step": ["machine.checkpoint_every=1"],
}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return finished(configuration(tmp_path_factory.mktemp("alone"), *INCEPTION), "alone")


@pytest.mark.parametrize("way", WATCHED)
def test_watching_an_inception_run_changes_no_bit_of_it(way: str, alone: dict[str, Any], tmp_path: Path) -> None:
    watched = finished(configuration(tmp_path, *INCEPTION, *WATCHED[way]), "watched")
    assert watched["weights"] == alone["weights"]  # running averages and momenta included
    theirs, ours = ([json.loads(row) for row in ending[records.CURVES].splitlines()] for ending in (alone, watched))
    if way != "other evaluations":
        assert [row.get("train_loss") for row in ours] == [row.get("train_loss") for row in theirs]
    if way not in ("other evaluations", "evaluated in other batches"):
        assert ours == theirs


def test_another_seed_is_another_run(alone: dict[str, Any], tmp_path: Path) -> None:
    """So that the digests compared above can differ."""
    other = configuration(tmp_path, *INCEPTION, "seed=1")
    run(other, "other")
    assert record_of(place(other, "other"))["weights"] != alone["weights"]


@pytest.mark.parametrize("mode", ["offline", "online"])
def test_wandb_changes_no_bit_whether_it_answers_or_not(
    mode: str, alone: dict[str, Any], tmp_path: Path, reap: Any
) -> None:
    """online: a server that accepts a connection and never says a word, behind a key."""
    with subprocess.Popen(
        ["python3", "-c", "import socket; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], "
         "flush=True); kept = []\nwhile True: kept.append(s.accept())"],
        stdout=subprocess.PIPE, text=True,
    ) as silent:  # fmt: skip
        assert silent.stdout is not None
        server = f"http://127.0.0.1:{silent.stdout.readline().strip()}"
        words = (*INCEPTION, "study=t", f"wandb={mode}", f"wandb.directory={tmp_path}")
        process = reap(
            program(*words, results=tmp_path / "runs", WANDB_BASE_URL=server, WANDB_API_KEY="0" * 40, no_proxy="*")
        )
        said = process.communicate(timeout=400)[0]
        silent.kill()
    assert process.returncode == 0, said
    (directory,) = (tmp_path / "runs").glob("smoke/t/*/seed=0")
    assert record_of(directory)["weights"] == alone["weights"]
    assert (directory / records.CURVES).read_text() == alone[records.CURVES]
    assert list(tmp_path.glob("wandb/offline-run-*")) or mode == "online"


def mirrors(pid: int) -> list[int]:
    """The processes of wandb's that a process has started."""
    with contextlib.suppress(OSError):
        children = " ".join(path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")).split()
        return [int(child) for child in children if "wandb" in Path(f"/proc/{child}/cmdline").read_text()]
    return []


def test_wandb_killed_in_mid_run_changes_no_bit(alone: dict[str, Any], tmp_path: Path, reap: Any) -> None:
    words = (*INCEPTION, "study=t", "wandb=offline", f"wandb.directory={tmp_path}")
    process = reap(program(*words, results=tmp_path / "runs"))
    struck: list[int] = []
    until(lambda: process.poll() is not None or struck.extend(mirrors(process.pid)) or struck)
    for pid in struck:
        os.kill(pid, signal.SIGKILL)
    said = process.communicate(timeout=400)[0]
    assert process.returncode == 0, said
    assert struck
    (directory,) = (tmp_path / "runs").glob("smoke/t/*/seed=0")
    assert record_of(directory)["weights"] == alone["weights"]
    assert (directory / records.CURVES).read_text() == alone[records.CURVES]


BACKWARDS = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <time.h>
/* The time of day goes backwards by an hour each time it is asked for; the monotonic clock is the machine's. */
int clock_gettime(clockid_t id, struct timespec *t) {
    static int (*real)(clockid_t, struct timespec *);
    static long asked;
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int code = real(id, t);
    if (id == CLOCK_REALTIME) t->tv_sec -= 3600 * asked++;
    return code;
}
"""


def test_a_clock_that_is_set_back_and_another_time_zone_change_nothing(
    alone: dict[str, Any], tmp_path: Path, reap: Any
) -> None:
    if not shutil.which("cc"):
        pytest.skip("no C compiler here, to build a clock that runs backwards")
    (tmp_path / "clock.c").write_text(BACKWARDS)
    clock = tmp_path / "clock.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", clock, tmp_path / "clock.c", "-ldl"], check=True)
    environment = {"LD_PRELOAD": str(clock), "TZ": "Pacific/Kiritimati"}
    asked = ["python3", "-c", "import time; a = time.time(); print(time.time() < a)"]
    assert subprocess.run(asked, capture_output=True, text=True, env=environment).stdout == "True\n"
    process = reap(program(*INCEPTION, "study=t", results=tmp_path / "runs", **environment))
    said = process.communicate(timeout=400)[0]
    assert process.returncode == 0, said
    (directory,) = (tmp_path / "runs").glob("smoke/t/*/seed=0")
    record = record_of(directory)
    assert record["weights"] == alone["weights"]
    assert (directory / records.CURVES).read_text() == alone[records.CURVES]
    assert 0 < record["seconds"] < 400
    assert record["started"].endswith("+00:00")
    steps = [row["step"] for row in rows(directory)]
    assert steps == sorted(steps)
    (line,) = [line for line in said.splitlines() if line.startswith("completed")]
    assert "-" not in line.split()[-1]  # the clock of the job, in the sweep's own report
