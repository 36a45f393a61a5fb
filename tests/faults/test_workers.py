"""A command with processes side by side that is ended, or killed, leaves none of them behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from tests.faults.processes import processes_of, until

from bn_replication.runner import run
from bn_replication.train import CONFIGS, resolved, validate

STUDY = "fig4_ensemble"
QUICK = ("steps=2", "evaluate.times=1", "probe.enabled=false", "evaluate.keep.statistics_batches=2")
QUICK += ("evaluate.examples=20",)


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a root with the six networks of a seed, not yet evaluated."""
    root = tmp_path_factory.mktemp("fig4")
    for variant in (f"member_{k}" for k in range(1, 7)):
        words = ["scale=smoke", "wandb=disabled", f"machine.results={root}", f"experiment={STUDY}", *QUICK]
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            cfg = validate(resolved(compose("train", overrides=[*words, f"variant={variant}"])))
        assert run(cfg, f"variant={variant}").status == "completed"
    return root


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("command", ["ensemble", "plan"])
def test_workers_end_with_the_command_that_started_them(
    networks: Path, command: str, ending: signal.Signals, reap: Callable
) -> None:
    words = {"ensemble": ["--jobs", "2"], "plan": [STUDY, "fig1_mnist", "fig2_inception"]}[command]
    if command == "plan" and len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core: a plan starts no other process")
    process = reap(
        subprocess.Popen(
            [sys.executable, "-m", f"bn_replication.{command}", "--scale", "smoke", "--root", networks, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
    )

    def at_work() -> list[int]:
        """The workers that have loaded all there is to load."""
        found = []
        for each in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if os.getpgid(int(each.name)) == process.pid and "spawn_main" in (each / "cmdline").read_text():
                    found += [int(each.name)] if (each / "maps").read_text().count("libtorch_cpu") else []
        return found

    until(lambda: process.poll() is not None or len(at_work()) == 2)
    assert process.poll() is None, process.stdout.read()
    process.send_signal(ending)
    code = process.wait(60)
    until(lambda: not processes_of(process.pid), 30)
    if ending != signal.SIGKILL:
        assert code == 130
        assert "Traceback" not in process.stdout.read()
