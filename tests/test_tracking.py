"""Weights & Biases mirrors what was recorded, and its failures stay its own. Real offline runs, read back."""

from __future__ import annotations

import json
import logging
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bn_replication.tracking import tracker

CURVES = [
    {"step": 0, "epoch": 0.0, "rate": 0.1, "test_loss": 2.302585092994046, "test_accuracy": 0.0974},
    {
        "step": 1000,
        "epoch": 1.0,
        "rate": 0.1,
        "train_loss": 0.1 + 0.2,
        "test_loss": 1 / 3,
        "test_accuracy": 0.91,
    },
    {"step": 2000, "epoch": 2.0, "rate": 0.1, "train_loss": None, "test_loss": 1e-300, "test_accuracy": 1.0},
]
ACTIVATIONS = [
    {
        "step": 10,
        "layer": "act1",
        "percentiles": [-1.5, 0.25, 2.0],
        "mean": 0.3,
        "std": 1.7,
        "histogram": [1, 5, 2],
    },
    {"step": 10, "layer": "act2", "percentiles": [-0.5, 0.0, 0.5], "mean": 0.0, "std": 0.5, "units": [[0.0]]},
    {"step": 20, "layer": "act1", "percentiles": [-1.0, 0.5, 2.5], "mean": 0.4, "std": 1.8, "gradient": 3e-5},
]
# Mirrors two runs in a process of its own, so that its exit code and all it prints can be seen.
SCRIPT = """
import os, signal, sys, time
from pathlib import Path
from bn_replication import tracking

def services():  # the processes that this one has started
    lists = [(task / "children").read_text() for task in Path("/proc/self/task").iterdir()]
    return [int(pid) for pid in " ".join(lists).split()]

directory, mode, act = sys.argv[1:]
tracking.INIT_TIMEOUT = 1
struck = []
for seed in (0, 1):
    with tracking.tracker(
        mode=mode, project="p", directory=Path(directory), study="s", arm="a", seed=seed,
        patience=1.0 if act == "SIGSTOP" and seed == 0 else 90.0,
    ) as log:
        log.curve({"step": 0})
        if act and seed == 0:
            while not (log._tasks.empty() and services()):
                time.sleep(0.01)
            struck = services()
            for pid in struck:
                os.kill(pid, getattr(signal, act))
        for step in range(1, 400):
            log.curve({"step": step, "padding": list(range(300))})
print("wandb" in sys.modules)
for pid in struck if act == "SIGSTOP" else ():
    os.kill(pid, signal.SIGKILL)
"""


def inspect(run: Path) -> list[dict[str, Any]]:
    """Return every record of an offline run, as wandb's own reader prints them."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(run)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout.splitlines()
    return [json.loads(line) for line in lines]


def history(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the logged rows, less the columns that wandb adds."""
    rows = [record["history"]["item"] for record in records if record["type"] == "history"]
    return [{key: value for key, value in row.items() if not key.startswith("_")} for row in rows]


def outside(directory: Path, mode: str, act: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-W",
        "error",
        "-W",
        "ignore::ResourceWarning",
        "-c",
        SCRIPT,
        str(directory),
        mode,
        act,
    ]
    # A home of its own, so that nobody's key is found.
    env = {"HOME": str(directory), "PATH": "/usr/bin:/bin", **environment}
    return subprocess.run(command, capture_output=True, text=True, timeout=180, env=env, check=False)


def test_an_offline_run_holds_the_records_exactly(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    image = tmp_path / "figure.svg"
    image.write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    probe = {"percentiles": [15.0, 50.0, 85.0], "histogram": {"low": -3.0, "high": 3.0}}
    config = {"batch_size": 60, "optimizer": {"rate": 0.1}, "probe": probe}
    common: dict[str, Any] = {
        "mode": "offline",
        "project": "p",
        "directory": tmp_path,
        "study": "fig1",
        "config": config,
    }
    before = random.getstate(), str(np.random.get_state())  # noqa: NPY002

    # Both open at a time, as seeds that are trained together are.
    log = tracker(**common, arm="norm=batch", seed=0, tags=["mnist", "fig1"])
    other = tracker(**common, arm="norm=none", seed=1)
    for row in CURVES:
        log.curve(row)
    other.curve(CURVES[0])
    log.activations([])  # of a net without a nonlinearity
    log.activations(ACTIVATIONS)
    log.activations(ACTIVATIONS[:1], edges=[-4.0, -1.0, 1.0, 4.0])
    log.figure("a", image)
    log.finish({"test_accuracy": 1.0}, "diverged")
    log.curve({"step": 3000})  # after the end: nothing
    with pytest.raises(ZeroDivisionError), other:
        raise ZeroDivisionError

    assert (random.getstate(), str(np.random.get_state())) == before  # noqa: NPY002
    assert capfd.readouterr() == ("", "")
    runs = {}
    for path in tmp_path.glob("wandb/offline-run-*"):
        records = inspect(path)
        runs[next(r["run"]["display_name"] for r in records if r["type"] == "run")] = records
    assert sorted(runs) == ["norm=batch-0", "norm=none-1"]

    records = runs["norm=batch-0"]
    run = next(r["run"] for r in records if r["type"] == "run")
    assert (run["run_group"], run["job_type"], run["tags"]) == ("fig1", "norm=batch", ["mnist", "fig1"])
    assert run["config"]["update"]["optimizer"] == {"rate": 0.1}
    rows = history(records)
    assert rows[:3] == [row | {"samples_seen": row["step"] * 60} for row in CURVES]
    assert rows[3]["activations/act1/p15"] == -1.5
    assert rows[3]["activations/act2/p85"] == 0.5
    assert rows[3]["histograms/act1._type"] == "histogram"
    assert rows[3]["histograms/act1.values"] == [1, 5, 2]
    assert rows[3]["histograms/act1.bins"] == [-3.0, -1.0, 1.0, 3.0]
    # As in records from before there were gradients, and before the first step, where there is none.
    assert not any(key.startswith(("histograms/act2", "gradients/")) for key in rows[3])
    assert rows[4] == {
        "step": 20, "samples_seen": 1200, "activations/act1/p15": -1.0, "activations/act1/p50": 0.5,
        "activations/act1/p85": 2.5, "activations/act1/mean": 0.4, "activations/act1/std": 1.8,
        "gradients/act1": 3e-5,
    }  # fmt: skip
    assert rows[5]["histograms/act1.bins"] == [-4.0, -1.0, 1.0, 4.0]
    assert rows[6]["figures/a._type"] == "html-file"
    assert rows[7]["figures/act2_table._type"].startswith("table")  # the percentile bands of the deepest layer
    assert len(rows) == 8
    metrics = [r["metric"] for r in records if r["type"] == "metric"]
    assert any(metric.get("glob_name") == "*" and metric["step_metric"] == "step" for metric in metrics)
    assert {"status": "diverged", "test_accuracy": 1.0} in [
        r["summary"]["update"] for r in records if r["type"] == "summary"
    ]
    # Divergence is a result, not an error.
    assert [r["exit"]["exit_code"] for r in records if r["type"] == "exit"] == [0]

    other_records = runs["norm=none-1"]
    assert history(other_records) == [CURVES[0] | {"samples_seen": 0}]
    assert [r["exit"]["exit_code"] for r in other_records if r["type"] == "exit"] == [1]


def test_disabled_does_not_import_wandb(tmp_path: Path) -> None:
    done = outside(tmp_path, "disabled")
    assert (done.returncode, done.stdout, done.stderr) == (0, "False\n", "")
    assert not list(tmp_path.iterdir())


def test_a_directory_that_cannot_be_made_is_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    run = tracker(mode="offline", project="p", directory=tmp_path / "file", study="s", arm="a", seed=0)
    with caplog.at_level(logging.WARNING), run as log:
        for row in CURVES:
            log.curve(row)
    assert [record.message.partition("(")[0] for record in caplog.records] == ["wandb no longer mirrors this run "]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds wandb's service through /proc")
@pytest.mark.parametrize(
    ("act", "warning"), [("SIGKILL", "no longer mirrors"), ("SIGSTOP", "has not answered for 1 s")]
)
def test_a_service_that_dies_or_hangs_neither_stops_nor_fails_the_process(
    tmp_path: Path, act: str, warning: str
) -> None:
    done = outside(tmp_path, "offline", act)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr
    assert warning in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    # The run after it has a service of its own, and is whole: 400 rows of 300 numbers.
    last = max(tmp_path.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime)
    assert last.stat().st_size > 400 * 300 * 2


@pytest.mark.slow
@pytest.mark.parametrize("key", ["", "0123456789" * 4])
def test_online_without_a_key_or_a_server_goes_on_offline(tmp_path: Path, key: str) -> None:
    done = outside(tmp_path, "online", WANDB_API_KEY=key, WANDB_BASE_URL="http://127.0.0.1:9")
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr
    assert done.stderr.startswith("wandb goes on offline")
    assert len(done.stderr.splitlines()) == 1, done.stderr  # asked once, not once a run
    assert len(list(tmp_path.glob("wandb/offline-run-*/*.wandb"))) == 2
