"""``make status``: a study's jobs as Hydra itself would name them, and where each of them stands."""

from __future__ import annotations

import fcntl
import itertools
import json
from pathlib import Path

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from tests.conftest import Compose

from bn_replication import records, status
from bn_replication.train import CONFIGS, arm_of
from test_figures import write_run

SWEPT = [study for study in status.studies() if (CONFIGS / "experiment" / f"{study}.yaml").exists()]


@pytest.mark.slow
def test_every_study_has_jobs_at_every_scale() -> None:
    for study, scale in itertools.product(status.studies(), ("smoke", "laptop", "gpu")):
        jobs = status.jobs(study, scale)
        assert jobs
        assert len({(job.arm, job.seed) for job in jobs}) == len(jobs)


@pytest.mark.parametrize("study", ["fig1_shared_rate", "ablation_whitening", "fig2_inception", "ablation_lrn"])
def test_arms_and_steps_are_those_of_a_full_composition(study: str) -> None:
    job = status.jobs(study, "laptop")[-1]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        head = compose("train", [f"experiment={study}"], return_hydra_config=True)
        params = dict(head.hydra.sweeper.params)
        last = [f"{key}={str(value).split(',')[-1]}" for key, value in params.items() if key != "seed"]
        tree = compose("train", [f"experiment={study}", *last])
    assert job.arm == arm_of(tree, last, params)
    assert job.steps == tree.steps
    assert job.model == tree.model.name


def test_seeds_and_a_budget_that_make_is_given_name_the_same_runs(composed: Compose) -> None:
    jobs = status.jobs("fig1_mnist", "smoke", seeds=3, steps=50)
    assert [(job.arm, job.seed) for job in jobs] == [
        (f"norm={n},steps=50", s) for n in ("none", "batch") for s in range(3)
    ]
    assert {job.steps for job in jobs} == {50}
    cfg, arm = composed("experiment=fig1_mnist", "norm=none", "steps=50")
    assert (arm, cfg.steps) == (jobs[0].arm, jobs[0].steps)


def stand(root: Path, study: str = "fig1_mnist") -> status.State:
    runs = records.load_runs([root / "runs", root / "published"])
    return status.state(study, "laptop", root / "runs", root / "published", runs, cores=2)


def test_where_a_study_stands(tmp_path: Path) -> None:
    empty = stand(tmp_path)
    assert len(empty.jobs) == 10
    assert empty.seconds is None  # nothing has been timed
    write_run(tmp_path / "published", "fig1_mnist", "norm=none", 0, [0.1, 0.2])  # 400 steps in 61 s
    write_run(tmp_path / "runs", "fig1_mnist", "norm=none", 1, [0.1, 0.2])
    write_run(tmp_path / "runs", "fig1_mnist", "norm=none", 2, [0.1], status="failed")
    running = empty.jobs[3].directory(tmp_path / "runs", "laptop")
    running.mkdir(parents=True)
    (running / "started.json").write_text("{}")
    # A row that is being written, or that a kill cut off, is none yet.
    (running / records.CURVES).write_text(records.json_line({"step": 25_000}) + '{"step": 250')
    with open(running / ".lock", "w") as lock:
        found = stand(tmp_path)
        assert (found.published, found.done, len(found.stopped), len(found.failed)) == (1, 1, 1, 1)
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = stand(tmp_path)
        assert [(job.seed, share) for job, share in found.running] == [(3, 0.5)]
        # Eight to come and half of one, by the step, on two cores.
        assert found.seconds == pytest.approx(8.5 * 50_000 * 61 / 400 / 2)
    assert status.now(found) == "running, at 50%, 1 failed"


@pytest.mark.parametrize("damaged", ['{"step": 3', "[1]", "3", '{"step": "one"}', '{"loss": 1}', "\0\0", "\udc80"])
def test_a_damaged_line_of_a_curve_hides_no_study(tmp_path: Path, damaged: str) -> None:
    job = stand(tmp_path).jobs[0]
    curve = job.directory(tmp_path / "runs", "laptop") / records.CURVES
    curve.parent.mkdir(parents=True)
    (curve.parent / "started.json").write_text("{}")
    rows = [json.dumps({"step": step}) for step in (0, 25_000)]
    assert status.reached(curve) == 0
    for lines, step in (([rows[0], damaged, rows[1]], 25_000), ([*rows, damaged], 25_000), ([damaged], 0)):
        curve.write_bytes("\n".join(lines).encode(errors="surrogateescape"))
        assert status.reached(curve) == step
        assert len(stand(tmp_path).stopped) == 1


def test_what_is_no_root_and_no_record_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert status.main(["--root", str(tmp_path / "file"), "fig1_mnist"]) == 2
    first, record = status.jobs("fig1_mnist", "laptop")[0], tmp_path / "file" / "laptop"
    assert str(record) in (said := capsys.readouterr().err)
    assert "found 'Not a directory', expected a place to read" in said
    assert said.count("\n") == 1
    record = first.directory(tmp_path / "runs", "laptop") / records.RUN
    record.mkdir(parents=True)
    assert status.main(["--root", str(tmp_path / "runs"), "fig1_mnist"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"{record}: found 'Is a directory', expected a place to read")
    assert said.count("\n") == 1


def test_a_study_without_records_of_its_own_is_timed_by_its_kind_of_net(tmp_path: Path) -> None:
    row = {"study": "other", "arm": "a", "scale": "laptop", "status": "completed", "seconds": 10.0, "steps": 100}
    row |= {"choice.model": "inception"}
    job = status.Job("mine", "b", 0, 200, "inception")

    def expected(*rows: dict[str, object]) -> float | None:
        return status._expected(job, status._timed("laptop", pd.DataFrame(list(rows))))

    assert expected(row) == 20
    assert expected(row | {"choice.model": "mlp"}) is None
    assert expected(row | {"scale": "gpu"}, row | {"status": "diverged"}) is None
    assert expected() is None
    # A run of one step is nearly all set-up: it says little of one of many.
    assert expected(row, row | {"steps": 1, "seconds": 2.0}, row | {"steps": 1, "seconds": 3.0}) == 20


@pytest.mark.slow
def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for study in ("fig1_mnist", "exact"):
        write_run(tmp_path / "runs", study, "norm=none", 0, [0.1, 0.2])
    roots = ["--root", str(tmp_path / "runs"), "--published", str(tmp_path / "published")]
    monkeypatch.setenv("NO_COLOR", "1")
    for width in (40, 100):
        monkeypatch.setenv("COLUMNS", str(width))
        assert status.main(roots) == 0
        out = capsys.readouterr().out
        assert max(map(len, out.splitlines())) <= width
        assert "\x1b[3" not in out
        assert "1/10" in out
    assert status.main([*roots, "fig1_mist"]) == 2
    assert "did you mean 'fig1_mnist'?" in capsys.readouterr().err
    assert status.main([*roots, "--scale", "labtop"]) == 2
    assert "did you mean 'laptop'?" in capsys.readouterr().err
    assert not (tmp_path / "published").exists()  # it only reads
