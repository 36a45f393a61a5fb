"""One optimiser update, and the same recorded once as a CUDA graph and played back.

At batches of 32 a GPU has done Inception's thousand small kernels before Python has asked for them. A graph asks for
all of them at once; it holds the same kernels in the same order, so what is trained is the same.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bn_replication.norms import BatchNorm, GroupNorm, LayerNorm, NoisyBatchNorm, NoNorm, WeightNorm, batch_norms

# Of an auxiliary classifier's loss, as in GoogLeNet; the paper does not say that it kept one.
AUXILIARY_WEIGHT = 0.3
# Norms whose forward and backward passes never wait for the GPU. The others look at numbers on the way, or go through
# eigenvalues, which cannot be recorded.
_RECORDABLE = (NoNorm, BatchNorm, NoisyBatchNorm, GroupNorm, LayerNorm, WeightNorm)
_WARM = 3  # updates made in the usual way first: they allocate what stays, momentum for one


class Update:
    """Forward, backward and step of ``model`` on one batch.

    Args:
        precision: bfloat16 lets autocast choose what runs in it; batch norm's statistics stay in float32.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, precision: torch.dtype) -> None:
        self.model, self.optimizer, self.precision = model, optimizer, precision

    def __call__(self, inputs: Tensor, labels: Tensor, rate: float | Tensor) -> tuple[Tensor, Tensor]:
        """Return the batch's loss (of all heads) before the update and how many of its answers were right."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(inputs.device.type, self.precision, enabled=self.precision != torch.float32):
            outputs = self.model(inputs)
            logits, *auxiliary = outputs if isinstance(outputs, tuple) else (outputs,)
            loss = F.cross_entropy(logits, labels)
            for head in auxiliary:
                loss = loss + AUXILIARY_WEIGHT * F.cross_entropy(head, labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.detach(), (logits.argmax(1) == labels).sum()


def recordable(model: nn.Module) -> bool:
    """Whether a GPU can play back an update of ``model``: nothing in it waits for a number to be known."""
    own = [module for module in model.modules() if type(module).__module__ == "bn_replication.norms"]
    # A plain average over batches (momentum None) divides by a count that Python must know.
    return all(type(module) in _RECORDABLE for module in own) and all(
        layer.momentum is not None for layer in batch_norms(model).values()
    )


class Recorded:
    """``update`` on the GPU: its first calls as they are, then recorded, from there on played back.

    Every batch must have the first one's shape and layout. What is returned is overwritten by the next call.
    """

    def __init__(self, update: Update) -> None:
        self.update, self.calls = update, 0
        self.graph = torch.cuda.CUDAGraph()
        self.stream = torch.cuda.Stream()

    def __call__(self, inputs: Tensor, labels: Tensor, rate: float) -> tuple[Tensor, Tensor]:
        self.calls += 1
        if self.calls <= _WARM:
            # Not on the default stream, on which backward passes cannot be recorded later.
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                result = self.update(inputs, labels, rate)
            torch.cuda.current_stream().wait_stream(self.stream)
            return result
        if self.calls == _WARM + 1:
            self._record(inputs, labels)
        self.inputs.copy_(inputs)
        self.labels.copy_(labels)
        self.rate.fill_(rate)
        self.graph.replay()
        for group in self.update.optimizer.param_groups:
            group["lr"] = rate  # for whoever saves the optimizer
        return self.result

    def _record(self, inputs: Tensor, labels: Tensor) -> None:
        self.inputs, self.labels = inputs.clone(), labels.clone()
        self.rate = torch.zeros((), device=inputs.device)
        torch.cuda.synchronize()
        # Other threads (one that pins the next batches, say) may go on meanwhile.
        with torch.cuda.graph(self.graph, stream=self.stream, capture_error_mode="thread_local"):
            self.result = self.update(self.inputs, self.labels, self.rate)
