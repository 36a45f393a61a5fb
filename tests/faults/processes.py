"""Runs of the real program on the shipped images, in processes that may be killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir

from bn_replication import records
from bn_replication.provenance import environment
from bn_replication.runner import Interrupted, run
from bn_replication.schema import Config
from bn_replication.train import CONFIGS, resolved, validate

torch.set_num_threads(1)
environment("cpu", 1)  # the code's revision is asked for once, here: it is that of every fork, whoever edits meanwhile

INTERRUPTED = 130  # exit code of a fork that stopped when asked to
# BN-Baseline has all there is to lose: running averages, dropout, LRN, momentum, distortions, a decaying rate.
INCEPTION = ("setting=inception", "variant=bn_baseline", "steps=24", "evaluate.times=8", "probe.points=6")
MLP = ("setting=mnist", "norm=batch", "optimizer.rate=0.1", "evaluate.times=4", "probe.points=3")


def configuration(results: Path, *overrides: str) -> Config:
    """Return a smoke-scale configuration of study ``t`` whose records go below ``results``."""
    fixed = ["scale=smoke", "wandb=disabled", "study=t", f"machine.results={results}"]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return validate(resolved(compose("train", [*fixed, *overrides])))


def place(cfg: Config, arm: str) -> Path:
    return cfg.machine.results / "smoke" / cfg.study / arm / f"seed={cfg.seed}"


def record_of(directory: Path) -> dict[str, Any]:
    record = records.read_run_json(directory)
    assert record is not None, f"{directory} has not ended"
    return record


def ending(directory: Path) -> dict[str, Any]:
    """All that a run has computed: final weights, running statistics and momenta, curves, activations, summary."""
    record = record_of(directory)
    files = {name: (directory / name).read_text() for name in (records.CURVES, records.ACTIVATIONS)}
    assert {name: records.digest(text.encode()) for name, text in files.items()} == record["files"]
    return {key: record[key] for key in ("status", "steps_done", "weights", "summary", "config")} | files


@contextlib.contextmanager
def forked(action: Callable[[], object]) -> Iterator[int]:
    """Carry out ``action`` in a fork, which has torch loaded; give its pid, and kill it in the end if need be."""
    if (pid := os.fork()) == 0:
        code = 70
        try:
            action()
            code = 0
        except Interrupted:
            code = INTERRUPTED
        except BaseException:
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(code)
    try:
        yield pid
    finally:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def ended(pid: int, seconds: float) -> int | None:
    """Wait for a child up to so long; return its exit code, negative for a signal, or ``None`` if it still runs."""
    deadline = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            return None
        time.sleep(0.0005)


def finished(cfg: Config, arm: str) -> dict[str, Any]:
    """Run to the end in a process of its own, as a later command would, and return all that was computed."""
    with forked(lambda: run(cfg, arm)) as pid:
        assert ended(pid, 300) == 0
    return ending(place(cfg, arm))


def command(*words: str, results: Path) -> list[str]:
    fixed = ["scale=smoke", f"machine.results={results}"]
    fixed += [] if any(word.startswith("wandb") for word in words) else ["wandb=disabled"]
    return [sys.executable, "-m", "bn_replication.train", *words, *fixed]


def hearing() -> None:
    """In a program that is about to start: a closed terminal ends it, were these tests themselves started by nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def program(*words: str, results: Path, before: tuple[str, ...] = (), **environment: str) -> subprocess.Popen[str]:
    """Start ``python -m bn_replication.train`` in a process group of its own, as a shell would."""
    return subprocess.Popen(
        [*before, *command(*words, results=results)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=hearing,
        env=os.environ | {"JOBS": "2", "PYTHONWARNINGS": "default"} | environment,
    )


def until(condition: Callable[[], object], seconds: float = 240.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def rows(directory: Path) -> list[dict[str, Any]]:
    """The whole rows of a curve that may still be growing."""
    path = directory / records.CURVES
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def processes_of(group: int) -> list[str]:
    """The commands of the processes of a group that are alive."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, its_group, *_ = stat.read_text().rpartition(")")[2].split()
            if int(its_group) == group and state not in "ZX":
                found.append((stat.parent / "cmdline").read_text().replace("\0", " "))
    return found
