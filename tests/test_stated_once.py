"""What is written down in two places, because one cannot reach the other, says the same in both."""

from __future__ import annotations

from collections import Counter
from typing import get_args

import pytest
import torch
import yaml
from omegaconf import OmegaConf

from bn_replication import ensemble, evaluate, exact, ledger, plan, status, train
from bn_replication.data import crops
from bn_replication.models import architecture
from bn_replication.schema import Scale


def test_scales_have_one_set_of_names() -> None:
    assert get_args(Scale.model_fields["name"].annotation) == ledger.SCALES
    assert {path.stem for path in (train.CONFIGS / "scale").glob("*.yaml")} == set(ledger.SCALES)
    assert set(ledger.JUDGED) < set(ledger.SCALES)
    for scale in ledger.SCALES:
        assert exact.parse(["--scale", scale]).scale == ensemble.parse(["--scale", scale]).scale == scale


@pytest.mark.parametrize("parse", [exact.parse, ensemble.parse, architecture.main])
def test_a_scale_of_another_name_is_refused(parse, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse(["--scale", "lapotp"])
    said = capsys.readouterr().err
    assert all(scale in said for scale in ledger.SCALES)


def test_imagenet_has_as_many_images_wherever_they_are_counted() -> None:
    images = yaml.safe_load((train.CONFIGS / "data" / "imagenet.yaml").read_text())["images"]
    assert images == 1_281_167
    assert [plan.shape_of(name, 224).train for name in plan.imagenet.NAMES] == [images] * 2
    steps = 300_000  # of 32 images: some seven and a half epochs
    left = OmegaConf.create({"left": f"${{googlenet_decay:{steps}}}"}).left
    assert left == pytest.approx(0.96 ** (steps * 32 / images / 8), rel=1e-12)


def test_the_centre_crop_is_the_same_part_of_an_image_in_training_and_in_figure_4() -> None:
    assert crops.CENTRE == evaluate.TAKES / evaluate.ONE_CROP_SIDE
    # Of a photograph at its short side of 256, to the pixel.
    (crop,) = evaluate.centre(256, 400, evaluate.TAKES)
    (box,) = crops.centre_boxes(torch.tensor([[256.0, 400.0]], dtype=torch.float64)).tolist()
    assert box == [crop.top, crop.left, crop.side, crop.side]


def test_a_plan_counts_as_many_exact_runs_as_there_are() -> None:
    counted = Counter(job.arm for job in status.jobs("exact", "laptop"))
    assert counted == dict.fromkeys(exact.CLAIMS, exact.parse([]).seeds)
    assert {job.seed for job in status.jobs("exact", "laptop")} == set(range(exact.parse([]).seeds))


def test_figure_5_is_held_against_the_papers_own_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    says = ledger.read_yaml(ledger.PAPER)["fig5"]
    assert (says["parameters"]["value"], says["compute"]["value"]) == (13.6e6, 1.3)
    # The counts of our nets take seconds, and are others' to test.
    monkeypatch.setattr(architecture, "get_args", lambda _: ())
    monkeypatch.setattr(architecture, "COUNTED", {})
    arms = {"parameter-count": {}, "compute": {"googlenet": 1}}
    monkeypatch.setattr(architecture, "architecture_summary", lambda: arms)
    (line,) = (line for line in architecture.report().splitlines() if line.startswith("the paper"))
    assert line.split() == ["the", "paper", "13,600,000", "1.300"]
