"""Randomness as a function of (seed, stream, index): no state, so resuming or probing shifts no draw."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def stream_seed(seed: int, stream: str, index: int = 0, rank: int = 0) -> int:
    """Return 63 bits of the run's seed, the stream's name ("order", "augment", ...), an epoch or a step, and a replica.

    Rank 0 draws what a run of one process draws, whatever the number of replicas beside it.
    """
    name = f"{stream}@{rank}" if rank else stream
    key = f"{seed}/{index}/{name}".encode()  # the free text stands last, so that no two triples share a key
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest()) >> 1


def generator(
    seed: int, stream: str, index: int = 0, device: str | torch.device = "cpu", rank: int = 0
) -> torch.Generator:
    """Return a fresh generator on ``device`` at the start of that stream; it takes 5 us."""
    import torch  # here, so that whoever needs only a number does not load torch

    return torch.Generator(device).manual_seed(stream_seed(seed, stream, index, rank))


def seed_global(device: torch.device, seed: int) -> None:
    """Seed the generator of ``device`` that ``torch.nn.Dropout`` and ``norms.NoisyBatchNorm`` draw from.

    ``torch.manual_seed`` would seed every kind of device, and format a stack trace for an absent GPU: milliseconds.
    """
    import torch

    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)
