"""Which examples share a batch: the order of an epoch as a pure function of (seed, epoch).

The paper's item 6 of Sec. 4.2.1 shuffles within shards "which prevents the same examples from always
appearing in a mini-batch together". Its shards are not described; here a shard is a fixed random part of the
training set, and shards are read one after another.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, get_args

import torch
from torch import Tensor

from bn_replication.errors import UserError, nearest
from bn_replication.streams import generator

Mode = Literal["full", "within_shard", "fixed"]


def epoch_order(
    n: int, seed: int, epoch: int, mode: Mode = "full", shards: int = 1, device: str | torch.device = "cpu"
) -> Tensor:
    """Return the order of ``n`` examples in ``epoch``: int64 (n,), every example exactly once.

    full: a fresh permutation each epoch. fixed: one permutation for good. within_shard: the fixed one cut
    into ``shards`` equal parts (to within one example), each shuffled afresh each epoch; 1 shard is a full
    shuffle, n/batch shards make every batch the same set each time. Drawn on the CPU, so the order is the
    same on every device. Raises ``UserError`` for an unknown mode or shards outside 1..n.
    """
    if mode not in get_args(Mode):
        raise UserError(
            f"found order '{mode}', expected one of {', '.join(get_args(Mode))}"
            f"{nearest(mode, get_args(Mode))}; mend it in data.order"
        )
    if not 1 <= shards <= n:
        raise UserError(f"found {shards} shards, expected 1 to {n} (the training examples); mend it in data.shards")
    if mode == "full":
        return torch.randperm(n, generator=generator(seed, "order", epoch)).to(device)
    base = torch.randperm(n, generator=generator(seed, "shards"))
    if mode == "within_shard":
        draw = generator(seed, "order", epoch)
        base = torch.cat([part[torch.randperm(len(part), generator=draw)] for part in base.tensor_split(shards)])
    return base.to(device)


# One order a run is enough for a run alone, two where it reads ahead; the rest serve runs that train side by side in
# one process (60,000 examples: 0.5 MB each; ImageNet's: 10 MB).
_cached_order = lru_cache(maxsize=8)(epoch_order)


def batch_indices(
    step: int,
    batch: int,
    n: int,
    seed: int,
    mode: Mode = "full",
    shards: int = 1,
    device: str | torch.device = "cpu",
    rank: int = 0,
    replicas: int = 1,
) -> Tensor:
    """Return the examples of the update after ``step`` updates: int64 (batch,), those of replica ``rank``.

    Epochs follow each other without a gap: where ``batch`` does not divide ``n``, one batch holds the end of
    an epoch and the start of the next, so that every batch is full (BN's statistics) and every example is
    still seen exactly once an epoch. Under "fixed" the same batches then return every lcm(n, batch)/n epochs;
    take a subset that ``batch`` divides to have the very same ones each epoch.

    An update takes ``replicas * batch`` examples, cut into as many slices: together the replicas read the epochs as
    one process with batches of that size would, whether or not that size divides ``n``.
    """
    if batch < 1:
        raise UserError(f"found batch size {batch}, expected at least 1; mend it in batch_size")
    parts, start, missing = [], (step * replicas + rank) * batch, batch
    while missing:
        epoch, offset = divmod(start, n)
        part = _cached_order(n, seed, epoch, mode, shards, str(device))[offset : offset + missing]
        parts.append(part)
        start, missing = start + len(part), missing - len(part)
    return torch.cat(parts)
