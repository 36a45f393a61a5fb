"""Every study runs: its first job from configuration to record at the smoke scale, with all that its claims read."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from omegaconf import OmegaConf
from tests import synthetic
from tests.conftest import Compose
from torch import nn

from bn_replication import build, claims, jacobians, landscape, records
from bn_replication.data import LinearInput, conditioning, load
from bn_replication.errors import UserError
from bn_replication.inputs import Inputs
from bn_replication.ledger import (
    AgainstChance,
    Best,
    Drift,
    Entry,
    Final,
    GapAtLoss,
    Grid,
    StepsTo,
    Summary,
    load_ledger,
)
from bn_replication.measures import linear_share
from bn_replication.models.inception import Inception
from bn_replication.norms import (
    BatchNorm,
    InverseRoot,
    TrackingBatchNorm,
    ZCANorm,
    frozen,
    population_statistics,
)
from bn_replication.probes import layer_inputs
from bn_replication.runner import run
from bn_replication.train import CONFIGS

# Those of Figure 4 are judged on evaluations of a study's runs: tests/test_ensemble.py holds them.
LEDGER = [entry for entry in load_ledger().values() if "evaluation" not in entry.treatment]
STUDIES = sorted(path.stem for path in (CONFIGS / "experiment").glob("*.yaml"))
# Few rows and probes; everything else as the study has it.
MEASURED = ("fit", "linear_share", "jacobian", "landscape", "gradient_ratio", "cost")
QUICK = ("evaluate.times=1", "probe.points=1", "evaluate.examples=20", "steps=2", "probe.examples=8")


def axes_of(study: str) -> dict[str, list[str]]:
    """Return a study's sweep, axis by axis, less its seeds; those of its parents too."""
    tree = OmegaConf.to_container(OmegaConf.load(CONFIGS / "experiment" / f"{study}.yaml"))
    assert isinstance(tree, dict)
    parents = [name for name in tree.get("defaults", []) if isinstance(name, str) and name != "_self_"]
    axes = {key: values for parent in parents for key, values in axes_of(parent).items()}
    params = tree.get("hydra", {}).get("sweeper", {}).get("params", {})
    axes |= {key: [word.strip() for word in str(value).split(",")] for key, value in params.items()}
    return {key: values for key, values in axes.items() if key != "seed"}


def columns_of(entry: Entry) -> tuple[str, ...]:
    """Return the columns of a curve that a claim reads."""
    match entry.metric:
        case GapAtLoss():
            return entry.metric.train, "test_loss"
        case Best() | Final() | StepsTo() | AgainstChance() | Grid():
            return (entry.metric.of,)
        case Summary() | Drift():
            return ()


@pytest.mark.parametrize("study", STUDIES)
def test_every_study_runs_and_records_what_its_claims_read(composed: Compose, study: str) -> None:
    job = [f"{key}={values[0]}" for key, values in axes_of(study).items()]
    few = ["measure.statistics.batches=4"] if study == "ablation_statistics" else []
    cfg, arm = composed(f"experiment={study}", *job, *QUICK, *few)
    assert run(cfg, arm).status == "completed"
    directory = cfg.machine.results / "smoke" / study / arm / "seed=0"
    record = records.read_run_json(directory)
    assert record is not None
    rows = list(records.read_rows(directory / records.CURVES))
    for entry in LEDGER:
        if entry.study == study:
            assert set(columns_of(entry)) <= set(rows[-1]), entry.id
            if isinstance(entry.metric, Summary):
                for key in filter(None, (entry.metric.key, entry.metric.against)):
                    assert math.isfinite(record["summary"][key]), (entry.id, key)
    assert all(value is not None for value in record["summary"].values())
    check_arms(study, records.flatten(cfg.identity()), cfg.choices)


def check_arms(study: str, configuration: dict[str, Any], choices: dict[str, str]) -> None:
    """Hold that each side of a claim fits one job of the sweep (of one seed), or the judge could not tell which."""
    axes = axes_of(study)
    ground = configuration | {f"choice.{key}": value for key, value in choices.items()}
    jobs = []
    for values in itertools.product(*axes.values()):
        job = {key: yaml.safe_load(text) for key, text in zip(axes, values, strict=True)}
        jobs.append(ground | job | {f"choice.{key}": value for key, value in job.items()})
    for entry in (entry for entry in LEDGER if entry.study == study):
        several = isinstance(entry.metric, Grid | AgainstChance)
        for arm in (entry.treatment, entry.control, getattr(entry.metric, "target", None)):
            if arm is not None:
                found = len(claims.select(jobs, arm))
                assert found == 1 or (several and found > 1), (entry.id, arm, found)


# --- what the ablations are measured with --------------------------------------------------------------------


def test_whitened_inputs_have_one_variance_and_no_correlation_and_every_mode_one_size() -> None:
    """On the real images that ship: the spectrum that is recorded is that of what the net is given."""
    split = load("mnist_sample")
    raw = split.train.images.float() / 255
    spreads = {}
    for mode in ("unit", "centered", "decorrelated", "whitened"):
        given = LinearInput(split.principal_axes, mode)(split.train.images)
        assert given.shape == raw.shape
        torch.testing.assert_close(given.square().mean(), raw.square().mean(), rtol=1e-3, atol=0)
        rows = given.flatten(1).double()
        spectrum = LinearInput(split.principal_axes, mode).spectrum()
        expected = torch.linalg.eigvalsh(rows.T @ rows / len(rows))
        torch.testing.assert_close(spectrum, expected, rtol=1e-3, atol=1e-3 * float(expected[-1]))
        spreads[mode] = conditioning(spectrum)
    assert spreads["whitened"]["condition"] < spreads["centered"]["condition"] < spreads["unit"]["condition"]
    assert spreads["decorrelated"]["condition"] == pytest.approx(spreads["centered"]["condition"], rel=1e-3)
    turned = LinearInput(split.principal_axes, "decorrelated")(split.train.images).flatten(1).double()
    covariance = turned.T @ turned / len(turned)
    assert (covariance - covariance.diag().diag()).abs().max() < 1e-4 * covariance.max()


@pytest.mark.parametrize("shape", [(64, 6), (8, 6, 4, 4)])
def test_a_whitened_layer_has_unit_covariance_and_exact_gradients(shape: tuple[int, ...]) -> None:
    draw = torch.Generator().manual_seed(0)
    mix = torch.randn(6, 6, generator=draw, dtype=torch.float64)
    x = (torch.randn(shape, generator=draw, dtype=torch.float64).movedim(1, -1) @ mix).movedim(-1, 1) + 3
    layer = ZCANorm(6, eps=1e-9, momentum=1.0).double()
    rows = layer(x).movedim(1, -1).flatten(0, -2)
    torch.testing.assert_close(rows.mean(0), torch.zeros(6).double(), rtol=0, atol=1e-9)
    torch.testing.assert_close(rows.T @ rows / len(rows), torch.eye(6).double(), rtol=0, atol=1e-6)
    # In evaluation the running moments, here those of this one batch, with the unbiased covariance.
    m = len(rows)
    torch.testing.assert_close(layer.eval()(x), layer.train()(x) * ((m - 1) / m) ** 0.5, rtol=1e-6, atol=1e-8)
    few = x[:8, :, :1, :1] if x.dim() == 4 else x[:8]
    assert torch.autograd.gradcheck(ZCANorm(6, eps=0.1).double(), few.clone().requires_grad_())


def test_the_inverse_root_takes_equal_eigenvalues() -> None:
    """Where the derivative of a decomposition would divide by zero."""
    matrix = torch.eye(4, dtype=torch.float64).requires_grad_()
    torch.testing.assert_close(InverseRoot.apply(matrix), torch.eye(4, dtype=torch.float64))
    assert torch.autograd.gradcheck(lambda m: InverseRoot.apply(0.5 * (m + m.T)), matrix)


def test_moving_averages_are_those_that_a_layer_of_that_momentum_keeps() -> None:
    draw = torch.Generator().manual_seed(0)
    tracking, alone = TrackingBatchNorm(5, momenta=(0.3, 1.0)), BatchNorm(5, momentum=0.3)
    for _ in range(4):
        x = torch.randn(16, 5, 3, 3, generator=draw) * 2 + 1
        assert torch.equal(tracking(x), alone(x))
    torch.testing.assert_close(tracking.moving(0).mean, alone.running_mean)
    torch.testing.assert_close(tracking.moving(0).var, alone.running_var)
    torch.testing.assert_close(tracking.moving(1).mean, x.mean((0, 2, 3)))  # all the weight on the last batch


@pytest.mark.parametrize("words", ["setting=mnist", "setting=inception variant=bn_baseline"])
def test_jacobians_are_those_of_autograd(composed: Compose, words: str) -> None:
    cfg, _ = composed(*words.split())
    split = load(cfg.data.name)
    inputs = Inputs(cfg, split).held_out(0, 16)[0]
    model = build.model(cfg.model, build.norm(cfg.norm))(tuple(inputs.shape[1:]), 10, torch.Generator().manual_seed(0))
    still = frozen(model, population_statistics(model, [inputs]))
    (start, end), link = list(jacobians.links(still).items())[-1]
    z = layer_inputs(still, {name: still.get_submodule(name) for name in (start, end)}, inputs)
    x = z[start][:1]
    ours, theirs = jacobians.jacobian(link, x), torch.func.jacrev(link)(x)
    assert isinstance(theirs, torch.Tensor)
    torch.testing.assert_close(ours, theirs.reshape(ours.shape), rtol=1e-4, atol=1e-6)
    # The link is the net's own: what it makes of one nonlinearity's input is what the next one receives.
    torch.testing.assert_close(link(z[start]), z[end], rtol=0.1, atol=0.2)  # unbiased variance against the batch's
    rows = jacobians.measure(model, inputs)
    assert end in rows
    low, *_, high = rows[end]["singular_values"]
    assert 0 < low <= high
    orthogonal = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)))[0]
    assert jacobians.singular_values(orthogonal).log().abs().max() < 1e-6


def test_which_links_are_decomposed_does_not_hang_on_the_width() -> None:
    inputs = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    net = Inception(BatchNorm, classes=10, image_size=32, width=0.125)
    rows = jacobians.measure(net, inputs)
    assert sorted(rows) == [
        f"inception{name}.double3x3_2.act" for name in ("3c", "4a", "4b", "4c", "4d", "4e", "5a", "5b")
    ]
    jacobians.refuse_too_large(net, inputs)
    wide = Inception(BatchNorm, classes=10, image_size=32)  # the gpu scale's
    jacobians.refuse_too_large(wide, inputs)


def test_a_net_without_a_link_that_is_small_enough_is_refused() -> None:
    net = Inception(BatchNorm, classes=10, image_size=224, width=0.125)
    with pytest.raises(
        UserError, match="found layers that end in larger maps only, expected two nonlinearities in a row"
    ):
        jacobians.refuse_too_large(net, torch.randn(2, 3, 224, 224))
    with pytest.raises(UserError, match="found none, expected two nonlinearities"):
        jacobians.refuse_too_large(nn.Sequential(nn.Linear(3, 3), nn.Sigmoid()), torch.randn(2, 3))


def test_a_link_whose_derivative_is_not_finite_is_left_out() -> None:
    net = nn.Sequential(nn.Sigmoid(), nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False), nn.Sigmoid())
    with torch.no_grad():
        for layer in net[1:3]:
            layer.weight.fill_(3e38)
    inputs = torch.full((2, 3), -1e4)  # the first sigmoid gives 0, so that the second's input is finite
    assert layer_inputs(net, {"3": net[3]}, inputs)["3"].isfinite().all()
    assert jacobians.measure(net, inputs) == {}


def test_the_linear_part_of_a_sigmoid() -> None:
    """Near either side of each of its ends, 0.2 and 0.8, and 0.1 and 0.9."""
    z = torch.logit(torch.tensor([0.05, 0.09, 0.11, 0.19, 0.21, 0.5, 0.79, 0.81, 0.89, 0.91]))
    assert linear_share(z) == {"linear_share": 3 / 10, "linear_share_wide": 7 / 10}


def test_along_the_gradient_of_a_quadratic() -> None:
    """By hand: f = w'Hw/2 with H = diag(1, 3) at (3, 1), so gradient (3, 3); a step of t leads to (3 - 3t, 1 - 3t)."""
    curvature, place = torch.tensor([1.0, 3.0]), torch.tensor([3.0, 1.0], requires_grad=True)
    found = landscape.along_gradient([place], lambda: 0.5 * (curvature * place**2).sum(), rate=0.1, multiples=(1, 2))
    losses = [0.5 * ((3 - 3 * t) ** 2 + 3 * (1 - 3 * t) ** 2) for t in (0.1, 0.2)]
    # The gradient moves by t H g = t (3, 9), at most with t = 0.2; its own length is sqrt(18).
    change = 0.2 * 90**0.5
    expected = {"loss_range": losses[0] - losses[1], "gradient_change": change}
    assert found == pytest.approx(expected | {"gradient_change_relative": change / 18**0.5})
    assert torch.equal(place, torch.tensor([3.0, 1.0]))


@pytest.mark.parametrize("multiples", [(1, 2), (2, 1)])
def test_a_loss_that_explodes_on_the_way_is_not_smooth(multiples: tuple[float, ...]) -> None:
    """The loss is no number beyond 1.5 steps, and wherever that is met."""
    place = torch.tensor([3.0], requires_grad=True)

    def loss() -> torch.Tensor:
        return 0.5 * place.square().sum() + (place.detach() < 2.6).float().sum().mul(math.inf).mul(0)

    found = landscape.along_gradient([place], loss, rate=0.1, multiples=multiples)
    assert math.isnan(found["loss_range"])


def test_looking_along_the_gradient_leaves_no_trace(composed: Compose) -> None:
    cfg, _ = composed("setting=inception", "variant=bn_baseline", "model.auxiliary=true")
    images, labels = Inputs(cfg, load("cifar10_sample")).held_out(0, 16)
    net = build.network(cfg)((3, 32, 32), 10, torch.Generator().manual_seed(0), images).train()
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    draws = torch.get_rng_state()
    row = landscape.measure(net, images, labels, 0.1)
    assert all(math.isfinite(value) and value > 0 for value in row.values())
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(module.training for module in net.modules())
    assert all(p.grad is not None and p.grad.eq(1).all() for p in net.parameters())
    assert torch.equal(torch.get_rng_state(), draws)


def test_the_first_layers_gradient_over_the_last_ones(composed: Compose) -> None:
    """Of one step, so of the initial weights, as the probe has them layer by layer."""
    overrides = ("setting=mnist", "model.depth=5", "model.act=relu", "study=t", "steps=1", "probe.points=1")
    cfg, _ = composed(*overrides, "measure.gradient_ratio=true")
    run(cfg, "a")
    directory = cfg.machine.results / "smoke" / "t" / "a" / "seed=0"
    rows = [row for row in records.read_rows(directory / records.ACTIVATIONS) if row["step"] == 1]
    assert [row["layer"] for row in rows] == [f"act{n}" for n in range(1, 6)]
    record = records.read_run_json(directory)
    assert record is not None
    assert record["summary"]["gradient_ratio"] == pytest.approx(rows[0]["gradient"] / rows[-1]["gradient"])


@pytest.mark.slow
def test_measuring_changes_no_number_of_training(composed: Compose) -> None:
    """Everything measured at once, against nothing: the same curve to the bit, and more columns beside."""
    ground = ("setting=inception", "variant=bn_x5_sigmoid", "norm=tracking", "study=t", "steps=2", "evaluate.times=1")
    everything = [f"measure.{key}=true" for key in MEASURED]
    statistics = "measure.statistics={batches: 2, test_batch_sizes: [4, 50]}"
    bare, _ = composed(*ground)
    full, _ = composed(*ground, *everything, statistics)
    run(bare, "bare")
    run(full, "full")
    directories = [bare.machine.results / "smoke" / "t" / arm / "seed=0" for arm in ("bare", "full")]
    plain, rich = ([*records.read_rows(directory / records.CURVES)] for directory in directories)
    assert [{key: row[key] for key in other} for row, other in zip(rich, plain, strict=True)] == plain
    landscapes = {f"landscape_{key}" for key in ("loss_range", "gradient_change", "gradient_change_relative")}
    assert {"fit_loss", "fit_accuracy"} | landscapes == set(rich[-1]) - set(plain[-1])
    probed = [*records.read_rows(directories[1] / records.ACTIVATIONS)]
    assert all({"linear_share", "linear_share_wide"} <= set(row) for row in probed)
    assert any("singular_values" in row for row in probed)
    summaries = [records.read_run_json(directory) for directory in directories]
    numbers = [record["summary"] for record in summaries if record is not None]
    assert numbers[0].items() <= numbers[1].items()
    for key in landscapes:
        assert numbers[1][key] == pytest.approx(sum(row[key] for row in rich) / len(rich), rel=1e-6)
    # The average that the net itself is evaluated with is one of those recorded beside.
    assert numbers[1]["test_loss_moving_0.1"] == pytest.approx(numbers[1]["test_loss"], rel=1e-6)
    assert len({numbers[1][f"test_loss_{name}"] for name in ("population", "moving_1", "batch_4", "batch_50")}) == 4


def test_a_number_held_against_another_of_its_own_run(tmp_path: Path) -> None:
    rule = load_ledger()["population-vs-moving"]
    keys = (rule.metric.key, rule.metric.against)  # type: ignore[union-attr]
    for seed in range(3):
        summary = dict(zip(keys, (0.500 + seed / 1000, 0.501), strict=True))
        options: Any = {"choices": {"norm": "tracking"}, "config": {"batch_size": 32}, "summary": summary}
        synthetic.write(tmp_path, "ablation_statistics", "a", seed, [0.1, 0.5], **options)
    (verdict,) = claims.judge({rule.id: rule}, records.load_runs(tmp_path))
    assert (verdict.verdict, verdict.n, verdict.control) == ("reproduced", 3, "0.501 0.501 0.501")
    assert verdict.estimate == pytest.approx(0.0, abs=1e-9)
