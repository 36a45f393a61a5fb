"""Every knob changes what it should and nothing else, and an option that changes nothing is a defect.

A short run leaves a fingerprint: the initial weights, the examples, the inputs, the rates, the decay, the loss of each
training step and the held-out loss in the end. Each knob says which of these it moves; all others must stay as they
were to the bit.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from tests.conftest import tree_of
from torch import Tensor, nn

from bn_replication import build, schedules
from bn_replication.data import load
from bn_replication.data.order import batch_indices
from bn_replication.evaluate import one_crop
from bn_replication.inputs import Inputs
from bn_replication.loop import Meter, fit
from bn_replication.models.layers import ResponseNorm
from bn_replication.norms import batch_norms, materialize
from bn_replication.schema import Config, validate
from bn_replication.streams import generator
from bn_replication.train import CONFIGS, resolved

STEPS = 3  # momentum tells from the third loss on
MLP, PLAIN, BN, CROPPED = (
    "setting=mnist norm=batch",
    "setting=inception variant=inception",
    "setting=inception variant=bn_baseline",
    "setting=inception variant=bn_baseline augment=googlenet",
)


def config(words: str, **changes: Any) -> Config:
    """Return the configuration of ``words`` with ``changes``: dotted keys, __ for the dot; a group takes a file's."""
    tree = resolved(tree_of(("scale=smoke", "wandb=disabled", f"steps={STEPS}", *words.split())))
    for name, value in changes.items():
        *path, key = name.split("__")
        place = tree
        for part in path:
            place = place[part]
        file = CONFIGS / key.removeprefix("last_") / f"{value}.yaml"
        place[key] = OmegaConf.to_container(OmegaConf.load(file)) if file.exists() else value
    return validate(tree)


def network(cfg: Config) -> nn.Module:
    split = load(cfg.data.name, cfg.data.root, cfg.data.split, cfg.data.subset)
    construct = build.model(cfg.model, build.norm(cfg.norm), cfg.last_norm and build.norm(cfg.last_norm))
    model = construct(split.train.shape, 10, generator(cfg.seed, "initialise"))
    materialize(model, Inputs(cfg, split).held_out(0, 2)[0])
    return model.to(memory_format=torch.channels_last)


def fingerprint(cfg: Config) -> dict[str, Any]:
    split = load(cfg.data.name, cfg.data.root, cfg.data.split, cfg.data.subset)
    inputs, model, losses = Inputs(cfg, split), network(cfg), []
    optimizer = build.sgd(model, cfg.optimizer)
    batches = [inputs.training(step) for step in range(STEPS)]
    marks: dict[str, Any] = {
        "weights": [hash(p.detach().numpy().tobytes()) for p in model.parameters() if p.dim() > 1],
        "examples": [labels.tolist() for _, labels in batches],
        "inputs": [hash(images.contiguous().numpy().tobytes()) for images, _ in batches],
        "decay": [group["weight_decay"] for group in optimizer.param_groups],
        "rates": [],
    }

    def rate(step: int) -> float:
        decay = schedules.exponential(step / cfg.steps, cfg.schedule.total, cfg.schedule.speed)
        marks["rates"].append(cfg.optimizer.rate * cfg.optimizer.multiple * decay)
        return marks["rates"][-1]

    meter = Meter()
    fit(
        model,
        optimizer,
        batches.__getitem__,
        rate,
        start=0,
        steps=min(cfg.steps, STEPS),
        seed=cfg.seed,
        meter=meter,
        on_step=lambda _: losses.append(meter.row()["train_loss"]),
    )
    return marks | {"loss": losses, "held_out": one_crop(model, inputs.held_out, 50, 50)["loss"]}


@cache
def fingerprint_of(words: str) -> dict[str, Any]:
    return fingerprint(config(words))


TRAINED = {"loss", "held_out"}
FED = TRAINED | {"inputs"}
ORDERED = FED | {"examples"}
# (ground, what is set, what of the fingerprint moves)
KNOBS: list[tuple[str, dict[str, Any], set[str]]] = [
    (MLP, {"seed": 1}, ORDERED | {"weights"}),
    (MLP, {"batch_size": 30}, ORDERED),
    (MLP, {"optimizer__rate": 0.2}, TRAINED | {"rates"}),
    (MLP, {"optimizer__multiple": 5}, TRAINED | {"rates"}),
    (MLP, {"optimizer__momentum": 0.8}, TRAINED),
    (MLP, {"optimizer__nesterov": True}, TRAINED),
    (MLP, {"schedule__total": 0.5}, TRAINED | {"rates"}),
    (MLP, {"data__subset": 200}, ORDERED),
    (MLP, {"data__split": "tune"}, ORDERED),
    (MLP, {"data__order": "fixed"}, ORDERED),
    *[(MLP, {"data__input": mode}, FED) for mode in ("unit", "standardize", "centered", "decorrelated", "whitened")],
    *[(MLP, {"norm": norm}, TRAINED) for norm in ("none", "batch_no_affine", "layer", "group", "detached", "zca")],
    *[(MLP, {"norm": norm}, TRAINED) for norm in ("weight", "noisy")],
    (MLP, {"norm__eps": 1e-2}, TRAINED),
    # Running averages serve inference alone: training must not notice them.
    (MLP, {"norm__momentum": 0.5}, {"held_out"}),
    (MLP, {"model__act": "relu"}, TRAINED),
    (MLP, {"model__placement": "after"}, TRAINED),
    (MLP, {"model__hidden": [100, 100]}, TRAINED | {"weights"}),
    (MLP, {"model__init_std": 0.2}, TRAINED | {"weights"}),
    (MLP, {"model__init_scale": 2.0}, TRAINED | {"weights"}),
    (MLP, {"model__depth": 2}, TRAINED | {"weights"}),
    *[(MLP, {"model__initialisation": rule}, TRAINED | {"weights"}) for rule in ("glorot", "he")],
    (PLAIN, {"norm": "weight"}, TRAINED),
    (BN, {"schedule__speed": 6}, TRAINED | {"rates"}),
    (BN, {"steps": 8}, TRAINED | {"rates"}),
    (BN, {"optimizer__l2": 0.01}, TRAINED | {"decay"}),
    (BN, {"optimizer__l2_multiple": 0.2}, TRAINED | {"decay"}),
    (BN, {"optimizer__l2_on_norm": True}, TRAINED | {"decay"}),
    (BN, {"data__order": "within_shard"}, ORDERED),
    (BN, {"augment__strength": 0.5}, FED),
    (BN, {"augment__strength": 0.0}, FED),
    (BN, {"augment__strength": 2.0}, FED),
    *[(BN, {f"augment__{key}": 0}, FED) for key in ("crop", "brightness", "contrast", "saturation", "hue")],
    (BN, {"augment__flip": False}, FED),
    (BN, {"augment": "googlenet"}, FED),
    (CROPPED, {"augment__area": 0.5}, FED),
    (CROPPED, {"augment__aspect": 1.1}, FED),
    (BN, {"norm": "per_activation"}, TRAINED),
    (BN, {"norm": "zca"}, TRAINED),
    (BN, {"last_norm": "per_activation"}, TRAINED),
    (BN, {"model__placement": "after"}, TRAINED),
    (BN, {"model__dropout": 0}, TRAINED),
    (BN, {"model__act": "sigmoid"}, TRAINED),
    (BN, {"model__lrn": False}, TRAINED),
    (PLAIN, {"model__lrn": False}, TRAINED),
    (PLAIN, {"model__lrn_places": "pool1"}, TRAINED),
    (BN, {"model__lrn_places": "conv2"}, TRAINED),
    (PLAIN, {"model__dropout": 0.1}, TRAINED),
    (PLAIN, {"model__bias": False}, TRAINED),
    (PLAIN, {"norm": "batch"}, TRAINED),
    (PLAIN, {"model__init_scale": 0.5}, TRAINED | {"weights"}),
    (PLAIN, {"model__initialisation": "glorot"}, TRAINED | {"weights"}),
    (PLAIN, {"model__initialisation": "lecun"}, TRAINED | {"weights"}),
    (PLAIN, {"model__width": 0.25}, TRAINED | {"weights"}),
    (PLAIN, {"model__separable": False}, TRAINED | {"weights"}),
    (PLAIN, {"model__auxiliary": True}, TRAINED | {"weights"}),
]


@pytest.mark.parametrize(
    ("words", "changes", "moved"),
    KNOBS,
    ids=[f"{w.split('=')[-1]}:{','.join(f'{k}={v}' for k, v in c.items())}" for w, c, _ in KNOBS],
)
def test_a_knob_moves_what_it_should_and_nothing_else(words: str, changes: dict[str, Any], moved: set[str]) -> None:
    before, after = fingerprint_of(words), fingerprint(config(words, **changes))
    assert {key for key in before if before[key] != after[key]} == moved


def test_the_reading_of_fig_5_is_a_knob_where_the_width_lets_it() -> None:
    """At an eighth of the width 96 and 128 channels are 16 and 16: nothing to tell apart; at a quarter there is."""
    counts = [
        sum(p.numel() for p in network(config(PLAIN, model__width=0.25, model__reading=reading)).parameters())
        for reading in ("as_printed", "as_shapes")
    ]
    assert counts[0] > counts[1]


@pytest.mark.parametrize("norm", ["reference", "tracking"])
def test_two_ways_to_write_batch_normalization_train_alike(norm: str) -> None:
    batch, other = fingerprint_of(MLP), fingerprint(config(MLP, norm=norm))
    if norm == "tracking":
        assert other["loss"] == batch["loss"]
    assert other["loss"] == pytest.approx(batch["loss"], rel=1e-4)
    assert other["held_out"] == pytest.approx(batch["held_out"], rel=1e-4)


# --- one at a time: the paper's seven, looked at from inside ------------------------------------------------


def one_step(cfg: Config) -> dict[str, Tensor]:
    split = load(cfg.data.name, cfg.data.root)
    model = network(cfg)
    optimizer = build.sgd(model, cfg.optimizer)
    batch = Inputs(cfg, split).training
    fit(model, optimizer, batch, lambda _: 0.1, start=0, steps=1, seed=0, meter=Meter(), on_step=lambda _: None)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("words", [MLP, PLAIN, BN], ids=["mlp", "inception", "bn_baseline"])
@pytest.mark.parametrize("on_norm", [False, True])
def test_weight_decay_reaches_the_weights_and_gamma_and_beta_only_when_asked(words: str, on_norm: bool) -> None:
    """SGD's first step with decay less the one without is -rate * l2 * w, on matrices and kernels alone."""
    cfg = config(words, optimizer__l2=0.0)
    initial = {name: parameter.detach() for name, parameter in network(cfg).named_parameters()}
    plain = one_step(cfg)
    decayed = one_step(config(words, optimizer__l2=0.5, optimizer__l2_on_norm=on_norm))
    for name, value in plain.items():
        is_weight = value.dim() > 1
        if is_weight or on_norm:
            torch.testing.assert_close(decayed[name] - value, -0.1 * 0.5 * initial[name], rtol=1e-3, atol=1e-6)
        else:
            assert torch.equal(decayed[name], value), name
    norms = {name for name in plain if ".norm" in name or name.startswith("norm")}
    assert bool(norms) == (words != PLAIN)
    assert all(plain[name].dim() == 1 for name in norms)


def test_lrn_stands_in_googlenets_two_places_and_nowhere_under_bn_x5() -> None:
    def places(words: str) -> list[str]:
        return [name for name, module in network(config(words)).named_modules() if isinstance(module, ResponseNorm)]

    assert places(PLAIN) == places(BN) == ["stem.lrn1", "stem.lrn2"]
    assert places("setting=inception variant=bn_x5") == []
    felt = network(config(f"{PLAIN} alternative=lrn_pixels"))
    assert [layer.alpha for layer in felt.modules() if isinstance(layer, ResponseNorm)] == [0.4096, 0.4096]
    assert places(f"{PLAIN} model.lrn_places=pool1") == ["stem.lrn1"]
    assert places(f"{PLAIN} model.lrn_places=conv2") == ["stem.lrn2"]
    assert places("setting=inception variant=bn_x5 model.lrn_places=pool1") == []


def test_dropout_off_is_the_identity_and_on_it_is_none_in_training_alone() -> None:
    split = load("cifar10_sample")
    for rate in (0, 0.4):
        cfg = config(PLAIN, model__dropout=rate)
        model, images = network(cfg), Inputs(cfg, split).held_out(0, 8)[0]
        with torch.no_grad():
            training, evaluating = model.train()(images), model.eval()(images)
        assert torch.equal(training, evaluating) == (rate == 0)
        assert torch.equal(evaluating, model(images))


@pytest.mark.parametrize("order", ["fixed", "within_shard", "full"])
def test_every_order_yields_each_example_once_an_epoch_and_only_fixed_repeats_its_batches(order: str) -> None:
    """At the size of ablation_shuffle on the laptop, where batches of 32 divide an epoch."""
    epochs = [[batch_indices(e * 100 + b, 32, 3200, 0, order, 5).tolist() for b in range(100)] for e in range(2)]  # type: ignore[arg-type]
    for batches in epochs:
        assert sorted(example for batch in batches for example in batch) == list(range(3200))
    sets = [{frozenset(batch) for batch in batches} for batches in epochs]
    assert (sets[0] == sets[1]) == (order == "fixed")
    assert (sets[0] & sets[1] == set()) == (order != "fixed")
    # A shard's examples come in the same fifth of every epoch.
    fifths = [[{x for batch in batches[k : k + 20] for x in batch} for k in range(0, 100, 20)] for batches in epochs]
    assert (fifths[0] == fifths[1]) == (order != "full")


def test_ablation_shuffles_epochs_are_whole_batches_at_every_scale() -> None:
    for path in sorted(Path(CONFIGS / "scale").glob("*.yaml")):
        assert OmegaConf.load(path).subset % 32 == 0, path


def test_keys_that_came_later_leave_earlier_runs_as_they_were() -> None:
    earlier = config(MLP).identity()
    assert not {"depth", "initialisation"} & set(earlier["model"])
    changed = config(MLP, model__depth=2, model__initialisation="he").identity()["model"]
    assert changed == earlier["model"] | {"depth": 2, "initialisation": "he"}


def test_without_affine_a_norm_learns_nothing() -> None:
    for layer in batch_norms(network(config(BN, norm="batch_no_affine"))).values():
        assert list(layer.parameters()) == []
