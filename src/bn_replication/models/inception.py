"""Inception as in Ioffe & Szegedy (2015), Fig. 5 and Sec. 4.2: one table, any width, 224 or 32 pixels."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from bn_replication.errors import UserError
from bn_replication.models.layers import (
    ActLayer,
    Conv2d,
    ConvNormAct,
    NormLayer,
    Placement,
    PooledConv2d,
    ResponseNorm,
    check_choice,
)

Reading = Literal["as_printed", "as_shapes"]
Initialisation = Literal["he", "glorot", "lecun"]
Places = Literal["both", "pool1", "conv2"]


class Row(NamedTuple):
    """One module of Fig. 5: the channels of its convolutions; "pass" is a max pool without a projection."""

    name: str
    stride: int
    conv1: int
    reduce3: int
    conv3: int
    reduce_double3: int
    double3: int
    pool: Literal["avg", "max", "pass"]
    projection: int


#       name  stride  1x1  3x3r  3x3  d3x3r  d3x3  pool    projection
FIG5 = (
    Row("3a", 1, 64, 64, 64, 64, 96, "avg", 32),
    Row("3b", 1, 64, 64, 96, 64, 96, "avg", 64),
    Row("3c", 2, 0, 128, 160, 64, 96, "pass", 0),
    Row("4a", 1, 224, 64, 96, 96, 128, "avg", 128),
    Row("4b", 1, 192, 96, 128, 96, 128, "avg", 128),
    Row("4c", 1, 160, 128, 160, 128, 160, "avg", 128),
    Row("4d", 1, 96, 128, 192, 160, 192, "avg", 128),
    Row("4e", 2, 0, 128, 192, 192, 256, "pass", 0),
    Row("5a", 1, 352, 192, 320, 160, 224, "avg", 128),
    Row("5b", 1, 352, 192, 320, 192, 224, "max", 128),
)
STEM_CHANNELS = (64, 64, 192)  # conv 7x7/2; conv 1x1; conv 3x3
DEPTH_MULTIPLIER = 8  # of the separable 7x7


def table(reading: Reading) -> tuple[Row, ...]:
    """Return Fig. 5 read by its columns, "as_printed", or output sizes, "as_shapes" (96 in 4c and 4d)."""
    check_choice("reading", reading, get_args(Reading))
    if reading == "as_printed":
        return FIG5
    return tuple(row._replace(projection=96) if row.name in ("4c", "4d") else row for row in FIG5)


def scaled(channels: int, width: float) -> int:
    """Return ``channels * width`` to the nearest multiple of 8, at least 8; 0 stays 0, width 1 is exact."""
    return max(8, 8 * math.floor(channels * width / 8 + 0.5)) if channels else 0


class Module(nn.Module):
    """One row of Fig. 5; (N, C, H, W) -> (N, ``out_channels``, H/stride, W/stride).

    The 1x1 convolutions that read the module's input are one, ``joint1x1``: its channels are, in this order,
    the 1x1 branch, the reduction before the 3x3 and the one before the double 3x3. The output's are the 1x1
    branch, the 3x3, the double 3x3 and the pool.
    """

    def __init__(
        self,
        in_channels: int,
        row: Row,
        width: float,
        layer: Callable[..., ConvNormAct],
        max_pool: Callable[[int], nn.Module],
    ):
        super().__init__()
        conv1, reduce3, conv3, reduce_double3, double3, projection = (
            scaled(channels, width) for channels in (*row[2:7], row.projection)
        )
        self.splits = (conv1, reduce3, reduce_double3)
        self.joint1x1 = layer(in_channels, tuple(filter(None, self.splits)), 1)
        if row.pool == "avg":
            self.pool, self.projection = nn.Identity(), layer(in_channels, (projection,), "pooled")
        elif row.pool == "max":
            self.pool, self.projection = nn.MaxPool2d(3, 1, padding=1), layer(in_channels, (projection,), 1)
        else:
            self.pool, self.projection = max_pool(row.stride), nn.Identity()
        self.conv3x3 = layer(reduce3, (conv3,), 3, row.stride)
        self.double3x3_1 = layer(reduce_double3, (double3,), 3)
        self.double3x3_2 = layer(double3, (double3,), 3, row.stride)  # the stride is on the second 3x3
        self.out_channels = conv1 + conv3 + double3 + (projection or in_channels)

    def forward(self, x: Tensor) -> Tensor:
        conv1, reduce3, reduce_double3 = self.joint1x1(x).split(self.splits, dim=1)
        branches = [
            self.conv3x3(reduce3),
            self.double3x3_2(self.double3x3_1(reduce_double3)),
            self.projection(self.pool(x)),
        ]
        return torch.cat([conv1, *branches] if self.splits[0] else branches, dim=1)


class Auxiliary(nn.Sequential):
    """GoogLeNet's auxiliary classifier in the form that would explain 13.6M parameters: 1x1 128, 4x4 768.

    The paper names no such head: that its count includes one is a hypothesis of ours.
    """

    def __init__(
        self, in_channels: int, image_size: int, width: float, classes: int, layer: Callable[..., ConvNormAct]
    ):
        mixed, dense = scaled(128, width), scaled(768, width)
        # GoogLeNet's pool, 5x5/3, takes 14 px to 4; on the 4 px of the small form there is nothing to pool.
        pool = nn.AvgPool2d(5, 3) if image_size == 224 else nn.AdaptiveAvgPool2d(4)
        super().__init__(
            OrderedDict(
                pool=pool,
                mix=layer(in_channels, (mixed,), 1),
                dense=layer(mixed, (dense,), 4),
                flatten=nn.Flatten(),
                classifier=nn.Linear(dense, classes),
            )
        )


class Inception(nn.Module):
    """The network of Fig. 5: (N, in_channels, image_size, image_size) -> (N, classes) logits.

    The form for small images (under 64 px: CIFAR-10, MNIST) keeps every stride but one: the *second* max pool
    of the stem has stride 1. At 32 px the first convolution gives 16 px and the first pool 8, so the modules
    work on 8, 4 and 2 px where the 224-pixel net has 28, 14 and 7. With that stride too they would have
    4, 2 and 1, and a 3x3 on one pixel is a 1x1. Of the stem's three strides this is the one whose loss costs
    least: the 7x7 and the 3x3 still end on reduced maps. Its max pools pad like convolutions, so odd maps
    (28 px) fit; the 224-pixel net's do not pad, as in GoogLeNet. The final average pool, 7x7 in the paper, is
    the mean over whatever map is left.

    Args:
        norm_layer, act_layer: constructors, channels -> module and () -> module.
        last_norm_layer: in place of norm_layer in the last hidden layers, those of module 5b (Sec. 4.2.3).
        width: multiplies all channels; the results are multiples of 8.
        reading: Fig. 5 contradicts itself, see ``table``.
        separable: the 7x7 as depthwise (multiplier 8) and pointwise convolution, as the paper says.
        lrn, lrn_places, lrn_alpha: local response normalization, in GoogLeNet's two places: after pool1 and the
            second convolution; or in one of them; see :class:`ResponseNorm` for its alpha.
        dropout: rate before the classifier, 0.4 in GoogLeNet.
        auxiliary: a second classifier after 4d; in training the result is then (logits, auxiliary logits).
        bias: of all convolutions but the depthwise; None drops those whose role a norm's shift takes.
        placement: of the norm, "before" the nonlinearity as in the paper or "after" it.
        initialisation, init_scale: initial weights are normal with standard deviation
            init_scale * sqrt(2 / fan_in) ("he"; 1 / fan_in where no nonlinearity follows),
            init_scale * sqrt(2 / (fan_in + fan_out)) ("glorot", each 1x1 of a module by its own fan_out) or
            init_scale * sqrt(1 / fan_in) ("lecun"); biases start at zero.
        generator: of the initial weights, drawn in the order of ``parameters()``.
    """

    def __init__(
        self,
        norm_layer: NormLayer = nn.Identity,
        act_layer: ActLayer = nn.ReLU,
        *,
        last_norm_layer: NormLayer | None = None,
        classes: int = 1000,
        in_channels: int = 3,
        image_size: int = 224,
        width: float = 1.0,
        reading: Reading = "as_shapes",
        separable: bool = True,
        lrn: bool = False,
        lrn_places: Places = "both",
        lrn_alpha: float = 1e-4,
        dropout: float = 0.0,
        auxiliary: bool = False,
        bias: bool | None = None,
        placement: Placement = "before",
        initialisation: Initialisation = "he",
        init_scale: float = 1.0,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        check_choice("placement", placement, get_args(Placement))
        check_choice("initialisation", initialisation, get_args(Initialisation))
        check_choice("lrn_places", lrn_places, get_args(Places))
        if not width > 0:
            raise UserError(f"found model.width: {width}, expected more than 0; mend it in configs/scale")
        if not 0 <= dropout < 1:
            raise UserError(f"found model.dropout: {dropout}, expected 0 or more, below 1; mend it in configs")
        if not lrn_alpha >= 0:
            raise UserError(f"found model.lrn_alpha: {lrn_alpha}, expected 0 or more; mend it in configs/model")
        small = image_size < 64
        if image_size < 16 or (not small and image_size % 32):
            raise UserError(
                f"found image_size: {image_size}, expected 16 to 63 or a multiple of 32 pixels; mend it in configs/data"
            )

        def layer(
            channels: int, widths: tuple[int, ...], kernel: int | str, stride: int = 1, norm: NormLayer = norm_layer
        ) -> ConvNormAct:
            def conv(bias: bool) -> nn.Module:
                if kernel == "pooled":
                    return PooledConv2d(channels, sum(widths), bias=bias)
                padding = 0 if kernel == 4 else int(kernel) // 2  # the 4x4 covers its whole map
                return Conv2d(channels, sum(widths), int(kernel), stride, padding, bias=bias)

            return ConvNormAct(conv, norm, act_layer, widths, bias, placement)

        def pool(stride: int) -> nn.Module:
            return nn.MaxPool2d(3, stride, padding=1) if small else nn.MaxPool2d(3, stride, ceil_mode=True)

        def response_norm(place: Places) -> nn.Module:
            return ResponseNorm(lrn_alpha) if lrn and lrn_places in ("both", place) else nn.Identity()

        first, second, third = (scaled(channels, width) for channels in STEM_CHANNELS)
        spread = DEPTH_MULTIPLIER * in_channels
        if separable:  # a 7x7 on each colour, then a 1x1; nothing between the two, as they are one linear map
            first_convolution = OrderedDict(
                depthwise1=Conv2d(in_channels, spread, 7, 2, 3, groups=in_channels, bias=False),
                conv1=layer(spread, (first,), 1),
            )
        else:
            first_convolution = OrderedDict(conv1=layer(in_channels, (first,), 7, 2))
        self.stem = nn.Sequential(
            OrderedDict(
                **first_convolution,
                pool1=pool(2),
                lrn1=response_norm("pool1"),
                reduce2=layer(first, (second,), 1),
                conv2=layer(second, (third,), 3),
                lrn2=response_norm("conv2"),
                pool2=pool(1 if small else 2),
            )
        )
        channels = third
        self.auxiliary: nn.Module | None = None
        self.module_names = tuple(f"inception{row.name}" for row in table(reading))
        for row in table(reading):
            last = partial(layer, norm=last_norm_layer or norm_layer) if row.name == "5b" else layer
            module = Module(channels, row, width, last, pool)
            self.add_module(f"inception{row.name}", module)
            channels = module.out_channels
            if auxiliary and row.name == "4d":
                self.auxiliary = Auxiliary(channels, image_size, width, classes, layer)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(channels, classes)
        self._initialise(initialisation, init_scale, generator)

    def _initialise(self, initialisation: Initialisation, scale: float, generator: torch.Generator | None) -> None:
        joined = {layer.conv: layer.widths for layer in self.modules() if isinstance(layer, ConvNormAct)}
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                fan_in, groups = module.weight[0].numel(), getattr(module, "groups", 1)
                reached = module.weight[0, 0].numel()  # by an input value, in each output channel that it enters
                gain = 1 if name.endswith(("depthwise1", "classifier")) else 2  # a ReLU halves the variance
                widths = joined.get(module, (len(module.weight),))
                stds = []
                for width in widths:
                    both = fan_in + width * reached // groups
                    variance = {"he": gain / fan_in, "glorot": 2 / both, "lecun": 1 / fan_in}[initialisation]
                    stds.append(scale * math.sqrt(variance))
                nn.init.normal_(module.weight, std=stds[0], generator=generator)
                with torch.no_grad():
                    for part, std in zip(module.weight.split(widths), stds, strict=True):
                        part.mul_(std / stds[0] if std else 0.0)  # 1 but for Glorot's
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.stem(x)
        auxiliary = None
        for name in self.module_names:
            x = getattr(self, name)(x)
            if self.training and self.auxiliary is not None and name == "inception4d":
                auxiliary = self.auxiliary(x)
        logits = self.classifier(self.dropout(x.mean((2, 3))))
        return logits if auxiliary is None else (logits, auxiliary)


if __name__ == "__main__":
    from bn_replication.models.architecture import main

    raise SystemExit(main())
