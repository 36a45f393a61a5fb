"""The network of Fig. 1 (Sec. 4.1): 28x28 binary pixels, three layers of 100 sigmoids, ten classes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import get_args

import torch
from torch import nn

from bn_replication.models.layers import ActLayer, NormLayer, Placement, check_choice, needs_bias


class MLP(nn.Sequential):
    """Fully connected net with layers ``linear1, norm1, act1, linear2, ...`` and ``classifier``.

    Takes (N, ...) with ``in_features`` an example, returns (N, classes) logits. ``bias`` None drops the
    biases whose role a norm's shift takes (Sec. 3.2); the classifier keeps its own. Weights are normal with
    standard deviation ``init_scale * init_std``, drawn from ``generator`` in layer order; biases are zero.
    """

    def __init__(
        self,
        in_features: int = 784,
        hidden: Sequence[int] = (100, 100, 100),
        classes: int = 10,
        norm_layer: NormLayer = nn.Identity,
        act_layer: ActLayer = nn.Sigmoid,
        bias: bool | None = None,
        placement: Placement = "before",
        init_std: float = 0.1,
        init_scale: float = 1.0,
        generator: torch.Generator | None = None,
    ):
        check_choice("placement", placement, get_args(Placement))
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
                nn.init.normal_(module.weight, std=init_scale * init_std, generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
