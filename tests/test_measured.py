"""What a run records, worked out a second time by the paper's formulas: probes, and the measures of the ablations.

The net is a small MLP, written out here in float64; nothing of what is held against it is called to get the numbers.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.conftest import Compose
from torch import Tensor, nn

from bn_replication import build, jacobians, measures, records
from bn_replication.data import LinearInput, Split, conditioning, load
from bn_replication.data.whiten import PrincipalAxes
from bn_replication.inputs import Inputs
from bn_replication.models.mlp import MLP
from bn_replication.norms import BatchNorm
from bn_replication.probes import Probe, evenly, layer_inputs, log_and_even
from bn_replication.runner import run
from bn_replication.schema import Config
from bn_replication.streams import generator

HIDDEN = 2  # layers of every net here
Statistics = Sequence[tuple[Tensor, Tensor]]  # mean and variance (C,) of what each norm takes


def passed(
    weights: Mapping[str, Tensor], x: Tensor, statistics: Statistics | None = None
) -> tuple[list[Tensor], list[tuple[Tensor, Tensor]], Tensor]:
    """Return what each sigmoid receives, the mean and biased variance of each Wu, and the logits, all float64.

    Normalised by ``statistics``, or by the batch's own: Algorithm 1.
    """
    received, moments, h = [], [], x.flatten(1).double()
    for n in range(1, HIDDEN + 1):
        u = h @ weights[f"linear{n}.weight"].T
        mean = u.sum(0) / len(u)
        moments.append((mean, ((u - mean) ** 2).sum(0) / len(u)))
        mean, variance = (moments if statistics is None else statistics)[n - 1]
        x_hat = (u - mean) / (variance + 1e-5) ** 0.5
        received.append(weights[f"norm{n}.weight"] * x_hat + weights[f"norm{n}.bias"])
        h = 1 / (1 + (-received[-1]).exp())
    return received, moments, h @ weights["classifier.weight"].T + weights["classifier.bias"]


def weights_of(net: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().double() for name, parameter in net.named_parameters()}


# --- probes -------------------------------------------------------------------------------------------------


@pytest.fixture
def small() -> tuple[MLP, Tensor]:
    """A net in training whose running statistics are of other inputs than the batch beside it."""
    draw = torch.Generator().manual_seed(0)
    net = MLP(6, hidden=(5, 4), classes=3, norm_layer=BatchNorm, generator=draw)
    x = torch.randn(40, 6, generator=draw)
    for name in ("norm1", "norm2"):
        nn.init.uniform_(net.get_parameter(f"{name}.weight"), 0.5, 2, generator=draw)
        nn.init.uniform_(net.get_parameter(f"{name}.bias"), -1, 1, generator=draw)
    net.train()
    for _ in range(5):
        net(3 * x + 2)
    return net, x


def test_a_probes_row_is_what_algorithm_1_gives_worked_by_hand(small: tuple[MLP, Tensor]) -> None:
    net, x = small
    probe = Probe(net, x, (nn.Sigmoid,), (10, 50, 85), low=-1.5, high=2.5, bins=8, units_of="last")
    rows = probe.measure()
    assert [row["layer"] for row in rows] == ["act1", "act2"]
    received = passed(weights_of(net), x)[0]
    for row, values in zip(rows, received, strict=True):
        ordered = sorted(values.flatten().tolist())
        assert row["percentiles"] == pytest.approx([between(ordered, share) for share in (0.1, 0.5, 0.85)], rel=1e-4)
        mean = sum(ordered) / len(ordered)
        assert row["mean"] == pytest.approx(mean, rel=1e-4, abs=1e-6)
        assert row["std"] == pytest.approx((sum((v - mean) ** 2 for v in ordered) / len(ordered)) ** 0.5, rel=1e-4)
        # Bins of a half; what lies below the first or above the last is counted in it.
        edges = [-np.inf, -1, -0.5, 0, 0.5, 1, 1.5, 2, np.inf]
        counts = [sum(a <= v < b for v in ordered) for a, b in itertools.pairwise(edges)]
        assert row["histogram"] == counts
        assert sum(v < -1.5 or v > 2.5 for v in ordered) > 0
        # The same where the numbers lie on a GPU.
        alike = {key: value for key, value in row.items() if key not in ("layer", "units")}
        on_gpu = probe._on_gpu(values.float().flatten(), 0.5)
        assert on_gpu.keys() == alike.keys()
        for key, value in alike.items():
            assert on_gpu[key] == pytest.approx(value, rel=1e-4, abs=1e-6)
    assert "units" not in rows[0]
    of_units = [[between(sorted(unit), share) for unit in received[1].T.tolist()] for share in (0.1, 0.5, 0.85)]
    assert np.array(rows[1]["units"]) == pytest.approx(np.array(of_units), rel=1e-4, abs=1e-6)


def between(ordered: Sequence[float], share: float) -> float:
    """Return the percentile of sorted values, read off the straight line between its two neighbours."""
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def test_what_layers_receive_is_normalised_by_the_batch_at_hand(small: tuple[MLP, Tensor]) -> None:
    net, x = small
    found = layer_inputs(net, {name: net.get_submodule(name) for name in ("act1", "act2")}, x)
    for values, expected in zip(found.values(), passed(weights_of(net), x)[0], strict=True):
        torch.testing.assert_close(values.double(), expected, rtol=1e-5, atol=1e-5)


def test_probes_are_dense_at_first_and_even_later_on() -> None:
    assert log_and_even(1000, 4) == [0, 1, 10, 100, 250, 500, 750, 1000]
    assert log_and_even(3, 8) == [0, 1, 2, 3]
    assert log_and_even(0, 4) == [0]
    assert evenly(12, 4) == {0, 3, 6, 9, 12}


# --- a run and the same by hand -----------------------------------------------------------------------------


class ByHand(NamedTuple):
    """A net as it is after some updates, float64."""

    weights: dict[str, Tensor]
    gradients: dict[str, Tensor]  # of the last update
    running: Statistics  # with the new batch's weight 0.1
    memory: Statistics  # and 0.3


class Both(NamedTuple):
    """A run's record, and what to work it out from."""

    cfg: Config
    split: Split
    inputs: Inputs
    rows: list[dict[str, Any]]
    probed: list[dict[str, Any]]
    summary: dict[str, float]
    states: list[ByHand]  # after 0, 1, 2, ... updates


MEASURED = (
    "setting=mnist", "study=t", "model.hidden=[8,6]", "model.init_scale=3", "steps=6", "batch_size=20",
    "augment=photometric_grey", "augment.crop=3", "norm=tracking", "norm.momenta=[0.3]", "data.input=unit",
    "optimizer.rate=0.512345678", "schedule=exponential", "schedule.total=0.02", "evaluate.times=3",
    "evaluate.examples=40", "evaluate.batch_size=30", "probe.examples=16", "probe.points=2", "measure.fit=true",
    "measure.landscape=true", "measure.linear_share=true", "measure.average=0.5",
    "measure.statistics={batches: 3, test_batch_sizes: [30, 50]}",
)  # fmt: skip


@pytest.fixture
def both(composed: Compose) -> Both:
    cfg, _ = composed(*MEASURED)
    run(cfg, "a")
    directory = cfg.machine.results / "smoke" / "t" / "a" / "seed=0"
    record = records.read_run_json(directory)
    assert record is not None
    split = load(cfg.data.name)
    inputs = Inputs(cfg, split)
    rows, probed = (list(records.read_rows(directory / name)) for name in (records.CURVES, records.ACTIVATIONS))
    return Both(cfg, split, inputs, rows, probed, record["summary"], trained_by_hand(cfg, inputs))


def trained_by_hand(cfg: Config, inputs: Inputs) -> list[ByHand]:
    """Return the net before training and after each update: gradient descent with momentum 0.9, no L2 term."""
    example = inputs.held_out(0, 2)[0]
    net = build.network(cfg)((1, 28, 28), 10, generator(cfg.seed, "initialise"), example)
    weights = weights_of(net)
    running = memory = [(torch.zeros(width).double(), torch.ones(width).double()) for width in (8, 6)]
    states, velocity = [ByHand(weights, {}, running, memory)], {name: torch.zeros(()) for name in weights}
    for step in range(cfg.steps):
        images, labels = inputs.training(step)
        leaves = {name: weight.clone().requires_grad_() for name, weight in weights.items()}
        _, moments, logits = passed(leaves, images)
        slopes = torch.autograd.grad(F.cross_entropy(logits, labels), list(leaves.values()))
        gradients = dict(zip(leaves, slopes, strict=True))
        velocity = {name: 0.9 * velocity[name] + slope for name, slope in gradients.items()}
        weights = {name: weight - rate_at(step) * velocity[name] for name, weight in weights.items()}
        running, memory = lerped(running, moments, 0.1), lerped(memory, moments, 0.3)
        states.append(ByHand(weights, gradients, running, memory))
    return states


def rate_at(step: int) -> float:
    return 0.512345678 * 0.02 ** (step / 6)


def lerped(old: Statistics, new: Statistics, weight: float, m: int = 20) -> Statistics:
    """Return the moving averages after one more batch of ``m``; they take its unbiased variance."""
    return [
        ((1 - weight) * a + weight * mean.detach(), (1 - weight) * b + weight * m / (m - 1) * variance.detach())
        for (a, b), (mean, variance) in zip(old, new, strict=True)
    ]


def population(weights: Mapping[str, Tensor], batches: Iterable[Tensor], m: int = 20) -> Statistics:
    """Return Algorithm 2's statistics: means over batches of mean and of m / (m - 1) times the variance."""
    each = [[(mean, m / (m - 1) * variance) for mean, variance in passed(weights, batch)[1]] for batch in batches]
    return [
        (torch.stack([mean for mean, _ in layer]).mean(0), torch.stack([variance for _, variance in layer]).mean(0))
        for layer in zip(*each, strict=True)
    ]


def judged(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Return mean cross-entropy and accuracy."""
    chances = logits.exp() / logits.exp().sum(1, keepdim=True)
    losses = -chances[torch.arange(len(labels)), labels].log()
    return losses.mean().item(), (logits.argmax(1) == labels).double().mean().item()


def recorded(numbers: Mapping[str, float], key: str) -> tuple[float, float]:
    return numbers[key.format("loss")], numbers[key.format("accuracy")]


def close(expected: tuple[float, float]) -> Any:
    return pytest.approx(expected, rel=2e-5)


def test_a_row_judges_the_first_held_out_images_and_as_many_training_images(both: Both) -> None:
    assert [row["step"] for row in both.rows] == [0, 2, 4, 6]
    for row in both.rows:
        state = both.states[row["step"]]
        for key, images in (("test_{}", both.split.held_out), ("fit_{}", both.split.train)):
            logits = passed(state.weights, images.take(slice(40)) / 255, state.running)[2]
            assert recorded(row, key) == close(judged(logits, images.labels[:40]))
        assert row["rate"] == float(f"{rate_at(row['step']):.8g}")  # eight digits of it
        assert row["epoch"] == row["step"] * 20 / 400
    assert both.rows[0]["rate"] == 0.51234568


def test_the_landscape_is_that_of_the_probes_images_at_the_rate_of_the_next_step(both: Both) -> None:
    images, labels = both.split.train.take(slice(16)) / 255, both.split.train.labels[:16]

    def loss_and_gradient(weights: Mapping[str, Tensor]) -> tuple[float, Tensor]:
        leaves = [weight.clone().requires_grad_() for weight in weights.values()]
        loss = F.cross_entropy(passed(dict(zip(weights, leaves, strict=True)), images)[2], labels)
        return loss.item(), torch.cat([slope.flatten() for slope in torch.autograd.grad(loss, leaves)])

    keys = [f"landscape_{key}" for key in ("loss_range", "gradient_change", "gradient_change_relative")]
    found: list[list[float]] = []
    for row in both.rows:
        weights = both.states[row["step"]].weights
        _, gradient = loss_and_gradient(weights)
        slopes = dict(zip(weights, gradient.split([w.numel() for w in weights.values()]), strict=True))
        losses, changes = [], []
        for multiple in (0.5, 1, 2, 4):
            length = multiple * rate_at(row["step"])
            moved = {name: weight - length * slopes[name].view_as(weight) for name, weight in weights.items()}
            loss, there = loss_and_gradient(moved)
            losses.append(loss)
            changes.append((there - gradient).norm().item())
        found.append([max(losses) - min(losses), max(changes), max(changes) / gradient.norm().item()])
        assert [row[key] for key in keys] == pytest.approx(found[-1], rel=1e-3)
    assert [both.summary[key] for key in keys] == pytest.approx(np.mean(found, axis=0).tolist(), rel=1e-3)


def test_a_probe_sees_the_first_training_images_and_the_gradients_of_the_last_update(both: Both) -> None:
    images, shares = both.split.train.take(slice(16)) / 255, {}
    for row in both.probed:
        state, n = both.states[row["step"]], int(row["layer"].removeprefix("act"))
        z = passed(state.weights, images)[0][n - 1].numpy()
        assert row["percentiles"] == pytest.approx(np.percentile(z, [15, 50, 85]).tolist(), rel=1e-4, abs=1e-4)
        assert row["std"] == pytest.approx(z.std(), rel=1e-4)
        output = 1 / (1 + np.exp(-z))
        shares[n] = ((output >= 0.2) & (output <= 0.8)).mean()
        assert row["linear_share"] == pytest.approx(shares[n], rel=1e-4)
        if row["step"] > 0:
            slopes = state.gradients[f"linear{n}.weight"]
            assert row["gradient"] == pytest.approx(((slopes**2).sum() / slopes.numel()).item() ** 0.5, rel=1e-3)
        else:
            assert "gradient" not in row
    assert [row["step"] for row in both.probed[::2]] == [0, 1, 3, 6]
    assert both.summary["linear_share"] == pytest.approx((shares[1] + shares[2]) / 2, rel=1e-4)


def test_the_final_net_is_judged_on_all_held_out_images_under_every_statistics(both: Both) -> None:
    cfg, state, count = both.cfg, both.states[-1], len(both.split.held_out)
    images, labels = both.split.held_out.take(slice(None)) / 255, both.split.held_out.labels
    weights = state.weights
    training = [both.inputs.training(step)[0] for step in range(cfg.steps, cfg.steps + 100)]
    under = {
        "test_{}": (weights, state.running),
        "test_{}_moving_0.3": (weights, state.memory),
        # Of the three batches, and of the hundred, that training would go on with.
        "test_{}_population": (weights, population(weights, training[:3])),
    }
    averaged = both.states[1].weights
    for later in both.states[2:]:
        averaged = {name: 0.5 * weight + 0.5 * later.weights[name] for name, weight in averaged.items()}
    under["test_{}_average"] = averaged, population(averaged, training)
    for key, (net, statistics) in under.items():
        found = recorded(both.summary, key)
        assert found == close(judged(passed(net, images, statistics)[2], labels)), key
    for size in (30, 50):  # of 200: the last 20 do not fill a batch of 30
        whole = count - count % size
        logits = torch.cat([passed(weights, images[at : at + size])[2] for at in range(0, whole, size)])
        assert recorded(both.summary, f"test_{{}}_batch_{size}") == close(judged(logits, labels[:whole]))


# --- measures of their own ------------------------------------------------------------------------------------


def test_a_steps_time_is_the_median_of_those_after_two_that_warm_up(composed: Compose) -> None:
    """By a clock that is told what each step takes: the nets take turns, and one step is slow for once."""
    cfg, _ = composed("setting=mnist")
    taken = [[100, 100, 1, 2, 3, 4, 5, 6, 7, 8, 90], [0, 0, 20, 30, 40, 50, 60, 70, 80, 90, 900]]
    ticks, now = [], 0.0
    for pair in zip(*taken, strict=True):
        for seconds in pair:
            ticks += [now, now + seconds]
            now += seconds + 1000
    nets = [nn.Sequential(nn.Flatten(), nn.Linear(4, 3)) for _ in taken]
    clock = iter(ticks)
    found = measures.seconds_per_step(nets, cfg, torch.rand(5, 4), torch.tensor([0, 1, 2, 0, 1]), lambda: next(clock))
    assert found == [5, 60]
    assert next(clock, None) is None


def test_the_cost_is_of_the_runs_own_net_and_of_the_same_with_bn(
    composed: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the number of batch norms in a net for its time."""
    cfg, _ = composed("setting=mnist", "norm=none", "measure.cost=true")
    split = load(cfg.data.name)
    monkeypatch.setattr(
        measures,
        "seconds_per_step",
        lambda nets, *_: [sum(isinstance(module, BatchNorm) for module in net.modules()) for net in nets],
    )
    summary = measures.Measures(cfg, nn.Linear(1, 1), split, Inputs(cfg, split), None).summary()
    assert summary == {"seconds_per_step": 0, "seconds_per_step_batch": 3}


def test_a_jacobians_singular_values_by_hand() -> None:
    """A map turned before and after, so its singular values are those it is made with; one of 1e-6 is no number."""
    turns = [torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(seed)))[0] for seed in (0, 1)]
    net = nn.Sequential(nn.ReLU(), nn.Linear(4, 4, bias=False), nn.ReLU())
    with torch.no_grad():
        net.get_parameter("1.weight").copy_(turns[0] @ torch.tensor([4.0, 1.0, 0.05, 1e-6]).diag() @ turns[1])
    inputs = torch.rand(3, 4, generator=torch.Generator().manual_seed(2)) + 0.1  # above 0, where a ReLU is the identity
    (row,) = jacobians.measure(net, inputs).values()
    # Of two examples, so each value twice: quartiles of 0.05, 0.05, 1, 1, 4, 4.
    assert row["singular_values"] == pytest.approx([0.05, 0.2875, 1, 3.25, 4], rel=1e-4)
    assert row["log_spread"] == pytest.approx(((np.log(4) ** 2 + np.log(0.05) ** 2) / 3) ** 0.5, rel=1e-4)
    assert jacobians.log_spread([{"log_spread": 3.0}, {"log_spread": 4.0}]) == pytest.approx(12.5**0.5)


def test_conditioning_by_hand() -> None:
    """Three of the four hold 99% of the sum, 100."""
    found = conditioning(torch.tensor([0.5, 1.5, 8.0, 90.0], dtype=torch.float64))
    assert found == pytest.approx({"condition": 60, "effective_rank": 100**2 / (90**2 + 8**2 + 1.5**2 + 0.5**2)})


def test_whitening_two_pixels_by_hand() -> None:
    """Variances 1 and 3 along the diagonals, so a floor of 0.02 under each; the raw mean square is restored."""
    root = 0.5**0.5
    axes = torch.tensor([[root, -root], [root, root]], dtype=torch.float64)
    mean, variances = torch.tensor([1.0, 2.0]).double(), torch.tensor([1.0, 3.0]).double()
    whiten = LinearInput(PrincipalAxes(mean, variances, axes), "whitened")
    scale = ((1 + 4 + 1 + 3) / (1 / 1.02 + 3 / 3.02)) ** 0.5
    for along, shrunk in ((axes[:, 0], scale / 1.02**0.5), (axes[:, 1], scale / 3.02**0.5)):
        found = whiten((mean + along).float().view(1, 1, 1, 2))
        torch.testing.assert_close(found.flatten().double(), shrunk * along, rtol=1e-5, atol=1e-6)
