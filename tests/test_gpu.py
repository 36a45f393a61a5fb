"""What only a GPU shows: an update played back from a CUDA graph is the update, and a probe reads the same numbers."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from tests.conftest import Compose
from torch import nn

from bn_replication import build
from bn_replication.data import load
from bn_replication.graphs import Recorded, Update, recordable
from bn_replication.inputs import Inputs
from bn_replication.loop import Meter, fit
from bn_replication.probes import Probe
from bn_replication.schema import Config
from bn_replication.streams import generator

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
STEPS = 12


def network(cfg: Config, device: str) -> tuple[nn.Module, Inputs]:
    split = load(cfg.data.name, split=cfg.data.split, device=device)
    inputs = Inputs(cfg, split)
    train = split.train
    example = inputs.held_out(0, 2)[0]
    return build.network(cfg)(train.shape, train.classes, generator(cfg.seed, "initialise"), example), inputs


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("norm=none",), True),
        (("norm=batch",), True),
        (("norm=layer",), True),
        (("norm=weight",), True),
        (("norm=noisy",), True),
        (("norm=reference",), False),  # written to be read
        (("norm=zca",), False),  # eigenvalues
        (("norm=batch", "norm.momentum=null"), False),
    ],
)
def test_what_waits_for_a_number_is_not_recorded(composed: Compose, words: tuple[str, ...], expected: bool) -> None:
    cfg, _ = composed("setting=mnist", *words)
    assert recordable(network(cfg, "cpu")[0]) is expected


@on_gpu
@pytest.mark.parametrize("words", [
    ("setting=mnist", "norm=none"),
    ("setting=mnist", "norm=batch"),
    ("setting=inception", "variant=inception"),  # LRN and dropout, whose masks hang on the step alone
    ("setting=inception", "variant=bn_baseline"),
    ("setting=inception", "variant=bn_x5", "model.auxiliary=true"),
    ("setting=inception", "variant=bn_x5", "norm=noisy"),
    ("setting=inception", "variant=bn_baseline", "precision=tf32"),
    ("setting=inception", "variant=bn_baseline", "precision=bfloat16"),
])  # fmt: skip
def test_updates_played_back_are_the_updates(composed: Compose, words: tuple[str, ...]) -> None:
    cfg, _ = composed("scale=smoke", "machine.device=cuda", *words)
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        ends = []
        for record in (False, False, True):
            model, inputs = network(cfg, "cuda")
            optimizer, meter = build.sgd(model, cfg.optimizer), Meter()
            fit(
                model,
                optimizer,
                inputs.training,
                lambda step: 0.02 / (step + 1),
                start=0,
                steps=STEPS,
                seed=3,
                meter=meter,
                on_step=lambda _: None,
                precision=build.precision(cfg),
                record=record,
            )
            momentum = [optimizer.state[p]["momentum_buffer"] for p in model.parameters()]
            assert all(isinstance(group["lr"], float) for group in optimizer.param_groups)
            ends.append((copy.deepcopy(model.state_dict()), momentum, meter.row()))
    finally:
        torch.backends.cudnn.deterministic = before
    plain, again, played = ends

    # Some kernels add in no fixed order: two plain runs say how far apart that takes them.
    def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
        return max(float((one[k].double() - other[k].double()).abs().max()) for k in one)

    noise = apart(plain[0], again[0])
    print(f"{' '.join(words)}: plain against plain {noise:.2g}, played back {apart(plain[0], played[0]):.2g}")
    assert apart(plain[0], played[0]) <= 4 * noise + 1e-7
    assert played[2]["train_loss"] == pytest.approx(plain[2]["train_loss"], rel=1e-5 + 10 * noise)
    assert plain[2] != {}


@on_gpu
def test_a_played_back_update_sees_each_new_batch_and_rate(composed: Compose) -> None:
    cfg, _ = composed("setting=mnist", "norm=batch", "machine.device=cuda")
    model, inputs = network(cfg, "cuda")
    advance = Recorded(Update(model, build.sgd(model, cfg.optimizer), torch.float32))
    losses = [advance(*inputs.training(step), 0.1)[0].item() for step in range(STEPS)]
    assert len(set(losses)) == STEPS
    weights = {key: value.clone() for key, value in model.named_parameters()}
    for group in advance.update.optimizer.param_groups:
        for parameter in group["params"]:
            advance.update.optimizer.state[parameter]["momentum_buffer"].zero_()
    advance(*inputs.training(STEPS), 0.0)
    assert all(torch.equal(weights[key], value) for key, value in model.named_parameters())


@on_gpu
def test_a_probe_reads_the_same_on_a_gpu() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 7, 3), nn.ReLU(), nn.Flatten(), nn.Linear(7 * 36, 5), nn.Sigmoid())
    images = torch.randn(33, 3, 8, 8)
    here = Probe(model, images, (nn.ReLU, nn.Sigmoid), units_of="last").measure()
    there = Probe(model.cuda(), images.cuda(), (nn.ReLU, nn.Sigmoid), units_of="last").measure()
    for one, other in zip(here, there, strict=True):
        assert np.abs(np.array(one["histogram"]) - other["histogram"]).max() <= 3  # rounding moves a few over an edge
        for key in ("percentiles", "mean", "std"):
            np.testing.assert_allclose(other[key], one[key], atol=2e-3)


@on_gpu
def test_float32_is_float32(composed: Compose) -> None:
    errors = {}
    images, weight = torch.randn(8, 64, 8, 8), torch.randn(64, 64, 3, 3)
    exact = nn.functional.conv2d(images.double(), weight.double())
    for precision in ("tf32", "float32"):
        build.precision(composed("setting=mnist", f"precision={precision}", "machine.device=cuda")[0])
        found = nn.functional.conv2d(images.cuda(), weight.cuda()).cpu().double()
        errors[precision] = float((found - exact).abs().max() / exact.abs().max())
    assert errors["float32"] < 1e-5 < errors["tf32"]
