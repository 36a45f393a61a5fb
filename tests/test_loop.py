"""The loop against training written out by hand, on real images: which batch, which rate, which mode, which step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tests.conftest import Compose

from bn_replication import build, records
from bn_replication.data import load
from bn_replication.evaluate import one_crop
from bn_replication.graphs import Update
from bn_replication.inputs import Inputs
from bn_replication.loop import Meter, fit
from bn_replication.runner import run
from bn_replication.schema import Config
from bn_replication.streams import generator


def network(cfg: Config) -> torch.nn.Module:
    construct = build.model(cfg.model, build.norm(cfg.norm))
    return construct((1, 28, 28), 10, generator(cfg.seed, "initialise"))


def test_three_updates_are_those_of_momentum_written_out(composed: Compose) -> None:
    cfg, _ = composed("setting=mnist", "norm=batch")
    inputs = Inputs(cfg, load("mnist_sample"))
    rates = [0.1, 0.03, 0.01]
    ours, theirs = network(cfg), network(cfg)
    meter, losses, calls = Meter(), [], []
    optimizer = build.sgd(ours, cfg.optimizer)
    end = fit(ours, optimizer, inputs.training, rates.__getitem__, start=0, steps=3, seed=0, meter=meter,
              on_step=calls.append)  # fmt: skip
    assert end is None
    assert calls == [1, 2, 3]

    velocity = [torch.zeros_like(p) for p in theirs.parameters()]
    for step, rate in enumerate(rates):
        loss = F.cross_entropy(theirs(inputs.training(step)[0]), inputs.training(step)[1])
        losses.append(loss.item())
        for p, v, g in zip(
            theirs.parameters(), velocity, torch.autograd.grad(loss, list(theirs.parameters())), strict=True
        ):
            v.mul_(0.9).add_(g)
            with torch.no_grad():
                p.sub_(rate * v)
    for (name, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, msg=lambda text, name=name: f"{name}: {text}", rtol=1e-4, atol=1e-6)
    assert abs(meter.row()["train_loss"] - sum(losses) / 3) < 1e-5
    # A row speaks of the updates since the last one, and of no others.
    last = F.cross_entropy(theirs(inputs.training(3)[0]), inputs.training(3)[1]).item()
    fit(ours, optimizer, inputs.training, lambda _: 0.0, start=3, steps=4, seed=0, meter=meter, on_step=calls.append)
    assert abs(meter.row()["train_loss"] - last) < 1e-5


def test_an_auxiliary_heads_loss_counts_three_tenths_and_its_answers_not_at_all() -> None:
    """Two linear heads on one input, by hand: the gradient of a head's logits is softmax less one-hot, over N."""

    class Heads(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.main, self.side = torch.nn.Linear(4, 3, bias=False), torch.nn.Linear(4, 3, bias=False)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.main(x), self.side(x)

    draw = torch.Generator().manual_seed(0)
    x, labels, heads = torch.randn(5, 4, generator=draw), torch.tensor([0, 1, 2, 0, 1]), Heads()
    with torch.no_grad():
        for parameter in heads.parameters():
            parameter.normal_(generator=draw)
    before = {name: parameter.detach().double() for name, parameter in heads.named_parameters()}
    update = Update(heads, torch.optim.SGD(heads.parameters(), lr=1.0), torch.float32)
    loss, correct = update(x, labels, 0.25)

    losses, hot = {}, torch.eye(3).double()[labels]
    for name, share in (("main", 1.0), ("side", 0.3)):
        logits = x.double() @ before[f"{name}.weight"].T
        chances = logits.exp() / logits.exp().sum(1, keepdim=True)
        losses[name] = -(chances * hot).sum(1).log().mean().item()
        gradient = (chances - hot).T @ x.double() / 5
        after = before[f"{name}.weight"] - 0.25 * share * gradient
        torch.testing.assert_close(heads.get_parameter(f"{name}.weight").double(), after, rtol=1e-5, atol=1e-6)
        if name == "main":
            assert correct == (chances.argmax(1) == labels).sum()
    assert loss.item() == pytest.approx(losses["main"] + 0.3 * losses["side"], rel=1e-5)


def test_every_image_keeps_its_label_and_an_epoch_shows_each_once(composed: Compose) -> None:
    split = load("mnist_sample")
    label_of = {
        image.numpy().tobytes(): int(y) for image, y in zip(split.train.images, split.train.labels, strict=True)
    }
    assert len(set(split.train.labels.tolist())) == 10
    for overrides in ([], ["augment.brightness=0.001", "augment.strength=0.001"]):
        cfg, _ = composed("setting=mnist", "data.input=unit", *overrides)
        inputs = Inputs(cfg, split)
        steps = len(split.train) // cfg.batch_size
        seen = []
        for step in range(steps):
            images, labels = inputs.training(step)
            pixels = (images * 255).round().to(torch.uint8).contiguous()
            seen += [image.numpy().tobytes() for image in pixels]
            assert [label_of[image.numpy().tobytes()] for image in pixels] == labels.tolist()
        assert len(set(seen)) == steps * cfg.batch_size


def test_evaluation_uses_the_running_averages_and_moves_nothing(composed: Compose) -> None:
    cfg, _ = composed("setting=mnist", "norm=batch")
    inputs, net = Inputs(cfg, load("mnist_sample")), network(cfg)
    for step in range(5):
        net(inputs.training(step)[0])
    before = {key: value.clone() for key, value in net.state_dict().items()}
    found = one_crop(net, inputs.held_out, 90, 40)
    assert net.training
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    images, labels = inputs.held_out(0, 90)
    alone = torch.cat([net.eval()(image[None]) for image in images])  # one at a time: no batch to lean on
    assert abs(found["loss"] - F.cross_entropy(alone, labels).item()) < 1e-5
    assert found["accuracy"] == int((alone.argmax(1) == labels).sum()) / 90


def test_a_row_stands_at_the_step_whose_network_it_measured(composed: Compose, tmp_path: Path) -> None:
    """What a run says at step k is what a run that ended there says in the end."""
    fixed = ("setting=mnist", "norm=batch", "optimizer.rate=0.1", "evaluate.examples=0", "study=t")
    long, _ = composed(*fixed, "steps=20", "evaluate.times=4")
    short, _ = composed(*fixed, "steps=10", "evaluate.times=2")
    run(long, "long")
    run(short, "short")
    directory = tmp_path / "runs" / "smoke" / "t"
    rows = {row["step"]: row for row in records.read_rows(directory / "long" / "seed=0" / records.CURVES)}
    record = records.read_run_json(directory / "short" / "seed=0")
    assert record is not None
    assert list(rows) == [0, 5, 10, 15, 20]
    assert rows[10]["test_loss"] == record["summary"]["test_loss"]
    assert rows[10]["train_loss"] == record["summary"]["train_loss"]
    assert rows[10]["epoch"] == 10 * 60 / len(load("mnist_sample").train)


def test_dropout_draws_anew_each_step(composed: Compose) -> None:
    """Two updates of rate nothing on the same batch differ by their masks alone."""
    cfg, _ = composed("setting=inception", "variant=bn_baseline")
    inputs = Inputs(cfg, load("cifar10_sample"))
    construct = build.model(cfg.model, build.norm(cfg.norm))
    net = construct((3, 32, 32), 10, generator(0, "initialise"))
    optimizer = build.sgd(net, cfg.optimizer)
    losses, meter = [], Meter()
    batch = inputs.training(0)
    fit(net, optimizer, lambda _: batch, lambda _: 0.0, start=0, steps=3, seed=0, meter=meter,
        on_step=lambda _: losses.append(meter.row()["train_loss"]))  # fmt: skip
    assert len(set(losses)) == 3
