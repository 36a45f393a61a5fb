"""What a run records besides its curve and probes: the configuration's ``measure``, a part a question of an ablation.

Everything here watches. It draws no random number that training draws, and leaves weights, buffers and modes as they
were, so a run measured is bitwise the run not measured.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from bn_replication import build, jacobians, landscape
from bn_replication.data import LinearInput, Split, conditioning
from bn_replication.evaluate import one_crop
from bn_replication.inputs import Inputs
from bn_replication.models import ACTIVATIONS
from bn_replication.norms import (
    BatchNorm,
    TrackingBatchNorm,
    batch_norms,
    batch_statistics,
    frozen,
    population_statistics,
)
from bn_replication.probes import feeding_weights, gradient_rms, layer_inputs, nonlinearities
from bn_replication.schema import Config
from bn_replication.streams import generator

# Sec. 3: without gamma and beta a sigmoid stays in its linear part; the outputs that count as linear, narrow and wide.
LINEAR = {"linear_share": (0.2, 0.8), "linear_share_wide": (0.1, 0.9)}
BATCHES = 100  # of training size, for the statistics of averaged weights, as in ablation_statistics
ROUNDS = 9  # timed steps of each net, turn by turn


class Measures:
    """The measures that ``cfg`` asks for, on ``model`` as it is when they are called.

    Args:
        fixed: the probe's batch of inputs; needed where ``cfg.measure`` asks about layers.
    """

    def __init__(self, cfg: Config, model: nn.Module, split: Split, inputs: Inputs, fixed: Tensor | None) -> None:
        self.cfg, self.model, self.split, self.inputs, self.fixed = cfg, model, split, inputs, fixed
        decay = cfg.measure.average
        self.average = None if decay is None else AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
        self.landscapes: list[dict[str, float]] = []  # one a row of the curve
        self.gradients: dict[str, float | None] = {}  # of the last step, where a checkpoint brings them
        if cfg.measure.jacobian and fixed is not None:
            jacobians.refuse_too_large(model, fixed)

    def after_step(self) -> None:
        """Take an update of the weights into their moving average."""
        if self.average is not None:
            self.average.update_parameters(self.model)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint needs of what is measured step by step."""
        state = {} if self.average is None else {"average": self.average.state_dict()}
        # A run stopped after its last step has no step left that would make them again.
        gradients = self._gradients() if self.cfg.measure.gradients or self.cfg.measure.gradient_ratio else {}
        kept = {"landscapes": self.landscapes, "gradients": gradients}
        return state | {key: value for key, value in kept.items() if value}

    def load_state(self, state: Mapping[str, Any]) -> None:
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.landscapes = list(state.get("landscapes", []))
        self.gradients = dict(state.get("gradients", {}))

    def columns(self, rate: float) -> dict[str, float]:
        """Return what a row of the curve has besides; ``rate`` is the learning rate of the step that comes next."""
        return self._landscape(rate) | self._fit()

    def _landscape(self, rate: float) -> dict[str, float]:
        """Return how the loss looks along its gradient, on the probe's images."""
        if not self.cfg.measure.landscape:
            return {}
        assert self.fixed is not None
        labels = self.split.train.labels[: len(self.fixed)]
        row = landscape.measure(self.model, self.fixed, labels, rate)
        self.landscapes.append({f"landscape_{key}": value for key, value in row.items()})
        return self.landscapes[-1]

    def _fit(self) -> dict[str, float]:
        """Return how the training images are judged, as the held-out ones are."""
        if not self.cfg.measure.fit:
            return {}
        train, sample = self.split.train, self.cfg.evaluate.examples or len(self.split.held_out)

        def plain(start: int, stop: int) -> tuple[Tensor, Tensor]:
            return self.inputs.plain(train, slice(start, stop)), train.labels[start:stop]

        result = one_crop(self.model, plain, min(sample, len(train)), self.cfg.evaluate.batch_size)
        return {f"fit_{key}": value for key, value in result.items()}

    def of_layers(self) -> dict[str, dict[str, Any]]:
        """Return what a probe's row has besides, by the name of its nonlinearity."""
        rows: dict[str, dict[str, Any]] = {}
        if self.cfg.measure.linear_share:
            assert self.fixed is not None
            sigmoids = nonlinearities(self.model, (nn.Sigmoid,))
            rows = {name: linear_share(z) for name, z in layer_inputs(self.model, sigmoids, self.fixed).items()}
        if self.cfg.measure.jacobian:
            assert self.fixed is not None
            for name, row in jacobians.measure(self.model, self.fixed).items():
                rows[name] = rows.get(name, {}) | row
        if self.cfg.measure.gradients:
            for name, value in self._gradients().items():
                rows[name] = rows.get(name, {}) | {"gradient": value}
        return rows

    def _gradients(self) -> dict[str, float | None]:
        weights = feeding_weights(self.model, nonlinearities(self.model, tuple(ACTIVATIONS.values())))
        return gradient_rms(weights) or self.gradients

    def _gradient_ratio(self) -> float:
        values = list(self._gradients().values()) or [None]  # a net without hidden layers has none
        first, last = values[0], values[-1]
        return first / last if first is not None and last else math.nan

    def summary(self) -> dict[str, float]:
        """Return the numbers of a trained net, flat."""
        measure, numbers = self.cfg.measure, {}
        layers = self.of_layers().values()
        if measure.linear_share:
            for key in LINEAR:
                shares = [row[key] for row in layers if key in row]
                numbers[key] = sum(shares) / len(shares) if shares else math.nan
        if measure.jacobian:
            numbers["jacobian_log_spread"] = jacobians.log_spread([row for row in layers if "log_spread" in row])
        if measure.landscape:
            for key in self.landscapes[0]:
                numbers[key] = statistics.fmean(row[key] for row in self.landscapes)
        if measure.gradient_ratio:
            numbers["gradient_ratio"] = self._gradient_ratio()
        if measure.conditioning:
            numbers |= {f"input_{key}": value for key, value in self._conditioning().items()}
        if measure.cost:
            numbers |= self._cost()
        if measure.statistics is not None:
            numbers |= self._under_other_statistics(measure.statistics.batches, measure.statistics.test_batch_sizes)
        if self.average is not None:
            numbers |= self._averaged(self.average.module)
        return numbers

    def _averaged(self, net: nn.Module) -> dict[str, float]:
        """Evaluate the averaged weights, under statistics of their own: the running ones are of other weights."""
        net = frozen(net, population_statistics(net, self.inputs.after_training(BATCHES)))
        result = one_crop(net, self.inputs.held_out, len(self.split.held_out), self.cfg.evaluate.batch_size)
        return {f"{self.split.held_out_name}_{key}_average": value for key, value in result.items()}

    def _conditioning(self) -> dict[str, float]:
        to_input = self.inputs.to_input
        if not isinstance(to_input, LinearInput):  # "unit": as they are, which takes no map; others are refused
            to_input = LinearInput(self.split.principal_axes, "unit")
        return conditioning(to_input.spectrum())

    def _cost(self) -> dict[str, float]:
        """Time a step of this net, and of the same with BN, in turns: what slows the machine slows both."""
        cfg = self.cfg
        images, labels = self.inputs.training(0)
        nets = []
        for norm_layer in (None, BatchNorm):
            draws = generator(cfg.seed, "initialise")
            train = self.split.train
            nets.append(build.network(cfg, norm_layer)(train.shape, train.classes, draws, images))
        own, batch = seconds_per_step(nets, cfg, images, labels)
        return {"seconds_per_step": own, "seconds_per_step_batch": batch}

    def _under_other_statistics(self, batches: int, test_batch_sizes: Sequence[int]) -> dict[str, float]:
        """Evaluate the same weights under Algorithm 2's statistics, under each moving average, and under the batch's.

        Keys: ``<held out>_{loss,accuracy}_`` and ``population``, ``moving_<weight of the new batch>`` or
        ``batch_<images a test batch>``. All see the same images, except that a last batch that is not whole is left
        out where the batch is what normalises.
        """
        cfg, model, count = self.cfg, self.model, len(self.split.held_out)
        nets = {"population": frozen(model, population_statistics(model, self.inputs.after_training(batches)))}
        layers = batch_norms(model)
        tracking = {name: layer for name, layer in layers.items() if isinstance(layer, TrackingBatchNorm)}
        for k, weight in enumerate(next(iter(tracking.values())).momenta if tracking else ()):
            nets[f"moving_{weight:g}"] = frozen(model, {name: layer.moving(k) for name, layer in tracking.items()})

        results = {
            name: one_crop(net, self.inputs.held_out, count, cfg.evaluate.batch_size) for name, net in nets.items()
        }
        with batch_statistics(model):
            for size in test_batch_sizes:
                if whole := count - count % size:
                    results[f"batch_{size}"] = one_crop(model, self.inputs.held_out, whole, size)
        held_out = self.split.held_out_name
        return {f"{held_out}_{key}_{name}": value for name, row in results.items() for key, value in row.items()}


def linear_share(z: Tensor) -> dict[str, float]:
    """Return the shares of sigmoid(z) that lie in the sigmoid's linear part, by :data:`LINEAR`."""
    output = torch.sigmoid(z.float())
    return {
        key: float(f"{((output >= low) & (output <= high)).double().mean().item():.5g}")
        for key, (low, high) in LINEAR.items()
    }


def seconds_per_step(
    nets: Sequence[nn.Module],
    cfg: Config,
    images: Tensor,
    labels: Tensor,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:
    """Return the median time of a whole training step of each of ``nets`` on one batch, taken in turns."""
    optimizers = [build.sgd(net, cfg.optimizer) for net in nets]
    times: list[list[float]] = [[] for _ in nets]
    for _ in range(ROUNDS + 2):
        for net, optimizer, taken in zip(nets, optimizers, times, strict=True):
            start = clock()
            outputs = net.train()(images)
            logits = outputs[0] if isinstance(outputs, tuple) else outputs
            optimizer.zero_grad(set_to_none=True)
            loss = F.cross_entropy(logits, labels)
            loss.backward()
            optimizer.step()
            loss.item()  # waits for a GPU, as training does
            taken.append(clock() - start)
    return [statistics.median(taken[2:]) for taken in times]  # the first two warm up
