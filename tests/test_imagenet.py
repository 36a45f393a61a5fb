"""ImageNet's way to the network: folders and the prepared set, on a small tree made of the shipped real images."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tests.conftest import Compose
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from bn_replication import records
from bn_replication.data import Ahead, Ask, Pictures, Split, crops, folders, load, prepare, samples
from bn_replication.errors import UserError
from bn_replication.inputs import Inputs
from bn_replication.ledger import PAPER
from bn_replication.runner import Interrupted, run
from bn_replication.schema import Config

SHARD = 25  # images, of the 60 for training: two whole shards and a part of one
TILES = ((10, 12), (12, 9), (8, 8), (2, 3))  # of 32 px, down and across: high, wide, just right, and one to be enlarged


def _mosaic(tiles: np.ndarray, down: int, across: int, draw: np.random.Generator) -> Image.Image:
    chosen = tiles[draw.integers(len(tiles), size=down * across)].reshape(down, across, 3, 32, 32)
    return Image.fromarray(chosen.transpose(0, 3, 1, 4, 2).reshape(32 * down, 32 * across, 3))


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with ``imagenet/{train,val}/<class>/*``: mosaics of CIFAR-10's images; JPEG, CMYK, grey, PNG."""
    root, draw = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    train_images, train_labels, test_images, test_labels = samples.read("cifar10")
    for part, images, labels, count in (("train", train_images, train_labels, 6), ("val", test_images, test_labels, 2)):
        for label in range(10):
            folder = root / "imagenet" / part / f"n{label:08d}"
            folder.mkdir(parents=True)
            for number in range(count):
                image = _mosaic(images[labels == label], *TILES[(number + label) % len(TILES)], draw)
                if (part, label, number) == ("train", 3, 0):
                    image = image.convert("CMYK")
                if (part, label, number) == ("train", 4, 0):
                    image = image.convert("L")
                png = (label, number) == (5, 1)  # under a JPEG's name, as one of ImageNet's is
                image.save(folder / f"{part}_{number}.{'png' if number == 2 else 'JPEG'}", "PNG" if png else None)
    (root / "imagenet" / "train" / ".DS_Store").write_text("")  # what a Mac leaves behind is no class
    return root


@pytest.fixture(scope="module")
def prepared(tree: Path) -> Path:
    into = tree / "imagenet" / "prepared"
    prepare.prepare(tree / "imagenet", into, shard=SHARD, workers=2)
    return into


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name[0] != "."}


@pytest.fixture(autouse=True)
def _no_set_of_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BN_DATA", raising=False)


def both(tree: Path, size: int = 224) -> tuple[Split, Split]:
    return load("imagenet_folders", tree, size=size), load("imagenet", tree, size=size)


# --- geometry ------------------------------------------------------------------------------------------------


def test_resampling_is_pillows() -> None:
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (6, 96, 128, 3), generator=draw, dtype=torch.uint8)
    boxes = torch.tensor(
        [[0, 0, 96, 128], [3.3, 7.9, 90, 90], [40, 40, 20.5, 31], [0, 100, 12, 28], [80, 0, 16, 16], [16, 16, 64, 64]]
    )
    valid = torch.tensor([96.0, 128.0]).expand(6, 2)
    ours = crops.resample(images, boxes, valid, 64)
    for image, box, mine in zip(images, boxes.tolist(), ours, strict=True):
        top, left, height, width = box
        theirs = Image.fromarray(image.numpy()).resize(
            (64, 64), Image.Resampling.BILINEAR, box=(left, top, left + width, top + height)
        )
        # Pillow rounds to whole values after the first direction, and again after the second.
        torch.testing.assert_close(
            mine * 255, torch.tensor(np.array(theirs)).permute(2, 0, 1).float(), atol=1.2, rtol=0
        )
    assert torch.equal(ours[5] * 255, images[5, 16:80, 16:80].permute(2, 0, 1).float())  # whole pixels, to the bit


def test_only_the_pixels_that_count_are_read() -> None:
    """What ``reach`` leaves out changes nothing, and neither does the frame that a cut is laid in."""
    draw = torch.Generator().manual_seed(1)
    sizes = torch.tensor([[256.0, 341.0]] * 8, dtype=torch.float64)
    images = torch.randint(0, 256, (8, 256, 341, 3), generator=draw, dtype=torch.uint8)
    boxes = crops.random_boxes(sizes, torch.rand(8, crops.DRAWS, generator=draw), 0.08, 4 / 3)
    whole = crops.resample(images, boxes.float(), sizes.float(), 64)
    for image, box, (top, bottom, left, right), expected in zip(
        images, boxes, crops.reach(boxes, sizes, 64).tolist(), whole, strict=True
    ):
        frame = torch.full((1, 300, 400, 3), 255, dtype=torch.uint8)
        frame[0, : bottom - top, : right - left] = image[top:bottom, left:right]
        moved = (box - torch.tensor([top, left, 0, 0]))[None].float()
        valid = torch.tensor([[bottom - top, right - left]])
        torch.testing.assert_close(crops.resample(frame, moved, valid, 64)[0], expected, atol=1e-4, rtol=0)


def test_random_crops_are_googlenets() -> None:
    n = 20_000
    sizes = torch.tensor([[256.0, 341.0]], dtype=torch.float64).expand(n, 2)
    boxes = crops.random_boxes(
        sizes, torch.rand(n, crops.DRAWS, generator=torch.Generator().manual_seed(2)), 0.08, 4 / 3
    )
    corner, extent = boxes[:, :2], boxes[:, 2:]
    assert (corner >= 0).all()
    assert (corner + extent <= sizes + 1e-9).all()
    share, ratio = extent.prod(1) / sizes.prod(1), extent[:, 1] / extent[:, 0]
    assert 0.08 <= share.min() < 0.081
    assert 0.98 < share.max() <= 1
    assert 0.75 <= ratio.min() < 0.7501
    assert 1.3332 < ratio.max() <= 4 / 3 + 1e-9
    # Where everything fits (small shares), the share is even and the logarithm of the ratio too.
    few = share < 0.4
    assert share[few].mean().item() == pytest.approx(0.24, abs=0.005)
    assert ratio[few].log().mean().item() == pytest.approx(0, abs=0.01)
    # An image longer than 4/3 of its height cannot give most of its area: the middle of it is taken.
    long = torch.tensor([[100.0, 1000.0]], dtype=torch.float64)
    assert torch.allclose(
        crops.random_boxes(long, torch.ones(1, crops.DRAWS), 1.0, 4 / 3),
        torch.tensor([[0, (1000 - 400 / 3) / 2, 100, 400 / 3]], dtype=torch.float64),
    )


def test_the_centre_crop_is_torchvisions(tree: Path, prepared: Path) -> None:
    """Resize(256), CenterCrop(224) on what ImageFolder reads, to within a rounding of each resize."""
    reference = ImageFolder(str(tree / "imagenet" / "val"))
    by_name = {os.path.relpath(path, reference.root): number for number, (path, _) in enumerate(reference.samples)}
    transform = v2.Compose([v2.Resize(256), v2.CenterCrop(224)])
    listed, memory = folders.tree(tree / "imagenet", "val"), load("imagenet", tree, size=224).held_out
    for row in range(len(listed)):
        image, label = reference[by_name[os.fsdecode(listed.names[row])]]
        theirs = torch.tensor(np.array(transform(image))).permute(2, 0, 1)
        assert memory.labels[row] == label
        assert torch.equal((memory.take(slice(row, row + 1))[0] * 255).round(), theirs)


def test_both_routes_give_the_same_images(tree: Path, prepared: Path) -> None:
    folder, memory = both(tree)
    assert folder.train.labels.equal(memory.train.labels)
    assert folder.held_out.labels.equal(memory.held_out.labels)
    assert folder.train.classes == memory.train.classes == 10
    draws = torch.rand(len(folder.train), crops.DRAWS, generator=torch.Generator().manual_seed(3))
    place = partial(crops.random_boxes, draws=draws, area=0.08, aspect=4 / 3)
    rows = torch.arange(len(folder.train))
    for one, other in (
        (folder.train.crops(rows, place), memory.train.crops(rows, place)),
        (folder.held_out.take(slice(0, None)), memory.held_out.take(slice(0, None))),
    ):
        apart = (one - other).abs().mean((1, 2, 3))
        assert one.shape[1:] == other.shape[1:] == (3, 224, 224)
        assert apart.mean() < 0.012
        assert apart.max() < 0.05  # a small crop of a large image: the files have more detail than a short side of 256
        # Told apart by a mile from any other image, and from the same one cut elsewhere by a few pixels.
        assert (one - other.roll(1, 0)).abs().mean() > 0.15
        assert (one - other.roll(4, 3)).abs().mean() > 4 * apart.mean()


# --- the prepared set ----------------------------------------------------------------------------------------


def test_both_routes_hold_the_same_whole_images(tree: Path, prepared: Path) -> None:
    """To the byte, for evaluations by other crops than one."""
    for one, other in zip(*((split.train, split.held_out) for split in both(tree)), strict=True):
        assert isinstance(one, Pictures)
        assert isinstance(other, Pictures)
        for index in range(0, len(one), 7):
            assert one.whole(index).equal(other.whole(index))
            assert min(one.whole(index).shape[1:]) == 256


def test_what_is_stored_is_each_image_whole_at_a_short_side_of_256(tree: Path, prepared: Path) -> None:
    index = json.loads((prepared / prepare.INDEX).read_text())
    assert index["images"] == {"train": 60, "val": 20}
    listed = folders.tree(tree / "imagenet", "train")
    stored = prepare.Records(prepared, "train", index, 224)
    assert (stored.labels == listed.labels).all()
    for row in range(len(listed)):
        offset, height, width, _ = stored.table[row].tolist()
        with Image.open(listed.path(row)) as image:
            assert min(height, width) == 256
            assert max(height, width) == pytest.approx(256 * max(image.size) / min(image.size), abs=0.5)
        shard = (prepared / f"train-{row // SHARD:05d}.bin").read_bytes()
        pixels = np.frombuffer(shard[offset : offset + 3 * height * width], dtype=np.uint8).reshape(height, width, 3)
        assert (pixels == folders.shrunk(folders.decode(listed.path(row)))).all()


@pytest.mark.parametrize("limit", [1, 30, 79])
def test_a_preparation_killed_midway_goes_on_and_ends_the_same_to_the_byte(
    tree: Path, prepared: Path, tmp_path: Path, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "AT_ONCE", 8)  # so that a kill falls into the middle of a shard
    process = multiprocessing.get_context("fork").Process(target=_killed_at, args=(tree / "imagenet", tmp_path, limit))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert not (tmp_path / prepare.INDEX).exists()
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}
    with pytest.raises(UserError, match="begun and not finished"):
        prepare.verify(tmp_path)
    prepare.prepare(tree / "imagenet", tmp_path, shard=SHARD, workers=1)
    assert contents(tmp_path) == contents(prepared)
    kept = [name for name in before if (tmp_path / name).exists() and name != prepare.STARTED]
    assert len(kept) == {1: 0, 30: 1, 79: 3}[limit]  # whole shards are not made again
    assert all((tmp_path / name).stat().st_mtime_ns == before[name] for name in kept)


def test_a_set_whose_description_is_damaged_is_named_and_goes_on_without_it(
    tree: Path, prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(prepared, tmp_path / "p")
    words = ["--source", str(tree / "imagenet"), "--into", str(tmp_path / "p"), "--shard", str(SHARD)]
    for damage in ("", '{"version": '):
        (tmp_path / "p" / prepare.INDEX).write_text(damage)
        assert prepare.main(words) == 2
        error = capsys.readouterr().err
        assert "index.json damaged" in error
        assert error.count("\n") == 1
    (tmp_path / "p" / prepare.INDEX).unlink()
    assert prepare.main(words) == 0
    assert contents(tmp_path / "p") == contents(prepared)


def _killed_at(source: Path, into: Path, limit: int) -> None:
    def kill(done: int, _: int) -> None:
        if done >= limit:
            os.kill(os.getpid(), signal.SIGKILL)

    prepare.prepare(source, into, shard=SHARD, workers=2, report=kill)


@pytest.mark.parametrize("name", ["train-00001.bin", "val-00000.npy"])
def test_a_shard_that_changed_is_refused_before_training(
    tree: Path, prepared: Path, tmp_path: Path, composed: Compose, name: str
) -> None:
    shutil.copytree(prepared, tmp_path / "imagenet" / "prepared")
    path = tmp_path / "imagenet" / "prepared" / name
    cfg, _ = composed(*TINY, f"data.root={tmp_path}")
    prepare.verify(path.parent)
    with path.open("r+b") as file:  # one bit, and the size as it was
        file.seek(500)
        byte = file.read(1)[0]
        file.seek(500)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(UserError, match=f"{name} altered.*make imagenet-prepare"):
        run(cfg, "a")
    assert not list(cfg.machine.results.rglob("*.json*"))
    # As the line says: without that shard's digest and the index, it is made again.
    (path.parent / f"{path.stem}.json").unlink()
    (path.parent / prepare.INDEX).unlink()
    prepare.prepare(tree / "imagenet", path.parent, shard=SHARD)
    assert contents(path.parent) == contents(prepared)
    path.unlink()
    with pytest.raises(UserError, match="missing"):
        prepare.verify(path.parent)


def test_a_change_behind_the_stamp_is_found_when_asked(prepared: Path, tmp_path: Path) -> None:
    shutil.copytree(prepared, tmp_path / "p")
    prepare.verify(tmp_path / "p")
    stamp = tmp_path / "p" / prepare.VERIFIED
    assert len(json.loads(stamp.read_text())) == 8
    path = tmp_path / "p" / "val-00000.bin"
    path.write_bytes(bytes(1000) + path.read_bytes()[1000:])
    stamp.write_bytes(prepare._json(json.loads(stamp.read_text()) | {path.name: prepare._times(path)}))
    prepare.verify(tmp_path / "p")  # the stamp says that it was read
    with pytest.raises(UserError, match="altered"):
        prepare.verify(tmp_path / "p", again=True)


def command(*words: object) -> subprocess.CompletedProcess[str]:
    arguments = [sys.executable, "-m", "bn_replication.data.prepare", *map(str, words)]
    return subprocess.run(arguments, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_the_command_prepares_once_and_tells_mistakes_in_a_line(
    tree: Path, prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = command("--source", tree / "imagenet", "--into", tmp_path, "--shard", SHARD, "--workers", 2)
    assert (first.returncode, first.stderr) == (0, "")
    assert "60 train and 20 val images of 10 classes" in first.stdout.splitlines()[-1]
    assert "verified" in first.stdout
    assert contents(tmp_path) == contents(prepared)
    assert prepare.main(["--source", str(tree / "imagenet"), "--into", str(tmp_path), "--shard", "7"]) == 2
    complaint = capsys.readouterr().err
    assert "it differs in images_a_shard" in complaint
    assert len(complaint.splitlines()) == 1
    assert prepare.main(["--into", str(tmp_path), "--verify"]) == 0
    assert contents(tmp_path) == contents(prepared)


def test_a_disk_that_is_too_small_is_told_before_anything_is_decoded(
    tree: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = sum(path.stat().st_size for path in prepared.glob("*.bin"))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed))
    with pytest.raises(UserError, match=r"found 0\.0 GB free.*expected about 0\.0 GB for 80 images"):
        prepare.prepare(tree / "imagenet", tmp_path, shard=SHARD)
    assert not list(tmp_path.glob("*.bin*"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=round(needed * 1.05)))
    prepare.prepare(tree / "imagenet", tmp_path, shard=SHARD, workers=2)


# --- trees that are not as they should be --------------------------------------------------------------------


def test_bad_trees_are_told_in_a_line_that_says_what_goes_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(name: str = "imagenet_folders", **options: Any) -> str:
        load.__globals__["_whole"].cache_clear()
        with pytest.raises(UserError) as caught:
            load(name, tmp_path, **{"size": 64, **options})
        assert "\n" not in str(caught.value)
        return str(caught.value)

    imagenet = tmp_path / "imagenet"
    for complaint in (refused(), refused(source=tmp_path / "x")):
        assert "found no ImageNet in" in complaint
        assert "train/<class>/*.JPEG and val/<class>/*.JPEG" in complaint
        assert "data.source" in complaint
    complaint = refused("imagenet")
    assert f"found no prepared ImageNet in {imagenet / 'prepared'} (none)" in complaint
    assert "make imagenet-prepare" in complaint
    assert "train/<class>/*.JPEG and val/<class>/*.JPEG" in complaint
    (imagenet / "train").mkdir(parents=True)
    (imagenet / "val").mkdir()
    assert "found nothing in" in refused()
    (imagenet / "train" / "n01440764.tar").touch()
    assert "found n01440764.tar and no folder in" in refused()
    for part in ("train", "val"):
        (imagenet / part / "n01440764").mkdir()
    assert f"found no image in {imagenet / 'train' / 'n01440764'}" in refused()
    for part in ("train", "val"):
        Image.new("RGB", (40, 30)).save(imagenet / part / "n01440764" / "a.JPEG")
    (imagenet / "val" / "n01443537").mkdir()
    assert "found 2 classes in" in refused()
    assert "n01443537" in refused()
    (imagenet / "val" / "n01443537").rmdir()
    assert "found 1 training images of imagenet_folders, expected 1,281,167" in refused(images=1_281_167)
    assert "expected more than the 50000 that split=tune" in refused(split="tune")
    assert "found no data.size" in refused(size=None)
    with pytest.raises(UserError, match=r"data\.size 64, expected null"):
        load("cifar10_sample", size=64)
    (imagenet / "train" / "n01440764" / "a.JPEG").write_bytes(b"\xff\xd8 no JPEG")
    assert "a.JPEG unreadable" in _refused_when_read(tmp_path, workers=0)
    assert "a.JPEG unreadable" in _refused_when_read(tmp_path, workers=1)  # and no traceback of a worker
    with pytest.raises(UserError, match=r"a\.JPEG unreadable"):
        prepare.prepare(imagenet, tmp_path / "into")


def _refused_when_read(root: Path, workers: int) -> str:
    images = load("imagenet_folders", root, size=64).train
    assert isinstance(images, Pictures)
    ahead = Ahead(images.store, lambda _: Ask([0], crops.centre_boxes), lambda key: key + 1, workers, False)
    with pytest.raises(UserError) as caught:
        ahead(0)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- training ------------------------------------------------------------------------------------------------

TINY = (
    "scale=paper", "setting=inception", "variant=bn_x5", "study=t", "steps=4", "model.width=0.1", "batch_size=4",
    "data.size=64", "data.images=60", "data.shards=3", "evaluate.times=2", "evaluate.batch_size=8", "probe.points=2",
    "probe.examples=4", "machine.workers=0",
)  # fmt: skip


def losses(directory: Path) -> list[str]:
    return [(directory / name).read_text() for name in (records.CURVES, records.ACTIVATIONS)]


def place(cfg: Config, arm: str) -> Path:
    return cfg.machine.results / "paper" / "t" / arm / "seed=0"


@pytest.mark.slow
def test_a_run_at_the_papers_scale_trains_resumes_to_the_bit_and_minds_no_workers(
    tree: Path, prepared: Path, composed: Compose
) -> None:
    cfg, _ = composed(*TINY, f"data.root={tree}")
    assert run(cfg, "alone").status == "completed"
    record = records.read_run_json(place(cfg, "alone"))
    assert record is not None
    assert record["choices"]["data"] == "imagenet"
    assert 0 <= record["summary"]["test_accuracy"] <= 1

    def stop(step: int, *_: object) -> None:
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    read, _ = composed(*TINY, f"data.root={tree}", "machine.workers=2")
    with pytest.raises(Interrupted):
        run(read, "stopped", stop)
    assert run(read, "stopped").status == "completed"
    assert losses(place(cfg, "alone")) == losses(place(read, "stopped"))
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_a_run_straight_from_the_folders_trains_and_is_another_run(
    tree: Path, prepared: Path, composed: Compose
) -> None:
    short = ("steps=2", "probe.enabled=false", f"data.root={tree}", "data.size=224")
    cfg, _ = composed(*TINY, *short)
    direct, _ = composed(*TINY, *short, "data=imagenet_folders")
    assert run(direct, "a").status == "completed"
    with pytest.raises(UserError, match=r"data\.name: imagenet_folders there, imagenet here"):
        run(cfg, "a")
    run(cfg, "b")
    mine, theirs = (records.read_run_json(place(cfg, arm)) for arm in ("a", "b"))
    assert mine is not None
    assert theirs is not None
    assert mine["summary"]["train_loss"] == pytest.approx(theirs["summary"]["train_loss"], rel=0.05)


@pytest.mark.parametrize("name", ["imagenet", "imagenet_folders"])
def test_batches_do_not_depend_on_workers_or_on_what_was_asked_before(
    tree: Path, prepared: Path, composed: Compose, name: str
) -> None:
    cfg, _ = composed(*TINY, f"data={name}", f"data.root={tree}")
    split = load(name, tree, size=64)
    alone = Inputs(cfg, split)
    expected = {step: alone.training(step) for step in (0, 1, 2, 3, 30)}
    reading = cfg.model_copy(update={"machine": cfg.machine.model_copy(update={"workers": 2})})
    ahead = Inputs(reading, split)
    for step in (2, 3, 30, 0, 1):
        for mine, theirs in zip(ahead.training(step), expected[step], strict=True):
            assert mine.equal(theirs)
    for rows in ((0, 8), (8, 16), (3, 5), (16, 20), (0, 8)):
        for mine, theirs in zip(ahead.held_out(*rows), alone.held_out(*rows), strict=True):
            assert mine.equal(theirs)
    ahead.close()
    assert not multiprocessing.active_children()
    # Each example has a cut of its own at each step, and of the photometric distortion.
    assert not alone.training(0)[0].equal(alone.training(1)[0])


def test_workers_leave_it_to_the_one_that_saves_when_all_are_asked_to_stop(tree: Path, prepared: Path) -> None:
    images = load("imagenet", tree, size=64).train
    assert isinstance(images, Pictures)
    ahead = Ahead(images.store, lambda _: Ask([0], crops.centre_boxes), lambda key: key + 1, 1, False)
    ahead(0)
    (worker,) = multiprocessing.active_children()
    assert worker.pid is not None
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(worker.pid, number)
    for key in range(1, 10):  # more than it had read ahead
        ahead(key)
    assert worker.is_alive()
    ahead.close()


def test_replicas_share_an_epoch_and_draw_crops_of_their_own(tree: Path, prepared: Path, composed: Compose) -> None:
    cfg, _ = composed(*TINY, f"data.root={tree}", "replicas=3")
    split = load("imagenet", tree, size=64)
    ranks = [Inputs(cfg, split, rank) for rank in range(3)]
    assert isinstance(split.train, Pictures)
    asked = [rank._ask(step).rows for step in range(10) for rank in ranks]  # 10 steps of 12 are two epochs of 60
    seen = [row for rows in asked for row in rows]
    assert sorted(seen[:60]) == sorted(seen[60:]) == list(range(60))
    sizes = torch.tensor([[256.0, 341.0]] * 4, dtype=torch.float64)
    assert not ranks[0]._place(0)(sizes).equal(ranks[1]._place(0)(sizes))


def test_a_subset_and_a_split_are_of_all_classes(tree: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of the set has no pattern: the first images are a sample of all classes."""
    part = load("imagenet", tree, size=64, subset=40)
    assert (len(part.train), len(part.held_out)) == (40, 20)
    assert len(part.train.labels.unique()) >= 9
    assert part.train.take(slice(7, 9)).equal(load("imagenet", tree, size=64).train.take(slice(7, 9)))
    monkeypatch.setitem(load.__globals__["VALIDATION"], "imagenet", 20)
    load.__globals__["_split"].cache_clear()
    tune = load("imagenet", tree, size=64, split="tune")
    load.__globals__["_split"].cache_clear()
    assert (len(tune.train), len(tune.held_out), tune.held_out_name) == (40, 20, "validation")
    whole = load("imagenet", tree, size=64).train
    assert tune.held_out.take(slice(0, 3)).equal(whole.take(slice(40, 43)))


# --- what is asked for ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["inception", "bn_baseline", "bn_x5", "bn_x30", "bn_x5_sigmoid"])
def test_the_papers_scale_has_the_papers_values(composed: Compose, variant: str) -> None:
    cfg, _ = composed("experiment=fig2_inception", "scale=paper", f"variant={variant}")
    paper = yaml.safe_load(PAPER.read_text())
    assert cfg.optimizer.rate * cfg.optimizer.multiple == pytest.approx(paper["fig3"][variant]["rate"]["value"])
    assert cfg.steps == paper["fig3"]["inception"]["steps_to_target"]["value"] == 31_000_000
    assert cfg.batch_size == 32
    assert cfg.replicas == 1
    assert (cfg.data.name, cfg.data.size, cfg.data.images, cfg.data.subset) == ("imagenet", 224, 1_281_167, None)
    assert cfg.model.arguments["width"] == 1
    assert (cfg.augment.area, cfg.augment.aspect, cfg.augment.flip) == (0.08, pytest.approx(4 / 3), True)
    assert cfg.augment.crop == 0
    # GoogLeNet's decay, in the epochs that the steps are: 0.96 every 8, or 6 times as fast.
    assert cfg.data.images is not None
    googlenet = 0.96 ** (cfg.steps * cfg.batch_size / cfg.data.images / 8)
    assert cfg.schedule.total == pytest.approx(googlenet, rel=1e-3)
    bn = variant.startswith("bn_x")
    asked = paper["section_4_2_1"]
    assert cfg.schedule.speed == (asked["decay_speed"]["value"] if bn else 1)
    assert cfg.model.arguments["dropout"] == (0 if bn else asked["dropout"]["value"])
    assert cfg.optimizer.l2_multiple == (asked["l2"]["value"] if bn else 1)
    assert cfg.model.arguments["lrn"] is not bn
    assert cfg.data.order == ("within_shard" if bn else "fixed")
    assert cfg.augment.strength == (0.5 if bn else 1)
    assert cfg.model.arguments["act"] == ("sigmoid" if "sigmoid" in variant else "relu")


def test_fig_1_is_the_same_at_every_scale(composed: Compose) -> None:
    """It is at the paper's own size on a laptop already."""
    own, laptop = (composed("experiment=fig1_mnist", f"scale={scale}")[0].identity() for scale in ("paper", "laptop"))
    assert own | {"scale": laptop["scale"]} == laptop


def test_keys_that_came_later_are_no_part_of_an_earlier_run(composed: Compose) -> None:
    cfg, _ = composed("setting=inception", "variant=bn_x5", "scale=laptop")
    identity = cfg.identity()
    assert list(identity["data"]) == ["name", "split", "input", "subset", "order", "shards"]
    assert not {"area", "aspect"} & set(identity["augment"])
    paper, _ = composed("setting=inception", "variant=bn_x5", "scale=paper")
    assert {"size", "images"} <= set(paper.identity()["data"])
    assert {"area", "aspect"} <= set(paper.identity()["augment"])
    few, many = (composed("scale=paper", f"machine.workers={count}")[0].identity() for count in (0, 8))
    assert few == many


def test_area_and_aspect_come_together(composed: Compose) -> None:
    with pytest.raises(UserError, match="area and aspect, or neither"):
        composed("setting=inception", "augment.area=0.5")


def test_what_is_read_ahead_is_as_large_as_what_was_asked_for() -> None:
    inputs: Any = SimpleNamespace(split=SimpleNamespace(held_out=range(10)))
    asked, following = [(0, 4)], Inputs._range_after
    while (rows := following(inputs, asked[-1])) is not None:
        asked.append(rows)
    assert asked == [(0, 4), (4, 8), (8, 10)]
