"""Speed of the Inception network: training images/s against pytorchcv's, and against branch by branch.

``python benchmarks/inception.py [--json PATH] [--repeats N]``. Every comparison interleaves its nets step by
step in this one process, so that a slow minute of the machine falls on all of them; a ratio is the median
over the repetitions of (the peer's seconds) / (ours), with its quartiles. Input, batch, dtype and optimiser
are the same throughout, and so is ReLU in place, which the peer uses.

pytorchcv's net ends in a 7x7 pool and so takes nothing smaller than 223 px; for the small input its pool is
replaced by the mean over the map, which is what it computes at 224.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bn_replication.models.inception import Inception, Module
from bn_replication.models.layers import Conv2d, ConvNormAct, PooledConv2d
from bn_replication.norms import BatchNorm

PORT: dict[str, Any] = {
    "reading": "as_printed",
    "separable": False,
    "bias": True,
}  # the form that pytorchcv has


class BranchByBranch(nn.Module):
    """A module of Fig. 5 as most people would write it: each branch with convolutions of its own."""

    def __init__(self, module: Module):
        super().__init__()
        joint = module.joint1x1.conv
        assert isinstance(joint, nn.Conv2d)
        self.firsts = nn.ModuleList(
            ConvNormAct(
                partial(nn.Conv2d, joint.in_channels, width, 1, 1, 0, 1, 1),  # the last argument left: bias
                BatchNorm,
                nn.ReLU,
                (width,),
            )
            for width in module.splits
            if width
        )
        self.conv3x3, self.double1, self.double2 = module.conv3x3, module.double3x3_1, module.double3x3_2
        self.pool, self.projection = module.pool, module.projection

    def forward(self, x: Tensor) -> Tensor:
        *first, three, double = (layer(x) for layer in self.firsts)
        double = self.double2(self.double1(double))
        return torch.cat([*first, self.conv3x3(three), double, self.projection(self.pool(x))], dim=1)


def plain(net: Inception) -> Inception:
    """Turn ``net`` into the same network written branch by branch with PyTorch's own convolutions."""
    for name in net.module_names:
        setattr(net, name, BranchByBranch(getattr(net, name)))
    for layer in list(net.modules()):
        for name, conv in layer.named_children():
            if isinstance(conv, Conv2d):
                options = (
                    conv.kernel_size,
                    conv.stride,
                    conv.padding,
                    conv.dilation,
                    conv.groups,
                    conv.bias is not None,
                )
                own: nn.Module = nn.Conv2d(conv.in_channels, conv.out_channels, *options)  # type: ignore[arg-type]
                if isinstance(conv, PooledConv2d):
                    own = nn.Sequential(nn.AvgPool2d(3, 1, 1), own)
                setattr(layer, name, own)
    return net


def port(classes: int, small: bool) -> nn.Module:
    """Return pytorchcv's ``bninception``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations of its package
        from pytorchcv.models.bninception import bninception
    net = bninception(num_classes=classes)
    if small:
        net.get_submodule("features").add_module("final_pool", nn.AdaptiveAvgPool2d(1))
    return net


def training_step(net: nn.Module, x: Tensor, y: Tensor, layout: torch.memory_format) -> Callable[[], None]:
    """Return a function that does one step of SGD with momentum on a fixed batch."""
    net = net.to(memory_format=layout)  # type: ignore[call-overload]
    x = x.contiguous(memory_format=layout)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()

    return step


def measure(steps: dict[str, Callable[[], None]], repeats: int) -> dict[str, list[float]]:
    """Return the seconds of every repetition of every step, taken in turns after two unmeasured rounds."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for repetition in range(repeats + 2):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if repetition >= 2:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def compare(
    title: str, nets: Mapping[str, tuple[nn.Module, torch.memory_format]], targets: dict[str, float],
    batch: int, size: int, classes: int, threads: int, repeats: int,
) -> list[dict[str, Any]]:  # fmt: skip
    """Time the net "ours" against each of ``targets`` (peer -> least ratio wanted); return one row a peer."""
    torch.set_num_threads(threads)
    x, y = torch.randn(batch, 3, size, size), torch.randint(classes, (batch,))
    steps = {name: training_step(net, x, y, layout) for name, (net, layout) in nets.items()}
    seconds = measure(steps, repeats)
    rows = []
    for peer, target in targets.items():
        ratios = [theirs / ours for theirs, ours in zip(seconds[peer], seconds["ours"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        rows.append(
            {
                "comparison": title,
                "peer": peer,
                "batch": batch,
                "size": size,
                "threads": threads,
                "repeats": repeats,
                "ours_images_per_s": batch / statistics.median(seconds["ours"]),
                "peer_images_per_s": batch / statistics.median(seconds[peer]),
                "ratio": middle,
                "quartiles": [low, high],
                "target": target,
                "met": middle >= target,
            }
        )
        print(
            f"{title:<22}{peer:<28}{size:>5} px  {rows[-1]['peer_images_per_s']:>8.1f} -> "
            f"{rows[-1]['ours_images_per_s']:>8.1f} images/s   ratio {middle:.2f} [{low:.2f}, {high:.2f}]"
            f"   target {target:.2f} {'met' if middle >= target else 'MISSED'}",
            flush=True,
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/inception.json"))
    parser.add_argument(
        "--repeats", type=int, default=7, help="of the 224-pixel step; small steps take 4 times as many"
    )
    parser.add_argument("--threads", type=int, default=2, help="for the comparison with pytorchcv")
    options = parser.parse_args()
    torch.manual_seed(0)
    act = partial(nn.ReLU, inplace=True)
    last, default = torch.channels_last, torch.contiguous_format
    targets = {"pytorchcv": 1.25, "pytorchcv, channels-last": 1.0}
    rows = []
    for size, batch, classes, repeats in ((224, 8, 1000, options.repeats), (64, 32, 10, 4 * options.repeats)):
        nets = {
            "ours": (Inception(BatchNorm, act, classes=classes, image_size=size, **PORT), last),
            "pytorchcv": (port(classes, size < 224), default),
            "pytorchcv, channels-last": (port(classes, size < 224), last),
        }
        rows += compare("BN-Inception", nets, targets, batch, size, classes, options.threads, repeats)
    small: dict[str, Any] = {"width": 0.25, "image_size": 32, "classes": 10}
    nets = {
        "ours": (Inception(BatchNorm, **small), last),
        "branch by branch": (plain(Inception(BatchNorm, **small)), default),
        "branch by branch, channels-last": (plain(Inception(BatchNorm, **small)), last),
    }
    targets = {"branch by branch": 1.5, "branch by branch, channels-last": 1.0}
    rows += compare("laptop scale", nets, targets, 32, 32, 10, 1, 8 * options.repeats)  # one thread, as in a sweep
    options.json.parent.mkdir(parents=True, exist_ok=True)
    machine = {"python": platform.python_version(), "torch": torch.__version__, "machine": platform.machine()}
    options.json.write_text(json.dumps({"environment": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
