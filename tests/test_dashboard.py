"""The W&B dashboard: built and validated without an account; what is uploaded, and that it ends without a network."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from bn_replication import dashboard, records
from bn_replication.ledger import load_ledger
from bn_replication.status import jobs
from bn_replication.tracking import tracker
from test_figures import figure_1

GOLDEN = Path(__file__).parent / "golden" / "dashboard.json"


def example() -> dict[str, object]:
    """Both, of one study with one claim and one net of two layers: what wandb would be sent."""
    claim = load_ledger()["fig1-stable"]
    studies = [dashboard.Study("fig1_mnist", "Does it?", [claim]), dashboard.Study("exact", "", [])]
    made = dashboard.workspace("you", "p", studies, {"mlp": ["act1", "act2"]})
    board = dashboard.report("you", "p", studies, "| claim |\n| --- |\n| fig1-stable |")
    return {"workspace": dashboard.validated(made), "report": dashboard.validated(board)}


def test_what_would_be_sent_is_pinned() -> None:
    """After a wanted change, or a new wandb-workspaces: delete the file, run this, and look at the difference."""
    found = json.dumps(example(), indent=1, ensure_ascii=False) + "\n"
    if not GOLDEN.exists():
        GOLDEN.write_text(found)
        pytest.fail(f"{GOLDEN} was missing and has been written; look at it and run again")
    assert found == GOLDEN.read_text()
    assert found == json.dumps(example(), indent=1, ensure_ascii=False) + "\n"


def test_without_an_account_it_says_what_it_would_make(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    figure_1(tmp_path / "runs", seeds=2)
    for directory in records.run_directories(tmp_path / "runs"):
        record = records.read_run_json(directory)
        assert record is not None
        record["choices"]["model"] = "mlp"
        records.write_run_json(directory, record)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    roots = ["--root", str(tmp_path / "runs")]
    assert dashboard.main(roots) == 0
    out = capsys.readouterr().out
    sections = ("Learning curves", "Rates", "Activation distributions: mlp", "Gradients: mlp", "Study: fig2_inception")
    for part in (*sections, "wandb login"):
        assert part in out
    assert dashboard.main([*roots, "--json", str(tmp_path / "json")]) == 0
    text = (tmp_path / "json" / "workspace.json").read_text()
    assert "activations/module0.act/p50" in text
    assert "histograms/module2.act" in text
    assert '"x_axis": "step"' in text or '"xAxis": "step"' in text  # wandb's own counts rows
    (tmp_path / "file").write_text("")
    capsys.readouterr()
    assert dashboard.main([*roots, "--json", str(tmp_path / "file" / "json")]) == 2
    expected = "expected room to write; free some space or mend --json"
    assert capsys.readouterr().err == f"{tmp_path / 'file' / 'json'}: found 'Not a directory', {expected}\n"
    assert dashboard.main(["--sync", "fig1_mnist", *roots]) == 2
    assert "found no wandb account" in capsys.readouterr().err
    assert dashboard.main(["--sync", "fig1_mist"]) == 2
    assert "did you mean 'fig1_mnist'?" in capsys.readouterr().err


@pytest.mark.slow
def test_an_upload_takes_the_runs_that_ended_and_ends_without_a_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for study in ("fig1_mnist", "plain_rate"):
        config = {"study": study, "batch_size": 60}
        options = {"directory": tmp_path, "study": study, "arm": "norm=batch", "seed": 0, "config": config}
        with tracker(mode="offline", project="p", **options) as run:
            run.curve({"step": 0, "test_accuracy": 0.1})
    # A mark of wandb's own says that a run has been sent.
    (one,) = dashboard.offline_runs(tmp_path / "wandb", "fig1_mnist")
    assert dashboard.inspect(one)["state"] == "finished"
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # where nobody answers
    begun = time.monotonic()
    assert dashboard.sync(tmp_path / "wandb", "fig1_mnist", patience=2) == 1
    assert time.monotonic() - begun < 60
    said = capsys.readouterr()
    assert "0 uploaded, 1 left" in said.out
    assert "the same command goes on from here" in said.err
    one.with_suffix(".wandb.synced").touch()
    assert dashboard.sync(tmp_path / "wandb", "fig1_mnist", patience=2) == 0
    assert "0 uploaded, 0 left" in capsys.readouterr().out


def test_a_mirrored_run_that_cannot_be_read_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "wandb" / "offline-run-1"
    folder.mkdir(parents=True)
    (folder / "run-1.wandb").write_bytes(b"fig1_mnist, and nothing that could be read")

    def slow(*_: object, **options: float) -> None:
        raise subprocess.TimeoutExpired("wandb", options["timeout"])

    monkeypatch.setattr(dashboard.subprocess, "run", slow)
    assert dashboard.sync(tmp_path / "wandb", "fig1_mnist") == 1
    assert "1 cannot be read, offline-run-1 first" in capsys.readouterr().err


def test_a_sweep_file_asks_for_the_same_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert dashboard.main(["--sweep", "fig2_inception"]) == 0
    body = yaml.safe_load(capsys.readouterr().out)
    grid = body["parameters"]
    assert len(grid["variant"]["values"]) * len(grid["seed"]["values"]) == len(jobs("fig2_inception", "laptop"))
    assert "experiment=fig2_inception" in body["command"]
    assert dashboard.main(["--sweep", "exact"]) == 2
    assert "found no sweep" in capsys.readouterr().err
