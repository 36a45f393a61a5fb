"""Algorithm 2: population statistics, the frozen net, folding; and batch statistics that leave no trace."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from bn_replication import norms
from bn_replication.errors import UserError
from bn_replication.models.inception import Inception
from bn_replication.models.mlp import MLP


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def randomized(net: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter and running statistic a value of its own, as training would."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in net.double().state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2, generator=rng)
            elif tensor.is_floating_point():
                tensor.add_(0.3 * torch.randn(tensor.shape, generator=rng, dtype=tensor.dtype))
    return net


def state(net: nn.Module) -> tuple[dict[str, Tensor], list[bool], list[int]]:
    """Everything that an observer could have left behind: tensors, modes, hooks."""
    modules = list(net.modules())
    return (
        {name: tensor.clone() for name, tensor in net.state_dict().items()},
        [module.training for module in modules],
        [len(module._forward_pre_hooks) + len(module._forward_hooks) for module in modules],
    )


def assert_unchanged(net: nn.Module, before: tuple[dict[str, Tensor], list[bool], list[int]]) -> None:
    tensors, modes, hooks = state(net)
    assert_close(tensors, before[0], rtol=0, atol=0)
    assert (modes, hooks) == before[1:]


# --- population statistics ------------------------------------------------------------------------------


def test_two_batches_worked_by_hand() -> None:
    net = nn.Sequential(norms.BatchNorm(1)).double()
    batches = [torch.tensor([[0.0], [2.0]]).double(), torch.tensor([[1.0], [7.0]]).double()]
    # Batch means 1 and 4; biased variances 1 and 9; m = 2, so m/(m-1) = 2. (Of all four values at once the
    # variance would be another: 29/3.)
    mean, var = norms.population_statistics(net, batches)["0"]
    assert mean.tolist() == [2.5]
    assert var.tolist() == [2 * (1 + 9) / 2]


def test_a_feature_map_counts_its_locations() -> None:
    net = nn.Sequential(norms.ReferenceBatchNorm(1)).double()
    batch = torch.tensor([0.0, 2.0, 4.0, 6.0]).double().view(2, 1, 2, 1)  # m' = 2 * 2 * 1; biased variance 5
    assert norms.population_statistics(net, [batch])["0"].var.tolist() == pytest.approx([5 * 4 / 3])
    per_activation = nn.Sequential(norms.PerActivationBatchNorm(1)).double()
    norms.materialize(per_activation, batch)
    found = norms.population_statistics(per_activation, [batch])["0"]  # m = 2: (0, 4) and (2, 6)
    assert found.mean.tolist() == [2, 4]
    assert found.var.tolist() == [8, 8]


def test_later_layers_see_what_training_shows_them() -> None:
    net = randomized(nn.Sequential(norms.BatchNorm(3), nn.Sigmoid(), nn.Linear(3, 2), norms.BatchNorm(2)))
    batches = [draw(6, 3, seed=seed) for seed in range(4)]
    first = net[0]
    seen = [net[2](torch.sigmoid(norms.batch_norm_forward(b, first.weight, first.bias, first.eps).y)) for b in batches]
    found = norms.population_statistics(net, batches)["3"]
    assert_close(found.mean, torch.stack([s.mean(0) for s in seen]).mean(0))
    assert_close(found.var, torch.stack([s.var(0, unbiased=True) for s in seen]).mean(0))


def test_the_pass_leaves_no_trace_and_draws_no_random_number() -> None:
    net = randomized(nn.Sequential(nn.Linear(3, 4), norms.BatchNorm(4), nn.ReLU(), nn.Dropout(0.5), nn.BatchNorm1d(4)))
    net[0].eval()
    before, random = state(net), torch.get_rng_state()
    batches = [draw(8, 3, seed=seed) for seed in range(3)]
    first = norms.population_statistics(net, iter(batches))
    assert_unchanged(net, before)
    assert torch.equal(torch.get_rng_state(), random)
    assert_close(norms.population_statistics(net, batches), first, rtol=0, atol=0)
    with pytest.raises(RuntimeError):  # a batch of another width, halfway through
        norms.population_statistics(net, [batches[0], draw(8, 5)])
    assert_unchanged(net, before)


def test_no_batch_and_a_batch_of_one_are_refused() -> None:
    with pytest.raises(UserError, match="found 1 value a channel"):
        norms.population_statistics(nn.Sequential(norms.BatchNorm(1)), [torch.ones(1, 1)])
    with pytest.raises(UserError, match="found no batch"):
        norms.population_statistics(nn.Sequential(norms.BatchNorm(1)), [])


def test_frozen_is_a_copy_with_the_given_statistics() -> None:
    net = randomized(nn.Sequential(nn.Linear(3, 2), norms.BatchNorm(2), nn.ReLU(), norms.BatchNorm(2)))
    before = state(net)
    statistics = norms.population_statistics(net, [draw(6, 3)])
    frozen = norms.frozen(net, {"1": statistics["1"]})
    assert_unchanged(net, before)
    assert_close(frozen[1].running_mean, statistics["1"].mean)
    assert_close(frozen[1].running_var, statistics["1"].var)
    assert_close(frozen[3].running_var, net[3].running_var)  # had no entry
    assert not any(module.training for module in frozen.modules())
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    with pytest.raises(UserError, match="statistics of '0', expected names among 1, 3"):
        norms.frozen(net, {"0": statistics["1"]})


# --- folding --------------------------------------------------------------------------------------------


def batch_norm_count(net: nn.Module) -> int:
    return len(norms.batch_norms(net))


def test_linear_and_convolution_fold_with_and_without_bias() -> None:
    net = randomized(
        nn.Sequential(
            nn.Sequential(nn.Conv2d(2, 4, 3, groups=2, bias=False), nn.Conv2d(4, 6, 1, bias=False)),  # separable
            norms.BatchNorm(6),
            nn.ReLU(),
            nn.Sequential(nn.Conv2d(6, 3, 2), norms.ReferenceBatchNorm(3, affine=False), nn.Sigmoid()),
            nn.Flatten(),
            nn.Linear(27, 5),
            norms.NoNorm(5),
            nn.BatchNorm1d(5),
            norms.BatchNorm(5),
            nn.Linear(5, 2, bias=False),
            norms.DetachedBatchNorm(2),
        )
    )
    before = state(net)
    folded, x = norms.fold(net), draw(4, 2, 6, 6)
    assert_unchanged(net, before)
    assert batch_norm_count(folded) == 0
    assert_close(folded(x), net.eval()(x), rtol=1e-12, atol=1e-12)


def test_what_cannot_fold_stays_and_computes_the_same() -> None:
    shared = nn.Linear(3, 3)
    same = nn.ReLU()
    net = randomized(
        nn.Sequential(
            *(norms.BatchNorm(3), same, norms.BatchNorm(3)),  # first in the net; after a nonlinearity
            *(shared, norms.BatchNorm(3), shared, norms.BatchNorm(3)),  # one map in two places
            *(nn.Linear(3, 3), same, norms.BatchNorm(3)),  # after the second use of a nonlinearity
            *(nn.Linear(3, 4), norms.LayerNorm(4)),
        )
    )
    folded, x = norms.fold(net), draw(4, 3)
    assert batch_norm_count(folded) == 5
    assert_close(folded(x), net.eval()(x), rtol=1e-12, atol=1e-12)


def test_per_activation_stays_behind_a_convolution_and_folds_behind_a_linear_map() -> None:
    layer = norms.PerActivationBatchNorm
    net = nn.Sequential(nn.Conv2d(1, 2, 2), layer(2), nn.Flatten(), nn.Linear(8, 3), layer(3)).double()
    x = draw(4, 1, 3, 3)
    norms.materialize(net, x)
    folded = norms.fold(randomized(net))
    assert list(norms.batch_norms(folded)) == ["1"]
    assert_close(folded(x), net.eval()(x), rtol=1e-12, atol=1e-12)


def test_a_module_may_fold_its_own() -> None:
    class Joined(nn.Module):
        """One convolution whose halves are normalised apart."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 5, 1, bias=False)
            self.halves = nn.ModuleList([norms.BatchNorm(2), norms.BatchNorm(3)])

        def forward(self, x: Tensor) -> Tensor:
            parts = self.conv(x).split((2, 3), dim=1)
            return torch.cat([half(part) for half, part in zip(self.halves, parts, strict=True)], dim=1)

        def fold_norm(self) -> None:
            affine = [found for half in self.halves if (found := norms.frozen_affine(half)) is not None]
            norms.absorb(self.conv, *(torch.cat(part) for part in zip(*affine, strict=True)))
            self.halves = nn.ModuleList([nn.Identity(), nn.Identity()])

    net = randomized(nn.Sequential(Joined(), nn.ReLU()))
    folded, x = norms.fold(net), draw(4, 2, 3, 3)
    assert batch_norm_count(folded) == 0
    assert batch_norm_count(net) == 2
    assert_close(folded(x), net.eval()(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("placement", ["before", "after"])
def test_the_papers_nets_fold(placement: str) -> None:
    norm_layer = partial(norms.BatchNorm, eps=1e-5)
    inception = partial(Inception, norm_layer, image_size=32, width=0.125, classes=10, placement=placement)
    mlp = partial(MLP, in_features=3 * 32 * 32, hidden=(9, 8), norm_layer=norm_layer, placement=placement)
    for build in (inception, mlp):
        net, x = randomized(build()), draw(2, 3, 32, 32)
        folded = norms.fold(net)
        assert (batch_norm_count(folded) == 0) == (placement == "before")
        expected = net.eval()(x)
        assert_close(folded(x), expected, rtol=1e-9, atol=1e-9 * expected.abs().max().item())


def test_folding_in_float32_is_rounded_once() -> None:
    net = randomized(nn.Sequential(nn.Linear(20, 10), norms.BatchNorm(10)))
    x = draw(8, 20)
    expected = net.eval()(x)
    assert_close(norms.fold(net.float())(x.float()).double(), expected, rtol=1e-5, atol=1e-5)


# --- batch statistics -----------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [norms.BatchNorm, norms.ReferenceBatchNorm, norms.DetachedBatchNorm, nn.BatchNorm1d])
@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("training", [True, False])
def test_batch_statistics_are_used_and_nothing_is_written(
    layer: type[nn.Module], momentum: float | None, training: bool
) -> None:
    net = randomized(nn.Sequential(nn.Linear(3, 4), layer(4, momentum=momentum), nn.Sigmoid())).train(training)
    x = draw(7, 3)
    expected = copy.deepcopy(net).train()(x)
    before, buffers = state(net), list(net.buffers())
    with norms.batch_statistics(net):
        assert_close(net(x), expected)
        with norms.batch_statistics(net):  # within itself
            assert_close(net(x), expected)
        assert_close(net(x), expected)
    assert_unchanged(net, before)
    # The same tensors: whoever holds them, an optimiser or a captured graph, still holds the layer's.
    assert all(a is b for a, b in zip(net.buffers(), buffers, strict=True))
    running = net.eval()(x)
    assert (running - expected).abs().max() > 1e-3  # so that the above can fail


def test_batch_statistics_end_with_an_exception_too() -> None:
    net = randomized(nn.Sequential(norms.BatchNorm(3)))
    before = state(net)
    with pytest.raises(ZeroDivisionError), norms.batch_statistics(net):
        raise ZeroDivisionError
    assert_unchanged(net, before)


def test_batch_statistics_of_one_example_are_refused_in_eval_mode() -> None:
    net = nn.Sequential(norms.BatchNorm(3)).eval()
    with pytest.raises(UserError, match="found 1 value a channel"), norms.batch_statistics(net):
        net(torch.ones(1, 3))
