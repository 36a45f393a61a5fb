"""Replicas that are killed, asked to stop and started again: in forks, and under torchrun as a user meets them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.faults.processes import MLP, configuration, ending, hearing, place, rows, until
from tests.replicas import together

from bn_replication import checkpoint, records
from bn_replication.distributed import Lost
from bn_replication.runner import Interrupted, Outcome, run

SHORT = (*MLP, "steps=30", "batch_size=32")
INCEPTION = ("setting=inception", "variant=bn_baseline", "steps=8", "evaluate.times=2", "probe.points=2",
             "batch_size=4", "evaluate.examples=12")  # fmt: skip


def at(step: int, act: Callable[[], object]) -> Callable[..., None]:
    def report(reached: int, *_: object) -> None:
        if reached == step:
            act()

    return report


@pytest.mark.parametrize(("replicas", "overrides"), [(2, SHORT), (3, INCEPTION)], ids=["2 MLPs", "3 Inceptions"])
def test_one_is_asked_to_stop_all_stop_at_that_step_and_go_on_to_the_bit(
    tmp_path: Path, replicas: int, overrides: tuple[str, ...]
) -> None:
    """Three: the order in which gradients are added up then tells, and each has running averages of its own."""
    cfg = configuration(tmp_path, *overrides, f"replicas={replicas}")
    together(replicas, lambda _: run(cfg, "alone"))

    def stopped(rank: int) -> Outcome:
        ask = at(4, lambda: os.kill(os.getpid(), signal.SIGTERM))
        return run(cfg, "stopped", ask if rank == replicas - 1 else at(-1, lambda: None))

    assert [type(each) for each in together(replicas, stopped)] == [Interrupted] * replicas
    state = checkpoint.load(place(cfg, "stopped"))
    assert state is not None
    assert state["step"] == 5  # told to the others with the sums of the step after
    means = [next(value for name, value in each.items() if "mean" in name) for each in state["replicas"]]
    assert len(means) == replicas
    assert not torch.equal(means[0], means[1])
    assert {each.status for each in together(replicas, lambda _: run(cfg, "stopped"))} == {"completed"}
    assert ending(place(cfg, "stopped")) == ending(place(cfg, "alone"))


def test_a_killed_replica_ends_the_others_at_once_and_the_run_goes_on_to_the_bit(tmp_path: Path) -> None:
    cfg = configuration(tmp_path, *SHORT, "replicas=2", "machine.checkpoint_every=10")
    together(2, lambda _: run(cfg, "alone"))

    def killed(rank: int) -> Outcome:
        return run(cfg, "killed", at(17 if rank else -1, lambda: os.kill(os.getpid(), signal.SIGKILL)))

    began = time.monotonic()
    left, dead = together(2, killed)
    assert time.monotonic() - began < 120
    assert dead == -signal.SIGKILL
    assert isinstance(left, Lost)
    assert "rank 0 lost another process" in str(left)
    assert records.read_run_json(place(cfg, "killed")) is None  # no failure of its own: to be gone on with
    state = checkpoint.load(place(cfg, "killed"))
    assert state is not None
    assert state["step"] == 10
    together(2, lambda _: run(cfg, "killed"))
    assert ending(place(cfg, "killed")) == ending(place(cfg, "alone"))


# --- under torchrun ---------------------------------------------------------------------------------------------

LONG = ("setting=mnist", "norm=batch", "study=t", "steps=400", "evaluate.times=40", "probe.enabled=false",
        "batch_size=32", "machine.checkpoint_every=20")  # fmt: skip


def torchrun(*words: str, results: Path, replicas: int = 2) -> subprocess.Popen[str]:
    """Start a run on several processes, in a process group of its own, as a shell would."""
    launcher = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={replicas}", "--standalone"]
    return subprocess.Popen(
        [
            *launcher,
            "-m",
            "bn_replication.train",
            *words,
            "scale=smoke",
            "wandb=disabled",
            f"machine.results={results}",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=hearing,
        env=os.environ | {"PYTHONWARNINGS": "default"},
    )


def ranks_of(launcher: int) -> dict[int, int]:
    """The processes that torchrun has started, which are in sessions of their own: rank -> pid."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            state, parent, *_ = path.with_name("stat").read_text().rpartition(")")[2].split()
            told = dict(word.partition("=")[::2] for word in path.read_text().split("\0"))
            if int(parent) == launcher and state not in "ZX" and "RANK" in told:
                found[int(told["RANK"])] = int(path.parent.name)
    return found


def gone(pids: dict[int, int]) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in pids.values())


def directory_of(results: Path) -> Path:
    (directory,) = results.glob("smoke/t/*/seed=*")
    return directory


def saved(results: Path) -> bool:
    return any(results.glob(f"smoke/t/*/*/{checkpoint.CURRENT}"))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_ends_the_job_by_name_and_the_same_command_goes_on_to_the_bit(
    tmp_path: Path, reap: Any, rank: int
) -> None:
    process = reap(torchrun(*LONG, results=tmp_path / "killed"))
    until(lambda: saved(tmp_path / "killed"), 240)
    ranks, began = ranks_of(process.pid), time.monotonic()
    os.kill(ranks[rank], signal.SIGKILL)
    said = process.communicate(timeout=150)[0]
    assert time.monotonic() - began < 120
    assert process.returncode == 1
    assert gone(ranks)
    cause = said.partition("Root Cause")[2]
    assert f"rank      : {rank} " in cause
    assert "SIGKILL" in cause
    if rank == 1:  # whoever speaks for all is left to say so
        assert "rank 0 lost another process of this run, which torchrun names; the same command goes on" in said
    assert records.read_run_json(directory_of(tmp_path / "killed")) is None

    for results in (tmp_path / "killed", tmp_path / "alone"):
        process = reap(torchrun(*LONG, results=results))
        said = process.communicate(timeout=300)[0]
        assert process.returncode == 0, said
        assert said.count("1 job: 1 completed") == 1  # by one voice
    assert ending(directory_of(tmp_path / "killed")) == ending(directory_of(tmp_path / "alone"))


@pytest.mark.parametrize(
    ("number", "whom"),
    [
        pytest.param(signal.SIGTERM, "parent", id="SIGTERM to torchrun"),
        pytest.param(signal.SIGINT, "group", id="Ctrl-C"),
        pytest.param(signal.SIGHUP, "group", id="terminal closed"),
        pytest.param(signal.SIGKILL, "parent", id="torchrun killed"),
    ],
)
def test_asked_once_all_ranks_stop_with_one_checkpoint(
    tmp_path: Path, reap: Any, number: signal.Signals, whom: str
) -> None:
    process = reap(torchrun(*LONG, "steps=1000000", "evaluate.times=1000", results=tmp_path))
    until(lambda: saved(tmp_path), 240)
    ranks = ranks_of(process.pid)
    (os.killpg if whom == "group" else os.kill)(process.pid, number)
    said = process.communicate(timeout=150)[0]
    until(lambda: gone(ranks), 90)
    if number != signal.SIGKILL:
        assert said.count("stopped when asked to; what it had done is saved") == 1
    state = checkpoint.load(directory_of(tmp_path))
    assert state is not None
    assert len(state["replicas"]) == 2
    assert len(rows(directory_of(tmp_path))) == state["step"] // 1000 + 1


def test_a_mistake_is_told_once_by_one_voice(tmp_path: Path, reap: Any) -> None:
    """Of a key, of a value, of the data: before the ranks have met, and while they do."""
    for words, complaint in {
        ("optimizer.rat=1",): "found unknown key 'optimizer.rat'",
        ("batch_size=0",): "batch_size: found 0",
        ("data.subset=100000",): "found subset 100000, expected 1 to",
    }.items():
        process = reap(torchrun(*LONG, *words, results=tmp_path))
        said = process.communicate(timeout=300)[0]
        assert process.returncode == 1  # torchrun's own
        ours = said.partition("Traceback")[0]  # what follows is torchrun's summary
        assert ours.count(complaint) == 1, said
        assert said.count("Traceback") == 1, said
        assert "exitcode  : 2" in said
