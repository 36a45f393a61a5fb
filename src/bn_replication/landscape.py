"""How the loss looks along its own gradient, after Santurkar et al. (2018), Section 3.1 and Figure 4.

From where training stands, a net is moved against the gradient of a fixed batch by several multiples of the learning
rate. A loss that varies little there is smooth; a gradient that changes little on the way predicts what is found.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bn_replication.evaluate import evaluating
from bn_replication.norms import batch_statistics

MULTIPLES = (0.5, 1.0, 2.0, 4.0)  # of the rate: from half of what training steps to four times as far


def measure(model: nn.Module, inputs: Tensor, labels: Tensor, rate: float) -> dict[str, float]:
    """Return the numbers of :func:`along_gradient` for the cross-entropy (nats) on a fixed batch.

    Normalised by that batch's own statistics, dropout off; weights, buffers, modes and gradients end up as they were.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with evaluating(model), batch_statistics(model):
        return along_gradient(parameters, lambda: F.cross_entropy(model(inputs), labels), rate)


def along_gradient(
    parameters: Sequence[Tensor], loss: Callable[[], Tensor], rate: float, multiples: Sequence[float] = MULTIPLES
) -> dict[str, float]:
    """Move ``parameters`` by -multiple * rate * gradient for each multiple, and put them back to the bit.

    Returns:
        ``loss_range``: the highest less the lowest loss met on the way. ``gradient_change``: how far, at most, the
        gradient there lies from the one set out with (Euclidean, over all parameters); ``gradient_change_relative``:
        the same over the length of the latter.
    """

    def evaluated() -> tuple[float, list[Tensor]]:
        with torch.enable_grad():
            value = loss()
            # What the loss does not reach, a head that only training uses, has a gradient of 0.
            return value.item(), list(torch.autograd.grad(value, parameters, materialize_grads=True))

    start = [parameter.detach().clone() for parameter in parameters]
    _, gradient = evaluated()
    losses, changes = [], []
    try:
        for multiple in multiples:
            with torch.no_grad():
                for parameter, origin, slope in zip(parameters, start, gradient, strict=True):
                    parameter.copy_(origin - multiple * rate * slope)
            value, moved = evaluated()
            losses.append(value)
            changes.append(_length([there - here for there, here in zip(moved, gradient, strict=True)]))
    finally:
        with torch.no_grad():
            for parameter, origin in zip(parameters, start, strict=True):
                parameter.copy_(origin)
    # Numpy's: Python's own pass over what is not a number, and a loss that exploded would look smooth.
    change, length = float(np.max(changes)), _length(gradient)
    return {
        "loss_range": float(np.ptp(losses)),
        "gradient_change": change,
        "gradient_change_relative": change / length if length > 0 else 0.0,
    }


def _length(tensors: Sequence[Tensor]) -> float:
    return float(torch.stack([tensor.double().square().sum() for tensor in tensors]).sum().sqrt())
