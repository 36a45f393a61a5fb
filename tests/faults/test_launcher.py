"""A scheduler's jobs: warned, saved, queued again, gone on with to the bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from hydra import compose, initialize_config_dir
from tests.faults.processes import MLP, configuration, ended, ending, finished, forked, place, until

from bn_replication import checkpoint, records
from bn_replication.runner import run
from bn_replication.train import CONFIGS

Reap = Callable[["subprocess.Popen[str]"], "subprocess.Popen[str]"]
LONG = (*MLP, "steps=1500", "machine.checkpoint_every=1000000")
SHORT = (*MLP, "steps=120", "machine.checkpoint_every=1000000")
QUEUED = 85  # exit code of a job that its scheduler has queued again


def warned_at_50(step: int, *_: object) -> None:
    if step == 50:
        os.kill(os.getpid(), signal.SIGUSR2)


def test_a_warned_job_is_saved_first_and_queued_again_then(tmp_path: Path) -> None:
    """SIGUSR2 to a run that someone else answers it for: their answer comes once the checkpoint is there."""
    cfg = configuration(tmp_path, *SHORT)
    directory = place(cfg, "a")
    told = tmp_path / "told"

    def job() -> None:
        def requeue(*_: object) -> None:
            told.write_text(str(checkpoint.load(directory) is not None))
            os._exit(QUEUED)

        signal.signal(signal.SIGUSR2, requeue)
        run(cfg, "a", warned_at_50)

    with forked(job) as pid:
        assert ended(pid, 240) == QUEUED
    assert told.read_text() == "True"
    assert not (directory / records.RUN).exists()
    state = checkpoint.load(directory)
    assert state is not None
    assert state["step"] == 50
    assert finished(cfg, "a") == finished(cfg, "alone")


def test_where_nobody_answers_it_the_signal_is_not_ours(tmp_path: Path) -> None:
    cfg = configuration(tmp_path, *SHORT)
    with forked(lambda: run(cfg, "a", warned_at_50)) as pid:
        assert ended(pid, 240) == -signal.SIGUSR2


def swept(results: Path, *words: str) -> subprocess.Popen[str]:
    """Start a sweep through submitit's local launcher."""
    fixed = ["scale=smoke", "wandb=disabled", "study=t", f"machine.results={results}", "hydra/launcher=submitit_local"]
    return subprocess.Popen(
        [sys.executable, "-m", "bn_replication.train", "-m", *fixed, *MLP, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def _of_job(results: Path) -> list[int]:
    """The processes in which submitit's jobs of a folder train: their controllers' children."""
    found = []
    for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = cmdline.read_text()
        except OSError:
            continue
        if "submitit.core._submit" in text and str(results) in text:
            found.append(int(cmdline.parent.name))
    return found


def test_a_preempted_job_goes_on_by_itself(tmp_path: Path, reap: Reap) -> None:
    """It is warned in mid-run; submitit starts it again, and it ends as one that was left alone."""
    sweep = reap(swept(tmp_path, *LONG[len(MLP) :], "norm=batch"))
    until(lambda: list(tmp_path.glob(f"smoke/t/*/seed=0/{records.CURVES}")), 240)
    (pid,) = _of_job(tmp_path)
    os.kill(pid, signal.SIGUSR2)
    out, _ = sweep.communicate(timeout=400)
    logs = "".join(path.read_text() for path in (tmp_path / ".submitit").glob("*/*_log.*"))
    assert sweep.returncode == 0, out + logs
    assert "1 job: 1 completed" in out
    assert logs.count("Starting with") == 2, logs
    (place_of_it,) = records.run_directories(tmp_path)
    assert ending(place_of_it) == finished(configuration(tmp_path, *LONG), "alone")


def test_a_sweep_elsewhere_tells_what_its_records_say(tmp_path: Path, reap: Reap) -> None:
    """Complete runs are skipped, and a mistake is refused: before anything is submitted, or where it is found."""

    def told(*words: str) -> tuple[int, str]:
        sweep = reap(swept(tmp_path, "norm=none,batch", *words))
        out, _ = sweep.communicate(timeout=400)
        return sweep.returncode, out

    code, out = told("steps=20")
    assert (code, "2 jobs: 2 completed" in out) == (0, True), out
    first, second = (place / records.RUN for place in records.run_directories(tmp_path))
    first.write_text(first.read_text().replace('"batch_size": 60', '"batch_size": 50'))
    code, out = told("steps=20")  # the one of another configuration than its record
    assert (code, "batch_size: 50 there, 60 here" in out) == (2, True), out
    first.write_text(second.read_text())
    submitted = sorted((tmp_path / ".submitit").iterdir())
    code, out = told("steps=0")
    assert (code, "steps: found 0" in out) == (2, True), out
    assert sorted((tmp_path / ".submitit").iterdir()) == submitted


def test_the_preset_for_slurm_asks_for_what_it_says(tmp_path: Path) -> None:
    """The script that submitit would hand to sbatch; whether a cluster takes it, no test here can tell."""
    from submitit.slurm.slurm import SlurmExecutor, _make_sbatch_string

    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        tree = compose("train", ["hydra/launcher=slurm", "hydra.launcher.partition=gpu"], return_hydra_config=True)
    chosen = {key: value for key, value in tree.hydra.launcher.items() if key not in ("_target_", "submitit_folder")}
    assert chosen.pop("max_num_timeout") > 0  # the executor's, not the script's
    names = SlurmExecutor._equivalence_dict() or {}
    script = _make_sbatch_string(
        command="train",
        folder=str(tmp_path),
        **{names.get(key, key): value for key, value in chosen.items() if value is not None and key != "name"},
    )
    for line in ("--requeue", "--signal=USR2@120", "--gpus-per-node=1", "--partition=gpu", "--open-mode=append"):
        assert f"#SBATCH {line}\n" in script, script
