"""Where an image is cut, and how a cut becomes the square that the network is given.

A box is (top, left, height, width) in pixels, of any fraction, so that an image and a smaller copy of it can be cut
alike. Resampling is bilinear with the triangle widened where it shrinks (antialiased), as Pillow's, and on whole
batches: two matrix products an image, which run where the pixels lie.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Place = Callable[[Tensor], Tensor]  # sizes (N, 2), height and width -> boxes (N, 4), both float64 on the CPU

CENTRE = 224 / 256  # side of the single centre crop, as a share of the image's short side
TRIES = 10  # draws of area and aspect before the whole image is taken, as torchvision's
DRAWS = 2 + 2 * TRIES  # random numbers an example: its place, then area and aspect of each try


def centre_boxes(sizes: Tensor) -> Tensor:
    """Return the squares in the middle, on whole pixels where the short side is 256."""
    edge = CENTRE * sizes.amin(1, keepdim=True).expand_as(sizes)
    return torch.cat([((sizes - edge) / 2).round(), edge], dim=1)


def random_boxes(sizes: Tensor, draws: Tensor, area: float, aspect: float) -> Tensor:
    """Return GoogLeNet's crops: a share of the area uniform in ``area``..1, sides in a ratio of up to ``aspect``.

    Width over height is uniform in its logarithm in 1 / aspect..aspect. Where none of ``TRIES`` draws fits, the largest
    box in the middle whose sides obey. ``draws`` (N, DRAWS) are uniform in 0..1, a row an example, so an example's box
    depends on nothing but its row and its size.
    """
    share, turn = draws[:, 2:].double().view(len(draws), TRIES, 2).unbind(2)
    target = sizes.prod(1, keepdim=True) * (area + (1 - area) * share)  # (N, TRIES) pixels
    ratio = ((2 * turn - 1) * math.log(aspect)).exp()
    tried = torch.stack([(target / ratio).sqrt(), (target * ratio).sqrt()], dim=2)  # (N, TRIES, 2)
    fits = (tried <= sizes[:, None]).all(2)
    chosen = tried[torch.arange(len(draws)), fits.int().argmax(1)]  # the first that fits
    height, width = sizes.unbind(1)
    held = (width / height).clamp(1 / aspect, aspect)
    whole = torch.stack([torch.minimum(height, width / held), torch.minimum(width, height * held)], dim=1)
    found = fits.any(1, keepdim=True)
    extent = torch.where(found, chosen, whole)
    return torch.cat([(sizes - extent) * torch.where(found, draws[:, :2].double(), 0.5), extent], dim=1)


def resample(pixels: Tensor, boxes: Tensor, valid: Tensor, side: int) -> Tensor:
    """Return each box of ``pixels`` as a square: float32 (N, C, side, side) in 0..1.

    Args:
        pixels: (N, H, W, C) uint8, images side by side in a common frame.
        boxes: (N, 4) float32, in pixels of the frame.
        valid: (N, 2) rows and columns of the frame that an image fills; what lies beyond is never looked at.
        side: of the square.
    """
    n, h, w, c = pixels.shape
    rows = _weights(boxes[:, 0], boxes[:, 2], valid[:, 0], h, side)
    columns = _weights(boxes[:, 1], boxes[:, 3], valid[:, 1], w, side)
    upright = rows @ pixels.view(n, h, w * c).float()  # (N, side, W C)
    planes = upright.view(n, side, w, c).permute(0, 3, 1, 2).reshape(n, c * side, w)
    return (planes @ columns.mT).div_(255).view(n, c, side, side)


def _weights(start: Tensor, length: Tensor, valid: Tensor, pixels: int, side: int) -> Tensor:
    """Return (N, side, pixels): how much of each pixel there is in each of ``side`` parts of ``start``..+``length``."""
    step = (length / side)[:, None]
    centre = start[:, None] + (torch.arange(side, device=start.device) + 0.5) * step
    at = torch.arange(pixels, device=start.device) + 0.5
    weights = (1 - (at - centre[:, :, None]).abs() / step.clamp_min(1)[:, :, None]).clamp_min_(0)
    weights = weights * (at < valid[:, None, None])
    return weights / weights.sum(2, keepdim=True)


def reach(boxes: Tensor, sizes: Tensor, side: int) -> Tensor:
    """Return (N, 4) int64, first and end row, first and end column: the pixels that ``resample`` looks at."""
    margin = (boxes[:, 2:] / side).clamp_min(1)
    first = (boxes[:, :2] - margin).floor().clamp_min(0)
    end = torch.minimum((boxes[:, :2] + boxes[:, 2:] + margin).ceil(), sizes)
    return torch.stack([first[:, 0], end[:, 0], first[:, 1], end[:, 1]], dim=1).long()


def stored_size(height: int, width: int, side: int) -> tuple[int, int]:
    """Return height and width of the copy whose short side is ``side``: what boxes of an image are measured in."""
    short = min(height, width)
    return round(height * side / short), round(width * side / short)
