"""One run on several processes: what the replicas of a network do together.

``torchrun --nproc-per-node=2 -m bn_replication.train ...`` starts the processes; each is a replica with its own batch,
and ``DistributedDataParallel`` averages their gradients at every update, where the paper's workers updated
asynchronously. A batch norm sees its replica's batch alone, as in the paper, unless ``norm=sync``. Everything that
replicas must agree on (the loss, whether to stop, the statistics for inference) is agreed on here.

Rank 0 keeps the run's directory and speaks for all. A process alone is a :class:`World` of one, in which nothing here
changes a bit.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from bn_replication.errors import UserError

# A replica that ends is noticed at once, by its closed connections. This is for one that falls silent, a machine cut
# off say, and must outlast what rank 0 does while the others wait: probes, summaries, checkpoints.
TIMEOUT = timedelta(minutes=10)
# The option's name from torch 2.14 on, and before.
_SYNC_BUFFERS = "forward_sync_buffers"
if _SYNC_BUFFERS not in inspect.signature(DistributedDataParallel).parameters:
    _SYNC_BUFFERS = "broadcast_buffers"


class Lost(RuntimeError):
    """Another replica is gone, so this one cannot go on; torchrun knows which."""


def is_loss(error: BaseException) -> bool:
    """Whether ``error`` is what a collective raises when a replica at its other end has gone."""
    # gloo says so in words alone.
    return isinstance(error, Lost | dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


@dataclass
class World:
    """The replicas of a run, seen from the one of ``rank``; ``size`` of them, from 0."""

    rank: int = 0
    size: int = 1
    asked: bool = False  # to stop: this replica
    _any_asked: bool = False

    @property
    def stopping(self) -> bool:
        """Whether any replica has been asked to stop: the same answer for all of them between two sums."""
        return self.asked if self.size == 1 else self._any_asked

    def total(self, *values: float) -> list[float]:
        """Return the sum of each of ``values`` over the replicas, to the bit the same on all of them."""
        if self.size == 1:
            return list(values)
        # Whether to stop travels along: on a CPU's own channel, so that no GPU is waited for.
        sums = torch.tensor([*values, self.asked], dtype=torch.float64)
        dist.all_reduce(sums)
        *totals, asked = sums.tolist()
        self._any_asked = asked > 0
        return totals

    def share(self, count: int) -> range:
        """Return this replica's part of ``range(count)``: together all of it, nothing twice."""
        return range(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def mean(self, values: dict[str, float], weight: int) -> dict[str, float]:
        """Return the mean of each value over the replicas, each counted ``weight`` times, its number of examples."""
        if self.size == 1:
            return values
        *sums, weights = self.total(*(value * weight for value in values.values()), weight)
        return {key: value / weights for key, value in zip(values, sums, strict=True)}

    def replicate(self, model: nn.Module) -> nn.Module:
        """Return what trains ``model``: gradients are those of the mean loss over all replicas."""
        if self.size == 1:
            return model
        # Of a 1x1 kernel, whose strides are told in two ways that mean one layout.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        # Running statistics serve inference alone, so they need no broadcast at every step: see `averaged`.
        options: dict[str, Any] = {_SYNC_BUFFERS: False}
        return DistributedDataParallel(model, **options)

    def rehearse(self, replica: nn.Module, inputs: Tensor) -> None:
        """Go once forward and back through what :meth:`replicate` returned, before a resumed run's state is loaded.

        After its first step it lays gradients out anew, in the order in which they come; three replicas or more then
        add them up in another order, which a run that goes on must share to go on to the bit. Moves buffers.
        """
        if self.size > 1:
            outputs = replica(inputs)
            heads = outputs if isinstance(outputs, tuple) else (outputs,)
            torch.stack([head.sum() for head in heads]).sum().backward()
            replica.zero_grad(set_to_none=True)

    def average(self, model: nn.Module) -> None:
        """Give every replica the mean of all running statistics: Alg. 2 averages over mini-batches of size m."""
        if self.size > 1:
            for buffer in _statistics(model):
                dist.all_reduce(buffer)
                buffer /= self.size

    @contextlib.contextmanager
    def averaged(self, model: nn.Module) -> Iterator[None]:
        """As :meth:`average`, and put each replica's own back to the bit, so that watching changes nothing."""
        own = [buffer.clone() for buffer in _statistics(model)] if self.size > 1 else []
        self.average(model)
        try:
            yield
        finally:
            for buffer, before in zip(_statistics(model), own, strict=False):
                buffer.copy_(before)

    def collect(self, value: Any) -> list[Any]:
        """Return the ``value`` of each of several replicas by rank, on rank 0; elsewhere an empty list."""
        if self.size == 1:
            return []
        values: list[Any] = [None] * self.size
        dist.gather_object(value, values if self.rank == 0 else None)
        return values if self.rank == 0 else []

    def hear(self, value: Any = None) -> Any:
        """Return rank 0's ``value``; what the others pass is of no account."""
        if self.size == 1:
            return value
        said = [value]
        dist.broadcast_object_list(said, device=torch.device("cpu"))
        return said[0]


def _statistics(model: nn.Module) -> list[Tensor]:
    return [buffer for buffer in model.buffers() if buffer.is_floating_point()]


@contextlib.contextmanager
def joined(replicas: int, device: str) -> Iterator[World]:
    """Meet the other replicas of a run and leave them in the end.

    Args:
        replicas: how many the run asks for; :class:`UserError` if another number of processes was started.
        device: ``cpu`` or ``cuda``; of a machine's GPUs each replica takes the one of its ``LOCAL_RANK``.
    """
    started = os.environ.get("WORLD_SIZE", "1")
    if started != str(replicas):
        raise UserError(
            f"replicas: found {replicas}, expected {started}, the number of processes started; "
            f"mend it with torchrun --nproc-per-node={replicas}, or leave replicas out"
        )
    if replicas == 1:
        yield World()
        return
    if missing := [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise UserError(f"found WORLD_SIZE={started} and no {', '.join(missing)}, expected what torchrun sets; use it")
    if device.startswith("cuda"):
        local, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= gpus:
            found = f"found {gpus} GPUs here and process {local + 1} of this machine, expected a GPU for each"
            raise UserError(f"{found}; mend it with torchrun --nproc-per-node or machine.device=cpu")
        torch.cuda.set_device(local)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo", timeout=TIMEOUT)
    try:
        yield World(dist.get_rank(), replicas)
    except BaseException as error:
        # Not closed in order, which would be to wait for others that are elsewhere or gone: the process ends now.
        if is_loss(error):
            raise Lost(f"rank {dist.get_rank()} lost another process of this run, which torchrun names") from error
        raise
    dist.destroy_process_group()
