"""What a network's nonlinearities receive: the distributions of Fig. 1b, c, for every layer.

The input of a nonlinearity is ``Wu + b`` in a plain network and ``gamma * x_hat + beta`` in a normalised one,
so one definition serves both. A probe reads it on a fixed batch, dropout off, normalised by that batch's own
statistics as in training (``ZCANorm``, which whitens, by its running ones), and moved as in its last step where a norm
adds noise. It leaves no trace: no running average moves, no random number is drawn.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from bn_replication.evaluate import evaluating
from bn_replication.norms import batch_statistics, last_noise


def evenly(last: int, times: int) -> set[int]:
    """Return ``times`` evenly spaced steps up to ``last``, and 0."""
    return {round(last * k / times) for k in range(times + 1)}


def log_and_even(last: int, points: int) -> list[int]:
    """Return steps from 0 to ``last``: ``points`` evenly spaced and ``points`` evenly spaced in their logarithm.

    Distributions move fastest at first, and the paper's axis is linear: one spacing alone would miss one of the two.
    """
    even = np.linspace(0, last, points + 1)
    spread = np.geomspace(1, max(last, 1), points)
    return sorted({int(step) for step in np.round(np.concatenate([even, spread])) if step <= last})


def nonlinearities(model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> dict[str, nn.Module]:
    """Return the modules of ``model`` that are of one of ``kinds``, by name, in depth order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


def layer_inputs(model: nn.Module, layers: dict[str, nn.Module], inputs: Tensor) -> dict[str, Tensor]:
    """Return what each of ``layers`` receives on ``inputs``, as a :class:`Probe` would see it, in depth order."""
    seen: dict[str, Tensor] = {}

    def hook_of(layer: str):
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            seen[layer] = args[0]

        return hook

    handles = [module.register_forward_pre_hook(hook_of(layer)) for layer, module in layers.items()]
    try:
        with evaluating(model), batch_statistics(model), last_noise(model):
            model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def feeding_weights(model: nn.Module, layers: Iterable[str]) -> dict[str, nn.Parameter]:
    """Return the weights W of the linear map in front of each of ``layers``, as in ``Wu + b``, in depth order."""
    wanted, last, found = set(layers), None, {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | _ConvNd):
            last = module.weight
        elif name in wanted and last is not None:
            found[name] = last
    return found


@torch.no_grad()
def gradient_rms(weights: dict[str, nn.Parameter]) -> dict[str, float | None]:
    """Return the root mean square of d loss / d W for each of ``weights``, as the last backward pass left it.

    It is that of the training batch that led to the present weights, taken at the weights before that update and
    without the L2 term, which the optimizer adds. So it needs no pass of its own. A layer that has no gradient (before
    the first step) is left out; one whose gradient is not finite is ``None``.
    """
    held = {name: weight.grad for name, weight in weights.items() if weight.grad is not None}
    if not held:
        return {}
    # Stacked, so that a GPU is waited for once.
    values = torch.stack([grad.double().square().mean().sqrt() for grad in held.values()]).tolist()
    return {name: _rounded(value) if np.isfinite(value) else None for name, value in zip(held, values, strict=True)}


class Probe:
    """Summarises the input of each nonlinearity of ``model`` on a fixed batch.

    Args:
        model: its nonlinearities are modules of one of ``kinds``.
        inputs: the fixed batch (N, ...), as the network takes it.
        kinds: module classes that count as nonlinearities.
        percentiles: which ones, 0..100.
        low, high, bins: the histogram's range, in units of the nonlinearity's input; what falls outside is
            counted in its first or last bin.
        units_of: ``"last"`` adds the percentiles of each unit of the last hidden layer, ``"none"`` adds nothing.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Tensor,
        kinds: tuple[type[nn.Module], ...],
        percentiles: Sequence[float] = (15, 50, 85),
        low: float = -8.0,
        high: float = 8.0,
        bins: int = 64,
        units_of: str = "none",
    ) -> None:
        self.model, self.inputs = model, inputs
        self.layers = nonlinearities(model, kinds)
        self.percentiles = list(percentiles)
        self.low, self.high, self.bins = low, high, bins
        self.with_units = {list(self.layers)[-1]} if units_of == "last" and self.layers else set()

    def measure(self) -> list[dict[str, Any]]:
        """Return one row a layer: percentiles, mean, standard deviation, histogram, and per-unit percentiles."""
        rows: list[dict[str, Any]] = []

        def hook_of(layer: str):
            def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
                rows.append({"layer": layer, **self._summary(args[0], layer in self.with_units)})

            return hook

        handles = [module.register_forward_pre_hook(hook_of(layer)) for layer, module in self.layers.items()]
        try:
            with evaluating(self.model), batch_statistics(self.model), last_noise(self.model):
                self.model(self.inputs)
        finally:
            for handle in handles:
                handle.remove()
        return rows

    def _summary(self, values: Tensor, with_units: bool) -> dict[str, Any]:
        values = values.detach().float()  # (N, C) or (N, C, H, W)
        # In memory order, whatever the layout: a summary does not depend on the order of what it sums up.
        flat = values.permute(*_memory_order(values)).reshape(-1)
        if not bool(flat.isfinite().all()):
            # A network about to diverge: what can be said is said, and JSON has no infinity.
            return {"percentiles": [None] * len(self.percentiles), "mean": None, "std": None}
        width = (self.high - self.low) / self.bins
        of_all = self._on_gpu if flat.is_cuda else self._on_cpu
        summary = of_all(flat, width)
        if with_units:
            summary["units"] = _rounded(np.percentile(values.cpu().numpy(), self.percentiles, axis=0))
        return summary

    def _on_cpu(self, flat: Tensor, width: float) -> dict[str, Any]:
        array = flat.numpy()
        bin_of = np.clip((array - self.low) / width, 0, self.bins - 1).astype(np.int32)
        return {
            "percentiles": _rounded(np.percentile(array, self.percentiles)),
            "mean": _rounded(array.mean(dtype=np.float64)),
            "std": _rounded(array.std(dtype=np.float64)),
            "histogram": np.bincount(bin_of, minlength=self.bins).tolist(),
        }

    def _on_gpu(self, flat: Tensor, width: float) -> dict[str, Any]:
        """The same where the numbers lie: a full-width Inception's millions would take seconds to fetch and sort."""
        ordered, wide = flat.sort().values, flat.double()
        place = np.array(self.percentiles) / 100 * (len(flat) - 1)
        below, above = np.floor(place).astype(int), np.ceil(place).astype(int)
        low, high = (ordered[torch.from_numpy(at).to(flat.device)].double().cpu().numpy() for at in (below, above))
        bin_of = ((flat - self.low) / width).clamp(0, self.bins - 1).long()
        return {
            "percentiles": _rounded(low + (high - low) * (place - below)),
            "mean": _rounded(wide.mean().item()),
            "std": _rounded(wide.std(correction=0).item()),
            "histogram": torch.bincount(bin_of, minlength=self.bins).tolist(),
        }


def _memory_order(values: Tensor) -> list[int]:
    return sorted(range(values.dim()), key=lambda axis: -values.stride(axis))


def _rounded(values: Any) -> Any:
    """Five significant digits: far finer than the noise between seeds, and half the bytes."""
    if np.ndim(values):
        return [_rounded(value) for value in values]
    return float(f"{float(values):.5g}")
