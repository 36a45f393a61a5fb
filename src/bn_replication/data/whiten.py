"""Inputs centred, decorrelated or whitened (Sec. 2): linear maps of whole images, from the training images' moments."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Shape = Literal["unit", "centered", "decorrelated", "whitened"]

# Added to every variance before the root, as a share of their mean: pixels that never vary (the corners of MNIST) have
# none, and dividing by next to nothing would make noise the largest part of the input.
FLOOR = 0.01


class PrincipalAxes(NamedTuple):
    """Moments of images seen as vectors of D = C*H*W values in 0..1, float64 on the CPU."""

    mean: Tensor  # (D,)
    variances: Tensor  # (D,), ascending, the biased covariance's eigenvalues
    axes: Tensor  # (D, D), a column a direction


def principal_axes(images: Tensor) -> PrincipalAxes:
    """Return the moments of ``images`` (N, C, H, W) uint8: covariance = axes @ diag(variances) @ axes.T."""
    count = len(images)
    mean = sum(part.flatten(1).sum(0, dtype=torch.float64) for part in images.split(5000)) / (255 * count)
    assert isinstance(mean, Tensor)
    covariance = images.new_zeros(len(mean), len(mean), dtype=torch.float64)
    for part in images.split(5000):
        rows = part.flatten(1).float() / 255 - mean.float()  # centred first, so that float32 products are exact enough
        covariance += rows.T @ rows
    variances, axes = torch.linalg.eigh(covariance.cpu() / count)
    return PrincipalAxes(mean.cpu(), variances.clamp_min(0), axes)


class LinearInput:
    """``images`` -> float32 of their shape: ``scale * (x - mean) @ matrix`` on the vector of all pixels.

    unit: as they are, 0..1. centered: less their mean. decorrelated: turned to their principal axes besides.
    whitened: each of these of unit variance, and turned back (ZCA), so that an image is still an image. The last three
    are then multiplied by one number, which gives them the raw images' mean square: modes differ in shape, and neither
    the initial weights nor the learning rate favours one for its size.
    """

    def __init__(self, moments: PrincipalAxes, mode: Shape, device: str | torch.device = "cpu") -> None:
        mean, variances, axes = moments
        self.matrix: Tensor | None = None
        shrink = torch.ones_like(variances)
        if mode == "whitened":
            shrink = (variances + FLOOR * variances.mean()).rsqrt()
            self.matrix = (axes * shrink) @ axes.T
        elif mode == "decorrelated":
            self.matrix = axes
        self.moments = moments
        self.scale, self.mean = 1.0, None
        if mode != "unit":
            self.mean = mean.float().to(device)
            size = (variances * shrink.square()).sum()
            self.scale = float(((mean.square().sum() + variances.sum()) / size.clamp_min(1e-30)).sqrt())
        if self.matrix is not None:
            self.matrix = (self.scale * self.matrix).float().to(device)

    def __call__(self, images: Tensor) -> Tensor:
        pixels = images.float() / 255 if images.dtype == torch.uint8 else images
        if self.mean is None:
            return pixels
        rows = pixels.flatten(1) - self.mean
        rows = rows * self.scale if self.matrix is None else rows @ self.matrix
        return rows.view(images.shape)

    def spectrum(self) -> Tensor:
        """Return the eigenvalues, ascending (D,), of E[x x^T] of what comes out, on the images of the moments."""
        mean, variances, axes = self.moments
        if self.mean is None:  # what is not centred has its mean for one more direction
            return torch.linalg.eigvalsh((axes * variances) @ axes.T + mean[:, None] * mean).clamp_min(0)
        if self.matrix is None:
            return variances * self.scale**2
        matrix = self.matrix.double().cpu()
        return torch.linalg.eigvalsh(matrix.T @ (axes * variances) @ axes.T @ matrix).clamp_min(0)


def conditioning(spectrum: Tensor) -> dict[str, float]:
    """Return how far from round a second moment is, from its eigenvalues.

    condition: the largest over the smallest of those that hold 99% of the mean square (all of them would give infinity
    wherever a pixel never varies). effective_rank: (sum)^2 / sum of squares, 1 for one direction, D for a sphere.
    """
    values = spectrum.flip(0)
    held = int((values.cumsum(0) < 0.99 * values.sum()).sum())
    return {
        "condition": float(values[0] / values[held]),
        "effective_rank": float(values.sum().square() / values.square().sum()),
    }
