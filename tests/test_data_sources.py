"""Sources: only the published bytes get in, from wherever they come, whole or not at all."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import json
import shutil
import signal
import socketserver
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

from bn_replication.data import __main__ as program
from bn_replication.data import samples, sources
from bn_replication.data.sources import Dataset, File, SourceError
from bn_replication.errors import UserError

IMAGES, LABELS = (array.tobytes() for array in samples.read("mnist")[2:])
CONTENT = {"tiny-images-idx3-ubyte": IMAGES, "tiny-labels-idx1-ubyte": LABELS}


def dataset(package: tuple[str, str] = ("npm", "tiny-images")) -> Dataset:
    files = tuple(File(name, len(data), hashlib.md5(data).hexdigest()) for name, data in CONTENT.items())
    return Dataset("tiny", files, "MNIST", package, ("tiny-images*.tgz", "tiny_*.deb"))


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """A data set of 200 real images in the table, with no way to the network."""
    monkeypatch.setitem(sources.DATASETS, "tiny", dataset())
    monkeypatch.delenv("BN_DATA", raising=False)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nothing listens there: refused on this machine
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return sources.DATASETS["tiny"]


def fill(folder: Path, **changed: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in CONTENT.items():
        (folder / name).write_bytes(changed.get(name.split("-")[1], data))
    return folder


def refuse(dataset: Dataset, scratch: Path) -> Path:
    raise SourceError("not in this test")


def no_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the given directory as the only source: the downloads have tests of their own."""
    monkeypatch.setattr(sources, "download_torchvision", refuse)
    monkeypatch.setattr(sources, "download_package", refuse)


def left_over(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock") if folder.exists() else []


FLIPPED = bytes([IMAGES[0] ^ 1]) + IMAGES[1:]


@pytest.mark.parametrize(
    ("images", "message"),
    [(FLIPPED, "has MD5"), (IMAGES[:-1], "bytes, expected"), (IMAGES + b"x", "has more bytes")],
    ids=["flipped", "truncated", "longer"],
)
@pytest.mark.parametrize("packed", [False, True])
def test_other_bytes_are_refused(
    tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: bytes, message: str, packed: bool
) -> None:
    no_fallback(monkeypatch)
    user = fill(tmp_path / "user", images=images)
    if packed:
        with tarfile.open(user / "tiny-images-1.tgz", "w:gz") as tar:
            for name in CONTENT:
                tar.add(user / name, f"package/data/{name}")
                (user / name).unlink()
    with pytest.raises(UserError, match=message) as error:
        sources.ensure("tiny", tmp_path / "root", user)
    assert "\n" not in str(error.value)
    assert left_over(tmp_path / "root/tiny") == []


def test_damaged_data_in_place_is_found_and_replaced(tiny: Dataset, tmp_path: Path) -> None:
    folder = fill(tmp_path / "root/tiny", images=FLIPPED)
    assert "MD5" in sources.fault(tiny, folder)
    assert sources.ensure("tiny", tmp_path / "root", fill(tmp_path / "user")) == folder
    assert sources.fault(tiny, folder) == ""
    assert left_over(folder) == sorted(CONTENT)


def test_truncated_gzip_and_gzip_bomb_are_refused(tiny: Dataset, tmp_path: Path) -> None:
    file = tiny.files[0]
    for content in (gzip.compress(IMAGES)[:-20], gzip.compress(bytes(50_000_000)), b"no gzip at all"):
        path = tmp_path / f"{file.name}.gz"
        path.write_bytes(content)
        assert sources._copy(path, tmp_path / "out", file)
        assert not (tmp_path / "out").exists() or (tmp_path / "out").stat().st_size <= file.size + sources.CHUNK
    path.write_bytes(gzip.compress(IMAGES))
    assert sources._copy(path, tmp_path / "out", file) == ""


@pytest.mark.parametrize("form", ["plain", "gzip", "nested", "archive", "environment"])
def test_a_directory_of_the_user(tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    no_fallback(monkeypatch)
    user = fill(tmp_path / "user" / ("MNIST/raw" if form == "nested" else ""))
    if form == "gzip":
        for name, data in CONTENT.items():
            (user / f"{name}.gz").write_bytes(gzip.compress(data))
            (user / name).unlink()
    if form == "archive":
        with tarfile.open(user / "tiny-images-1.0.tgz", "w:gz") as tar:
            for name in CONTENT:
                tar.add(user / name, f"package/{name}")
                (user / name).unlink()
    if form == "environment":
        monkeypatch.setenv("BN_DATA", str(tmp_path / "user"))
    folder = sources.ensure("tiny", tmp_path / "root", None if form == "environment" else tmp_path / "user")
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"} == CONTENT
    before = [path.stat().st_mtime_ns for path in sorted(folder.iterdir())]
    sources.ensure("tiny", tmp_path / "root")  # again: nothing is fetched or written
    assert before == [path.stat().st_mtime_ns for path in sorted(folder.iterdir())]


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


@pytest.mark.parametrize(
    "evil",
    [
        member("../evil"),
        member("package/../../evil"),
        member("/tmp/bn-evil"),
        member("package/evil", tarfile.SYMTYPE, "../../evil"),
        member("package/evil", tarfile.SYMTYPE, "inside"),
        member("package/evil", tarfile.LNKTYPE, "package/tiny-images-idx3-ubyte"),
        member("package/evil", tarfile.CHRTYPE),
        member("package/evil", tarfile.BLKTYPE),
        member("package/evil", tarfile.FIFOTYPE),
    ],
    ids=lambda info: f"{info.name}-{info.type.decode()}-{info.linkname}",
)
def test_archives_that_reach_outside_are_refused(
    tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, evil: tarfile.TarInfo
) -> None:
    no_fallback(monkeypatch)
    user = fill(tmp_path / "user")
    with tarfile.open(user / "tiny-images-1.tgz", "w:gz") as tar:
        for name in CONTENT:  # the right files are in it as well: it is the company that is refused
            tar.add(user / name, f"package/{name}")
            (user / name).unlink()
        tar.addfile(evil)
    with pytest.raises(UserError, match="reaches outside its folder or is not a plain file"):
        sources.ensure("tiny", tmp_path / "root", user)
    assert left_over(tmp_path / "root/tiny") == []
    assert not list(tmp_path.rglob("*evil*"))
    assert not Path("/tmp/bn-evil").exists()


def test_an_archive_has_a_size_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "UNPACKED_LIMIT", 1000)
    (tmp_path / "big").write_bytes(bytes(2000))
    with tarfile.open(tmp_path / "bomb.tgz", "w:gz") as tar:
        tar.add(tmp_path / "big", "big")
    with pytest.raises(SourceError, match="more than 1000 bytes"):
        sources.unpack(tmp_path / "bomb.tgz", tmp_path / "into")


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "whole.tgz", "w:gz") as tar:
        tar.addfile(member("a"))
    whole = (tmp_path / "whole.tgz").read_bytes()
    for name, content in {"cut.tgz": whole[: len(whole) // 2], "text.tgz": b"<html>not here</html>"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(SourceError, match="cannot be unpacked"):
            sources.unpack(tmp_path / name, tmp_path / "into")


@pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="not a Debian machine")
def test_a_debian_package(tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_fallback(monkeypatch)
    tree = fill(tmp_path / "tree/usr/share/datasets/tiny").parents[3]
    (tree / "DEBIAN").mkdir()
    (tree / "DEBIAN/control").write_text(
        "Package: tiny\nVersion: 1\nArchitecture: all\nMaintainer: none <none@example.org>\nDescription: x\n"
    )
    (tmp_path / "user").mkdir()
    subprocess.run(["dpkg-deb", "-b", tree, tmp_path / "user/tiny_1_all.deb"], check=True, capture_output=True)
    assert sources.fault(tiny, sources.ensure("tiny", tmp_path / "root", tmp_path / "user")) == ""


def test_cifar10_is_rebuilt_from_lossless_images(tmp_path: Path) -> None:
    images, labels, *_ = samples.read("cifar10")
    images, labels = images[:60], labels[:60]
    for number in range(6):
        sheet = images[number * 10 : number * 10 + 10].reshape(10, 3, 1024).transpose(0, 2, 1)
        name = f"data_batch_{number + 1}.png" if number < 5 else "test_batch.png"
        Image.fromarray(np.ascontiguousarray(sheet)).save(tmp_path / name)
    (tmp_path / "train_lables.json").write_text(json.dumps(labels[:50].tolist()))
    (tmp_path / "test_lables.json").write_text(json.dumps(labels[50:].tolist()))
    sources.rebuild_cifar10(tmp_path, tmp_path, rows=10)
    rows = np.fromfile(tmp_path / "data_batch_2.bin", np.uint8).reshape(10, 3073)
    assert (rows[:, 0] == labels[10:20]).all()
    assert (rows[:, 1:].reshape(10, 3, 32, 32) == images[10:20]).all()
    with pytest.raises(SourceError, match=r"expected \(1024, 10000\)"):
        sources.rebuild_cifar10(tmp_path, tmp_path)


# A process of its own that loads sources.py alone (no torch: 0.2 s) and dies before the k-th fsync or rename.
CHILD = """
import importlib.util, os, signal, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("sources", sys.argv[1])
sources = sys.modules["sources"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sources)
files = tuple(sources.File(*entry) for entry in eval(sys.argv[2]))
sources.DATASETS["tiny"] = sources.Dataset("tiny", files, "MNIST", ("npm", "none"), ())
fatal, calls = int(sys.argv[5]), 0
def wrap(function):
    def call(*args, **kwargs):
        global calls
        calls += 1
        if calls == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return call
os.fsync, os.replace = wrap(os.fsync), wrap(os.replace)
print(sources.ensure("tiny", sys.argv[3], sys.argv[4]), calls)
"""


def child(root: Path, user: Path, fatal: int = 0) -> subprocess.Popen[str]:
    table = repr([(file.name, file.size, file.md5) for file in dataset().files])
    command = [sys.executable, "-c", CHILD, sources.__file__, table, str(root), str(user), str(fatal)]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_a_kill_leaves_no_half_file(tiny: Dataset, tmp_path: Path) -> None:
    user = fill(tmp_path / "user")
    steps = 5  # two files: an fsync each, a rename each, and the folder's fsync
    children = {fatal: child(tmp_path / str(fatal), user, fatal) for fatal in range(1, steps + 2)}
    finished = {fatal: (*process.communicate(), process.returncode) for fatal, process in children.items()}
    for fatal, (out, err, code) in finished.items():
        folder = tmp_path / str(fatal) / "tiny"
        if fatal > steps:
            assert (code, out.split()[-1]) == (0, f"{steps}"), err
        else:
            assert code == -signal.SIGKILL
        for name, data in CONTENT.items():
            assert not (folder / name).exists() or (folder / name).read_bytes() == data
        sources.ensure("tiny", tmp_path / str(fatal), user)
        assert left_over(folder) == sorted(CONTENT)  # the dead process's scratch folder is gone too


def test_processes_that_fetch_at_once(tmp_path: Path) -> None:
    user = fill(tmp_path / "user")
    children = [child(tmp_path / "root", user) for _ in range(3)]
    assert [(process.communicate()[1], process.returncode) for process in children] == [("", 0)] * 3
    assert left_over(tmp_path / "root/tiny") == sorted(CONTENT)


@pytest.mark.slow
def test_no_network_names_the_files_and_what_was_tried(
    tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.setattr(sys, "argv", ["data", "tiny", "--root", str(tmp_path), "--source", str(tmp_path / "empty")])
    assert program.main() == 2
    (line,) = capsys.readouterr().err.splitlines()
    for expected in (
        *CONTENT,
        "torchvision's download: ",
        "Connection refused",
        "npm is not installed",
        "BN_DATA",
    ):
        assert expected in line
    assert left_over(tmp_path / "tiny") == []


@pytest.mark.slow
def test_a_download_that_stalls_is_ended_with_its_children(tmp_path: Path) -> None:
    script = "import subprocess as s; p = s.Popen(['sleep', '60']); print(p.pid, file=open('pid', 'w')); p.wait()"
    begin = time.monotonic()
    with pytest.raises(SourceError, match="no answer for"):
        sources._bounded([sys.executable, "-S", "-c", script], tmp_path, stall=3.0)  # time enough to start, under load
    stat = Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}/stat")
    while stat.exists() and stat.read_text().split()[2] != "Z":  # a zombie waits only for init
        assert time.monotonic() - begin < 10
        time.sleep(0.02)


class Registry(http.server.BaseHTTPRequestHandler):
    """The two answers that `npm pack` asks for."""

    tarball = b""
    sent = 1.0  # the share of it after which the line goes dead

    def do_GET(self) -> None:
        body = self.tarball
        if not self.path.endswith(".tgz"):
            dist = {
                "tarball": f"http://{self.headers['Host']}/tiny.tgz",
                "shasum": hashlib.sha1(body).hexdigest(),
            }
            version = {"name": "tiny-images", "version": "1.0.0", "dist": dist}
            about = {"name": "tiny-images", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": version}}
            body = json.dumps(about).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: int(len(body) * (self.sent if self.path.endswith(".tgz") else 1))])

    def log_message(self, format: str, *args: object) -> None: ...


def package(images: bytes) -> bytes:
    """An npm package with the tiny data set, of these images."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        about = json.dumps({"name": "tiny-images", "version": "1.0.0"}).encode()
        for name, data in ({"package.json": about} | CONTENT | {next(iter(CONTENT)): images}).items():
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@pytest.mark.skipif(not shutil.which("npm"), reason="npm is not installed")
@pytest.mark.parametrize(
    ("images", "sent", "says"), [(FLIPPED, 1.0, "MD5"), (IMAGES, 0.5, "npm")], ids=["other", "cut"]
)
def test_a_download_of_other_bytes_or_cut_off_is_refused_and_leaves_nothing(
    tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: bytes, sent: float, says: str
) -> None:
    """As a run asks for data: the line to the mirror goes dead, or it serves what was not published."""
    monkeypatch.setattr(sources, "download_torchvision", refuse)
    monkeypatch.setattr(Registry, "tarball", package(images))
    monkeypatch.setattr(Registry, "sent", sent)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("npm_config_fetch_retry_mintimeout", "10")
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Registry) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        monkeypatch.setenv("npm_config_registry", f"http://127.0.0.1:{server.server_address[1]}")
        with pytest.raises(UserError, match=says) as error:
            sources.ensure("tiny", tmp_path / "root")
        assert "\n" not in str(error.value)
        assert left_over(tmp_path / "root/tiny") == []
        monkeypatch.setattr(Registry, "tarball", package(IMAGES))
        monkeypatch.setattr(Registry, "sent", 1.0)
        assert sources.fault(tiny, sources.ensure("tiny", tmp_path / "root")) == ""  # asked again, when it is mended
        server.shutdown()


@pytest.mark.skipif(not shutil.which("npm"), reason="npm is not installed")
@pytest.mark.parametrize("images", [IMAGES, FLIPPED], ids=["whole", "flipped"])
def test_a_mirror_that_serves_other_bytes(
    tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: bytes
) -> None:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name)
    monkeypatch.setattr(Registry, "tarball", package(images))
    place, staging = tmp_path / "place", tmp_path / "staging"
    place.mkdir()
    staging.mkdir()
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Registry) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        monkeypatch.setenv("npm_config_registry", f"http://127.0.0.1:{server.server_address[1]}")
        sources.download_package(tiny, place)
        server.shutdown()
    if images is IMAGES:
        sources.gather(tiny, place, place, staging)
        assert {path.name: path.read_bytes() for path in staging.iterdir()} == CONTENT
    else:
        with pytest.raises(SourceError, match="MD5"):
            sources.gather(tiny, place, place, staging)


def test_user_mistakes_are_one_line(tiny: Dataset, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'mnist'"):
        sources.ensure("mnits", tmp_path)
    with pytest.raises(UserError, match=r"no directory .*missing, expected one with tiny.*data.source"):
        sources.ensure("tiny", tmp_path, tmp_path / "missing")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"unwritable \(Not a directory\).*data.root"):
        sources.ensure("tiny", tmp_path / "file", fill(tmp_path / "user"))


def test_no_registry_or_host_is_named_in_the_source() -> None:
    text = "".join(path.read_text() for path in Path(sources.__file__).parent.glob("*.py"))
    assert "://" not in text


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10"])
def test_the_table_agrees_with_torchvision(name: str) -> None:
    # Names and sizes only: torchvision publishes the MD5 of the gzipped or pickled forms.
    dataset = sources.find(name)
    source = getattr(datasets, dataset.torchvision)
    if name == "cifar10":  # a label and 3072 pixels an image
        assert source.url.endswith("-python.tar.gz")  # what the child process turns into the binary archive
        assert sum(file.size for file in dataset.files) == 60_000 * 3073
    else:  # a label and 784 pixels an image, and the IDX headers
        assert [f"{file.name}.gz" for file in dataset.files] == [resource[0] for resource in source.resources]
        assert sum(file.size for file in dataset.files) == 70_000 * 785 + 2 * (16 + 8)
