"""ImageNet as it is unpacked, in torchvision's ImageFolder layout: ``train/<class>/*.JPEG``, ``val/<class>/*.JPEG``.

ImageNet cannot be fetched freely, so nothing here downloads: it is found, or a line says what to put where.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image

from bn_replication.data.crops import Place, stored_size
from bn_replication.errors import UserError

Part = Literal["train", "val"]
PARTS: tuple[Part, ...] = ("train", "val")
SIDE = 256  # short side of the copies that boxes are measured in
ENDINGS = (".jpeg", ".jpg", ".png")
LAYOUT = (
    "train/<class>/*.JPEG and val/<class>/*.JPEG, a folder for each class as n01440764 (unpack "
    "ILSVRC2012_img_train.tar, the archives in it, and ILSVRC2012_img_val.tar, which image-net.org gives after "
    "registration)"
)
WANTED = f"expected {LAYOUT}"
MEND = "put them there or name their folder in data.source"


@dataclass(frozen=True, eq=False)
class Tree:
    """The images of one part in the suite's order, which is the same for every form of the set."""

    root: Path
    names: np.ndarray  # (N,) bytes, "n01440764/n01440764_10026.JPEG"; as Python strings workers would copy them all
    labels: np.ndarray  # (N,) int64, the class's place among the sorted classes
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def path(self, row: int) -> Path:
        return self.root / os.fsdecode(self.names[row])


def find(root: str | Path, source: str | Path | None = None) -> Path:
    """Return the folder with ``train`` and ``val``: ``source``, or BN_DATA's imagenet, or ``root``'s."""
    given = os.environ.get("BN_DATA")
    places = [Path(source)] if source else [*([Path(given) / "imagenet"] if given else []), Path(root) / "imagenet"]
    for place in places:
        if (place / "train").is_dir() and (place / "val").is_dir():
            return place
    raise UserError(f"found no ImageNet in {' or '.join(map(str, places))}, {WANTED}; {MEND}")


def tree(folder: Path, part: Part, classes: tuple[str, ...] | None = None) -> Tree:
    """List ``folder/part``; ``classes`` are those that it must have.

    The order is that of a hash of the names: fixed, the same on every machine, and without a pattern, so that the first
    n images are a fair sample of all classes. Raises ``UserError`` for a tree that is not as it should be.
    """
    root = folder / part
    there = sorted(name for name in os.listdir(root) if name[0] != ".")
    found = tuple(name for name in there if (root / name).is_dir())
    if not found:
        raise UserError(f"found {f'{there[0]} and no folder' if there else 'nothing'} in {root}, {WANTED}; {MEND}")
    if classes is not None and found != classes:
        odd = sorted(set(found) ^ set(classes))
        raise UserError(
            f"found {len(found)} classes in {root} and {len(classes)} in {folder / 'train'}, expected the same ones "
            f"(in one alone: {', '.join(odd[:3])}{' and more' if len(odd) > 3 else ''}); {MEND}"
        )
    keyed: list[tuple[bytes, bytes, int]] = []
    for label, name in enumerate(found):
        inside = [file for file in os.listdir(root / name) if file.lower().endswith(ENDINGS) and file[0] != "."]
        if not inside:
            raise UserError(f"found no image in {root / name}, expected *.JPEG; {MEND}")
        paths = [os.fsencode(f"{name}/{file}") for file in inside]
        keyed += [(hashlib.blake2b(path, digest_size=8).digest(), path, label) for path in paths]
    keyed.sort()
    labels = np.array([label for _, _, label in keyed], dtype=np.int64)
    return Tree(root, np.array([path for _, path, _ in keyed]), labels, found)


def decode(path: Path) -> Image.Image:
    """Return an image in RGB, or raise ``UserError``; some of ImageNet's are CMYK or grey, and one is a PNG."""
    try:
        with Image.open(BytesIO(path.read_bytes()), formats=["JPEG", "PNG"]) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"found {path} unreadable ({error}), expected a JPEG or PNG; unpack it again") from error


def shrunk(image: Image.Image) -> np.ndarray:
    """Return the copy whose short side is ``SIDE``: (height, width, 3) uint8."""
    height, width = stored_size(image.height, image.width, SIDE)
    return np.array(image.resize((width, height), Image.Resampling.BILINEAR))


class Folders:
    """Crops of the images of a tree, each decoded when it is asked for."""

    def __init__(self, images: Tree, size: int) -> None:
        self.images, self.size = images, size

    def read(self, rows: list[int], place: Place) -> tuple[torch.Tensor, None]:
        """Return the crops of those images, (N, size, size, 3) uint8, cut from the files as they are."""
        decoded = [decode(self.images.path(row)) for row in rows]
        sizes = torch.tensor([stored_size(image.height, image.width, SIDE) for image in decoded], dtype=torch.float64)
        square, crops = (self.size, self.size), np.empty((len(rows), self.size, self.size, 3), dtype=np.uint8)
        for row, (image, box, (height, width)) in enumerate(
            zip(decoded, place(sizes).tolist(), sizes.tolist(), strict=True)
        ):
            down, across = image.height / height, image.width / width
            top, left = box[0] * down, box[1] * across
            corner = min(left + box[3] * across, image.width), min(top + box[2] * down, image.height)
            crops[row] = np.asarray(image.resize(square, Image.Resampling.BILINEAR, box=(left, top, *corner)))
        return torch.from_numpy(crops), None

    def whole(self, row: int) -> np.ndarray:
        """Return that image whole, (H, W, 3) uint8, its short side 256."""
        return shrunk(decode(self.images.path(row)))
