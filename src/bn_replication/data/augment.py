"""Random flips, crops and photometric distortions of a batch where it lies, each image with draws of its own.

Photometric distortion follows Howard (2013), as GoogLeNet used it: brightness, contrast and colour scaled by
random factors; hue is turned besides. In luma and chroma (YIQ) all four are linear: luma is scaled about its
mean, chroma is scaled and rotated. So they commute, "random order" would change nothing as long as only the
result is clipped, and one 3x3 matrix an image does them all.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from bn_replication.errors import UserError

# One column a choice, drawn whether or not it is used: turning one off leaves the draws of the others alone.
FLIP, TOP, LEFT, BRIGHTNESS, CONTRAST, SATURATION, HUE = range(7)


def augment(
    images: Tensor,
    generator: torch.Generator,
    *,
    flip: bool = False,
    crop: int = 0,
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
    hue: float = 0.0,
    strength: float = 1.0,
) -> Tensor:
    """Return the distorted batch, float32 in 0..1, shaped like ``images`` (N, C, H, W), uint8 or float32 in 0..1.

    Draws come from ``generator`` only. flip: mirror half of the images, at random. crop: pad by so many zero
    pixels and cut the old size at a random place. brightness, contrast, saturation: factors uniform in 1 -+
    value * strength. hue: turn by up to value * strength of a full circle. Where all is off the result is
    exactly ``images / 255``. Raises ``UserError`` for values out of range or colour distortions of images
    without three channels.
    """
    photometric = check(images.shape[1], crop, brightness, contrast, saturation, hue, strength)
    if not (flip or crop or photometric):
        return _unit(images)
    draws = torch.rand(len(images), 7, generator=generator, device=images.device)
    if flip or crop:
        images = _shift(images, draws, flip, crop)
    pixels = _unit(images)
    if photometric:
        reach = _reach(brightness, contrast, saturation, hue, strength, images.device)
        pixels = _colour(pixels, (draws[:, BRIGHTNESS:] * 2 - 1) * reach)  # uniform in -reach..reach
    return pixels


def _unit(images: Tensor) -> Tensor:
    return images.float().div_(255) if images.dtype == torch.uint8 else images


def check(
    channels: int,
    crop: int,
    brightness: float,
    contrast: float,
    saturation: float,
    hue: float,
    strength: float,
) -> bool:
    """Return whether any photometric distortion is on; raise ``UserError`` for a value out of range."""
    reach = {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue}
    for name, value in reach.items():
        if not 0 <= value * strength <= 1:
            raise UserError(f"found {name} {value:g} times strength {strength:g}, expected 0..1; mend it in augment")
    if strength < 0:
        raise UserError(f"found strength {strength:g}, expected 0 (none) or more; mend it in augment.strength")
    if crop < 0:
        raise UserError(f"found crop {crop}, expected 0 (none) or more pixels of padding; mend it in augment.crop")
    if channels != 3 and strength * (saturation + hue) > 0:
        raise UserError(f"found {channels} channel(s), expected 3 for saturation and hue; mend it in augment")
    return strength * sum(reach.values()) > 0


def _shift(images: Tensor, draws: Tensor, flip: bool, crop: int) -> Tensor:
    """Mirror and shift ``images`` (N, C, H, W) of any type by gathering."""
    if not crop:  # the same without an index for every pixel, of which crops of 224 have many
        return torch.where((draws[:, FLIP] < 0.5)[:, None, None, None], images.flip(3), images)
    n, c, h, w = images.shape
    top = (draws[:, TOP] * (2 * crop + 1)).long()  # (N,) each in 0..2*crop; crop itself is the middle
    left = (draws[:, LEFT] * (2 * crop + 1)).long()
    rows = top[:, None] + torch.arange(h, device=images.device)  # (N, H)
    columns = torch.arange(w, device=images.device).expand(n, w)
    if flip:
        columns = torch.where(draws[:, FLIP, None] < 0.5, columns.flip(1), columns)
    columns = left[:, None] + columns
    padded = F.pad(images, (crop, crop, crop, crop)).flatten(2)  # (N, C, (H + 2 crop)(W + 2 crop))
    places = (rows[:, :, None] * (w + 2 * crop) + columns[:, None, :]).flatten(1)  # (N, H W)
    return padded.gather(2, places[:, None].expand(n, c, h * w)).view(n, c, h, w)


@cache  # on the device for good: a copy to a GPU each step would wait for it
def _reach(
    brightness: float, contrast: float, saturation: float, hue: float, strength: float, device: torch.device
) -> Tensor:
    return torch.tensor([brightness, contrast, saturation, hue], device=device) * strength


@cache
def _bases(device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return luma weights (3,) and the 3x3 maps to luma, to chroma, to chroma turned by 90 degrees."""
    yiq = torch.tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]], dtype=torch.float64)
    luma = yiq[0]
    grey = torch.ones(3, 1, dtype=torch.float64) @ luma[None]
    quarter = torch.linalg.inv(yiq) @ torch.tensor([[0.0, 0, 0], [0, 0, -1], [0, 1, 0]], dtype=torch.float64) @ yiq
    chroma = torch.eye(3, dtype=torch.float64) - grey
    return tuple(matrix.float().to(device) for matrix in (luma, grey, chroma, quarter))  # type: ignore[return-value]


def _colour(pixels: Tensor, amount: Tensor) -> Tensor:
    """Apply the four distortions by ``amount`` (N, 4) to ``pixels`` (N, 3 or 1, H, W) in 0..1."""
    brightness, contrast, saturation = (1 + amount[:, :3]).unbind(1)
    flat = pixels.flatten(2)
    if pixels.shape[1] != 3:
        middle = flat.mean((1, 2))
        flat = flat * (brightness * contrast)[:, None, None] + (brightness * (1 - contrast) * middle)[:, None, None]
        return flat.clamp_(0, 1).view_as(pixels)
    luma, grey, chroma, quarter = _bases(pixels.device)
    middle = flat.mean(2) @ luma  # (N,) mean luma, the fixed point of contrast
    angle = amount[:, 3] * (2 * torch.pi)
    turned = torch.cos(angle)[:, None, None] * chroma + torch.sin(angle)[:, None, None] * quarter
    matrix = (brightness * contrast)[:, None, None] * (grey + saturation[:, None, None] * turned)  # (N, 3, 3)
    offset = (brightness * (1 - contrast) * middle)[:, None, None].expand(-1, 3, 1)
    return torch.baddbmm(offset, matrix, flat).clamp_(0, 1).view_as(pixels)
