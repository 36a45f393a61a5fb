"""Each variant differs from its parent by exactly what Sec. 4.2 says: printed (``pytest -s``) and pinned."""

from __future__ import annotations

from typing import Any

import pytest
from tests.conftest import Compose

from bn_replication import records
from bn_replication.train import CONFIGS

# From "no norm" to batch normalization: what the group `norm` holds changes as one thing.
BN = {"norm": ("none", "batch")}
# The seven items of Sec. 4.2.1, in the paper's order.
ITEMS: dict[str, tuple[Any, Any]] = {
    "optimizer.multiple": (1.0, 5.0),
    "model.dropout": (0.4, 0),
    "optimizer.l2_multiple": (1.0, 0.2),
    "schedule.speed": (1.0, 6.0),
    "model.lrn": (True, False),
    "data.order": ("fixed", "within_shard"),
    "augment.strength": (1.0, 0.5),
}
NAMES = ("rate", "dropout", "l2", "decay", "lrn", "shuffling", "photometric")


def undone(item: str) -> dict[str, tuple[Any, Any]]:
    return {item: ITEMS[item][::-1]}


# variant: (parent, what changes)
DIFFERENCES: dict[str, tuple[str, dict[str, tuple[Any, Any]]]] = {
    "bn_baseline": ("inception", BN),
    "bn_x5": ("bn_baseline", ITEMS),
    "bn_x30": ("bn_x5", {"optimizer.multiple": (5.0, 30.0)}),
    "bn_x5_sigmoid": ("bn_x5", {"model.act": ("relu", "sigmoid")}),
    "inception_x5": ("inception", {"optimizer.multiple": (1.0, 5.0)}),
    "inception_sigmoid": ("inception", {"model.act": ("relu", "sigmoid")}),
}
# Figure 4's six: larger initial weights, dropout of 5% or 10%, BN per activation in the last hidden layers.
LARGER, AT_THE_END = {"model.init_scale": (1.0, 2.0)}, {"last_norm": (None, "per_activation")}
MIXES = [
    {"model.dropout": (0, 0.05)},
    {"model.dropout": (0, 0.1)},
    LARGER,
    AT_THE_END,
    LARGER | {"model.dropout": (0, 0.05)},
    LARGER | AT_THE_END | {"model.dropout": (0, 0.1)},
]
DIFFERENCES |= {f"member_{number}": ("bn_x30", mix) for number, mix in enumerate(MIXES, start=1)}
# The cumulative study: one item more at a time, and BN-x5 less one. "Plus seven" is BN-x5, "less the seventh" plus six.
PLUS = [f"bn_plus_{number}_{name}" for number, name in enumerate(NAMES[:-1], start=1)]
for variant, parent, item in zip(PLUS, ["bn_baseline", *PLUS], ITEMS, strict=False):
    DIFFERENCES[variant] = (parent, {item: ITEMS[item]})
for number, (name, item) in enumerate(zip(NAMES[:-1], ITEMS, strict=False), start=1):
    DIFFERENCES[f"bn_x5_less_{number}_{name}"] = ("bn_x5", undone(item))


SEEN: dict[str, dict[str, Any]] = {}


def flat(composed: Compose, variant: str) -> dict[str, Any]:
    """Return all that a run of ``variant`` is, dotted, less its own name; norms as their names."""
    if variant not in SEEN:
        cfg, _ = composed("setting=inception", f"variant={variant}", "scale=laptop")
        assert cfg.variant == variant
        tree = records.flatten(cfg.identity())
        groups = ("norm.", "last_norm.")
        tree = {key: value for key, value in tree.items() if not key.startswith(groups) and key != "variant"}
        SEEN[variant] = tree | {"norm": cfg.norm.name, "last_norm": cfg.last_norm and cfg.last_norm.name}
    return SEEN[variant]


@pytest.mark.parametrize("variant", DIFFERENCES)
def test_a_variant_differs_from_its_parent_by_exactly_what_the_paper_says(composed: Compose, variant: str) -> None:
    parent, expected = DIFFERENCES[variant]
    there, here = flat(composed, parent), flat(composed, variant)
    changed = {key: (there.get(key), here.get(key)) for key in there | here if there.get(key) != here.get(key)}
    lines = [f"{key}: {before} -> {after}" for key, (before, after) in changed.items()]
    print(f"\n{variant} = {parent} with", *lines, sep="\n  ")
    assert changed == expected


def test_every_variant_is_pinned_and_the_last_steps_of_the_ladder_meet(composed: Compose) -> None:
    assert {path.stem for path in (CONFIGS / "variant").glob("*.yaml")} == {"inception", *DIFFERENCES}
    top, last = flat(composed, "bn_x5"), flat(composed, PLUS[-1])
    assert {key: (last[key], top[key]) for key in top if top[key] != last[key]} == {
        "augment.strength": ITEMS["augment.strength"]
    }


def test_the_ground_of_the_seven_is_the_papers(composed: Compose) -> None:
    """What Inception is, where the paper gives it, and GoogLeNet's habits where it does not."""
    cfg, _ = composed("setting=inception", "variant=inception", "scale=laptop")
    assert cfg.batch_size == 32
    assert cfg.model.arguments["act"] == "relu"
    assert cfg.norm.name == "none"
    assert (cfg.optimizer.momentum, cfg.optimizer.multiple, cfg.schedule.speed) == (0.9, 1, 1)
