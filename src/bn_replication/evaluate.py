"""How well a network does on held-out images: one crop, the 144 crops of Sec. 4.2.3, and several networks together.

The 144 crops are GoogLeNet's (Szegedy et al. 2014, Sec. 7): the image at 4 sizes, 3 squares of each, 6 crops of each
square, each also mirrored. Sizes are relative to a net that takes 224 pixels; for another they are scaled and rounded,
so at 32 pixels the short sides are 37, 41, 46 and 50. A square image has its three squares in one place: 48 of its 144
crops differ, each is computed once and counts three times, which gives the mean over all 144. Nothing else coincides:
the whole square is resized from the resized image, as in GoogLeNet, and so differs a little from size to size.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bn_replication.errors import UserError

TAKES = 224  # pixels that the paper's net takes, to which its sizes refer
ONE_CROP_SIDE, SHORT_SIDES = 256, (256, 288, 320, 352)


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
    return {"loss": loss / max(examples, 1), "accuracy": correct / max(examples, 1)}


# --- crops ----------------------------------------------------------------------------------------------


class Crop(NamedTuple):
    """A square of an image resized to ``height`` x ``width``; where ``side`` is not the net's size, resized to it."""

    height: int
    width: int
    top: int
    left: int
    side: int
    mirror: bool = False


Crops = Mapping[Crop, int]  # with how many times each counts


def _resized(height: int, width: int, size: int, short_side: int) -> tuple[int, int, int]:
    """Return the short side of an image resized to ``short_side`` to 224, and its new height and width."""
    short = round(size * short_side / TAKES)
    if short < size:
        raise UserError(
            f"found short side {short_side}, expected {TAKES} or more; mend it in evaluate.keep.short_sides"
        )
    return short, round(short * max(1, height / width)), round(short * max(1, width / height))


@lru_cache(maxsize=256)  # a folder of photographs has a few shapes, again and again
def centre(height: int, width: int, size: int) -> Crops:
    """Return the single crop: the centre at short side 256 to 224, or all of an image that has the net's own size."""
    if height == width == size:
        return {Crop(size, size, 0, 0, size): 1}
    _, tall, wide = _resized(height, width, size, ONE_CROP_SIDE)
    return {Crop(tall, wide, (tall - size) // 2, (wide - size) // 2, size): 1}


@lru_cache(maxsize=256)
def many(height: int, width: int, size: int, short_sides: tuple[int, ...] = SHORT_SIDES) -> Crops:
    """Return the paper's crops of a ``height`` x ``width`` image for a net that takes ``size`` pixels.

    For each short side 3 squares (left, centre, right, or top, centre, bottom), of each square the 4 corners, the
    centre and the whole, each plain and mirrored: 36 a side, 144 in all; those that coincide are one that counts more.
    """
    crops: Counter[Crop] = Counter()
    for short_side in short_sides:
        short, tall, wide = _resized(height, width, size, short_side)
        over, edge = max(tall, wide) - short, short - size
        for offset in (0, over // 2, over):
            top, left = (offset, 0) if tall > wide else (0, offset)
            places = [(0, 0), (0, edge), (edge, 0), (edge, edge), (edge // 2, edge // 2)]
            squares = [(top + down, left + right, size) for down, right in places] + [(top, left, short)]
            for square, mirror in itertools.product(squares, (False, True)):
                crops[Crop(tall, wide, *square, mirror)] += 1
    return crops


def cut(images: Tensor, crops: Crops, size: int) -> Iterator[tuple[Tensor, int]]:
    """Yield every crop of ``images``, float32 in 0..1 (N, C, ``size``, ``size``), and how many times it counts.

    ``images`` are uint8 or floats in 0..1 (N, C, H, W); they are resized bilinearly, averaging where that makes them
    smaller. Crops of one size should stand together, as the image is resized for each change.
    """
    pixels = images.float().div(255) if images.dtype == torch.uint8 else images
    at, resized = tuple(pixels.shape[2:]), pixels
    for (height, width, top, left, side, mirror), times in crops.items():
        if at != (height, width):
            at, resized = (height, width), _resize(pixels, height, width)
        crop = resized[:, :, top : top + side, left : left + side]
        crop = crop if side == size else _resize(crop, size, size)
        yield crop.flip(3) if mirror else crop, times


def _resize(pixels: Tensor, height: int, width: int) -> Tensor:
    if tuple(pixels.shape[2:]) == (height, width):
        return pixels
    return F.interpolate(pixels, (height, width), mode="bilinear", align_corners=False, antialias=True)


# --- class probabilities ----------------------------------------------------------------------------------


def class_probabilities(
    model: nn.Module,
    images: Tensor,
    crops: Crops,
    size: int,
    to_input: Callable[[Tensor], Tensor],
    batch_size: int = 250,
) -> Tensor:
    """Return the mean over ``crops`` of the class probabilities of each of ``images``, float64 (N, classes) on the CPU.

    Args:
        model: maps inputs (N, C, size, size) to logits; nothing in it changes.
        images: uint8 or floats in 0..1 (N, C, H, W), all of one shape; each gives exactly one row.
        to_input: what makes the network's input of pixels in 0..1.
        batch_size: images a batch, the last smaller where they do not divide; where that leaves room, several crops of
            theirs go together.
    """
    rows = []
    with evaluating(model):
        for part in images.split(batch_size):
            found, total = cut(part, crops, size), torch.zeros(())
            while some := list(itertools.islice(found, max(1, batch_size // len(part)))):
                pixels = torch.cat([crop for crop, _ in some])
                logits = model(to_input(pixels).contiguous(memory_format=torch.channels_last))
                of_each = logits.double().softmax(1).unflatten(0, (len(some), -1))  # (crops, N, classes)
                times = torch.tensor([count for _, count in some], device=of_each.device)
                total = total.to(of_each) + (times[:, None, None] * of_each).sum(0)
            rows.append((total / sum(crops.values())).cpu())
    return torch.cat(rows)


def together(probabilities: Sequence[Tensor]) -> Tensor:
    """Return an ensemble's class probabilities: the mean of its networks', each (N, classes)."""
    return torch.stack(list(probabilities)).mean(0)


def errors(probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    """Return ``top1_error`` and ``top5_error`` (0..1): the share of images whose label is not among so many likeliest.

    Of classes that are equally likely the lower one comes first, so that a net that knows nothing is right by chance.
    """
    own = probabilities.gather(1, labels[:, None])
    classes = torch.arange(probabilities.shape[1])
    before = (probabilities > own) | ((probabilities == own) & (classes < labels[:, None]))
    # (N,) how many classes come before the label; where a probability is no number, nothing was answered.
    rank = before.sum(1).where(probabilities.isfinite().all(1), probabilities.shape[1])
    return {f"top{k}_error": (rank >= k).double().mean().item() for k in (1, 5)}
