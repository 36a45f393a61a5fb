"""The net of Fig. 1: its shape as the paper gives it, and that every option does something."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bn_replication import norms
from bn_replication.errors import UserError
from bn_replication.models import activation
from bn_replication.models.mlp import MLP


def build(seed: int = 0, **options: Any) -> MLP:
    return MLP(**{"generator": torch.Generator().manual_seed(seed), **options})


def pixels(count: int = 8) -> Tensor:
    return (torch.rand(count, 1, 28, 28, generator=torch.Generator().manual_seed(1)) < 0.2).float()


def test_three_layers_of_100_sigmoids_and_ten_classes():
    net = build()
    assert net(pixels()).shape == (8, 10)
    assert sum(p.numel() for p in net.parameters()) == 784 * 100 + 2 * 100 * 100 + 100 * 10 + 3 * 100 + 10
    assert [name for name, module in net.named_modules() if isinstance(module, nn.Sigmoid)] == [
        "act1",
        "act2",
        "act3",
    ]


def test_the_paper_s_order_and_the_other():
    order = [name for name, _ in build(norm_layer=norms.BatchNorm, hidden=(5,)).named_children()]
    assert order == ["flatten", "linear1", "norm1", "act1", "classifier"]
    order = [name for name, _ in build(norm_layer=norms.BatchNorm, hidden=(5,), placement="after").named_children()]
    assert order == ["flatten", "linear1", "act1", "norm1", "classifier"]


def test_forward_is_the_formula():
    net, x = build(norm_layer=norms.BatchNorm, hidden=(5,)), pixels()
    u = x.flatten(1) @ net.linear1.weight.T
    normalised = (u - u.mean(0)) / (u.var(0, correction=0) + net.norm1.eps).sqrt()
    expected = torch.sigmoid(normalised) @ net.classifier.weight.T + net.classifier.bias
    torch.testing.assert_close(net(x), expected)


def test_bias_is_dropped_where_the_norm_shifts():
    assert build(norm_layer=norms.BatchNorm).linear1.bias is None
    assert build(norm_layer=norms.BatchNorm, placement="after").linear1.bias is not None
    assert build(norm_layer=norms.BatchNorm, bias=True).linear1.bias is not None
    assert build().linear1.bias is not None
    assert build(norm_layer=norms.BatchNorm).classifier.bias is not None


def test_weights_are_small_gaussians_and_biases_zero():
    net = build(init_std=0.05, init_scale=3.0)
    assert net.linear1.weight.std().item() == pytest.approx(0.15, rel=0.02)
    assert net.linear1.weight.mean().abs().item() < 0.002
    assert not any(p.any() for p in net.parameters() if p.dim() == 1)


def test_weights_by_the_layers_sizes():
    he, glorot = build(initialisation="he"), build(initialisation="glorot", init_scale=4.0)
    assert he.linear1.weight.std().item() == pytest.approx((2 / 784) ** 0.5, rel=0.02)
    assert he.classifier.weight.std().item() == pytest.approx((1 / 100) ** 0.5, rel=0.1)
    assert glorot.linear1.weight.std().item() == pytest.approx(4 * (2 / 884) ** 0.5, rel=0.02)


def test_depth_repeats_the_last_width():
    def widths(**options: Any) -> list[int]:
        return [layer.out_features for layer in build(**options).modules() if isinstance(layer, nn.Linear)]

    assert widths(hidden=(7, 5), depth=4) == [7, 5, 5, 5, 10]
    assert widths(hidden=(7, 5), depth=1) == [7, 10]
    with pytest.raises(UserError, match=r"model\.depth: 0"):
        build(depth=0)


@pytest.mark.parametrize(
    "options",
    [
        {"norm_layer": norms.BatchNorm},
        {"act_layer": activation("tanh")},
        {"bias": False},
        {"placement": "after", "norm_layer": norms.BatchNorm},
        {"init_std": 0.2},
        {"init_scale": 0.5},
        {"initialisation": "glorot"},
        {"initialisation": "he"},
        {"depth": 5},
        {"hidden": (100, 100)},
        {"generator": None},
    ],
    ids=lambda options: "-".join(options),
)
def test_every_option_moves_the_second_step(options):
    def loss(options: dict[str, Any]) -> float:
        net, x, y = build(**options), pixels(), torch.arange(8)
        optimiser = torch.optim.SGD(net.parameters(), lr=0.5)
        for _ in range(2):  # biases start at zero, so the first loss cannot tell
            value = F.cross_entropy(net(x), y)
            optimiser.zero_grad()
            value.backward()
            optimiser.step()
        return value.item()

    base = {"norm_layer": options["norm_layer"]} if "placement" in options else {}
    assert loss(options) != loss(base)


def test_folding_leaves_the_outputs():
    net = build(norm_layer=norms.BatchNorm).double()
    net(pixels().double())
    folded = norms.fold(net)
    assert not norms.batch_norms(folded)
    torch.testing.assert_close(folded(pixels(4).double()), net.eval()(pixels(4).double()), rtol=1e-10, atol=1e-10)


def test_one_seed_gives_one_net():
    assert torch.equal(build(0).linear1.weight, build(0).linear1.weight)
    assert not torch.equal(build(0).linear1.weight, build(1).linear1.weight)


def test_a_width_below_1_is_refused():
    with pytest.raises(UserError, match=r"found model\.hidden: \[5, 0\], expected widths of 1 or more"):
        build(hidden=(5, 0))


def test_misspelt_placement_is_named():
    with pytest.raises(UserError, match="did you mean 'after'"):
        MLP(placement="aftr")  # type: ignore[arg-type]


@pytest.mark.parametrize("depth", [0, -1, 10**9])
def test_a_depth_that_is_no_net_or_would_fill_the_memory_is_refused(depth: int) -> None:
    with pytest.raises(UserError, match=f"found model.depth: {depth}, expected 1 to 1000"):
        MLP(depth=depth)
