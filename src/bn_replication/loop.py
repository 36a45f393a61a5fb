"""The training loop: fetch, forward, backward, step; evaluate, probe and save where a step calls for it.

Every random number is a function of (seed, stream, step) and of the replica, so nothing that only watches (a probe, a
log, an evaluation, a checkpoint, a resume) can change a bit of what is trained.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bn_replication.distributed import World
from bn_replication.graphs import Recorded, Update, recordable
from bn_replication.streams import seed_global, stream_seed


@dataclass
class Meter:
    """Training loss and accuracy summed since the last row of the curve."""

    loss: float = 0.0
    correct: int = 0
    examples: int = 0

    def row(self) -> dict[str, float]:
        """Return the means since the last call, and start again from nothing."""
        count = max(self.examples, 1)
        means = {"train_loss": self.loss / count, "train_accuracy": self.correct / count} if self.examples else {}
        self.loss, self.correct, self.examples = 0.0, 0, 0
        return means


def fit(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Callable[[int], tuple[Tensor, Tensor]],
    rate: Callable[[int], float],
    *,
    start: int,
    steps: int,
    seed: int,
    meter: Meter,
    on_step: Callable[[int], None],
    precision: torch.dtype = torch.float32,
    record: bool = False,
    world: World | None = None,
) -> int | None:
    """Train ``model`` from ``start`` to ``steps`` optimiser updates.

    Args:
        model: of several replicas, what :meth:`World.replicate` makes of it.
        batches: step (0-based) -> inputs, labels of that step.
        rate: step (0-based) -> learning rate of that step.
        meter: takes the sums over all replicas; whoever writes a row empties it.
        on_step: called after every update with the count of those done.
        precision: bfloat16 lets autocast choose what runs in it; batch norm's statistics stay in float32.
        record: on a GPU, play updates back from a CUDA graph where the network allows it; it changes speed alone.
        world: the replicas that train together; by default this one alone.

    Returns:
        The step at which the loss ceased to be finite, or ``None``.
    """
    world = world or World()
    update = Update(model, optimizer, precision)
    on_gpu = next(model.parameters()).is_cuda
    advance = Recorded(update) if record and on_gpu and world.size == 1 and recordable(model) else update
    for step in range(start, steps):
        inputs, labels = batches(step)
        pace = rate(step)
        if on_gpu:  # as a recorded update reads it, so that an update rounds alike whether it is one or not
            pace = torch.tensor(pace, dtype=torch.float32).item()
        # Dropout draws from the global generator, and so does norm=noisy; seeded here, they hang on the step alone.
        seed_global(inputs.device, stream_seed(seed, "dropout", step, world.rank))
        loss, right = advance(inputs, labels, pace)
        value, correct = world.total(loss.item(), int(right))
        if not math.isfinite(value):  # on any replica, and so on all
            return step + 1
        meter.loss += value * len(labels)
        meter.correct += int(correct)
        meter.examples += world.size * len(labels)
        on_step(step + 1)
    return None
