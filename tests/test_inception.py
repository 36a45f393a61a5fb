"""Fig. 5: its counts, the joined form against branch by branch, another port, and every option's effect."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.conftest import no_room
from torch import Tensor, nn
from torch.nn import functional as F

from bn_replication import norms
from bn_replication.errors import UserError
from bn_replication.models import activation
from bn_replication.models.architecture import (
    COUNTED,
    architecture_summary,
    lines,
    main,
    parameters,
    report,
    write_records,
)
from bn_replication.models.inception import Inception, Module, scaled, table
from bn_replication.models.layers import BranchNorm, Conv2d, ConvNormAct, PooledConv2d, ResponseNorm

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": norms.BatchNorm,
    "reference": norms.ReferenceBatchNorm,
    "layer": norms.LayerNorm,
    "group": functools.partial(norms.GroupNorm, groups=4),
    "none": norms.NoNorm,
}


def small(norm: Callable[[int], nn.Module] = norms.BatchNorm, seed: int = 0, **options: Any) -> Inception:
    """Return a 1/8-width net for 32 px in channels-last, its norms' gamma and beta away from 1 and 0."""
    generator = torch.Generator().manual_seed(seed)
    settings = {"classes": 10, "image_size": 32, "width": 0.125, "generator": generator, **options}
    net = Inception(norm, **settings).to(memory_format=torch.channels_last)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return net


def images(count: int = 8, size: int = 32, seed: int = 1) -> Tensor:
    x = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))
    return x.to(memory_format=torch.channels_last)


# --- counts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("as_printed_plain_stem_biases", 11_295_240),
        ("as_printed_plain_stem", 11_285_224),
        ("as_shapes_plain_stem", 11_194_984),
        ("as_shapes", 11_188_288),
        ("as_shapes_biases_no_bn_auxiliary", 13_594_824),
    ],
)
def test_parameter_counts(name, count):
    with torch.device("meta"):
        assert parameters(Inception(**{"norm_layer": norms.BatchNorm, **COUNTED[name]})) == count


def test_computation_against_googlenet():
    compute = architecture_summary()["compute"]
    assert compute["multiply_adds_as_printed_plain_stem"] == 2_032_600_064  # 2.03 GMAC
    assert compute["googlenet"] == 1_582_671_872  # 1.58 GMAC
    assert compute["ratio"] == pytest.approx(1.284, abs=1e-3)
    assert compute["ratio_as_shapes"] == pytest.approx(1.223, abs=1e-3)  # the separable stem costs less


@pytest.mark.parametrize(("reading", "late"), [("as_printed", (608, 608, 1056)), ("as_shapes", (576, 576, 1024))])
def test_output_sizes_are_those_of_fig5(reading, late):
    with torch.device("meta"):
        found = {line.part: line.output for line in lines(Inception(reading=reading), torch.empty(1, 3, 224, 224))}
    assert found["stem.conv1"] == (64, 112, 112)
    assert found["stem.pool1"] == (64, 56, 56)
    assert found["stem.conv2"] == (192, 56, 56)
    channels = dict(zip(("4c", "4d", "4e"), late, strict=True))
    channels |= {"3a": 256, "3b": 320, "3c": 576, "4a": 576, "4b": 576, "5a": 1024, "5b": 1024}
    for name, width in channels.items():
        side = 7 if name[0] == "5" or name == "4e" else 14 if name[0] == "4" or name == "3c" else 28
        assert found[f"inception{name}"] == (width, side, side)
    assert found["classifier"] == (1000,)


def test_small_form_works_on_8_4_and_2_pixels():
    with torch.device("meta"):
        found = {line.part: line.output[1:] for line in lines(Inception(image_size=32), torch.empty(1, 3, 32, 32))}
    assert [found[f"inception{name}"] for name in ("3a", "3b", "3c", "4d", "4e", "5b")] == [
        *((8, 8),) * 2,
        *((4, 4),) * 2,
        *((2, 2),) * 2,
    ]


def test_width_rounds_to_multiples_of_8():
    assert [scaled(n, 0.25) for n in (0, 32, 64, 96, 160, 352)] == [0, 8, 16, 24, 40, 88]
    assert scaled(64, 0.01) == 8
    assert all(scaled(n, 1.0) == n for row in table("as_shapes") for n in (*row[2:7], row.projection))


def test_command_prints_both_readings_and_files_the_records(tmp_path):
    text = report()
    assert "Fig. 5 as printed" in text
    assert "Fig. 5 as shapes" in text
    assert "11,295,240" in text
    from bn_replication.records import load_runs

    write_records(tmp_path, "smoke")
    runs = load_runs(tmp_path, study="architecture").set_index("arm")
    assert runs.loc["parameter-count", "summary.parameters"] == 11_295_240
    assert runs.loc["compute", "summary.ratio"] == pytest.approx(1.284, abs=1e-3)


def test_records_that_cannot_be_written_are_one_line_with_their_place(tmp_path, capsys):
    with no_room():
        assert main(["--out", str(tmp_path), "--scale", "smoke"]) == 2
    place, expected = tmp_path / "smoke/architecture", "expected room to write; free some space or mend --out"
    said = capsys.readouterr().err
    assert said.startswith(f"error: {place}/")
    assert said.endswith(f"found 'File too large', {expected} (make: RESULTS=...)\n")
    assert said.count("\n") == 1


# --- exact rewrites -----------------------------------------------------------------------------------------


def plain_conv(conv: nn.Module, x: Tensor, rows: slice = slice(None)) -> Tensor:
    """The convolution as everyone writes it; ``rows`` picks the output channels of one branch."""
    assert isinstance(conv, nn.Conv2d)
    if isinstance(conv, PooledConv2d):
        x = F.avg_pool2d(x, 3, stride=1, padding=1)
    bias = None if conv.bias is None else conv.bias[rows]
    return F.conv2d(x, conv.weight[rows], bias, conv.stride, conv.padding, groups=conv.groups)


def branch_layer(layer: ConvNormAct, x: Tensor, rows: slice, branch: int) -> Tensor:
    """One branch of a joined layer: its own convolution, its own norm over its own channels, its own act."""
    y = plain_conv(layer.conv, x, rows)
    norm = layer.norm.branches[branch] if isinstance(layer.norm, BranchNorm) else layer.norm
    if isinstance(norm, nn.modules.batchnorm._BatchNorm):
        y = F.batch_norm(y, None, None, norm.weight[rows], norm.bias[rows], training=True, eps=norm.eps)
    else:
        y = norm(y)
    return layer.act(y)


def branch_by_branch(net: Inception, x: Tensor) -> Tensor:
    """Fig. 5 with each branch computed alone, from the weights of ``net``; batch statistics."""
    whole = slice(None)

    def plain(layer: nn.Module, x: Tensor) -> Tensor:
        return branch_layer(layer, x, whole, 0) if isinstance(layer, ConvNormAct) else layer(x)

    for layer in net.stem:
        if isinstance(layer, ResponseNorm):
            x = F.local_response_norm(x, 5, alpha=1e-4, beta=0.75, k=1.0)
        else:
            x = plain_conv(layer, x) if isinstance(layer, nn.Conv2d) else plain(layer, x)
    for name in net.module_names:
        module = getattr(net, name)
        assert isinstance(module, Module)
        outputs, start = [], 0
        for branch, width in enumerate(filter(None, module.splits)):
            outputs.append(branch_layer(module.joint1x1, x, slice(start, start + width), branch))
            start += width
        *first, three, double = outputs
        three = plain(module.conv3x3, three)
        double = plain(module.double3x3_2, plain(module.double3x3_1, double))
        x = torch.cat([*first, three, double, plain(module.projection, module.pool(x))], dim=1)
    return net.classifier(x.mean((2, 3)))


@pytest.mark.parametrize("norm", NORMS)
def test_joined_form_is_branch_by_branch(norm):
    net = small(NORMS[norm], lrn=True).double()
    x, y = images(4).double(), torch.arange(4)
    expected = branch_by_branch(net, x.contiguous())
    gradients = torch.autograd.grad(F.cross_entropy(expected, y), list(net.parameters()))
    found = net(x)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    for ours, theirs in zip(
        torch.autograd.grad(F.cross_entropy(found, y), list(net.parameters())), gradients, strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9)


def test_norms_that_mix_channels_see_their_own_branch_only():
    net = small(norms.LayerNorm)
    x = images(2)
    before = net.inception3a.joint1x1(net.stem(x))
    first = net.inception3a.splits[0]
    with torch.no_grad():
        net.inception3a.joint1x1.conv.weight[first:] *= -3
    after = net.inception3a.joint1x1(net.stem(x))
    torch.testing.assert_close(after[:, :first], before[:, :first])
    assert not torch.equal(after[:, first:], before[:, first:])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("kernel", "side"), [(1, 5), (3, 2), (3, 4)])
def test_convolution_is_conv2d_to_the_second_derivative(bias, kernel, side):
    torch.manual_seed(0)
    conv = Conv2d(3, 4, kernel, padding=kernel // 2, bias=bias).double().to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, side, side, dtype=torch.double).to(memory_format=torch.channels_last).requires_grad_()
    torch.testing.assert_close(conv(x), plain_conv(conv, x))
    assert torch.autograd.gradgradcheck(lambda x, _: conv(x).tanh(), (x, conv.weight))


def test_pooled_convolution_is_pool_then_convolution():
    torch.manual_seed(0)
    conv = PooledConv2d(6, 4).double()
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(2, 6, 5, 5, dtype=torch.double).to(memory_format=layout)
        torch.testing.assert_close(conv(x), F.conv2d(F.avg_pool2d(x, 3, 1, 1), conv.weight, conv.bias))


def test_response_norm_is_pytorchs():
    x = 30 * images(2)  # large enough for the sum of squares to matter
    torch.testing.assert_close(ResponseNorm()(x), nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0)(x))
    assert (ResponseNorm()(x) - x).abs().max() > 0.1
    # At a deviation of 1 it is next to nothing; where alpha is carried over to that size, it is what it was at 64.
    one = images(2)
    assert (ResponseNorm()(one) - one).norm() < 2e-3 * one.norm()
    torch.testing.assert_close(ResponseNorm(64**2 * 1e-4)(one), ResponseNorm()(64 * one) / 64)


def test_layout_moves_nothing():
    net, x = small(lrn=True).double(), images().double()
    other = copy.deepcopy(net).to(memory_format=torch.contiguous_format)
    torch.testing.assert_close(net(x), other(x.contiguous()), rtol=1e-9, atol=1e-9)


def test_the_same_step_twice_is_equal_to_the_bit():
    x, y = images(), torch.arange(8)
    found = []
    for _ in range(2):
        net = small()
        F.cross_entropy(net(x), y).backward()
        found.append([p.grad for p in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


# --- another port -------------------------------------------------------------------------------------------


def peer() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its package's own deprecations
        from pytorchcv.models.bninception import bninception
    torch.manual_seed(0)
    return bninception(num_classes=10)


def copy_from(net: Inception, other: nn.Module) -> list[tuple[ConvNormAct, list[nn.Module]]]:
    """Copy pytorchcv's weights into ``net``; return our layers beside theirs, one or the branches joined."""
    stem, pairs = other.features.init_block, []
    pairs += [
        (net.stem.conv1, [stem.conv1]),
        (net.stem.reduce2, [stem.conv2.conv1]),
        (net.stem.conv2, [stem.conv2.conv2]),
    ]
    units = [unit for name, stage in other.features.named_children() if name.startswith("stage") for unit in stage]
    for name, unit in zip(net.module_names, units, strict=True):
        ours, branches = getattr(net, name), list(unit.branches)
        *first, three, double, pool = branches
        pairs.append((ours.joint1x1, [*first, three.conv1, double.conv1]))
        pairs += [
            (ours.conv3x3, [three.conv2]),
            (ours.double3x3_1, [double.conv2]),
            (ours.double3x3_2, [double.conv3]),
        ]
        if hasattr(pool, "conv"):
            pairs.append((ours.projection, [pool.conv]))
    with torch.no_grad():
        for layer, theirs in pairs:
            for name in ("weight", "bias"):
                getattr(layer.conv, name).copy_(torch.cat([getattr(one.conv, name) for one in theirs]))
                getattr(layer.norm, name).copy_(torch.cat([getattr(one.bn, name) for one in theirs]))
        net.classifier.load_state_dict(other.output.state_dict())
    return pairs


def test_parity_with_pytorchcv_in_a_training_step():
    other = peer().double()
    other.features.final_pool = nn.AdaptiveAvgPool2d(1)  # its 7x7 pool wants 224 px; the mean is the same there
    eps = other.features.init_block.conv1.bn.eps
    net = Inception(
        functools.partial(norms.BatchNorm, eps=eps),
        classes=10, image_size=96, reading="as_printed", separable=False, bias=True,
    ).double().to(memory_format=torch.channels_last)  # fmt: skip
    pairs = copy_from(net, other)
    assert parameters(net) == parameters(other)
    x, y = images(3, 96).double(), torch.arange(3)
    ours, theirs = net.train()(x), other.train()(x.contiguous())
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)
    F.cross_entropy(ours, y).backward()
    F.cross_entropy(theirs, y).backward()
    for layer, parts in pairs:
        gradient = torch.cat([part.conv.weight.grad for part in parts])
        torch.testing.assert_close(layer.conv.weight.grad, gradient, rtol=1e-6, atol=1e-8)
        for name in ("weight", "bias"):
            gradient = torch.cat([getattr(part.bn, name).grad for part in parts])
            torch.testing.assert_close(getattr(layer.norm, name).grad, gradient, rtol=1e-6, atol=1e-8)
        for name in ("running_mean", "running_var"):
            statistic = torch.cat([getattr(part.bn, name) for part in parts])
            torch.testing.assert_close(getattr(layer.norm, name), statistic, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(net.eval()(x), other.eval()(x.contiguous()), rtol=1e-8, atol=1e-8)


# --- inference and options ----------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"separable": False, "bias": True}, {"placement": "after"}])
def test_folding_leaves_the_outputs_and_no_norm(options):
    net = small(**options).double()
    net(images().double())  # running statistics away from 0 and 1
    folded = norms.fold(net)
    x = images(4, seed=2).double()
    torch.testing.assert_close(folded(x), net.eval()(x), rtol=1e-9, atol=1e-9)
    assert bool(norms.batch_norms(folded)) == (options.get("placement") == "after")


def test_bias_is_dropped_where_the_norm_shifts():
    def biases(**options: Any) -> set[bool]:
        net = Inception(**{"image_size": 32, "width": 0.125, **options})
        return {layer.conv.bias is not None for layer in net.modules() if isinstance(layer, ConvNormAct)}

    assert biases(norm_layer=functools.partial(norms.BatchNorm, eps=1e-3)) == {False}
    assert biases(norm_layer=norms.BatchNorm, bias=True) == {True}
    assert biases(norm_layer=norms.BatchNorm, placement="after") == {True}
    assert biases(norm_layer=norms.NoNorm) == {True}
    assert biases(norm_layer=norms.NoNorm, bias=False) == {False}


@pytest.mark.parametrize(
    "options",
    [
        {"norm_layer": norms.LayerNorm},
        {"act_layer": activation("sigmoid")},
        {"reading": "as_printed", "width": 0.25},
        {"separable": False},
        {"lrn": True},
        {"dropout": 0.4},
        {"auxiliary": True},
        {"bias": True},
        {"placement": "after"},
        {"initialisation": "glorot"},
        {"init_scale": 2.0},
        {"init_scale": 0.0},
        {"lrn": True, "lrn_alpha": 0.4096},
        {"width": 0.375},
        {"generator": None},
    ],
    ids=lambda options: "-".join(options),
)
def test_every_option_moves_the_loss_or_the_count(options):
    def result(**options: Any) -> tuple[float, int]:
        torch.manual_seed(5)
        settings: dict[str, Any] = {
            "classes": 10,
            "image_size": 32,
            "width": 0.125,
            "norm_layer": norms.NoNorm,
        }
        if "reading" in options or options.get("placement"):
            settings["norm_layer"] = norms.BatchNorm
        settings |= {"generator": torch.Generator().manual_seed(0), "bias": None}
        base = {key: value for key, value in options.items() if key == "width" and len(options) > 1}
        net = Inception(**(settings | base | (options if changed else {})))
        output = net(10 * images(4))
        output = output[0] + 0 * output[1].sum() if isinstance(output, tuple) else output
        return F.cross_entropy(output, torch.arange(4)).item(), parameters(net)

    if options == {"bias": True}:
        options = {"bias": False}  # without a norm biases are the default
    changed = False
    plain = result(**options)
    changed = True
    assert result(**options) != plain


def test_one_generator_seed_gives_one_net():
    def first(seed: int) -> Tensor:
        return Inception(image_size=32, width=0.125, generator=torch.Generator().manual_seed(seed)).classifier.weight

    assert torch.equal(first(0), first(0))
    assert not torch.equal(first(0), first(1))


def test_he_initialisation_keeps_the_signal_of_the_plain_net():
    net = Inception(image_size=32, width=0.5, classes=10, generator=torch.Generator().manual_seed(0))
    weight = net.inception4a.double3x3_1.conv.weight
    assert weight.std().item() == pytest.approx((2 / weight[0].numel()) ** 0.5, rel=0.03)
    assert all(not layer.conv.bias.any() for layer in net.modules() if isinstance(layer, ConvNormAct))
    assert 0.1 < net(images(8)).std().item() < 10  # neither dies nor explodes over some twenty layers


def test_glorot_goes_by_the_sizes_of_each_convolution_of_the_figure() -> None:
    net = Inception(image_size=32, initialisation="glorot", init_scale=3.0, generator=torch.Generator().manual_seed(0))
    module = net.inception3a
    reads = module.joint1x1.conv.weight.shape[1]
    for part, width in zip(module.joint1x1.conv.weight.split(module.splits), module.splits, strict=True):
        assert part.std().item() == pytest.approx(3 * (2 / (reads + width)) ** 0.5, rel=0.03)
    three = module.conv3x3.conv.weight
    assert three.std().item() == pytest.approx(3 * (2 / (9 * (three.shape[0] + three.shape[1]))) ** 0.5, rel=0.03)
    colour = net.stem.depthwise1.weight  # one colour in, eight channels out
    assert colour.std().item() == pytest.approx(3 * (2 / (49 * (1 + 8))) ** 0.5, rel=0.05)


def test_nonlinearities_are_distinct_named_and_in_depth_order():
    net = small(act_layer=nn.Sigmoid)
    seen: list[str] = []
    names = [name for name, module in net.named_modules() if isinstance(module, nn.Sigmoid)]
    for name in names:
        net.get_submodule(name).register_forward_pre_hook(lambda *_, name=name: seen.append(name))
    net(images(2))
    assert len({id(net.get_submodule(name)) for name in names}) == len(names) == 3 + 8 * 5 + 2 * 4
    assert sorted(seen) == sorted(names)
    modules = [name.partition(".")[0] for name in names]
    assert modules == sorted(modules, key=["stem", *net.module_names].index)
    assert "inception3a.conv3x3.act" in names


def test_auxiliary_head_answers_in_training_only():
    net = small(auxiliary=True)
    logits, auxiliary = net(images(2))
    assert logits.shape == auxiliary.shape == (2, 10)
    assert isinstance(net.eval()(images(2)), Tensor)


@pytest.mark.parametrize("size", [16, 28, 64])
def test_other_sizes_run(size):
    net = Inception(norms.BatchNorm, image_size=size, in_channels=1, width=0.125, classes=10)
    assert net(torch.randn(2, 1, size, size)).shape == (2, 10)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"reading": "as_shape"}, "did you mean 'as_shapes'"),
        ({"placement": "befor"}, "did you mean 'before'"),
        ({"initialisation": "hee"}, "expected one of he, glorot"),
        ({"image_size": 100}, "multiple of 32"),
        ({"image_size": 8}, "found image_size: 8"),
        ({"width": 0.0}, "found model.width: 0.0"),
        ({"dropout": 40.0}, "found model.dropout: 40.0"),
        ({"lrn_alpha": -1.0}, "found model.lrn_alpha: -1.0"),
    ],
)
def test_mistakes_are_named(options, words):
    with pytest.raises(UserError, match=words):
        Inception(**options)
    with pytest.raises(UserError, match="did you mean 'sigmoid'"):
        activation("sigmod")
