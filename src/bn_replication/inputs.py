"""What a network is given: training batches as a function of the step, held-out images by range."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from bn_replication.data import Images, LinearInput, Split, augment, batch_indices, to_input
from bn_replication.schema import Config
from bn_replication.streams import generator


class Inputs:
    """What the network is given: training batches by step, held-out images by range."""

    def __init__(self, cfg: Config, split: Split) -> None:
        self.cfg, self.split = cfg, split
        mode, device = cfg.data.input, split.train.images.device
        self.to_input: Callable[[Tensor], Tensor]
        if mode == "centered" or mode == "decorrelated" or mode == "whitened":
            self.to_input = LinearInput(split.principal_axes, mode, device)
        else:
            mean, std = split.statistics if mode == "standardize" else (None, None)
            self.to_input = partial(to_input, mode=mode, mean=mean, std=std)
        keys = cfg.augment.model_dump(exclude={"name"})
        self._augment = partial(augment, **keys) if cfg.augment.changes_anything else None

    def plain(self, images: Images, indices: Tensor | slice) -> Tensor:
        """The network's inputs of those images, not distorted: float32 (N, C, H, W), channels last."""
        return self.to_input(images.images[indices]).contiguous(memory_format=torch.channels_last)

    def held_out(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        rows = slice(start, stop)
        return self.plain(self.split.held_out, rows), self.split.held_out.labels[rows]

    def training(self, step: int) -> tuple[Tensor, Tensor]:
        """The batch of the update after ``step`` updates, a pure function of (seed, step)."""
        cfg, images = self.cfg, self.split.train
        indices = batch_indices(
            step, cfg.batch_size, len(images), cfg.seed, cfg.data.order, cfg.data.shards, images.images.device
        )
        if self._augment is None:
            return self.plain(images, indices), images.labels[indices]
        draws = generator(cfg.seed, "augment", step, images.images.device)
        distorted = self._augment(images.images[indices], draws)
        return self.to_input(distorted).contiguous(memory_format=torch.channels_last), images.labels[indices]
