"""How well a network does on held-out images: loss and accuracy, one crop, in evaluation mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put ``model`` in evaluation mode without gradients, and each of its modules back as it was."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def one_crop(
    model: nn.Module, inputs: Callable[[int, int], tuple[Tensor, Tensor]], examples: int, batch_size: int
) -> dict[str, float]:
    """Return mean cross-entropy (nats) and accuracy (0..1) over exactly ``examples`` examples.

    Args:
        model: maps inputs to logits (N, classes); nothing in it changes.
        inputs: ``inputs(start, stop)`` returns the network's inputs and labels of those examples.
        examples: how many, from the first; the last batch is smaller where they do not divide.
        batch_size: examples a batch; it changes speed, not the result beyond rounding.
    """
    loss = correct = 0.0
    with evaluating(model):
        for start in range(0, examples, batch_size):
            images, labels = inputs(start, min(start + batch_size, examples))
            logits = model(images).float()
            loss += F.cross_entropy(logits, labels, reduction="sum").item()
            correct += (logits.argmax(1) == labels).sum().item()
    return {"loss": loss / examples, "accuracy": correct / examples}
