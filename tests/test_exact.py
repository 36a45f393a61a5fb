"""The exact claims hold here, and each measure would show it if one did not."""

from __future__ import annotations

import functools
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.conftest import no_room
from torch import Tensor

from bn_replication import exact, norms, records
from bn_replication.streams import generator

# Rounding of a float64 (1.1e-16), a mean up to 100 deviations off, and up to 1,000 terms a sum, with room.
TOLERANCE = 1e-10


def measure(claim: str) -> tuple[dict[str, float], list[dict[str, float]]]:
    return exact.CLAIMS[claim](generator(0, f"exact/{claim}"))


measured = functools.cache(measure)  # for tests that change nothing in between


@pytest.mark.parametrize("claim", exact.CLAIMS)
def test_the_claim_holds_to_rounding(claim: str) -> None:
    summary, _ = measured(claim)
    assert 0 < summary["error"] < TOLERANCE
    assert summary["error"] == max(value for key, value in summary.items() if key.startswith("error_"))
    assert summary.get("float32_error", 0) < 1e-3


def unbiased_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    axes = [axis for axis in range(x.dim()) if axis != 1]
    return x.mean(axes), x.var(axes, unbiased=True)


def moments_of_all_channels(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.mean().expand(x.shape[1]), x.var(unbiased=False).expand(x.shape[1])


def moments_with_a_floor(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.mean(axes := [axis for axis in range(x.dim()) if axis != 1]), x.var(axes, unbiased=False) + 0.1


def without_the_variances_path(
    grad_y: Tensor, x: Tensor, gamma: Tensor, mean: Tensor, var: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    each = (1, -1, *[1] * (x.dim() - 2))
    axes = [axis for axis in range(x.dim()) if axis != 1]
    direct = grad_y * (gamma / (var + eps).sqrt()).view(each)
    x_hat = (x - mean.view(each)) / (var + eps).sqrt().view(each)
    return direct - direct.mean(axes, keepdim=True), (grad_y * x_hat).sum(axes), grad_y.sum(axes)


def biased_population(model: torch.nn.Module, batches: list[Tensor]) -> dict[str, norms.Population]:
    return {name: norms.Population(p.mean, p.var * 7 / 8) for name, p in population_statistics(model, batches).items()}


population_statistics = norms.population_statistics


@pytest.mark.parametrize(
    ("claim", "name", "fault"),
    [
        ("alg1-forward", "batch_moments", unbiased_moments),
        ("alg1-backward", "batch_norm_backward", without_the_variances_path),
        ("alg2-inference", "population_statistics", biased_population),
        ("alg2-inference", "absorb", lambda linear, scale, shift: None),
        ("identity", "batch_moments", unbiased_moments),
        ("conv-statistics", "batch_moments", moments_of_all_channels),
        ("bias-redundant", "batch_moments", moments_of_all_channels),
        ("scale-invariance", "batch_moments", moments_with_a_floor),
    ],
)
def test_a_faulty_layer_is_found_out(
    claim: str, name: str, fault: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(norms, name, fault)
    assert measure(claim)[0]["error"] > 1e-3


def test_a_nan_is_not_lost() -> None:
    worst = exact.Worst()
    worst.see(error_a=math.nan)
    worst.see(error_a=1.0)
    assert math.isnan(worst.total()["error"])


def test_the_departures_with_eps_are_what_eps_predicts() -> None:
    summary, _ = measured("scale-invariance")
    # A hundredth of the weights is a ten-thousandth of the variance, beside the same eps.
    ratio = summary["departure_a_0.1"] / summary["departure_a_10"]
    assert ratio == pytest.approx(100, rel=0.2)
    assert summary["departure_a_0.01"] > summary["departure_a_0.1"] > 1e-4
    assert 1e-7 < measured("identity")[0]["departure_as_printed"] < 1e-3  # about eps / (2 Var[x]), Var[x] >= 0.01


def test_detached_statistics_move_the_bias_and_not_the_loss() -> None:
    summary, rows = measured("detached-statistics")
    assert summary["bias_growth_per_step"] == pytest.approx(summary["bias_growth_predicted"], rel=1e-9)
    assert summary["scaled_bias_ratio"] > 1
    assert summary["scaled_loss_change"] < 1e-6
    steps, b = [row["step"] for row in rows], [abs(row["b"]) for row in rows]
    assert steps == list(range(0, 1001, 10))
    assert b == sorted(b)
    assert b[-1] > 4
    for loss in ("loss", "loss_true", "loss_scaled", "loss_scaled_true"):
        assert [row[loss] for row in rows] == pytest.approx([rows[0][loss]] * len(rows), rel=1e-6)
    for still in ("b_true", "b_scaled_true"):
        assert max(abs(row[still]) for row in rows) < 1e-12


def test_records_are_written_once_and_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exact, "CLAIMS", {k: exact.CLAIMS[k] for k in ("identity", "detached-statistics")})
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    assert exact.main(tmp_path, "smoke", 1) == 0
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert exact.main(tmp_path, "smoke", 1) == 0
    assert capsys.readouterr().out.count("complete already") == 2
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files

    runs = records.load_runs(tmp_path, study="exact", scale="smoke").set_index("arm")
    assert list(runs.index) == ["detached-statistics", "identity"]
    assert (runs["summary.error"] < TOLERANCE).all()
    record = records.read_run_json(directory := tmp_path / "smoke/exact/detached-statistics/seed=0")
    assert record is not None
    assert record["files"] == {"curves.jsonl": records.digest(directory / "curves.jsonl")}
    assert set(record["rules"]) >= set(exact.CLAIMS)

    monkeypatch.setattr(exact, "CASES", 7)
    assert exact.main(tmp_path, "smoke", 1) == 2
    assert "other cases; remove it to run again" in capsys.readouterr().err
    assert exact.main(tmp_path, "smoke", 0) == 2


def test_help_needs_no_torch() -> None:
    code = "import runpy, sys; sys.argv = ['exact', '--help']\n"
    code += "try: runpy.run_module('bn_replication.exact', run_name='__main__')\n"
    code += "finally: assert 'torch' not in sys.modules"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert "--seeds" in found.stdout


def test_a_full_disk_is_one_line_with_its_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exact, "CLAIMS", {"identity": exact.CLAIMS["identity"]})
    with no_room():
        assert exact.main(tmp_path, "smoke", 1) == 2
    expected = "expected room to write; free some space or mend --out (make: RESULTS=...)"
    place = tmp_path / "smoke/exact/identity/seed=0"
    assert capsys.readouterr().err == f"error: {place}: found 'File too large', {expected}\n"
    assert list(place.iterdir()) == []
    assert exact.main(tmp_path, "smoke", 1) == 0
