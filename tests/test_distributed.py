"""Replicas that train one network together: the mathematics, the order of examples, and what they agree on."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conftest import Compose
from tests.replicas import together
from torch import Tensor, nn

from bn_replication import build, records, train
from bn_replication.data import load
from bn_replication.data.order import Mode, batch_indices, epoch_order
from bn_replication.distributed import Lost, World, joined
from bn_replication.errors import UserError
from bn_replication.inputs import Inputs
from bn_replication.loop import Meter, fit
from bn_replication.runner import run
from bn_replication.schema import Config
from bn_replication.streams import generator, stream_seed

MLP = ("setting=mnist", "study=t", "norm=batch", "steps=30", "evaluate.times=5", "probe.points=3", "batch_size=32",
       "optimizer.rate=0.1")  # fmt: skip


def place(cfg: Config, arm: str) -> Path:
    return cfg.machine.results / "smoke" / cfg.study / arm / f"seed={cfg.seed}"


def ending(cfg: Config, arm: str) -> dict[str, Any]:
    record = records.read_run_json(place(cfg, arm))
    assert record is not None
    return {key: record[key] for key in ("status", "steps_done", "weights", "summary", "files")}


# --- the mathematics, in float64 ---------------------------------------------------------------------------------


def trained(norm: str, batches: Callable[[int], tuple[Tensor, Tensor]], world: World, cfg: Config) -> dict[str, Any]:
    """Train a small net for two updates in float64: losses, the last gradients, weights and running statistics."""
    norm_layer = build.norm(cfg.norm.model_copy(update={"target": f"bn_replication.norms.{norm}"}))
    net = build.model(cfg.model, norm_layer)((3, 32, 32), 10, generator(0, "initialise")).double()
    replica, losses, meter = world.replicate(net), [], Meter()
    optimizer = build.sgd(net, cfg.optimizer)
    fit(replica, optimizer, batches, lambda _: 0.05, start=0, steps=2, seed=0, meter=meter, world=world,
        on_step=lambda _: losses.append(meter.row()))  # fmt: skip
    gradients = {name: p.grad for name, p in net.named_parameters()}
    return {"losses": losses, "gradients": gradients, "state": net.state_dict()}


def batch_of(cfg: Config, step: int, rank: int, replicas: int) -> tuple[Tensor, Tensor]:
    inputs = Inputs(cfg.model_copy(update={"replicas": replicas}), load("cifar10_sample"), rank)
    images, labels = inputs.training(step)
    return images.double(), labels


def close(found: Any, expected: Any, tolerance: float) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.fixture
def smooth(composed: Compose) -> Config:
    """BN in every layer, and nothing that is drawn: no dropout, no distortion."""
    cfg, _ = composed("setting=inception", "variant=bn_x5", "augment=none", "batch_size=6")
    return cfg


def test_two_replicas_with_sync_are_one_process_with_the_whole_batch(smooth: Config) -> None:
    def replica(rank: int) -> dict[str, Any]:
        with joined(2, "cpu") as world:
            return trained("SyncBatchNorm", lambda step: batch_of(smooth, step, rank, 2), world, smooth)

    whole = smooth.model_copy(update={"batch_size": 12})
    expected = trained("BatchNorm", lambda step: batch_of(whole, step, 0, 1), World(), whole)
    per_replica = trained("BatchNorm", lambda step: batch_of(smooth, step, 0, 1), World(), smooth)
    for found in together(2, replica):
        close(found, expected, 1e-10)
    assert abs(per_replica["losses"][0]["train_loss"] - expected["losses"][0]["train_loss"]) > 1e-3


def test_per_replica_statistics_are_two_batches_whose_gradients_are_averaged(smooth: Config) -> None:
    def replica(rank: int) -> dict[str, Any]:
        with joined(2, "cpu") as world:
            return trained("BatchNorm", lambda step: batch_of(smooth, step, rank, 2), world, smooth)

    construct = build.model(smooth.model, build.norm(smooth.norm))
    nets = [construct((3, 32, 32), 10, generator(0, "initialise")).double() for _ in range(2)]
    optimizers = [build.sgd(net, smooth.optimizer) for net in nets]
    losses, means = [], []
    for step in range(2):
        each = []
        for rank, net in enumerate(nets):
            net.zero_grad()
            images, labels = batch_of(smooth, step, rank, 2)
            each.append(F.cross_entropy(net(images), labels))
            each[-1].backward()
        losses.append(sum(loss.item() for loss in each) / 2)
        pairs = zip(*(net.parameters() for net in nets), strict=True)
        means = [(a.grad + b.grad) / 2 for a, b in pairs]
        for net, optimizer in zip(nets, optimizers, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = 0.05
            for parameter, mean in zip(net.parameters(), means, strict=True):
                parameter.grad.copy_(mean)
            optimizer.step()
    for rank, found in enumerate(together(2, replica)):
        close([row["train_loss"] for row in found["losses"]], losses, 1e-12)
        close(list(found["gradients"].values()), means, 1e-10)
        close(found["state"], nets[rank].state_dict(), 1e-10)  # its own running statistics


@pytest.mark.parametrize("shape", [(6, 5), (3, 5, 2, 4)], ids=["fully connected", "convolutional"])
@pytest.mark.parametrize("size", [2, 3])
def test_sync_statistics_are_those_of_the_values_together(shape: tuple[int, ...], size: int) -> None:
    """Outputs, gradients with respect to each input, and the unbiased running variance of all m values."""
    from bn_replication.norms import BatchNorm, SyncBatchNorm

    draws = torch.Generator().manual_seed(0)
    x = torch.randn(size, *shape, generator=draws, dtype=torch.float64) * 3 + 1
    weight = torch.randn(size, *shape, generator=draws, dtype=torch.float64)

    def layer_of(kind: type[nn.Module]) -> nn.Module:
        layer = kind(5).double()
        with torch.no_grad():
            layer.weight.copy_(torch.linspace(0.5, 2, 5))
        return layer

    def replica(rank: int) -> list[Tensor]:
        with joined(size, "cpu"):
            layer, own = layer_of(SyncBatchNorm), x[rank].clone().requires_grad_()
            y = layer(own)
            (y * weight[rank]).sum().backward()
            assert torch.equal(layer.eval()(own), layer(own))  # alone, without waiting for anyone
            return [y.detach(), own.grad, layer.weight.grad, layer.running_mean, layer.running_var]

    layer, whole = layer_of(BatchNorm), x.flatten(0, 1).clone().requires_grad_()
    y = layer(whole)
    (y * weight.flatten(0, 1)).sum().backward()
    found = together(size, replica)
    for k, expected in enumerate((y.detach(), whole.grad)):
        close(torch.cat([each[k] for each in found]), expected, 1e-11)
    close(sum(each[2] for each in found), layer.weight.grad, 1e-11)
    for each in found:
        close(each[3:], [layer.running_mean, layer.running_var], 1e-12)


# --- which examples, which draws -----------------------------------------------------------------------------------


@settings(max_examples=60)
@given(
    n=st.integers(1, 120),
    batch=st.integers(1, 50),
    replicas=st.integers(1, 3),
    mode=st.sampled_from(["full", "within_shard", "fixed"]),
)
def test_together_replicas_see_each_example_once_an_epoch(n: int, batch: int, replicas: int, mode: Mode) -> None:
    """And in the order of one process whose batches are as large as all of theirs, whether or not that divides n."""
    steps = -(-3 * n // (batch * replicas))
    seen = [
        batch_indices(step, batch, n, 5, mode, 1, "cpu", rank, replicas)
        for step in range(steps)
        for rank in range(replicas)
    ]
    for epoch, order in enumerate(torch.cat(seen)[: 3 * n].view(3, n)):
        assert order.sort().values.tolist() == list(range(n))
        assert order.equal(epoch_order(n, 5, epoch, mode))
    whole = [batch_indices(step, batch * replicas, n, 5, mode) for step in range(steps)]
    assert torch.cat(whole).equal(torch.cat(seen))


@pytest.mark.parametrize("replicas", [1, 2, 3])
def test_every_image_is_given_once_an_epoch_with_its_label(composed: Compose, replicas: int) -> None:
    """240 images in batches of 7: no number of replicas divides them."""
    cfg, _ = composed("setting=mnist", "data.input=unit", "batch_size=7", "data.subset=240", f"replicas={replicas}")
    split = load("mnist_sample", subset=240)
    pairs = zip(split.train.images, split.train.labels, strict=True)
    label_of = {image.numpy().tobytes(): int(label) for image, label in pairs}
    parts = [Inputs(cfg, split, rank) for rank in range(replicas)]
    seen: list[bytes] = []
    for step in range(-(-2 * 240 // (7 * replicas))):
        for part in parts:
            images, labels = part.training(step)
            pixels = [image.numpy().tobytes() for image in (images * 255).round().to(torch.uint8).contiguous()]
            assert [label_of[each] for each in pixels] == labels.tolist()
            seen += pixels
    for epoch in (seen[:240], seen[240:480]):
        assert sorted(epoch) == sorted(label_of)


def test_rank_0_draws_as_a_process_alone_and_no_two_ranks_alike() -> None:
    streams = [(stream, step) for stream in ("dropout", "augment") for step in (0, 1, 10, 11)]
    seeds = [stream_seed(3, stream, step, rank) for stream, step in streams for rank in (0, 1, 10, 11)]
    assert len(set(seeds)) == len(seeds)
    assert all(stream_seed(3, stream, step, 0) == stream_seed(3, stream, step) for stream, step in streams)


def test_replicas_distort_and_drop_out_each_in_its_own_way(composed: Compose) -> None:
    cfg, _ = composed("setting=inception", "variant=bn_baseline", "data.order=fixed", "data.shards=1",
                      "batch_size=4", "replicas=2")  # fmt: skip
    split = load("cifar10_sample", subset=4)  # of which every batch holds all
    parts = [Inputs(cfg, split, rank) for rank in range(2)]
    (first, labels), (second, others) = (part.training(0) for part in parts)
    assert torch.equal(labels, others)
    assert not torch.equal(first, second)
    losses = []
    for rank in range(2):
        net = build.model(cfg.model, build.norm(cfg.norm))((3, 32, 32), 10, generator(0, "initialise"))
        meter, world = Meter(), World(rank=rank)
        fit(net, build.sgd(net, cfg.optimizer), lambda _: (first, labels), lambda _: 0.0, start=0, steps=1, seed=0,
            meter=meter, on_step=lambda _: None, world=world)  # fmt: skip
        losses.append(meter.row()["train_loss"])
    assert losses[0] != losses[1]


# --- what they agree on -----------------------------------------------------------------------------------------


def test_judged_together_no_example_is_padded_or_counted_twice(composed: Compose) -> None:
    """Before training every number of replicas judges the same net, on 50 images that 3 do not divide."""
    first, rows = {}, {}
    for replicas in (1, 2, 3):
        cfg, _ = composed(*MLP, "evaluate.examples=50", "steps=2", "evaluate.times=2", f"replicas={replicas}")
        outcomes = together(replicas, lambda _, cfg=cfg, replicas=replicas: run(cfg, f"n={replicas}"))
        assert [outcome.status for outcome in outcomes] == ["completed"] * replicas
        rows[replicas] = list(records.read_rows(place(cfg, f"n={replicas}") / records.CURVES))
        first[replicas] = rows[replicas][0]
        assert rows[replicas][-1]["epoch"] == pytest.approx(
            2 * 32 * replicas / len(load("mnist_sample").train), rel=1e-7
        )
    for replicas in (2, 3):
        assert first[replicas]["test_accuracy"] == first[1]["test_accuracy"]
        assert first[replicas]["test_loss"] == pytest.approx(first[1]["test_loss"], rel=1e-6)
    assert len({rows[replicas][-1]["train_loss"] for replicas in rows}) == 3
    for count, size in ((50, 3), (2, 3), (0, 2), (7, 7)):
        shares = [World(rank, size).share(count) for rank in range(size)]
        assert [example for share in shares for example in share] == list(range(count))


def test_what_is_judged_is_the_mean_of_all_replicas_statistics_and_each_keeps_its_own() -> None:
    from bn_replication.norms import BatchNorm

    def replica(rank: int) -> list[Tensor]:
        with joined(2, "cpu") as world:
            layer = BatchNorm(2, momentum=1.0)
            layer(torch.tensor([[0.0, 1.0], [2.0, 5.0]]) * (rank + 1))
            before = layer.running_var.clone()
            with world.averaged(layer):
                within = layer.running_var.clone()
            assert torch.equal(layer.running_var, before)
            return [before, within]

    (own, mean), (others, same) = together(2, replica)
    assert own.tolist() == [2.0, 8.0]
    assert others.tolist() == [8.0, 32.0]
    assert mean.tolist() == same.tolist() == [5.0, 20.0]


def test_rank_0_alone_writes_and_the_others_end_as_it_does(composed: Compose) -> None:
    cfg, _ = composed(*MLP, "replicas=2")
    outcomes = together(2, lambda _: run(cfg, "a"))
    assert outcomes[0] == outcomes[1]
    written = sorted(path.name for path in place(cfg, "a").iterdir())
    assert written == [".lock", "activations.jsonl", "curves.jsonl", "run.json"]
    record = records.read_run_json(place(cfg, "a"))
    assert record is not None
    assert record["config"]["replicas"] == 2
    before = (place(cfg, "a") / records.RUN).read_bytes()
    assert {outcome.status for outcome in together(2, lambda _: run(cfg, "a"))} == {"skipped"}
    assert (place(cfg, "a") / records.RUN).read_bytes() == before
    together(2, lambda _: run(cfg, "b"))
    assert ending(cfg, "b") == ending(cfg, "a")


def at(step: int, act: Callable[[], object]) -> Callable[..., None]:
    def report(reached: int, *_: object) -> None:
        if reached == step:
            act()

    return report


def test_divergence_is_agreed_on(composed: Compose) -> None:
    """One replica's loss alone ceases to be finite; none is left waiting."""
    losses = [[1.0, 2.0, 3.0], [1.0, float("inf"), 3.0]]

    def replica(rank: int) -> int | None:
        with joined(2, "cpu") as world:
            net = nn.Linear(1, 2, bias=False)
            optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
            scale = lambda step: torch.tensor([[losses[rank][step]]])  # noqa: E731
            return fit(world.replicate(net), optimizer, lambda step: (scale(step), torch.tensor([0])), lambda _: 0.0,
                       start=0, steps=3, seed=0, meter=Meter(), on_step=lambda _: None, world=world)  # fmt: skip

    assert together(2, replica) == [2, 2]
    cfg, _ = composed("setting=inception", "variant=inception", "study=t", "steps=30", "optimizer.rate=1e8",
                      "model.lrn=false", "batch_size=4", "replicas=2", "evaluate.times=2")  # fmt: skip
    outcomes = together(2, lambda _: run(cfg, "a"))
    assert {each.status for each in outcomes} == {"diverged"}
    assert ending(cfg, "a")["status"] == "diverged"


# --- what is refused ---------------------------------------------------------------------------------------------


def test_another_number_of_replicas_is_refused_naming_both(composed: Compose) -> None:
    two, _ = composed(*MLP, "replicas=2")
    stop = at(4, lambda: os.kill(os.getpid(), signal.SIGTERM))
    together(2, lambda _: run(two, "a", stop))
    before = {path.name: path.read_bytes() for path in place(two, "a").iterdir()}
    alone, _ = composed(*MLP)
    with pytest.raises(UserError, match=r"replicas: 2 there, 1 here.*torchrun"):
        run(alone, "a")
    three, _ = composed(*MLP, "replicas=3")
    refused, *others = together(3, lambda _: run(three, "a"))
    assert isinstance(refused, UserError)
    assert "replicas: 2 there, 3 here" in str(refused)
    assert {type(each) for each in others} == {Lost}
    assert {path.name: path.read_bytes() for path in place(two, "a").iterdir()} == before


@settings(max_examples=30)
@given(st.integers(1, 2**31 - 1))
def test_any_number_that_was_not_started_is_refused_before_data_is_read(replicas: int) -> None:
    if replicas == 1:
        return
    complaint = rf"replicas: found {replicas}, expected 1.*--nproc-per-node={replicas}"
    with pytest.raises(UserError, match=complaint), joined(replicas, "cpu"):
        raise AssertionError


def test_what_replicas_cannot_do_is_refused(composed: Compose, tmp_path: Path, monkeypatch: Any) -> None:
    cfg, _ = composed("setting=mnist", "study=t", "data=mnist", f"data.root={tmp_path / 'none'}", "replicas=4")
    with pytest.raises(UserError, match="replicas: found 4, expected 1"):
        run(cfg, "a")
    assert not (tmp_path / "runs").exists()
    for overrides, complaint in {
        ("norm=sync",): "norm=batch where one process trains",
        ("replicas=2", "machine.device=cuda:1"): r"machine\.device=cuda with replicas=2",
        ("replicas=2", "measure.cost=true"): r"measure\.cost=false with replicas=2",
        (
            "replicas=2",
            "norm=batch",
            "measure.statistics={batches: 2, test_batch_sizes: [4]}",
        ): "measure.statistics=null",
        ("replicas=0",): "replicas: found 0",
    }.items():
        with pytest.raises(UserError, match=complaint):
            composed("setting=mnist", *overrides)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="no RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT"), joined(2, "cpu"):
        raise AssertionError


def test_a_sweep_under_torchrun_is_refused_in_one_line(monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(sys, "argv", ["train", "-m", "experiment=fig1_mnist"])
    assert train.main() == 2
    said = capsys.readouterr().err
    assert said.startswith("error: found -m under torchrun, expected one run")
    assert said.count("\n") == 1


def test_machines_with_other_configurations_are_told_apart(composed: Compose) -> None:
    configurations = [composed(*MLP, "replicas=2", f"optimizer.momentum={momentum}")[0] for momentum in (0.9, 0.8)]
    lost, refused = together(2, lambda rank: run(configurations[rank], "a"))
    assert isinstance(lost, Lost)
    assert isinstance(refused, UserError)
    assert "rank 1: found another configuration" in str(refused)
    assert records.read_run_json(place(configurations[0], "a")) is None


def test_one_process_is_identified_as_ever_and_several_by_their_number(composed: Compose) -> None:
    assert "replicas" not in composed(*MLP)[0].identity()
    assert composed(*MLP, "replicas=2")[0].identity()["replicas"] == 2
