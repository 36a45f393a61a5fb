"""Data sets: the splits keep to themselves, and inputs are what the configuration says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from bn_replication.data import (
    Split,
    channel_statistics,
    epoch_order,
    images,
    load,
    samples,
    sources,
    to_input,
)
from bn_replication.errors import UserError

HOUSE = Path(__file__).parents[1]
SAMPLES = ["mnist_sample", "fashion_mnist_sample", "cifar10_sample"]


def rows(part: images.Images) -> set[bytes]:
    return {image.numpy().tobytes() for image in part.images}


@pytest.mark.parametrize("name", SAMPLES)
def test_the_validation_set_is_cut_from_training_and_apart_from_the_test_set(name: str) -> None:
    final, tune = load(name), load(name, split="tune")
    assert (final.held_out_name, tune.held_out_name) == ("test", "validation")
    assert len(tune.held_out) == images.VALIDATION[name]
    assert torch.cat([tune.train.images, tune.held_out.images]).equal(final.train.images)
    assert torch.cat([tune.train.labels, tune.held_out.labels]).equal(final.train.labels)
    parts = [rows(tune.train), rows(tune.held_out), rows(final.held_out)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == len(final.train) + len(final.held_out)


@pytest.mark.parametrize("name", SAMPLES)
def test_what_a_set_is_made_of(name: str) -> None:
    data = load(name)
    for part in (data.train, data.held_out):
        assert part.images.dtype == torch.uint8
        assert part.images.shape[1:] == ((3, 32, 32) if name == "cifar10_sample" else (1, 28, 28))
        assert part.labels.dtype == torch.int64
        assert len(set(part.labels.bincount(minlength=part.classes).tolist())) == 1  # as many of each class
    assert load(name) is data  # read once a process


def test_a_subset_is_the_first_images() -> None:
    whole, part = load("mnist_sample"), load("mnist_sample", subset=250)
    assert (len(part.train), len(part.held_out)) == (250, 200)
    assert part.train.images.equal(whole.train.images[:250])
    assert part.train.images.data_ptr() == whole.train.images.data_ptr()  # no copy


def test_statistics_are_those_of_the_training_split_only() -> None:
    tune, final = load("cifar10_sample", split="tune"), load("cifar10_sample")
    pixels = tune.train.images.double() / 255
    mean, std = tune.statistics
    torch.testing.assert_close(mean.double(), pixels.mean((0, 2, 3)), atol=1e-7, rtol=0)
    torch.testing.assert_close(std.double(), pixels.std((0, 2, 3), correction=0), atol=1e-7, rtol=0)
    assert not mean.equal(final.statistics[0])
    other = Split(tune.train, images.Images(tune.held_out.images * 0, tune.held_out.labels), "validation")
    assert other.statistics[0].equal(mean)  # whatever is held out
    assert channel_statistics(tune.train.images.flip(0))[1].equal(std)


def test_inputs() -> None:
    data = load("cifar10_sample")
    standard = to_input(data.train.images, "standardize", *data.statistics)
    torch.testing.assert_close(standard.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(standard.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-4, rtol=0)
    every = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert to_input(every, "binary").flatten().tolist() == [0.0] * 128 + [1.0] * 128
    assert to_input(every, "unit").equal(every / 255)
    for mode in ("binary", "unit"):  # an augmented image is float already
        assert to_input(every.float() / 255, mode).equal(to_input(every, mode))
    flat = torch.full((4, 3, 8, 8), 7, dtype=torch.uint8)
    assert to_input(flat, "standardize", *channel_statistics(flat)).isfinite().all()
    before = data.train.images.clone()
    to_input(data.train.images, "standardize", *data.statistics)
    assert data.train.images.equal(before)


def test_user_mistakes() -> None:
    for arguments, message in (
        ({"name": "minst"}, "did you mean 'mnist'"),
        ({"name": "mnist_sample", "split": "test"}, "found split 'test', expected final or tune"),
        ({"name": "mnist_sample", "subset": 401}, "found subset 401, expected 1 to 400"),
        ({"name": "mnist_sample", "subset": 0}, "found subset 0"),
    ):
        with pytest.raises(UserError, match=message):
            load(**arguments)
    with pytest.raises(UserError, match="did you mean 'standardize'"):
        to_input(torch.zeros(1, 1, 2, 2), "standardise")  # type: ignore[arg-type]


def test_an_altered_sample_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_images, train_labels, test_images, test_labels = samples.read("mnist")
    monkeypatch.setattr(samples, "HERE", tmp_path)
    with pytest.raises(UserError, match="check them out again"):
        samples.read("mnist")
    samples.write("mnist", [(train_images, train_labels), (test_images, test_labels)], tmp_path)
    assert (samples.read("mnist")[0] == train_images).all()
    index = json.loads((tmp_path / "mnist.json").read_text())
    (tmp_path / "mnist.json").write_text(json.dumps(index | {"sha256": "0" * 64}))
    with pytest.raises(UserError, match="altered"):
        samples.read("mnist")


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10"])
def test_samples_are_rows_of_the_published_sets(name: str) -> None:
    dataset = sources.find(name)
    if not all((HOUSE / "data" / name / file.name).exists() for file in dataset.files):
        pytest.skip(f"data/{name} is not there: `make data` fetches it")
    index = json.loads((samples.HERE / f"{name}.json").read_text())
    full, sample = load(name, HOUSE / "data"), load(f"{name}_sample")
    for part in ("train", "held_out"):
        chosen = torch.tensor(index["train_rows" if part == "train" else "test_rows"])
        whole, few = getattr(full, part), getattr(sample, part)
        assert whole.images[chosen].equal(few.images)
        assert whole.labels[chosen].equal(few.labels)


@pytest.mark.parametrize("path", sorted((HOUSE / "configs/data").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_file_loads_its_data(path: Path) -> None:
    config = yaml.safe_load(path.read_text())
    keys = ["name", "root", "source", "split", "subset", "input", "order", "shards", "size", "images"]
    assert list(config) == keys or ("defaults" in config and config.keys() <= {"defaults", *keys})
    name, follows_scale, _ = config["name"].partition("${scale.sample}")
    assert name == path.stem
    assert name in images.VALIDATION
    if follows_scale:
        data = load(f"{name}_sample", config["root"], config["split"], config["subset"], config["source"])
        assert to_input(data.train.images, config["input"], *data.statistics).shape == data.train.images.shape
        assert len(epoch_order(len(data.train), 0, 0, config["order"], config["shards"])) == len(data.train)


def test_a_stream_seed_needs_no_torch() -> None:
    script = "import sys, bn_replication.streams; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
