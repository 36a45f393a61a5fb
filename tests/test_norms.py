"""The layers: Algorithm 1 against its definition and against PyTorch, and what each other layer promises."""

from __future__ import annotations

import copy
import functools
import inspect
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from bn_replication import norms
from bn_replication.errors import UserError
from bn_replication.models.layers import needs_bias

SHAPES = {"fully connected": (12, 3), "convolutional": (4, 3, 5, 2)}
shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
CONFIGS = sorted((Path(__file__).parents[1] / "configs" / "norm").glob("*.yaml"))
CONFIGS = [path for path in CONFIGS if path.stem != "weight"]  # which needs a map in front; its tests are its own
# Those that take a constant out of each channel again, so that a bias in front has no effect on the output.
SHIFTED = {"batch", "reference", "batch_no_affine", "per_activation", "detached", "tracking", "zca", "sync", "noisy"}


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=rng, dtype=torch.float64)
    # Channels of unlike mean and deviation, lest a mix-up of channels go unseen.
    scale = torch.logspace(-0.5, 0.5, shape[1], dtype=torch.float64).view(1, -1, *[1] * (len(shape) - 2))
    return (scale * x + 3 * scale.flip(1)).to(dtype)


def batch_norm(x: Tensor, gamma: Tensor, beta: Tensor, eps: float = 1e-5) -> Tensor:
    return norms.Algorithm1.apply(x, gamma, beta, eps)[0]


def constants(channels: int) -> tuple[Tensor, Tensor]:
    return torch.linspace(0.5, 2, channels).double(), torch.linspace(-1, 1, channels).double()


# --- Algorithm 1 ----------------------------------------------------------------------------------------


@shapes
def test_forward_is_the_definition_by_plain_loops(shape: tuple[int, ...]) -> None:
    x, (gamma, beta) = draw(*shape), constants(shape[1])
    y, x_hat, mean, var = norms.batch_norm_forward(x, gamma, beta, 1e-5)
    for c in range(shape[1]):
        values = x[:, c].flatten().tolist()
        mu = math.fsum(values) / len(values)
        sigma2 = math.fsum((v - mu) ** 2 for v in values) / len(values)
        hats = [(v - mu) / math.sqrt(sigma2 + 1e-5) for v in values]
        assert mean[c].item() == pytest.approx(mu, rel=1e-13)
        assert var[c].item() == pytest.approx(sigma2, rel=1e-13)
        assert x_hat[:, c].flatten().tolist() == pytest.approx(hats, rel=1e-12)
        assert y[:, c].flatten().tolist() == pytest.approx(
            [gamma[c].item() * hat + beta[c].item() for hat in hats], rel=1e-12
        )


@shapes
@pytest.mark.parametrize("eps", [0.0, 1e-5, 0.1])
def test_backward_passes_gradcheck(shape: tuple[int, ...], eps: float) -> None:
    inputs = [v.requires_grad_() for v in (draw(*shape), *constants(shape[1]))]
    assert torch.autograd.gradcheck(functools.partial(batch_norm, eps=eps), inputs)


def test_a_second_derivative_is_refused_and_not_wrong() -> None:
    x = draw(12, 3).requires_grad_()
    gradient = torch.autograd.grad(batch_norm(x, *constants(3)).pow(3).sum(), x, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@shapes
@pytest.mark.parametrize("layer", [norms.BatchNorm, norms.ReferenceBatchNorm])
@pytest.mark.parametrize("momentum", [0.1, 0.7, None])
@pytest.mark.parametrize("affine", [True, False])
def test_several_steps_agree_with_pytorch(
    layer: type[norms.BatchNorm], shape: tuple[int, ...], momentum: float | None, affine: bool
) -> None:
    peer_class = nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d
    ours = layer(shape[1], momentum=momentum, affine=affine).double()
    peer = peer_class(shape[1], momentum=momentum, affine=affine).double()
    peer.load_state_dict(ours.state_dict())  # the same names and shapes, or this raises
    optimizers = [torch.optim.SGD([*m.parameters(), torch.zeros(1)], lr=0.1) for m in (ours, peer)]
    for step in range(4):
        x, target = draw(*shape, seed=step), draw(*shape, seed=100 + step)
        gradients = []
        for model, optimizer in zip((ours, peer), optimizers, strict=True):
            leaf = x.clone().requires_grad_()
            optimizer.zero_grad()
            (model(leaf) - target).square().mean().backward()
            optimizer.step()
            gradients.append(leaf.grad)
        assert_close(*gradients, rtol=1e-11, atol=1e-13)
        assert_close(ours.state_dict(), peer.state_dict(), rtol=1e-11, atol=1e-13)
    x = draw(*shape, seed=50)
    assert_close(ours.eval()(x), peer.eval()(x), rtol=1e-11, atol=1e-13)


def test_the_running_variance_is_unbiased_and_momentum_weighs_the_new_batch() -> None:
    x = torch.tensor([[1.0], [3.0]])  # mean 2, biased variance 1, unbiased 2
    for layer in (norms.BatchNorm(1, momentum=0.25), norms.ReferenceBatchNorm(1, momentum=0.25)):
        assert layer(x).flatten().tolist() == pytest.approx([-1, 1], rel=1e-4)  # normalised with the biased one
        assert layer.running_mean.item() == 0.75 * 0 + 0.25 * 2
        assert layer.running_var.item() == 0.75 * 1 + 0.25 * 2


def test_bfloat16_is_normalised_with_float32_statistics() -> None:
    x = draw(64, 3, 4, 4, dtype=torch.bfloat16)
    ours, peer = norms.ReferenceBatchNorm(3), norms.BatchNorm(3)
    found, expected = ours(x), peer(x)
    assert found.dtype == expected.dtype == torch.bfloat16
    assert_close(found, expected)
    assert_close(ours.running_var, peer.running_var)


def test_channels_last_is_kept_and_changes_nothing() -> None:
    x = draw(4, 3, 5, 2)
    for layer in (norms.BatchNorm(3).double(), norms.ReferenceBatchNorm(3).double()):
        y = layer(x.contiguous(memory_format=torch.channels_last))
        assert y.is_contiguous(memory_format=torch.channels_last)
        assert_close(y, layer(x))


# --- properties the paper names -------------------------------------------------------------------------


@given(power=st.integers(-20, 20), seed=st.integers(0, 99), convolutional=st.booleans())
@settings(max_examples=40)
def test_doubling_the_weights_leaves_every_bit_of_the_output(power: int, seed: int, convolutional: bool) -> None:
    # Multiplying by a power of two rounds nothing: with eps = 0 the identity of Sec. 3.3 is exact to the bit.
    u, weight = draw(9, 4, seed=seed), draw(3, 4, seed=seed + 100)
    if convolutional:
        u, weight = u.view(9, 1, 2, 2), weight.view(3, 1, 2, 2)

    def net(w: Tensor) -> Tensor:
        wu = nn.functional.conv2d(u, w, padding=1) if convolutional else u @ w.T
        return batch_norm(wu, *constants(3), eps=0.0)

    assert torch.equal(net(2.0**power * weight), net(weight))


@given(scale=st.floats(1e-3, 1e3), shift=st.floats(-100, 100), seed=st.integers(0, 99))
@settings(max_examples=40)
def test_an_affine_map_of_a_channel_is_undone_and_gamma_beta_can_redo_it(scale: float, shift: float, seed: int) -> None:
    x = draw(10, 3, seed=seed)
    moved = scale * x + shift
    # Rounding of the mean is magnified by its ratio to the deviation, up to 1e6 here.
    assert_close(batch_norm(moved, *constants(3), eps=0.0), batch_norm(x, *constants(3), eps=0.0), rtol=0, atol=1e-8)
    mean, var = norms.batch_moments(moved)
    assert_close(batch_norm(moved, var.sqrt(), mean, eps=0.0), moved, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
@shapes
def test_shifts_tells_whether_a_bias_in_front_is_redundant(path: Path, shape: tuple[int, ...]) -> None:
    norm_layer = configured(path, **({"mean": 0.0, "spread": 1.0, "jitter": 0.0} if path.stem == "noisy" else {}))
    channels = 6
    x, bias = draw(shape[0], channels, *shape[2:]), torch.linspace(-2, 3, channels, dtype=torch.float64)
    bias = bias.view(1, -1, *[1] * (len(shape) - 2)).requires_grad_()
    layer = norm_layer(channels).double()
    norms.materialize(layer, x)
    y = layer(x + bias)
    unmoved = bool((y - layer(x)).abs().max() < 1e-9)
    gradient = torch.autograd.grad((y * draw(*y.shape, seed=1)).sum(), bias)[0]
    # Redundant: neither the output nor the gradient knows it. (Detached: the gradient alone.)
    assert needs_bias(norm_layer, "before") != (unmoved and bool(gradient.abs().max() < 1e-9))
    assert unmoved == (path.stem in SHIFTED)


def test_whether_a_bias_is_needed_is_told_of_closures_and_of_pytorchs_own() -> None:
    assert not needs_bias(lambda channels: norms.BatchNorm(channels), "before")
    assert not needs_bias(nn.BatchNorm2d, "before")
    assert needs_bias(nn.BatchNorm2d, "after")
    assert needs_bias(nn.Identity, "before")


# --- errors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [norms.BatchNorm, norms.ReferenceBatchNorm, norms.DetachedBatchNorm])
def test_a_batch_of_one_value_a_channel_is_refused_in_training_alone(layer: type[norms.BatchNorm]) -> None:
    for x in (draw(1, 3), draw(1, 3, 1, 1)):
        with pytest.raises(UserError, match=r"found 1 value a channel.*expected at least 2.*batch_size=2"):
            layer(3).double()(x)
        assert layer(3).double().eval()(x).shape == x.shape
    assert layer(3).double()(draw(1, 3, 2, 1)).shape == (1, 3, 2, 1)  # two locations are two values
    with pytest.raises(UserError, match="found 1 value a channel"):
        norms.PerActivationBatchNorm(3).double()(draw(1, 3, 2, 1))  # but one of each activation


def test_other_shapes_and_ranges_are_refused() -> None:
    with pytest.raises(UserError, match=r"shape \(4, 3, 2\), expected \(N, 3\) or \(N, 3, H, W\)"):
        norms.BatchNorm(3).double()(draw(4, 3, 2))
    with pytest.raises(UserError, match=r"shape \(4, 2\), expected \(N, 3\)"):
        norms.ReferenceBatchNorm(3).double()(draw(4, 2))
    for layer, eps in ((norms.BatchNorm, 0.0), (norms.ReferenceBatchNorm, -1.0), (norms.BatchNorm, math.nan)):
        with pytest.raises(UserError, match=f"eps={eps}, expected more than 0"):
            layer(3, eps=eps)
    norms.ReferenceBatchNorm(3, eps=0.0)
    with pytest.raises(UserError, match=r"momentum=1\.5"):
        norms.BatchNorm(3, momentum=1.5)
    with pytest.raises(UserError, match="groups=0"):
        norms.GroupNorm(3, groups=0)
    with pytest.raises(UserError, match="found one value to normalise"):
        norms.GroupNorm(1).double()(draw(5, 1))
    with pytest.raises(UserError, match="expected"):
        norms.LayerNorm(3).double()(draw(4, 3, 2))


# --- the layers it is compared with ---------------------------------------------------------------------


@shapes
def test_detached_statistics_change_the_gradient_alone(shape: tuple[int, ...]) -> None:
    x, (gamma, beta) = draw(*shape).requires_grad_(), constants(shape[1])
    detached, whole = norms.DetachedBatchNorm(shape[1]).double(), norms.BatchNorm(shape[1]).double()
    for layer in (detached, whole):
        layer.weight.data, layer.bias.data = gamma, beta
    y, grad_y = detached(x), draw(*shape, seed=1)
    assert_close(y, whole(x))
    assert_close(detached.state_dict(), whole.state_dict())
    given, true = (torch.autograd.grad(layer(x), x, grad_y)[0] for layer in (detached, whole))
    # Of the three paths from x to the loss only the direct one is left.
    _, var = norms.batch_moments(x)
    assert_close(given, grad_y * (gamma / (var + 1e-5).sqrt()).view(1, -1, *[1] * (len(shape) - 2)))
    assert (given - true).abs().max() > 0.1


@shapes
def test_layer_norm_normalises_each_example(shape: tuple[int, ...]) -> None:
    x = draw(*shape)
    y = norms.LayerNorm(shape[1], eps=0.0).double()(x).flatten(1)
    assert_close(y.mean(1), torch.zeros(shape[0]).double(), atol=1e-12, rtol=0)
    assert_close(y.square().mean(1), torch.ones(shape[0]).double())
    if len(shape) == 2:
        assert_close(norms.LayerNorm(shape[1]).double()(x), nn.LayerNorm(shape[1]).double()(x))


@pytest.mark.parametrize(
    ("channels", "groups", "used"), [(64, 32, 32), (100, 32, 25), (24, 32, 12), (24, 5, 4), (7, 4, 1)]
)
def test_group_norm_takes_the_largest_divisor(channels: int, groups: int, used: int) -> None:
    layer = norms.GroupNorm(channels, groups=groups, eps=0.0).double()
    assert layer.num_groups == used
    y = layer(draw(3, channels, 2, 2)).reshape(3, used, -1)
    assert_close(y.mean(2), torch.zeros(3, used).double(), atol=1e-12, rtol=0)
    assert_close(y.square().mean(2), torch.ones(3, used).double())


@shapes
def test_noise_is_of_the_stated_distribution_and_in_training_alone(shape: tuple[int, ...]) -> None:
    x = draw(200, *shape[1:])
    noisy, plain = norms.NoisyBatchNorm(shape[1]).double(), norms.BatchNorm(shape[1]).double()
    shifts, scales = [], []
    for seed in range(200):
        torch.manual_seed(seed)
        y, clean = noisy(x), plain(x)
        axes = (0, *range(2, x.dim()))
        shifts.append(y.mean(axes))  # that of what BN gives is 0
        scales.append((y * clean).mean(axes) / clean.square().mean(axes))
    means, spreads = torch.cat(shifts), torch.cat(scales)
    # Uniform in -0.5..0.5 and in 1..1.25, but for the mean of 200 examples' own 0.1.
    assert_close(means.std(), torch.tensor(1 / 12**0.5).double(), rtol=0.1, atol=0)
    assert means.abs().max() < 0.55
    assert_close(spreads.mean(), torch.tensor(1.125).double(), rtol=0.01, atol=0)
    assert 0.95 < spreads.min() < spreads.max() < 1.3
    assert_close(noisy.running_mean, plain.running_mean)
    state = torch.get_rng_state()
    assert torch.equal(noisy.eval()(x), plain.eval()(x))
    with norms.batch_statistics(noisy), norms.last_noise(noisy), norms.batch_statistics(plain):
        last = noisy(x) - plain(x)
        assert_close(noisy(x), norms._per_channel(noisy.scale, x) * plain(x) + norms._per_channel(noisy.shift, x))
    assert last.abs().max() > 0.01
    assert torch.equal(noisy(x), plain(x))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("jitter", [0.1, 0.3])
def test_within_a_step_every_value_has_a_jitter_of_its_own(jitter: float) -> None:
    """About the channel's shift and scale: seen alone where what is scaled is 0, and where it is large."""
    x = draw(100, 2, 10, 10)
    layer = norms.NoisyBatchNorm(2, jitter=jitter).double()
    with torch.no_grad():  # what BN gives is beta
        layer.weight.zero_()
        layer.bias.copy_(torch.tensor([0, 1e6]))
    torch.manual_seed(0)
    y = layer(x).detach()
    of_shift = (y[:, 0] - layer.shift[0]).flatten()
    of_scale = (y[:, 1] / 1e6 - layer.scale[1]).flatten()  # the shift is a millionth here
    assert len(of_shift.unique()) == len(of_scale.unique()) == 10_000
    # Uniform: within its bounds up to them, the deviation 1 / sqrt(3) of the bound.
    assert 0.999 * jitter < of_shift.abs().max() <= jitter
    assert of_shift.std().item() == pytest.approx(jitter / 3**0.5, rel=0.03)
    assert of_shift.mean().item() == pytest.approx(0, abs=0.03 * jitter)
    # Normal: 68% within one deviation, 95% within two.
    assert of_scale.std().item() == pytest.approx(jitter, rel=0.03)
    assert of_scale.mean().item() == pytest.approx(0, abs=0.05 * jitter)
    for deviations, share in ((1, 0.6827), (2, 0.9545)):
        within = (of_scale.abs() < deviations * jitter).double().mean().item()
        assert within == pytest.approx(share, abs=0.02)


@pytest.mark.parametrize("jitter", [0.1, 0.3])
def test_noise_is_that_of_scale_times_output_plus_shift(jitter: float) -> None:
    """The deviation from it has the variance jitter^2 / 3 of the shift's jitter and jitter^2 y^2 of the scale's."""
    x = draw(20_000, 3)
    noisy, plain = norms.NoisyBatchNorm(3, jitter=jitter).double(), norms.BatchNorm(3).double()
    torch.manual_seed(0)
    y, clean = noisy(x).detach(), plain(x).detach()
    deviation = y - (noisy.scale * clean + noisy.shift)
    for low, high in ((0.0, 0.3), (0.3, 1.0), (1.0, 2.0), (2.0, 9.0)):
        here = (clean.abs() >= low) & (clean.abs() < high)
        expected = jitter**2 / 3 + jitter**2 * clean[here].square().mean().item()
        assert deviation[here].square().mean().item() == pytest.approx(expected, rel=0.1), (low, high)


@shapes
def test_weight_norm_is_pytorchs(shape: tuple[int, ...]) -> None:
    """Same function, same gradients and so the same training; it starts as the plain map."""
    x, target = draw(*shape), torch.linspace(-1, 1, shape[0]).double()
    convolutional = len(shape) == 4

    def front(bias: bool) -> nn.Linear | nn.Conv2d:
        map_ = nn.Conv2d(3, 5, 2, bias=bias) if convolutional else nn.Linear(3, 5, bias=bias)
        nn.init.normal_(map_.weight, generator=torch.Generator().manual_seed(0))
        return map_.double()

    plain, theirs = front(bias=False), front(bias=True)
    ours = nn.Sequential(front(bias=False), norms.WeightNorm(5).double())
    norms.materialize(ours, x)
    assert_close(ours(x), plain(x))
    assert theirs.bias is not None
    nn.init.zeros_(theirs.bias)
    nn.utils.parametrizations.weight_norm(theirs)
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.1) for net in (ours, theirs)]
    for _ in range(4):
        outputs = []
        for net, optimizer in zip((ours, theirs), optimizers, strict=True):
            outputs.append(net(x))
            optimizer.zero_grad()
            (outputs[-1].flatten(1).square().mean(1) - target).square().mean().backward()
            optimizer.step()
        assert_close(*outputs)
    assert (ours(x) - plain(x)).abs().max() > 0.01
    twin = copy.deepcopy(ours)  # stands behind its own map, not behind the one it was copied with
    before = twin(x)
    with torch.no_grad():
        ours[0].weight.mul_(torch.linspace(1, 2, ours[0].weight.numel()).view_as(ours[0].weight))
    assert torch.equal(twin(x), before)


def test_weight_norm_wants_a_map_of_its_width_in_front() -> None:
    with pytest.raises(UserError, match="norm=weight alone"):
        norms.WeightNorm(3)(draw(4, 3))
    with pytest.raises(UserError, match="found one of 5 in front"):
        norms.materialize(nn.Sequential(nn.Linear(3, 5), norms.WeightNorm(3)), draw(4, 3))


@pytest.mark.parametrize("path", [each for each in CONFIGS if each.stem != "sync"], ids=lambda path: path.stem)
def test_every_norm_takes_bfloat16_where_autocast_gives_it(path: Path) -> None:
    layer, x = configured(path)(4), draw(16, 4, dtype=torch.float32)
    norms.materialize(layer, x)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(nn.functional.linear(x, torch.eye(4)))
    assert torch.isfinite(y).all()
    assert {buffer.dtype for buffer in layer.buffers()} <= {torch.float32, torch.int64}


def test_no_norm_is_the_identity_of_any_width() -> None:
    x = draw(4, 3)
    assert norms.NoNorm(99)(x) is x
    assert not list(norms.NoNorm(99).parameters())


def test_per_activation_is_batch_norm_of_the_flattened_map() -> None:
    x = draw(6, 3, 2, 4).requires_grad_()
    ours, peer = norms.PerActivationBatchNorm(3).double(), nn.BatchNorm1d(24).double()
    y, expected = ours(x), peer(x.flatten(1)).view_as(x)
    assert_close(y, expected)
    assert_close(ours.state_dict(), peer.state_dict())
    grad_y = draw(6, 3, 2, 4, seed=1)
    assert_close(torch.autograd.grad(y, x, grad_y), torch.autograd.grad(expected, x, grad_y))


@pytest.mark.parametrize("affine", [True, False])
def test_per_activation_round_trips_through_a_state_dict(affine: bool) -> None:
    def build() -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(1, 3, 2), norms.PerActivationBatchNorm(3, affine=affine), nn.ReLU()).double()

    trained, x = build(), draw(6, 1, 3, 4)
    for _ in range(3):
        trained(x)
    if affine:
        nn.init.normal_(trained[1].weight, generator=torch.Generator().manual_seed(1))
    fresh = build()
    fresh.load_state_dict(trained.state_dict())
    assert_close(fresh.state_dict(), trained.state_dict(), rtol=0, atol=0)
    assert torch.equal(fresh.eval()(x), trained.eval()(x))
    sized = build()
    norms.materialize(sized, x)
    sized.load_state_dict(trained.state_dict())
    assert torch.equal(sized.eval()(x), trained(x))


def test_materialize_sizes_and_changes_nothing_else() -> None:
    class WithHead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk = nn.Sequential(nn.Conv2d(1, 2, 2), norms.BatchNorm(2), nn.Dropout(0.5))
            self.head = nn.Sequential(nn.Conv2d(2, 3, 1), norms.PerActivationBatchNorm(3))

        def forward(self, x: Tensor) -> Tensor:
            x = self.trunk(x)
            return self.head(x) if self.training else x  # as an auxiliary classifier is

    net, x = WithHead(), draw(5, 1, 3, 3, dtype=torch.float32)
    net.trunk.eval()
    trunk, random = {k: v.clone() for k, v in net.trunk.state_dict().items()}, torch.get_rng_state()
    norms.materialize(net, x)
    assert net.head[1].weight.shape == (3 * 2 * 2,)
    assert net.head[1].running_mean.eq(0).all()
    assert net.head[1].running_var.eq(1).all()
    assert net.head[1].num_batches_tracked.item() == 0
    assert_close(net.trunk.state_dict(), trunk, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), random)
    assert net.training
    assert net.head.training
    assert not net.trunk.training


def test_a_layer_without_a_size_is_named() -> None:
    net = nn.Sequential(norms.PerActivationBatchNorm(3))
    with (
        pytest.raises(UserError, match=r"layer '0' without a size.*materialize"),
        norms.batch_statistics(net),
    ):
        pass


# --- configuration --------------------------------------------------------------------------------------


def configured(path: Path, **changes: object) -> Callable[[int], nn.Module]:
    values = yaml.safe_load(path.read_text()) | changes
    module, _, name = values.pop("_target_").rpartition(".")
    assert (module, values.pop("_partial_"), values.pop("name")) == ("bn_replication.norms", True, path.stem)
    return functools.partial(getattr(norms, name), **values)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_argument_is_written_out_and_none_is_idle(path: Path) -> None:
    def losses(norm_layer: Callable[[int], nn.Module]) -> list[float]:
        """Train a little, evaluate once: momentum shows in the evaluation."""
        rng = torch.Generator().manual_seed(0)
        first, last = torch.randn(3, 8, generator=rng), torch.randn(8, 1, generator=rng)
        x, t = torch.randn(16, 3, generator=rng), torch.randn(16, 1, generator=rng)
        norm = norm_layer(8)
        norms.materialize(norm, x @ first)
        optimizer = torch.optim.SGD([last.requires_grad_(), *norm.parameters()], lr=0.1)
        torch.manual_seed(0)
        for _ in range(3):
            loss = (torch.sigmoid(norm(x @ first)) @ last - t).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        trained = loss.item()
        norm.eval()
        return [trained, (torch.sigmoid(norm(x @ first)) @ last - t).square().mean().item()]

    norm_layer = configured(path)
    arguments = set(inspect.signature(norm_layer.func).parameters) - {"num_features"}
    assert set(norm_layer.keywords) == arguments
    usual = losses(norm_layer)
    changes = {"eps": 0.1, "momentum": 0.5, "affine": not norm_layer.keywords.get("affine"), "groups": 2}
    changes |= {"mean": 0.4, "spread": 1.5, "jitter": 0.2}
    # What `momenta` keeps stands beside the net; tests/test_ablations.py reads it.
    for name in arguments - {"momenta"}:
        changed = losses(functools.partial(norm_layer.func, **{**norm_layer.keywords, name: changes[name]}))
        assert changed != usual, f"{name} changes nothing"
