"""The network of Fig. 1 (Sec. 4.1): 28x28 binary pixels, three layers of 100 sigmoids, ten classes."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import nn

from bn_replication.errors import UserError
from bn_replication.models.layers import ActLayer, NormLayer, Placement, check_choice, needs_bias

Initialisation = Literal["gaussian", "glorot", "he"]
DEEPEST = 1000  # layers; more is a slip that would fill the memory before anything is said


class MLP(nn.Sequential):
    """Fully connected net with layers ``linear1, norm1, act1, linear2, ...`` and ``classifier``.

    Takes (N, ...) with ``in_features`` an example, returns (N, classes) logits. ``bias`` None drops the
    biases whose role a norm's shift takes (Sec. 3.2); the classifier keeps its own. ``depth``, where given, is the
    number of hidden layers: those of ``hidden``, the last repeated. Weights are normal, drawn from ``generator`` in
    layer order, with a standard deviation of ``init_scale`` times ``init_std`` ("gaussian"),
    sqrt(2 / (fan_in + fan_out)) ("glorot") or sqrt(2 / fan_in) ("he", the classifier's sqrt(1 / fan_in)); biases are
    zero.
    """

    def __init__(
        self,
        in_features: int = 784,
        hidden: Sequence[int] = (100, 100, 100),
        depth: int | None = None,
        classes: int = 10,
        norm_layer: NormLayer = nn.Identity,
        act_layer: ActLayer = nn.Sigmoid,
        bias: bool | None = None,
        placement: Placement = "before",
        initialisation: Initialisation = "gaussian",
        init_std: float = 0.1,
        init_scale: float = 1.0,
        generator: torch.Generator | None = None,
    ):
        check_choice("placement", placement, get_args(Placement))
        check_choice("initialisation", initialisation, get_args(Initialisation))
        if depth is not None:
            if not 1 <= depth <= DEEPEST or not hidden:
                raise UserError(f"found model.depth: {depth}, expected 1 to {DEEPEST}, with a width in model.hidden")
            hidden = [*hidden, *[hidden[-1]] * depth][:depth]
        if min(hidden, default=1) < 1:
            raise UserError(f"found model.hidden: {[*hidden]}, expected widths of 1 or more")
        children: list[tuple[str, nn.Module]] = [("flatten", nn.Flatten())]
        width = in_features
        for number, units in enumerate(hidden, start=1):
            norm = norm_layer(units)
            keep_bias = needs_bias(norm_layer, placement) if bias is None else bias
            layer = [
                ("linear", nn.Linear(width, units, bias=keep_bias)),
                ("norm", norm),
                ("act", act_layer()),
            ]
            if placement == "after":
                layer = [layer[0], layer[2], layer[1]]
            children += [(f"{name}{number}", module) for name, module in layer]
            width = units
        children.append(("classifier", nn.Linear(width, classes)))
        super().__init__(OrderedDict(children))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                fan_out, fan_in = module.weight.shape
                gain = 1 if module is self.classifier else 2  # a ReLU halves the variance
                by_size = gain / fan_in if initialisation == "he" else 2 / (fan_in + fan_out)
                std = init_std if initialisation == "gaussian" else math.sqrt(by_size)
                nn.init.normal_(module.weight, std=init_scale * std, generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
