"""A run that is killed, wherever, goes on to the same bits; a file that is replaced is the old one or the new one."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from tests.faults.processes import INCEPTION, configuration, ended, ending, finished, forked, place, program, rows

from bn_replication import checkpoint, records, runner
from bn_replication.runner import run
from bn_replication.schema import Config

# Many kills come at any moment. The others are aimed: from a random moment on, a run is left until a file shows that it
# is in the middle of it, and then killed: a checkpoint half-written, an evaluation begun, a row of the curve just
# written, probes being recorded.
AIMS = ["anywhere"] * 20 + ["save"] * 10 + ["evaluation"] * 7 + ["curve"] * 7 + ["activations"] * 6


def test_a_run_killed_fifty_times_ends_as_one_left_alone(tmp_path: Path) -> None:
    cfg = configuration(tmp_path, *INCEPTION, "machine.checkpoint_every=2")
    began = time.monotonic()
    alone = finished(cfg, "alone")
    duration = time.monotonic() - began
    assert len(alone[records.CURVES].splitlines()) == 9

    evaluating = tmp_path / "evaluating"
    random.seed(0)
    aims, number, hit = random.sample(AIMS, len(AIMS)), 0, dict.fromkeys(AIMS, 0)
    while aims:
        arm = f"killed{number}"
        number += 1
        while aims:  # until it gets to its end, or enough is enough
            evaluating.unlink(missing_ok=True)
            with forked(lambda arm=arm: _telling(evaluating, cfg, arm)) as pid:
                code = _strike(pid, place(cfg, arm), evaluating, aims[-1], random.uniform(0, duration))
            if code == 0:
                break
            assert code == -signal.SIGKILL
            hit[aims.pop()] += 1
        assert finished(cfg, arm) == alone
        assert not list(place(cfg, arm).glob(".*.tmp"))  # what the kills left half-written is gone
    assert hit == {aim: AIMS.count(aim) for aim in AIMS}


def _telling(evaluating: Path, cfg: Config, arm: str) -> None:
    """Carry out a run, with a file that is there for as long as it evaluates."""
    real = runner.one_crop

    def one_crop(*args: Any) -> dict[str, float]:
        evaluating.touch()
        found = real(*args)
        evaluating.unlink()
        return found

    runner.one_crop = one_crop
    run(cfg, arm)


def _strike(pid: int, directory: Path, evaluating: Path, aim: str, moment: float) -> int:
    """Kill the run ``pid`` at a moment as ``aim`` says; return its exit code, 0 if it came to its end before."""

    def size(name: str) -> int:
        return (directory / name).stat().st_size if (directory / name).exists() else 0

    sizes = {name: size(name) for name in (records.CURVES, records.ACTIVATIONS)}
    since = time.monotonic()
    before = set(directory.glob(".checkpoint*.tmp"))  # of an earlier kill
    while (code := ended(pid, 0)) is None:
        late = time.monotonic() - since > moment
        if (
            (aim == "anywhere" and late)
            or (aim == "save" and late and set(directory.glob(".checkpoint*.tmp")) - before)
            or (aim == "evaluation" and late and evaluating.exists())
            or (aim == "curve" and late and size(records.CURVES) != sizes[records.CURVES])
            or (aim == "activations" and late and size(records.ACTIVATIONS) != sizes[records.ACTIVATIONS])
        ):
            os.kill(pid, signal.SIGKILL)
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if not late:
            sizes = {name: size(name) for name in sizes}
            before = set(directory.glob(".checkpoint*.tmp"))
    return code


def test_the_program_killed_with_its_mirror_goes_on_as_one_left_alone(tmp_path: Path, reap: Any) -> None:
    """The command itself, with W&B writing beside it, three times."""
    words = (*INCEPTION, "study=t", "machine.checkpoint_every=2", f"wandb.directory={tmp_path}", "wandb=offline")
    cfg = configuration(tmp_path / "alone", *INCEPTION, "machine.checkpoint_every=2")
    directory = None
    for kill_at in (3, 12, 21, None):
        process = reap(program(*words, results=tmp_path / "killed"))
        while process.poll() is None:
            directory = next(iter((tmp_path / "killed").glob("smoke/t/*/seed=0")), None)
            steps = [row["step"] for row in rows(directory)] if directory else []
            if kill_at is not None and steps and steps[-1] >= kill_at:
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
            time.sleep(0.002)
        assert process.returncode == (0 if kill_at is None else -signal.SIGKILL), process.communicate()[0]
    assert directory is not None
    ours, alone = ending(directory), finished(cfg, "alone")
    assert ours == alone


# --- between any two lines -------------------------------------------------------------------------------------


def _killed_before_line(number: int, *files: str) -> None:
    """From now on, kill this process before it executes the ``number``-th line of the modules in ``files``."""
    left = number

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if frame.f_code.co_filename not in files:
            return None
        if event == "line":
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)


@pytest.mark.parametrize("file", ["checkpoint", "run.json"])
def test_a_kill_between_any_two_lines_leaves_the_old_file_or_the_new_one(tmp_path: Path, file: str) -> None:
    """Between linking, writing, flushing, syncing and renaming; every line of ours that runs while it is written."""

    def write(directory: Path, step: int) -> None:
        if file == "checkpoint":
            checkpoint.save(directory, {"step": step, "weights": [step] * 1000})
        else:
            records.write_run_json(directory, {"status": "completed", "steps_done": step})

    def step_of(directory: Path) -> int:
        if file == "checkpoint":
            state = checkpoint.load(directory)  # a warning of a damaged one would be an error here
            assert state is not None
            assert state["weights"] == [state["step"]] * 1000
            return state["step"]
        return json.loads((directory / records.RUN).read_text())["steps_done"]

    found = []
    for number in range(1000):
        directory = tmp_path / str(number)
        directory.mkdir()
        for step in (1, 2):
            write(directory, step)

        def third(number: int = number, directory: Path = directory) -> None:
            _killed_before_line(number, checkpoint.__file__, records.__file__)
            write(directory, 3)

        with forked(third) as pid:
            code = ended(pid, 240)
        found.append(step_of(directory))
        # Whatever was left, the next run tidies up and goes on.
        records.remove_temporaries(directory)
        write(directory, 4)
        assert step_of(directory) == 4
        assert {path.name for path in directory.iterdir()} <= {checkpoint.CURRENT, checkpoint.PREVIOUS, records.RUN}
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert len(found) > 15
    assert found == sorted(found)  # the old one up to the rename, from then on the new one
    assert set(found) == {2, 3}


def test_a_curve_cut_short_behind_its_checkpoint_is_refused(tmp_path: Path) -> None:
    """Rows that the checkpoint has counted are not made up again."""
    cfg = configuration(tmp_path, *INCEPTION, "machine.checkpoint_every=2")

    def killed_at_12(step: int, *_: object) -> None:
        if step == 13:
            os.kill(os.getpid(), signal.SIGKILL)

    with forked(lambda: run(cfg, "a", killed_at_12)) as pid:
        assert ended(pid, 240) == -signal.SIGKILL
    curve = place(cfg, "a") / records.CURVES
    whole = curve.read_bytes()
    curve.write_bytes(whole[:40])
    with pytest.raises(ValueError, match=r"curves\.jsonl: found 40 bytes, expected the \d+ written before"):
        run(cfg, "a")
    curve.write_bytes(whole)
    assert finished(cfg, "a") == finished(cfg, "alone")
