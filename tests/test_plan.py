"""``make plan``: what it counts is what a sweep runs, its FLOPs are torch's, its arithmetic is arithmetic."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bn_replication import build, plan, records, status
from bn_replication.data import load
from bn_replication.schema import Config
from bn_replication.streams import generator

NONE = Path("no/runs/here")


@cache
def composed(study: str, scale: str) -> tuple[plan.Study, dict[str, Config]]:
    return plan.compose_study(study, scale, "cpu", NONE)


@cache
def measured(study: str, scale: str) -> plan.Net:
    """The first net of a study, really trained for some steps."""
    threads = torch.get_num_threads()
    try:
        return plan.measure(next(iter(composed(study, scale)[1].values())))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.slow
def test_a_plan_is_what_the_sweep_then_runs(tmp_path: Path) -> None:
    """The same study, planned and really launched: runs, steps, rows, images evaluated and bytes."""
    words = ["-m", "experiment=ablation_affine_mnist", "scale=smoke", "wandb=disabled", f"machine.results={tmp_path}"]
    environ = os.environ | {"JOBS": "2"}
    subprocess.run([sys.executable, "-m", "bn_replication.train", *words], check=True, env=environ, timeout=120)
    planned, nets = plan.compose_study("ablation_affine_mnist", "smoke", "cpu", tmp_path)
    found = [records.read_run_json(place) for place in records.run_directories(tmp_path)]
    assert len(planned.runs) == len(found) == 4
    assert planned.ended == [True] * 4
    assert planned.total(lambda run: run.steps, left=True) == 0
    assert planned.total(lambda run: run.steps) == sum(record["steps_done"] for record in found if record)
    for job, run in zip(status.jobs("ablation_affine_mnist", "smoke"), planned.runs, strict=True):
        place = job.directory(tmp_path, "smoke")
        assert len(list(records.read_rows(place / records.CURVES))) == run.rows
        assert len({row["step"] for row in records.read_rows(place / records.ACTIVATIONS)}) == run.probes
        size = sum(path.stat().st_size for path in place.iterdir())
        assert run.record_bytes(measured("ablation_affine_mnist", "smoke")) == pytest.approx(size, rel=0.4)
    held_out = len(load("mnist_sample").held_out)
    assert {run.evaluated for run in planned.runs} == {run.rows * 200 + held_out for run in planned.runs}
    assert len(nets) == 2


@pytest.mark.parametrize(("study", "scale"), [("fig1_rate", "smoke"), ("ablation_statistics", "paper")])
def test_every_arm_is_the_sweeps_own(study: str, scale: str) -> None:
    planned, _ = composed(study, scale)
    jobs = status.jobs(study, scale)
    assert [run.steps for run in planned.runs] == [job.steps for job in jobs]
    swept = {key: value for job in jobs for key, value in job.overrides if key == "batch_size"}
    if swept:
        assert {run.batch_size for run in planned.runs} == {dict(job.overrides)["batch_size"] for job in jobs}


@pytest.mark.parametrize(("study", "tolerance"), [("fig2_inception", 0.05), ("fig1_mnist", 0.27)])
def test_flops_are_those_that_torch_counts(study: str, tolerance: float) -> None:
    """Three times the forward pass, less what no one asks for: the gradient with respect to the images.

    In the laptop's Inception that is a twenty-fifth of a step, in the net of Fig. 1 a quarter.
    """
    runs, nets = composed(study, "laptop")
    cfg = nets[runs.runs[0].net]
    shape = plan.shape_of(cfg.data.name, cfg.scale.image_size)
    network = build.model(cfg.model, build.norm(cfg.norm))(shape.image, shape.classes, generator(0, "initialise"))
    with FlopCounterMode(display=False) as counter:
        network(torch.rand(4, *shape.image)).sum().backward()
    work, layers = plan.multiply_adds(cfg.model.model_dump_json(by_alias=True), shape)
    assert layers > 8
    claimed = 6 * work * 4
    assert counter.get_total_flops() == pytest.approx(claimed, rel=tolerance)
    assert counter.get_total_flops() <= claimed


def test_hours_and_flops_follow_steps_and_machines() -> None:
    net, run = measured("fig1_mnist", "smoke"), composed("fig1_mnist", "smoke")[0].runs[0]
    twice = replace(run, steps=2 * run.steps, evaluated=2 * run.evaluated)
    fast, slow = plan.Machine("", 2e12, 0, ""), plan.Machine("", 1e12, 0, "")
    assert run.seconds_here(net) > 0
    assert twice.seconds_here(net) == pytest.approx(2 * run.seconds_here(net))
    assert twice.flops(net) == 2 * run.flops(net)
    assert run.seconds_on(slow, net) == pytest.approx(2 * run.seconds_on(fast, net))
    bound = fast._replace(launch=1e-3)  # by its launches, whatever it computes
    assert run.seconds_on(bound, net) == pytest.approx(run.steps * net.layers * 1e-3, rel=0.01)
    assert plan.side_by_side([3, 1, 1, 1], 2) == 3
    assert plan.side_by_side([3, 1, 1, 1], 8) == 3  # never less than the longest
    assert plan.side_by_side([1, 1, 1, 1], 2) == 2


def test_a_probe_trains_the_net_it_names() -> None:
    net, (_, nets) = measured("fig1_mnist", "smoke"), composed("fig1_mnist", "smoke")
    assert net.multiply_adds == 784 * 100 + 2 * 100 * 100 + 100 * 10
    assert net.images == 60
    assert net.timed >= plan.LEAST
    assert 0 < net.crop < net.step
    assert net.checkpoint > 8 * net.parameters - 1
    # What changes nothing about a step makes no net of its own, and what does, does.
    essence = {json.dumps(plan.essence(cfg), sort_keys=True) for cfg in nets.values()}
    assert essence == set(nets)
    assert len(composed("fig1_rate", "smoke")[1]) == 2
    assert len(composed("ablation_lrn", "smoke")[1]) == 4


def test_the_command_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """One study in full, then every mistake in one line."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)  # one core: no other process is started
    threads = torch.get_num_threads()
    words = ["fig1_mnist", "--scale", "smoke", "--root", str(NONE)]
    assert plan.main([*words, "--price", "2.5", "--gpus", "2", "--tflops", "7"]) == 0
    torch.set_num_threads(threads)
    out = capsys.readouterr().out
    assert "fig1_mnist" in out
    assert "assumed, not measured" in out
    assert "at 2.5 an hour" in out
    assert "yours, 7 TFLOP/s" in out
    for wrong, said in {
        ("fig1_mist",): "did you mean 'fig1_mnist'?",
        ("exact",): "found study 'exact'",
        ("--scale", "papre"): "did you mean 'paper'?",
        ("--price", "free"): "PRICE: found 'free', expected a number above 0",
        ("--price", "-1"): "PRICE: found '-1'",
        ("--price", "nan"): "PRICE: found 'nan'",
        ("--gpus", "0"): "GPUS: found '0', expected a whole number, 1 or more",
        ("--gpus", "1.5"): "GPUS: found '1.5'",
        ("--tflops", "inf"): "TFLOPS: found 'inf'",
        ("--device", "tpu"): "found 'tpu', expected cpu or cuda",
    }.items():
        assert plan.main(list(wrong)) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert said in captured.err
        assert captured.err.count("\n") == 1


def test_a_study_whose_rate_is_yet_to_be_chosen_is_planned_all_the_same(tmp_path: Path) -> None:
    study, nets = plan.compose_study("own_best_rate", "gpu", "cpu", tmp_path)
    assert (len(study.runs), len(nets)) == (12, 2)
