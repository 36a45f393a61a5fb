"""Images as uint8 tensors that stay where training needs them; only final runs are given the test set."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from bn_replication.data import imagenet, sources
from bn_replication.data.crops import Place, resample
from bn_replication.data.imagenet import Pictures
from bn_replication.data.whiten import PrincipalAxes, principal_axes
from bn_replication.errors import UserError, nearest

Input = Literal["binary", "unit", "standardize"]
SplitName = Literal["final", "tune"]

# So many of the last training images are the validation set of split "tune".
VALIDATION = {
    "mnist": 10_000,
    "fashion_mnist": 10_000,
    "cifar10": 5_000,
    "imagenet": 50_000,
    "imagenet_folders": 50_000,
    "mnist_sample": 100,
    "fashion_mnist_sample": 100,
    "cifar10_sample": 80,
}
CIFAR10_TRAIN = tuple(f"data_batch_{n}" for n in range(1, 6))


@dataclass(frozen=True)
class Images:
    """Labelled images that lie on one device; shared between runs of a process, so never write to them."""

    images: Tensor  # (N, C, H, W) uint8
    labels: Tensor  # (N,) int64
    classes: int = 10

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one image, as the network is given it: (C, H, W)."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    @property
    def device(self) -> torch.device:
        return self.images.device

    @property
    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and (biased) standard deviation a channel, (C,) each, in 0..1."""
        return channel_statistics(self.images)

    def take(self, indices: Tensor | slice) -> Tensor:
        """Return those images as they are, uint8."""
        return self.images[indices]

    def crops(self, indices: Tensor | slice, place: Place) -> Tensor:
        """Return what ``place`` cuts out of each, resized to the size of a whole one: float32 in 0..1."""
        chosen = self.images[indices]
        sizes = torch.tensor(self.shape[1:], dtype=torch.float64).expand(len(chosen), 2)
        pixels = chosen.permute(0, 2, 3, 1).contiguous()
        return resample(pixels, place(sizes).float().to(self.device), sizes.to(self.device), self.shape[1])

    def part(self, start: int | None, stop: int | None) -> Images:
        """Return rows ``start`` to ``stop`` without a copy."""
        return Images(self.images[start:stop], self.labels[start:stop], self.classes)


@dataclass(frozen=True)
class Split:
    """What a run trains on, what it is measured on, and the name of the latter, as its records call it."""

    train: Images | Pictures
    held_out: Images | Pictures
    held_out_name: Literal["test", "validation"]

    @cached_property
    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and (biased) standard deviation a channel, (C,) each, of the *training* images in 0..1."""
        return self.train.statistics

    @cached_property
    def principal_axes(self) -> PrincipalAxes:
        """Mean and covariance of the *training* images in 0..1; a minute for 3072 pixels, so once a process."""
        if isinstance(self.train, Pictures):
            raise UserError("found no covariance of whole images of ImageNet, expected data.input=standardize or unit")
        return principal_axes(self.train.images)


def load(
    name: str,
    root: str | Path = "data",
    split: SplitName = "final",
    subset: int | None = None,
    source: str | Path | None = None,
    device: str | torch.device = "cpu",
    size: int | None = None,
    images: int | None = None,
) -> Split:
    """Return the data set ``name`` on ``device``, fetched and verified where needed, read once a process.

    final: all training images, test set held out. tune: the last ``VALIDATION[name]`` training images held
    out, the test set untouched. subset: only the first so many training images and at most as many held-out
    ones. size: of the squares that ImageNet's images are given as; the others have a size. images: how many
    training images the whole set must have. ImageNet's validation images are its held-out ones, as in the paper.
    Raises ``UserError`` for bad names, sizes or bytes.
    """
    if name not in VALIDATION:
        raise UserError(
            f"found data set '{name}', expected one of {', '.join(VALIDATION)}"
            f"{nearest(name, VALIDATION)}; mend it in data.name"
        )
    if split not in get_args(SplitName):
        raise UserError(
            f"found split '{split}', expected final or tune{nearest(split, get_args(SplitName))}; mend it in data.split"
        )
    if size is not None and name not in imagenet.NAMES:
        raise UserError(f"found data.size {size}, expected null: images of {name} keep their own; mend it in data.size")
    return _split(name, str(root), split, subset, None if source is None else str(source), str(device), size, images)


@lru_cache(maxsize=16)
def _split(
    name: str,
    root: str,
    split: str,
    subset: int | None,
    source: str | None,
    device: str,
    size: int | None,
    images: int | None,
) -> Split:
    train, test = _whole(name, root, source, device, size)
    if images not in (None, len(train)):
        raise UserError(
            f"found {len(train):,} training images of {name}, expected {images:,}; complete them, or set data.images "
            "to what there is: it is then part of what a run is"
        )
    held_out, held_out_name = test, "test"
    if split == "tune":
        cut = len(train) - VALIDATION[name]
        if cut < 1:
            raise UserError(
                f"found {len(train)} training images of {name}, expected more than the {VALIDATION[name]} that "
                "split=tune holds out; mend it in data.split"
            )
        train, held_out, held_out_name = train.part(None, cut), train.part(cut, None), "validation"
    if subset is not None:
        if not 1 <= subset <= len(train):
            raise UserError(
                f"found subset {subset}, expected 1 to {len(train)} ({name}, {split}); mend it in data.subset"
            )
        train, held_out = train.part(None, subset), held_out.part(None, subset)
    return Split(train, held_out, held_out_name)


@lru_cache(maxsize=4)
def _whole(
    name: str, root: str, source: str | None, device: str, size: int | None
) -> tuple[Images, Images] | tuple[Pictures, Pictures]:
    if name in imagenet.NAMES:
        return imagenet.load(name, root, source, size, device)
    if name.endswith("_sample"):
        # Imported here since `python -m bn_replication.data.samples` is a program too.
        from bn_replication.data import samples

        arrays = [torch.from_numpy(array) for array in samples.read(name.removesuffix("_sample"))]
    else:
        arrays = [*_decode(name, _verified(name, root, source))]
    train_images, train_labels, test_images, test_labels = (array.to(device) for array in arrays)
    return Images(train_images, train_labels.long()), Images(test_images, test_labels.long())


def _verified(name: str, root: str, source: str | None) -> dict[str, bytearray]:
    dataset = sources.find(name)
    try:
        return sources.read(dataset, Path(root) / name)
    except sources.SourceError:
        folder = sources.ensure(name, root, source)
    try:
        return sources.read(dataset, folder)
    except sources.SourceError as error:
        raise UserError(
            f"found data that changed since it was verified ({error}), expected {name}; start again"
        ) from error


def _decode(name: str, files: dict[str, bytearray]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return train images, train labels, test images, test labels, all uint8; images (N, C, H, W)."""
    content = {key: torch.frombuffer(value, dtype=torch.uint8) for key, value in files.items()}
    if name == "cifar10":  # rows of a label byte and 3072 pixel bytes, channels first
        rows = [content[f"{part}.bin"].view(-1, 3073) for part in (*CIFAR10_TRAIN, "test_batch")]
        images = [torch.cat([row[:, 1:] for row in part]).view(-1, 3, 32, 32) for part in (rows[:5], rows[5:])]
        labels = [torch.cat([row[:, 0] for row in part]) for part in (rows[:5], rows[5:])]
    else:  # IDX: a header of 16 bytes before images, of 8 before labels
        images = [content[f"{part}-images-idx3-ubyte"][16:].view(-1, 1, 28, 28) for part in ("train", "t10k")]
        labels = [content[f"{part}-labels-idx1-ubyte"][8:] for part in ("train", "t10k")]
    return images[0], labels[0], images[1], labels[1]


def channel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased standard deviation of each channel of uint8 ``images`` (N, C, H, W), in 0..1.

    float32 (C,) each, from counts of the 256 values, in integers and float64: exact, so no thread count or
    device changes a bit.
    """
    counts = torch.zeros(images.shape[1], 256, dtype=torch.int64, device=images.device)
    for part in images.split(5000):  # bincount widens to int64, so in parts
        for channel in range(images.shape[1]):
            counts[channel] += torch.bincount(part[:, channel].flatten(), minlength=256)
    counts = counts.double().cpu()
    value = torch.arange(256, dtype=torch.float64) / 255
    mean = counts @ value / counts.sum(1)
    variance = (counts * (value - mean[:, None]).square()).sum(1) / counts.sum(1)
    return mean.float().to(images.device), variance.sqrt().float().to(images.device)


def to_input(images: Tensor, mode: Input = "unit", mean: Tensor | None = None, std: Tensor | None = None) -> Tensor:
    """Return what the net is given: float32, shaped like ``images`` (uint8, or augmented float32 in 0..1).

    unit: 0..1. binary: 1 where a pixel is above 127 of 255, else 0. standardize: (x - mean) / std a channel,
    with the training split's ``mean`` and ``std`` (C,). Raises ``UserError`` for an unknown mode.
    """
    pixels = images.float().div_(255) if images.dtype == torch.uint8 else images
    if mode == "unit":
        return pixels
    if mode == "binary":
        return (pixels > 127.5 / 255).float()
    if mode == "standardize":
        assert mean is not None
        assert std is not None
        # A channel that never varies (a tiny subset) is only centred.
        scale = torch.where(std > 0, std, 1.0).reciprocal()
        return (pixels - mean[:, None, None]).mul_(scale[:, None, None])
    raise UserError(
        f"found input '{mode}', expected one of {', '.join(get_args(Input))}"
        f"{nearest(mode, get_args(Input))}; mend it in data.input"
    )
