"""What a network is given: training batches as a function of the step, held-out images by range."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from bn_replication.data import (
    DRAWS,
    Ahead,
    Ask,
    Images,
    LinearInput,
    Pictures,
    Split,
    augment,
    batch_indices,
    centre_boxes,
    random_boxes,
    to_input,
)
from bn_replication.data.crops import Place
from bn_replication.schema import Config
from bn_replication.streams import generator


class Inputs:
    """What the network is given: training batches by step, those of replica ``rank``; held-out images by range."""

    def __init__(self, cfg: Config, split: Split, rank: int = 0) -> None:
        self.cfg, self.split, self.rank = cfg, split, rank
        mode, device = cfg.data.input, split.train.device
        self.to_input: Callable[[Tensor], Tensor]
        if mode == "centered" or mode == "decorrelated" or mode == "whitened":
            self.to_input = LinearInput(split.principal_axes, mode, device)
        else:
            mean, std = split.statistics if mode == "standardize" else (None, None)
            self.to_input = partial(to_input, mode=mode, mean=mean, std=std)
        keys = cfg.augment.model_dump(exclude={"name", "area", "aspect"})
        self._augment = partial(augment, **keys) if cfg.augment.changes_anything else None
        reading = (cfg.machine.workers, device.type == "cuda")
        if isinstance(split.train, Pictures):  # too many for the device: read from disk, ahead of the step
            self._coming = Ahead(split.train.store, self._ask, lambda step: step + 1, *reading)
        if isinstance(split.held_out, Pictures):
            self._coming_held_out = Ahead(split.held_out.store, self._ask_held_out, self._range_after, *reading)

    def close(self) -> None:
        """End what reads ahead."""
        for name in ("_coming", "_coming_held_out"):
            if hasattr(self, name):
                getattr(self, name).close()

    def plain(self, images: Images | Pictures, indices: Tensor | slice) -> Tensor:
        """The network's inputs of those images, not distorted: float32 (N, C, H, W), channels last."""
        return self.to_input(images.take(indices)).contiguous(memory_format=torch.channels_last)

    def held_out(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        images, rows = self.split.held_out, slice(start, stop)
        if isinstance(images, Pictures):
            pixels = images.finish(self._coming_held_out((start, stop)))
            return self.to_input(pixels).contiguous(memory_format=torch.channels_last), images.labels[rows]
        return self.plain(images, rows), images.labels[rows]

    def training(self, step: int) -> tuple[Tensor, Tensor]:
        """The batch of the update after ``step`` updates, a pure function of (seed, step, rank)."""
        images = self.split.train
        if isinstance(images, Pictures):
            indices, pixels = self._indices(step, "cpu").to(images.device), images.finish(self._coming(step))
        else:
            indices = self._indices(step, images.device)
            cut = self.cfg.augment.area is not None
            pixels = images.crops(indices, self._place(step)) if cut else images.take(indices)
        if self._augment is not None:
            pixels = self._augment(pixels, generator(self.cfg.seed, "augment", step, images.device, self.rank))
        return self.to_input(pixels).contiguous(memory_format=torch.channels_last), images.labels[indices]

    def after_training(self, batches: int) -> Iterator[Tensor]:
        """Yield mini-batches as training would go on with, distorted and of its size: what Alg. 2 averages over."""
        return (self.training(self.cfg.steps + k)[0] for k in range(batches))

    def _indices(self, step: int, device: str | torch.device) -> Tensor:
        cfg = self.cfg
        shuffling = (len(self.split.train), cfg.seed, cfg.data.order, cfg.data.shards, device)
        return batch_indices(step, cfg.batch_size, *shuffling, self.rank, cfg.replicas)

    def _place(self, step: int) -> Place:
        """Where this step's crops are taken: drawn here, on the CPU, so that whoever reads has nothing to draw."""
        cfg = self.cfg
        if cfg.augment.area is None or cfg.augment.aspect is None:
            return centre_boxes
        draws = torch.rand(cfg.batch_size, DRAWS, generator=generator(cfg.seed, "crop", step, rank=self.rank))
        return partial(random_boxes, draws=draws, area=cfg.augment.area, aspect=cfg.augment.aspect)

    def _ask(self, step: int) -> Ask:
        assert isinstance(self.split.train, Pictures)
        return self.split.train.ask(self._indices(step, "cpu"), self._place(step))

    def _ask_held_out(self, rows: tuple[int, int]) -> Ask:
        assert isinstance(self.split.held_out, Pictures)
        return self.split.held_out.ask(slice(*rows))

    def _range_after(self, rows: tuple[int, int]) -> tuple[int, int] | None:
        size, last = rows[1] - rows[0], len(self.split.held_out)
        return (rows[1], min(rows[1] + size, last)) if rows[1] < last else None
