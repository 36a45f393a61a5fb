"""Gradients of each layer's weights at the probes: autograd's own numbers, read off and nothing disturbed."""

from __future__ import annotations

import json
import math
import os
import signal

import pytest
import torch
import torch.nn.functional as F
from tests.conftest import Compose

from bn_replication import records
from bn_replication.build import model as build_model
from bn_replication.build import norm as build_norm
from bn_replication.models import ACTIVATIONS
from bn_replication.models.inception import Inception
from bn_replication.models.mlp import MLP
from bn_replication.norms import BatchNorm
from bn_replication.probes import feeding_weights, gradient_rms, nonlinearities
from bn_replication.runner import Interrupted, run
from bn_replication.schema import Config, validate
from test_runner import INCEPTION, files_of, place
from test_runner import MLP as SMALL

KINDS = tuple(ACTIVATIONS.values())


def test_rms_is_autograds_own_with_momentum_and_decay_left_out() -> None:
    generator = torch.Generator().manual_seed(0)
    net = MLP(6, hidden=(5, 4), classes=3, norm_layer=BatchNorm, generator=generator)
    weights = feeding_weights(net, nonlinearities(net, KINDS))
    assert {name: tuple(weight.shape) for name, weight in weights.items()} == {"act1": (5, 6), "act2": (4, 5)}
    assert gradient_rms(weights) == {}  # nothing yet, and no zeros made up
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=0.1, fused=True)
    for _ in range(3):
        inputs, labels = torch.randn(8, 6, generator=generator), torch.randint(3, (8,), generator=generator)
        asked = torch.autograd.grad(F.cross_entropy(net(inputs), labels), [net.linear1.weight, net.linear2.weight])
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(net(inputs), labels).backward()
        optimizer.step()  # the update leaves the gradient as it was
        by_hand = [(sum(v * v for v in grad.flatten().tolist()) / grad.numel()) ** 0.5 for grad in asked]
        assert list(gradient_rms(weights).values()) == pytest.approx(by_hand, rel=1e-4)
    net.linear2.weight.grad.fill_(torch.inf)  # type: ignore[union-attr]
    assert gradient_rms(weights)["act2"] is None


@pytest.mark.parametrize("placement", ["before", "after"])
def test_each_nonlinearity_of_inception_has_its_own_convolution(placement) -> None:
    net = Inception(BatchNorm, classes=10, image_size=32, width=0.25, placement=placement)
    acts, names = nonlinearities(net, KINDS), {id(p): name for name, p in net.named_parameters()}
    fed = {act: names[id(weight)] for act, weight in feeding_weights(net, acts).items()}
    assert fed == {act: act.removesuffix("act") + "conv.weight" for act in acts}


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [SMALL, INCEPTION], ids=["mlp", "inception"])
def test_recorded_or_not_it_is_the_same_run_to_the_bit(composed: Compose, overrides) -> None:
    watched, _ = composed(*overrides)
    unwatched, _ = composed(*overrides, "measure.gradients=false")
    assert watched.measure.gradients
    assert watched.identity() == unwatched.identity()
    run(watched, "on")
    run(unwatched, "off")
    on, off = files_of(place(watched, "on")), files_of(place(unwatched, "off"))
    assert on[records.CURVES] == off[records.CURVES]
    digests = [(records.read_run_json(place(watched, arm)) or {})["weights"] for arm in ("on", "off")]
    assert digests[0] == digests[1]
    rows = [json.loads(line) for line in on[records.ACTIVATIONS].splitlines()]
    assert [row for row in rows if "gradient" in row] == [row for row in rows if row["step"] > 0]
    bare = [{key: value for key, value in row.items() if key != "gradient"} for row in rows]
    assert bare == [json.loads(line) for line in off[records.ACTIVATIONS].splitlines()]
    # A run from before the key is complete, and stays so.
    assert run(watched, "off").status == run(unwatched, "on").status == "skipped"


def test_the_recorded_number_is_the_gradient_of_the_step_before_the_probe(composed: Compose) -> None:
    """One step of plain descent moves the weights by rate times gradient, so two probes' weights would tell it."""
    cfg, _ = composed(*SMALL[:3], "steps=1", "probe.points=1", "optimizer=sgd", "optimizer.momentum=0")
    run(cfg, "a")
    rows = [*records.read_rows(place(cfg, "a") / records.ACTIVATIONS)]
    recorded = {row["layer"]: row["gradient"] for row in rows if row["step"] == 1}
    assert recorded == pytest.approx(_first_step(cfg), rel=1e-4)


def _first_step(cfg: Config) -> dict[str, float]:
    from bn_replication.data import load
    from bn_replication.inputs import Inputs
    from bn_replication.norms import materialize
    from bn_replication.streams import generator

    data = cfg.data
    split = load(data.name, data.root, data.split, data.subset, data.source, "cpu")
    inputs, labels = Inputs(cfg, split).training(0)
    net = build_model(cfg.model, build_norm(cfg.norm))((1, 28, 28), 10, generator(cfg.seed, "initialise"))
    materialize(net, inputs)
    weights = [net.get_submodule(f"linear{n}").weight for n in (1, 2, 3)]
    gradients = torch.autograd.grad(F.cross_entropy(net(inputs), labels), weights)  # type: ignore[arg-type]
    return {f"act{n}": float(g.double().square().mean().sqrt()) for n, g in enumerate(gradients, start=1)}


def test_a_run_stopped_before_the_key_existed_goes_on_and_ends_with_the_same_weights(composed: Compose) -> None:
    """Begun without gradients, as every run was once, stopped, and gone on with today."""
    cfg, _ = composed(*SMALL)
    old, _ = composed(*SMALL, "measure.gradients=false")

    def stop(step: int, *_: object) -> None:
        if step == 20:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        run(old, "begun", stop)
    run(cfg, "begun")
    run(cfg, "alone")
    found, alone = files_of(place(cfg, "begun")), files_of(place(cfg, "alone"))
    assert found[records.CURVES] == alone[records.CURVES]
    rows = [[json.loads(line) for line in files[records.ACTIVATIONS].splitlines()] for files in (found, alone)]
    assert [row for row in rows[0] if row["step"] > 20] == [row for row in rows[1] if row["step"] > 20]
    assert not any("gradient" in row for row in rows[0] if row["step"] <= 20)


@pytest.mark.parametrize("steps", [1, 30])
def test_a_run_stopped_after_its_last_step_ends_as_if_it_had_not_been(composed: Compose, steps: int) -> None:
    """No step is left that would make its gradients again, and its summary asks for them."""
    cfg, _ = composed(*SMALL, f"steps={steps}", "measure.gradient_ratio=true")

    def stop(step: int, *_: object) -> None:
        if step == steps:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        run(cfg, "stopped", stop)
    assert run(cfg, "stopped").status == "completed"
    run(cfg, "alone")
    stopped, alone = (records.read_run_json(place(cfg, arm)) for arm in ("stopped", "alone"))
    assert stopped is not None
    assert alone is not None
    assert stopped["summary"] == alone["summary"]
    assert math.isfinite(stopped["summary"]["gradient_ratio"])
    assert files_of(place(cfg, "stopped")) == files_of(place(cfg, "alone"))


def test_what_earlier_records_were_of_is_what_it_is_now(composed: Compose) -> None:
    """The identity of a run does not know the key, whatever else is measured."""
    for more in ([], ["measure.fit=true"], ["measure.gradients=false", "measure.fit=true"]):
        cfg, _ = composed(*SMALL, *more)
        tree = cfg.model_dump(mode="python", by_alias=True)
        tree["measure"].pop("gradients")
        assert validate(tree).identity() == cfg.identity()
        assert cfg.identity().get("measure", {}) == ({"fit": True} if "measure.fit=true" in more else {})
