"""Evaluation: the crops by hand, each example once, and means of probabilities."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conftest import Compose
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from bn_replication import records
from bn_replication.data import Images, load
from bn_replication.errors import UserError
from bn_replication.evaluate import SHORT_SIDES, centre, class_probabilities, cut, errors, many, together
from bn_replication.inputs import Inputs
from bn_replication.measures import Measures
from bn_replication.models.inception import Inception
from bn_replication.norms import BatchNorm
from bn_replication.runner import Interrupted, run
from bn_replication.schema import Config


def shipped() -> Tensor:
    """Return real held-out images, uint8 (N, 3, 32, 32)."""
    held_out = load("cifar10_sample").held_out
    assert isinstance(held_out, Images)
    return held_out.images


def coordinates(height: int, width: int) -> Tensor:
    """Return one image whose two channels are the row and the column of each pixel."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([rows, columns]).float()[None]


def corners_of(crop: Tensor) -> tuple[float, ...]:
    """Return row and column of the first and the last pixel."""
    return (*crop[0, :, 0, 0].tolist(), *crop[0, :, -1, -1].tolist())


@pytest.mark.parametrize("upright", [False, True])
def test_the_crops_of_one_side_lie_where_the_paper_has_them(upright: bool) -> None:
    """An image of 8 x 14 at short side 448 to 224, for a net that takes 4 pixels: only whole squares are resized."""
    height, width = (14, 8) if upright else (8, 14)
    crops = many(height, width, 4, (448,))
    assert sum(crops.values()) == len(crops) == 36
    found = [
        (crop, corners_of(pixels))
        for crop, (pixels, _) in zip(crops, cut(coordinates(height, width), crops, 4), strict=True)
    ]
    places = [(0, 0), (0, 4), (4, 0), (4, 4), (2, 2)]
    expected = []
    for offset in (0, 3, 6):  # left, centre, right; or top, centre, bottom
        for row, column in places:
            top, left = (row + offset, column) if upright else (row, column + offset)
            expected += [(top, left, top + 3, left + 3), (top, left + 3, top + 3, left)]  # plain, mirrored
    assert [place for crop, place in found if crop.side == 4] == expected
    whole = [crop for crop in crops if crop.side == 8]
    assert [(crop.left, crop.top)[upright] for crop in whole] == [0, 0, 3, 3, 6, 6]
    assert [crop.mirror for crop in whole] == [False, True] * 3


def test_the_whole_square_is_averaged_down_to_the_nets_size() -> None:
    crops = {crop: times for crop, times in many(8, 14, 4, (448,)).items() if crop.side == 8}
    for crop, (pixels, _) in zip(crops, cut(coordinates(8, 14), crops, 4), strict=True):
        rows, columns = pixels[0, 0, :, 0], pixels[0, 1, 0]
        columns = (columns.flip(0) if crop.mirror else columns) - crop.left
        for ramp in (rows, columns):  # of 0..7 in four: 0.5, 2.5, 4.5, 6.5 but for what the edge cuts off
            assert_close(ramp[1:3], torch.tensor([2.5, 4.5]))
            assert_close(ramp + ramp.flip(0), torch.full((4,), 7.0))
            assert 0 < ramp[0] < 1.5


def test_an_upright_photograph_has_144_crops_and_a_square_image_48_that_count_three_times() -> None:
    photograph, square = many(500, 375, 224), many(32, 32, 32)
    assert len(photograph) == 144
    assert set(photograph.values()) == {1}
    assert {(crop.height, crop.width) for crop in photograph} == {(341, 256), (384, 288), (427, 320), (469, 352)}
    assert len(square) == 48
    assert set(square.values()) == {3}
    assert [crop.height for crop in list(square)[::12]] == [37, 41, 46, 50]
    # One pixel more one way: the left and the centre square are the same, the right one is not.
    near = many(256, 257, 224, (256,))
    assert sorted(near.values()) == [1] * 12 + [2] * 12


@settings(max_examples=50)
@given(st.integers(20, 300), st.integers(20, 300), st.sampled_from([16, 32, 224]))
def test_every_crop_lies_inside_its_image_and_all_144_are_counted(height: int, width: int, size: int) -> None:
    crops = many(height, width, size)
    assert sum(crops.values()) == 144
    for crop in [*crops, *centre(height, width, size)]:
        assert 0 <= crop.top <= crop.height - crop.side
        assert 0 <= crop.left <= crop.width - crop.side
        assert crop.side >= size


def test_the_single_crop_is_the_centre_and_all_of_a_small_image() -> None:
    ((crop, times),) = centre(500, 375, 224).items()
    assert (crop.height, crop.width, crop.top, crop.left, crop.side, crop.mirror, times) == (
        341, 256, 58, 16, 224, False, 1
    )  # fmt: skip
    images = shipped()[:5]
    ((pixels, _),) = cut(images, centre(32, 32, 32), 32)
    assert torch.equal(pixels, images / 255)


def test_short_sides_below_the_nets_size_are_refused() -> None:
    with pytest.raises(UserError, match="found short side 200, expected 224 or more"):
        many(32, 32, 32, (200,))


# --- probabilities ------------------------------------------------------------------------------------------


def small_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 5, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(10))


def every_view(images: Tensor, size: int) -> Iterator[Tensor]:
    """Yield all 144 views one by one, written down a second time, none left out for being like another."""

    def resized(pixels: Tensor, height: int, width: int) -> Tensor:
        return F.interpolate(pixels, (height, width), mode="bilinear", antialias=True)

    height, width = images.shape[2:]
    for short_side in SHORT_SIDES:
        scale = round(size * short_side / 224) / min(height, width)
        image = resized(images / 255, round(height * scale), round(width * scale))
        short = min(image.shape[2:])
        spare = max(image.shape[2:]) - short
        for start in (0, spare // 2, spare):
            square = image[:, :, start:, :] if height > width else image[:, :, :, start:]
            square = square[:, :, :short, :short]
            views = [square[:, :, :size, :size], square[:, :, :size, -size:], square[:, :, -size:, :size]]
            middle = (short - size) // 2
            views += [square[:, :, -size:, -size:], square[:, :, middle : middle + size, middle : middle + size]]
            for view in [*views, resized(square, size, size)]:
                yield view
                yield view.flip(3)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (32, 21), (20, 32)])
def test_probabilities_are_the_mean_over_all_144_views_and_not_the_softmax_of_mean_logits(
    height: int, width: int
) -> None:
    net, images = small_net(), shipped()[:6, :, :height, :width]
    found = class_probabilities(net, images, many(height, width, 32), 32, lambda pixels: 4 * pixels - 2, 4)
    with torch.no_grad():
        logits = torch.stack([net(4 * view - 2) for view in every_view(images, 32)]).double()
    assert len(logits) == 144
    assert_close(found, logits.softmax(2).mean(0), rtol=1e-4, atol=1e-6)
    assert (found - logits.mean(0).softmax(1)).abs().max() > 1e-4
    assert_close(found.sum(1), torch.ones(6).double())


class Reads(nn.Module):
    """Tells an image's number, which its first pixel is, as its class."""

    def forward(self, x: Tensor) -> Tensor:
        return 50.0 * F.one_hot((x[:, 0, 0, 0] * 255).round().long(), 10).float()


@pytest.mark.parametrize("batch_size", [1, 2, 3, 6, 7, 100])
def test_every_example_counts_exactly_once(batch_size: int) -> None:
    """No last batch is padded or dropped and no example comes twice: row i is image i's, and one error in 7 is 1/7."""
    images = torch.arange(7, dtype=torch.uint8)[:, None, None, None].expand(7, 3, 8, 8)
    found = class_probabilities(Reads(), images, many(8, 8, 8), 8, lambda pixels: pixels, batch_size)
    assert found.argmax(1).tolist() == list(range(7))
    labels = torch.arange(7)
    assert errors(found, labels) == {"top1_error": 0.0, "top5_error": 0.0}
    labels[6] = 9
    assert errors(found, labels)["top1_error"] == pytest.approx(1 / 7, abs=1e-12)


def test_top_1_and_top_5_by_hand() -> None:
    row = torch.tensor([0.3, 0.2, 0.15, 0.12, 0.1, 0.08, 0.05, 0.0, 0.0, 0.0], dtype=torch.float64)
    ranked = {label: errors(row[None], torch.tensor([label])) for label in range(10)}
    assert [ranked[label]["top1_error"] for label in range(10)] == [0.0] + [1.0] * 9
    assert [ranked[label]["top5_error"] for label in range(10)] == [0.0] * 5 + [1.0] * 5
    together_found = errors(row.repeat(10, 1), torch.arange(10))
    assert together_found == {"top1_error": pytest.approx(0.9), "top5_error": pytest.approx(0.5)}
    # Knowing nothing is being right by chance, not always and not never.
    assert errors(torch.full((4, 10), torch.nan), torch.arange(4)) == {"top1_error": 1.0, "top5_error": 1.0}
    even = torch.full((10, 10), 0.1, dtype=torch.float64)
    assert errors(even, torch.arange(10)) == {"top1_error": pytest.approx(0.9), "top5_error": pytest.approx(0.5)}


def test_an_ensemble_is_the_mean_of_its_probabilities_and_of_identical_nets_the_net() -> None:
    one, other = torch.tensor([[0.6, 0.4]]).double(), torch.tensor([[0.1, 0.9]]).double()
    assert_close(together([one, other]), torch.tensor([[0.35, 0.65]]).double())
    assert_close(together([one] * 6), one, rtol=1e-15, atol=0)


def test_evaluating_leaves_the_network_as_it_was() -> None:
    net = Inception(BatchNorm, classes=10, image_size=32, width=0.125, dropout=0.5).train()
    net.dropout.eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    modes = [module.training for module in net.modules()]
    images = shipped()[:3]
    found = class_probabilities(net, images, centre(32, 32, 32), 32, lambda pixels: pixels)
    assert torch.equal(found, class_probabilities(net, images, centre(32, 32, 32), 32, lambda pixels: pixels))
    assert modes == [module.training for module in net.modules()]
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


# --- averaged weights ---------------------------------------------------------------------------------------

AVERAGED = ("setting=mnist", "study=t", "steps=4", "evaluate.times=1", "probe.enabled=false", "evaluate.examples=20")


def test_averaged_weights_are_the_exponential_mean_of_those_after_each_step(composed: Compose) -> None:
    cfg, _ = composed(*AVERAGED, "measure.average=0.75")
    split = load(cfg.data.name)
    net = nn.Linear(1, 1, bias=False)
    measures = Measures(cfg, net, split, Inputs(cfg, split), None)
    for value in (8.0, 4.0, 0.0):
        nn.init.constant_(net.weight, value)
        measures.after_step()
    assert measures.average is not None
    assert next(measures.average.parameters()).item() == pytest.approx(0.75 * (0.75 * 8 + 0.25 * 4))
    assert net.weight.item() == 0


def test_averaging_changes_no_bit_of_training_and_survives_an_interruption(composed: Compose) -> None:
    plain, _ = composed(*AVERAGED)
    cfg, _ = composed(*AVERAGED, "measure.average=0.5")

    def outcome(cfg: Config, arm: str, report: Callable[..., None] = lambda *_: None) -> dict[str, Any]:
        run(cfg, arm, report)
        record = records.read_run_json(cfg.machine.results / "smoke" / "t" / arm / "seed=0")
        assert record is not None
        return record

    def stop(step: int, *_: object) -> None:
        if step == 2:
            signal.raise_signal(signal.SIGTERM)

    without, whole = outcome(plain, "without"), outcome(cfg, "whole")
    assert whole["weights"] == without["weights"]
    assert {key for key in whole["summary"] if key not in without["summary"]} == {
        "test_accuracy_average",
        "test_loss_average",
    }
    assert whole["summary"]["test_loss_average"] != whole["summary"]["test_loss"]
    with pytest.raises(Interrupted):
        run(cfg, "stopped", stop)
    assert outcome(cfg, "stopped")["summary"] == whole["summary"]
