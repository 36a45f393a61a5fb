"""ImageNet prepared: every image decoded once, its short side 256, as raw bytes to be mapped into memory.

    python -m bn_replication.data.prepare --source /path/to/imagenet --into data/imagenet/prepared

A shard is ``train-00000.bin``, the images one after another (height, width, colour; uint8), beside ``train-00000.npy``,
a row an image: offset in the shard, height, width, label. Its digests are in ``train-00000.json``, written last; the
whole set's ``index.json`` comes when all are there. What was cut off goes on at the shard in hand, and the result is
the same to the byte. Nothing of an image is cut away, since GoogLeNet's crops take 8% to 100% of its area.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image

from bn_replication.data import folders
from bn_replication.data.crops import Place, reach, stored_size
from bn_replication.data.folders import PARTS, SIDE, Tree
from bn_replication.errors import UserError, one_line

INDEX, STARTED, VERIFIED = "index.json", "started.json", ".verified.json"
TEMPORARY = ".tmp"
VERSION = 1
SHARD = 4096  # images: about a gigabyte
AT_ONCE = 64  # images decoded before they are written
SPARE = 1.02  # of the room that is asked for: the estimate is from a sample
READ = 1 << 22


def prepare(
    source: Path,
    into: Path,
    *,
    shard: int = SHARD,
    workers: int = 1,
    report: Callable[[int, int], object] = lambda *_: None,
) -> dict[str, Any]:
    """Write the prepared form of the tree below ``source`` to ``into``, or what is missing of it; return its index.

    Args:
        shard: images a shard.
        workers: threads that decode; Pillow does so outside Python's lock.
        report: called with the images done and those to be done in all.

    Raises:
        UserError: no such tree, no room, or a prepared set of other images is there.
    """
    train = folders.tree(source, "train")
    trees = {"train": train, "val": folders.tree(source, "val", train.classes)}
    plan = {
        "version": VERSION,
        "side": SIDE,
        "images_a_shard": shard,
        "images": {part: len(tree) for part, tree in trees.items()},
        "names": {part: hashlib.sha256(b"\n".join(tree.names.tolist())).hexdigest() for part, tree in trees.items()},
        "classes": list(train.classes),
    }
    into.mkdir(parents=True, exist_ok=True)
    with _locked(into):
        finished = _same_plan(into, plan)
        if not finished:
            for left in into.glob(f"*{TEMPORARY}"):
                left.unlink()
            _room(into, trees)
            _write(into / STARTED, _json(plan))
            done, total = 0, sum(map(len, trees.values()))
            with ThreadPoolExecutor(workers) as pool:
                for part, tree in trees.items():
                    for name, rows in shards(part, len(tree), shard):
                        if not _complete(into, name):
                            _write_shard(into, name, tree, rows, pool, lambda n, done=done: report(done + n, total))
                        done += len(rows)
                        report(done, total)
            digests = {name: json.loads((into / f"{name}.json").read_text()) for name in _names(plan)}
            _write(into / INDEX, _json(plan | {"shards": digests}))
            (into / STARTED).unlink()
    return verify(into, workers)


def shards(part: str, images: int, size: int) -> Iterator[tuple[str, range]]:
    """Yield each shard of a part by name, with the images in it."""
    for number, first in enumerate(range(0, images, size)):
        yield f"{part}-{number:05d}", range(first, min(first + size, images))


def _names(plan: dict[str, Any]) -> list[str]:
    return [name for part in PARTS for name, _ in shards(part, plan["images"][part], plan["images_a_shard"])]


def _same_plan(into: Path, plan: dict[str, Any]) -> bool:
    """Whether the set is finished; refuse another one's folder."""
    for name in (INDEX, STARTED):
        with contextlib.suppress(FileNotFoundError):
            try:
                there = json.loads((into / name).read_text())
            except ValueError:
                raise UserError(
                    f"found {into / name} damaged, expected the description of a prepared set; remove the file, and "
                    "the same command goes on with the shards that are whole"
                ) from None
            changed = [key for key, value in plan.items() if there.get(key) != value]
            if changed:
                raise UserError(
                    f"found another prepared set in {into} (it differs in {', '.join(changed)}), expected this one's "
                    "or none; remove the folder or name another with --into"
                )
            return name == INDEX
    return False


def _room(into: Path, trees: dict[str, Tree]) -> None:
    """Refuse at once what would fill the disk: sizes are known from the headers of a sample."""
    needed = 0.0
    for tree in trees.values():
        rows = range(0, len(tree), max(1, len(tree) // 200))
        needed += len(tree) * sum(_bytes_of(tree.path(row)) for row in rows) / len(rows)
    there = sum(path.stat().st_size for path in into.glob("*.bin"))
    free = shutil.disk_usage(into).free
    if needed * SPARE - there > free:
        raise UserError(
            f"found {free / 1e9:,.1f} GB free for {into}, expected about {(needed * SPARE - there) / 1e9:,.1f} GB for "
            f"{sum(map(len, trees.values())):,} images; free some or name another disk with --into"
        )


def _bytes_of(path: Path) -> int:
    try:
        with Image.open(path) as image:
            height, width = stored_size(image.height, image.width, SIDE)
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"found {path} unreadable ({error}), expected a JPEG or PNG; unpack it again") from error
    return 3 * height * width


def _write_shard(
    into: Path, name: str, tree: Tree, rows: range, pool: ThreadPoolExecutor, report: Callable[[int], object]
) -> None:
    table = np.zeros((len(rows), 4), dtype=np.int64)
    digest, offset = hashlib.sha256(), 0
    with _atomic(into / f"{name}.bin") as file:
        for first in range(0, len(rows), AT_ONCE):
            part = rows[first : first + AT_ONCE]
            for place, image in enumerate(
                pool.map(lambda row: folders.shrunk(folders.decode(tree.path(row))), part), first
            ):
                table[place] = offset, *image.shape[:2], tree.labels[rows[place]]
                content = image.tobytes()
                file.write(content)
                digest.update(content)
                offset += len(content)
            report(first + len(part))
    with _atomic(into / f"{name}.npy") as file:
        np.save(file, table)
    found = {"bytes": offset, "sha256": digest.hexdigest(), "table_sha256": _digest(into / f"{name}.npy")}
    _write(into / f"{name}.json", _json(found))


def _complete(into: Path, name: str) -> bool:
    """Whether that shard was written; its bytes are held against the digest when all are."""
    with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
        told = json.loads((into / f"{name}.json").read_text())
        return (into / f"{name}.bin").stat().st_size == told["bytes"] and (into / f"{name}.npy").exists()
    return False


def verify(folder: Path, workers: int = 8, again: bool = False) -> dict[str, Any]:
    """Hold every shard against its digest and return the index, or raise ``UserError`` naming the first that differs.

    A third of a terabyte takes minutes to read, so a file that was found sound is not read again while its size and its
    times of change are what they were; ``again`` reads all.
    """
    try:
        index = json.loads((folder / INDEX).read_text())
        assert index["version"] == VERSION
    except (OSError, ValueError, KeyError, AssertionError):
        state = "begun and not finished" if (folder / STARTED).exists() else "none"
        raise UserError(
            f"found no prepared ImageNet in {folder} ({state}), expected {INDEX} and its shards; "
            f"`make imagenet-prepare SOURCE=folder` makes it or goes on, from {folders.LAYOUT}; "
            "data=imagenet_folders does without"
        ) from None
    with _locked(folder):
        known: dict[str, list[int]] = {}
        with contextlib.suppress(OSError, ValueError):
            known = {} if again else json.loads((folder / VERIFIED).read_text())
        wanted = {f"{name}.bin": told["sha256"] for name, told in index["shards"].items()}
        wanted |= {f"{name}.npy": told["table_sha256"] for name, told in index["shards"].items()}
        sound = {name: _times(folder / name) for name in wanted}
        unread = [name for name in wanted if not sound[name] or known.get(name) != sound[name]]
        with ThreadPoolExecutor(max(1, workers)) as pool:
            for name, found in zip(unread, pool.map(lambda name: _digest(folder / name), unread), strict=True):
                if found != wanted[name]:
                    raise UserError(
                        f"found {folder / name} {'altered' if found else 'missing'} (SHA-256 {found[:12] or 'none'}), "
                        f"expected {wanted[name][:12]}; remove {name.partition('.')[0]}.json and {INDEX} and type "
                        "`make imagenet-prepare` again"
                    )
        if unread:
            with contextlib.suppress(OSError):  # a set that may only be read is read each time
                _write(folder / VERIFIED, _json(sound))
    return index


def _times(path: Path) -> list[int]:
    with contextlib.suppress(OSError):
        found = path.stat()
        return [found.st_size, found.st_mtime_ns, found.st_ctime_ns]
    return []


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(READ):
                digest.update(chunk)
    except OSError:
        return ""
    return digest.hexdigest()


class Records:
    """Crops of the images of a prepared part: from a mapped file only the pixels that a crop looks at are read."""

    def __init__(self, folder: Path, part: str, index: dict[str, Any], size: int) -> None:
        self.folder, self.size, self.images_a_shard = folder, size, index["images_a_shard"]
        self.names = [name for name, _ in shards(part, index["images"][part], self.images_a_shard)]
        self.table = np.concatenate([np.load(folder / f"{name}.npy") for name in self.names])
        self._maps: dict[int, np.memmap] = {}

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_maps": {}}  # a worker maps the files itself: pickled, a map is all of its bytes

    @property
    def labels(self) -> np.ndarray:
        return self.table[:, 3]

    def read(self, rows: list[int], place: Place) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the pixels, (N, H, W, 3) uint8, and (N, 6): boxes in them, and how far each image fills them."""
        table = self.table[rows]
        sizes = torch.from_numpy(table[:, 1:3].astype(np.float64))
        boxes = place(sizes)
        bounds = reach(boxes, sizes, self.size)
        extent = bounds[:, 1::2] - bounds[:, ::2]
        frame = np.zeros((len(rows), *extent.amax(0).tolist(), 3), dtype=np.uint8)
        for n, (row, (offset, height, width, _), (top, bottom, left, right)) in enumerate(
            zip(rows, table.tolist(), bounds.tolist(), strict=True)
        ):
            image = self._stored(row, offset, height, width)
            frame[n, : bottom - top, : right - left] = image[top:bottom, left:right]
        boxes[:, :2] -= bounds[:, ::2]
        return torch.from_numpy(frame), torch.cat([boxes, extent], dim=1).float()

    def whole(self, row: int) -> np.ndarray:
        """Return that image whole, (H, W, 3) uint8, its short side 256."""
        return np.array(self._stored(row, *self.table[row, :3].tolist()))

    def _stored(self, row: int, offset: int, height: int, width: int) -> np.ndarray:
        shard = row // self.images_a_shard
        if shard not in self._maps:
            self._maps[shard] = np.memmap(self.folder / f"{self.names[shard]}.bin", dtype=np.uint8, mode="r")
        return self._maps[shard][offset : offset + 3 * height * width].reshape(height, width, 3)


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=1) + "\n").encode()


def _write(path: Path, content: bytes) -> None:
    with _atomic(path) as file:
        file.write(content)


@contextlib.contextmanager
def _atomic(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that takes its name when all of it is on the disk."""
    temporary = path.with_name(path.name + TEMPORARY)
    with temporary.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    handle = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    # The kernel drops a flock with its holder, so a kill leaves no stale lock.
    try:
        handle = (folder / ".lock").open("w")
    except OSError:  # a set that may only be read is read without
        yield
        return
    with handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@one_line("error: ")
def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bn_replication.data.prepare", description="Prepare ImageNet for reading."
    )
    parser.add_argument("--root", default="data", help="where data sets are kept (default: %(default)s)")
    parser.add_argument("--source", metavar="DIR", help="has train/<class>/ and val/<class>/ (default: ROOT/imagenet)")
    parser.add_argument("--into", metavar="DIR", type=Path, help="where to (default: ROOT/imagenet/prepared)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="threads (default: %(default)s)")
    parser.add_argument("--shard", type=int, default=SHARD, help="images a shard (default: %(default)s)")
    parser.add_argument("--verify", action="store_true", help="read every byte of a prepared set again, write nothing")
    args = parser.parse_args(words)
    into = args.into or Path(args.root) / "imagenet" / "prepared"
    told = -1

    def report(done: int, total: int) -> None:
        nonlocal told
        if (hundredth := 100 * done // total) > told:
            told = hundredth
            print(f"imagenet: {done:,} of {total:,} images, {hundredth}%", flush=True)

    try:
        if args.workers < 1 or args.shard < 1:
            raise UserError(f"found {min(args.workers, args.shard)}, expected 1 or more; mend --workers or --shard")
        if args.verify:
            index = verify(into, args.workers, again=True)
        else:
            index = prepare(
                folders.find(args.root, args.source), into, shard=args.shard, workers=args.workers, report=report
            )
    except KeyboardInterrupt:
        print("imagenet: stopped; the same command goes on", file=sys.stderr)
        return 130
    except OSError as error:
        there = Path(error.filename or into)
        ours = there == into or into in there.parents
        expected = "room to write; free some" if ours else "what can be read; mend it or name another with --source"
        print(
            f"error: found '{error.strerror}' at {there}, expected {expected} and type the same command again",
            file=sys.stderr,
        )
        return 2
    size = sum(told["bytes"] for told in index["shards"].values()) / 1e9
    images = " and ".join(f"{count:,} {part}" for part, count in index["images"].items())
    print(f"imagenet: {images} images of {len(index['classes'])} classes, {size:,.2f} GB, verified, in {into}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
