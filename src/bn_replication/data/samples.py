"""A few hundred real images of each small data set, shipped so that tests and smoke runs need no download.

Each set is a contact sheet (``samples/NAME.png``, lossless, one tile an image) beside a list of labels and of
the rows of the full set that the tiles are; ``python -m bn_replication.data.samples`` makes both again from
verified data, byte for byte the same pixels.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

import numpy as np
from PIL import Image

from bn_replication.errors import UserError

HERE = Path(__file__).parent / "samples"
# images a class in the training and in the test part, tiles in a row of the sheet
SIZES = {"mnist": (40, 20, 30), "fashion_mnist": (40, 20, 30), "cifar10": (24, 10, 20)}


def read(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return train images, train labels, test images, test labels of ``name``: uint8, images (N, C, H, W).

    Raises ``UserError`` where a file is missing or its pixels are not those that were shipped.
    """
    try:
        index = json.loads((HERE / f"{name}.json").read_text())
        with Image.open(HERE / f"{name}.png", formats=["PNG"]) as sheet:
            images = _tiles(np.asarray(sheet), index["side"])[: len(index["train_rows"]) + len(index["test_rows"])]
        found = _digest(images)
    except (OSError, ValueError, KeyError, SyntaxError) as error:
        raise UserError(
            f"found no sample of {name} ({error}), expected {HERE / name}.png and .json; check them out again"
        ) from error
    if found != index["sha256"]:
        raise UserError(f"found {HERE / name}.png altered, expected SHA-256 {index['sha256']}; check it out again")
    cut = len(index["train_rows"])
    labels = [np.array(index[part], dtype=np.uint8) for part in ("train_labels", "test_labels")]
    return images[:cut], labels[0], images[cut:], labels[1]


def write(name: str, parts: list[tuple[np.ndarray, np.ndarray]], into: Path = HERE) -> None:
    """Write the first images of each class, in the set's own order, from (images, labels) of train, test."""
    *per_class, across = SIZES[name]
    rows = [
        np.sort(np.concatenate([np.flatnonzero(labels == label)[:count] for label in range(10)]))
        for (_, labels), count in zip(parts, per_class, strict=True)
    ]
    images = np.concatenate([all_images[chosen] for (all_images, _), chosen in zip(parts, rows, strict=True)])
    index = {
        "side": images.shape[-1],
        "sha256": _digest(images),
        "train_rows": rows[0].tolist(),
        "test_rows": rows[1].tolist(),
        "train_labels": parts[0][1][rows[0]].tolist(),
        "test_labels": parts[1][1][rows[1]].tolist(),
    }
    into.mkdir(parents=True, exist_ok=True)
    Image.fromarray(_sheet(images, across)).save(into / f"{name}.png", optimize=True)
    (into / f"{name}.json").write_text(
        "{\n" + ",\n".join(f'"{key}": {json.dumps(value)}' for key, value in index.items()) + "\n}\n"
    )


def _sheet(images: np.ndarray, across: int) -> np.ndarray:
    n, c, h, w = images.shape
    down = -(-n // across)
    padded = np.zeros((down * across, c, h, w), dtype=np.uint8)
    padded[:n] = images
    sheet = padded.reshape(down, across, c, h, w).transpose(0, 3, 1, 4, 2).reshape(down * h, across * w, c)
    return sheet if c == 3 else sheet[:, :, 0]


def _tiles(sheet: np.ndarray, side: int) -> np.ndarray:
    sheet = sheet.reshape(*sheet.shape[:2], -1)
    down, across = sheet.shape[0] // side, sheet.shape[1] // side
    tiles = sheet.reshape(down, side, across, side, -1).transpose(0, 2, 4, 1, 3)
    return np.ascontiguousarray(tiles.reshape(down * across, -1, side, side))


def _digest(images: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(images).tobytes()).hexdigest()


def main() -> None:
    from bn_replication.data.images import Images, load  # here: images reads samples

    parser = argparse.ArgumentParser(description="Make the shipped samples again from the full, verified sets.")
    parser.add_argument("--root", default="data", help="where the full sets lie (default: %(default)s)")
    parser.add_argument("--into", type=Path, default=HERE, help="where to write (default: the package)")
    args = parser.parse_args()
    for name in SIZES:
        full = load(name, args.root)
        parts = [part for part in (full.train, full.held_out) if isinstance(part, Images)]
        write(
            name,
            [(part.images.numpy(), part.labels.numpy()) for part in parts],
            args.into,
        )
        print(f"{name}: {(args.into / name).with_suffix('.png')}")


if __name__ == "__main__":
    main()
