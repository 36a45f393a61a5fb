"""Images that do not fit on the device: read from disk by workers, ahead of the step that wants them.

``Pictures`` is to ImageNet what ``Images`` is to the small sets. Two forms of it give the network the same images to
within interpolation: files as they are unpacked (``imagenet_folders``) and the prepared, mapped ones (``imagenet``).
"""

from __future__ import annotations

import signal
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bn_replication.data import folders
from bn_replication.data.crops import Place, centre_boxes, resample
from bn_replication.errors import UserError

NAMES = ("imagenet", "imagenet_folders")
# Of the training images in 0..1, as published with torchvision's networks; to measure them takes a pass over all.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Key = TypeVar("Key")


class Ask(NamedTuple):
    """What is wanted of the disk: which images of a part, and where to cut them."""

    rows: list[int]
    place: Place


class Cut(NamedTuple):
    """What was read: pixels (N, H, W, 3) uint8, and (N, 6) boxes and extents in them; None: they are the crops."""

    pixels: Tensor
    frame: Tensor | None


class Store(Protocol):
    def read(self, rows: list[int], place: Place) -> tuple[Tensor, Tensor | None]: ...

    def whole(self, row: int) -> np.ndarray: ...


@dataclass(frozen=True, eq=False)
class Pictures:
    """Labelled images of many sizes on disk, given to the network as squares of ``size``."""

    store: Store
    labels: Tensor  # (N,) int64, on the device where the network is
    classes: int
    size: int
    first: int = 0  # row of the store that is our first

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        return 3, self.size, self.size

    @property
    def device(self) -> torch.device:
        return self.labels.device

    @property
    def statistics(self) -> tuple[Tensor, Tensor]:
        return torch.tensor(MEAN, device=self.device), torch.tensor(STD, device=self.device)

    def part(self, start: int | None, stop: int | None) -> Pictures:
        """Return rows ``start`` to ``stop``."""
        rows = range(len(self))[start:stop]
        return Pictures(self.store, self.labels[start:stop], self.classes, self.size, self.first + rows.start)

    def ask(self, indices: Tensor | slice, place: Place = centre_boxes) -> Ask:
        rows = range(len(self))[indices] if isinstance(indices, slice) else indices.tolist()
        return Ask([self.first + row for row in rows], place)

    def finish(self, cut: Cut) -> Tensor:
        """Return the crops: float32 (N, 3, size, size) in 0..1, on the device, where what is left to do is done."""
        pixels = cut.pixels.to(self.device, non_blocking=True)
        if cut.frame is None:
            return pixels.permute(0, 3, 1, 2).float().div_(255)
        frame = cut.frame.to(self.device, non_blocking=True)
        return resample(pixels, frame[:, :4], frame[:, 4:], self.size)

    def crops(self, indices: Tensor | slice, place: Place) -> Tensor:
        """Return the crops that ``place`` chooses, read here and now."""
        return self.finish(Cut(*self.store.read(*self.ask(indices, place))))

    def take(self, indices: Tensor | slice) -> Tensor:
        """Return the images as they are held out: one centre crop (short side 256, centre 224)."""
        return self.crops(indices, centre_boxes)

    def whole(self, index: int) -> Tensor:
        """Return one image whole, (3, H, W) uint8, its short side 256, for other crops than one."""
        return torch.from_numpy(self.store.whole(self.first + index)).to(self.device).permute(2, 0, 1)


class Ahead(Generic[Key]):
    """Reads what comes next while the network is busy: ``ahead(key)`` is what ``read`` gives for ``ask(key)``.

    Args:
        ask: a step, say -> what it needs of the disk; a pure function, called in this process.
        following: key -> the key expected after it, or None. Any other may be asked for; reading then goes on from it.
        workers: processes that read; 0 reads here, when asked. The result is the same.
    """

    def __init__(
        self, store: Store, ask: Callable[[Key], Ask], following: Callable[[Key], Key | None], workers: int, pin: bool
    ) -> None:
        self.store, self.ask, self.following, self.workers, self.pin = store, ask, following, workers, pin
        self._batches: Iterator[Any] | None = None
        self._next: Key | None = None

    def __call__(self, key: Key) -> Cut:
        if self.workers == 0:
            return Cut(*self.store.read(*self.ask(key)))
        if self._batches is None or key != self._next:
            self._batches = self._start(key)
        found = next(self._batches)
        self._next = self.following(key)
        if self._next is None or isinstance(found, UserError):
            self.close()
        if isinstance(found, UserError):
            raise found
        return found

    def close(self) -> None:
        """End the workers."""
        self._batches = self._next = None

    def _start(self, key: Key) -> Iterator[Any]:
        self.close()
        loader = DataLoader(
            _Reads(self.store),
            batch_size=None,  # an item is a batch
            sampler=_Asks(self.ask, self.following, key),  # pyright: ignore[reportArgumentType]: any iterable will do
            num_workers=self.workers,
            pin_memory=self.pin,
            worker_init_fn=_deaf,
            generator=torch.Generator(),  # it seeds the workers, from the global one unless told otherwise
        )
        with warnings.catch_warnings():
            # Python 3.12 warns of any fork beside threads; these children read files and take no lock of the parent's.
            warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork", category=DeprecationWarning)
            return iter(loader)


class _Asks(Generic[Key]):
    def __init__(self, ask: Callable[[Key], Ask], following: Callable[[Key], Key | None], key: Key) -> None:
        self.ask, self.following, self.key = ask, following, key

    def __iter__(self) -> Iterator[Ask]:
        key: Key | None = self.key
        while key is not None:
            yield self.ask(key)
            key = self.following(key)


class _Reads(Dataset[Any]):
    def __init__(self, store: Store) -> None:
        self.store = store

    def __getitem__(self, index: Any) -> Any:
        try:
            return Cut(*self.store.read(*index))
        except UserError as error:
            return error  # raised, it would come with the worker's traceback


def _deaf(_: int) -> None:
    """Leave Ctrl-C, SIGTERM and SIGHUP, which reach all processes of a terminal or a job, to the one that saves."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def load(
    name: str, root: str | Path, source: str | Path | None, size: int | None, device: str | torch.device
) -> tuple[Pictures, Pictures]:
    """Return the training and the validation images, found and verified, or raise ``UserError``."""
    if size is None:
        raise UserError(
            f"found no data.size, expected the side of {name}'s crops, 224 in the paper; mend it in data.size"
        )
    if name == "imagenet_folders":
        folder = folders.find(root, source)
        train = folders.tree(folder, "train")
        trees = (train, folders.tree(folder, "val", train.classes))
        stores = [(folders.Folders(tree, size), tree.labels) for tree in trees]
        classes = len(train.classes)
    else:
        # Imported here since `python -m bn_replication.data.prepare` is a program too.
        from bn_replication.data import prepare

        folder = Path(source) if source else Path(root) / "imagenet" / "prepared"
        index = prepare.verify(folder)
        records = [prepare.Records(folder, part, index, size) for part in folders.PARTS]
        stores = [(each, each.labels) for each in records]
        classes = len(index["classes"])
    train, val = (
        Pictures(store, torch.from_numpy(labels.copy()).to(device), classes, size) for store, labels in stores
    )
    return train, val
