"""What the two networks share: a convolution that is quick on small maps, and the order conv, norm, act."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from bn_replication.errors import UserError, nearest

NormLayer = Callable[[int], nn.Module]
ActLayer = Callable[[], nn.Module]
Placement = Literal["before", "after"]

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}


def activation(name: str) -> ActLayer:
    """Return the constructor of the nonlinearity called ``name``; UserError lists the valid names."""
    if name not in ACTIVATIONS:
        raise UserError(
            f"found act: {name!r}, expected one of {', '.join(ACTIVATIONS)}{nearest(name, ACTIVATIONS)}; "
            "mend it in configs/model or with act=..."
        )
    return ACTIVATIONS[name]


def check_choice(key: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise UserError unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise UserError(
            f"found model.{key}: {value}, expected one of {', '.join(choices)}{nearest(value, choices)}; "
            "mend it in configs/model"
        )


def needs_bias(norm_layer: NormLayer, placement: Placement) -> bool:
    """Whether a bias before the norm does anything: not where the norm's shift takes its role (Sec. 3.2)."""
    # One norm is built and asked, so that partials and PyTorch's own classes answer too.
    norm = norm_layer(1)
    return placement == "after" or not getattr(norm, "shifts", isinstance(norm, _BatchNorm))


class BranchNorm(nn.Module):
    """One norm a branch over channels that one convolution computed together, for norms that mix channels."""

    def __init__(self, norm_layer: NormLayer, widths: tuple[int, ...]):
        super().__init__()
        self.widths = widths
        self.branches = nn.ModuleList(norm_layer(width) for width in widths)

    def forward(self, x: Tensor) -> Tensor:  # (N, sum(widths), H, W)
        parts = x.split(self.widths, dim=1)
        return torch.cat([norm(part) for norm, part in zip(self.branches, parts, strict=True)], dim=1)


def build_norm(norm_layer: NormLayer, widths: tuple[int, ...]) -> nn.Module:
    """Return one norm over all ``widths`` where that is the same thing as one a width, else a BranchNorm."""
    joint = norm_layer(sum(widths))
    # Batch norms treat each channel (or activation) alone, so joining their channels changes nothing.
    alone = getattr(joint, "per_channel", isinstance(joint, _BatchNorm | nn.Identity))
    joinable = len(widths) == 1 or alone
    return joint if joinable else BranchNorm(norm_layer, widths)


# On a 2x2 map output pixel (c, d) of a padded 3x3 sees input pixel (a, b) through tap (a - c + 1, b - d + 1).
PAIRS = tuple(3 * (a - c + 1) + b - d + 1 for c, d, a, b in itertools.product(range(2), repeat=4))


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return the 1x1 convolution of ``x`` (N, C, H, W), on the CPU as a product over (N*H*W, C)."""
    if x.device.type == "cpu" and x.is_contiguous(memory_format=torch.channels_last):
        return F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)
    return F.conv2d(x, weight, bias)


class Conv2d(nn.Conv2d):
    """``nn.Conv2d`` that computes small cases on the CPU as one product: same parameters and result.

    A 1x1 convolution of a channels-last map is a product over (N*H*W, C), without a copy: 0.65 of the usual
    time. A padded 3x3 on a 2x2 map is a dense one over (N, 4C), as every output pixel sees every input pixel:
    0.45 of its time. Both are composed of differentiable operations, so second derivatives work.
    """

    def forward(self, input: Tensor) -> Tensor:  # (N, C, H, W)
        if self.groups == 1 and self.stride == (1, 1):
            if self.kernel_size == (1, 1):
                return pointwise(input, self.weight, self.bias)
            if self.kernel_size == (3, 3) and input.shape[2:] == (2, 2) and input.device.type == "cpu":
                return self._dense(input)
        return super().forward(input)

    def _dense(self, x: Tensor) -> Tensor:  # (N, C, 2, 2)
        taps = self.weight.permute(0, 2, 3, 1).reshape(self.out_channels, 9, self.in_channels)
        pairs = taps.index_select(1, torch.tensor(PAIRS, device=x.device))  # (out, 4 * 4, in)
        rows = x.permute(0, 2, 3, 1).reshape(len(x), -1)
        out = F.linear(rows, pairs.reshape(4 * self.out_channels, -1)).view(len(x), self.out_channels, 2, 2)
        out = out.contiguous(memory_format=torch.channels_last)
        return out if self.bias is None else out + self.bias[:, None, None]


class PooledConv2d(Conv2d):
    """A 3x3 average pool (stride 1, padding counted) and then a 1x1 convolution, reordered.

    Both are linear and act on different axes, so they commute; what is pooled then has the few channels of
    the projection and not the many of the module's input. The bias comes last, as padding would thin it.
    """

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True):
        super().__init__(in_channels, out_channels, kernel_size=1, bias=bias)

    def forward(self, input: Tensor) -> Tensor:  # (N, C, H, W)
        mixed = pointwise(input, self.weight)
        pooled = F.avg_pool2d(mixed, 3, stride=1, padding=1)
        return pooled if self.bias is None else pooled + self.bias[:, None, None]


class ResponseNorm(nn.LocalResponseNorm):
    """Local response normalization over 5 channels with GoogLeNet's beta and k; (N, C, H, W).

    GoogLeNet's ``alpha``, 1e-4, belongs to its images, whose pixels run from 0 to 255. Where what is normalized has a
    size of about 1, as after BN and as in any net whose inputs do, it changes a thousandth of it at most.

    PyTorch sums the squares of neighbouring channels by a 3D pool, which takes a fifth of a small net's step;
    here a product with a band matrix does, along the axis that is contiguous in channels-last.
    """

    def __init__(self, alpha: float = 1e-4) -> None:
        super().__init__(size=5, alpha=alpha, beta=0.75, k=1.0)

    def forward(self, input: Tensor) -> Tensor:  # (N, C, H, W)
        x = input.permute(0, 2, 3, 1)
        channel = torch.arange(x.shape[-1], device=x.device)
        band = ((channel[:, None] - channel).abs() <= self.size // 2).to(x) * (self.alpha / self.size)
        root = (F.linear(x * x, band) + self.k).rsqrt()
        return (x * root * root.sqrt()).permute(0, 3, 1, 2)  # root^1.5 = (...)^-0.75, and no pow


class ConvNormAct(nn.Sequential):
    """Children ``conv``, ``norm``, ``act`` in the order they run: z = g(BN(Wu)), or BN(g(Wu)) placed "after".

    ``conv`` is called with whether to have a bias: ``bias``, or where that is None, what ``needs_bias`` says.
    ``widths`` are those of the branches that the convolution computes together.
    """

    conv: nn.Module
    norm: nn.Module
    act: nn.Module
    widths: tuple[int, ...]

    def __init__(
        self,
        conv: Callable[[bool], nn.Module],
        norm_layer: NormLayer,
        act_layer: ActLayer,
        widths: tuple[int, ...],
        bias: bool | None = None,
        placement: Placement = "before",
    ):
        norm = build_norm(norm_layer, widths)
        keep_bias = needs_bias(norm_layer, placement) if bias is None else bias
        children = [("conv", conv(keep_bias)), ("norm", norm), ("act", act_layer())]
        if placement == "after":
            children = [children[0], children[2], children[1]]
        super().__init__(OrderedDict(children))
        self.widths = widths
