"""Augmentation: a draw an image, nothing where nothing is asked for, and never outside 0..1."""

from __future__ import annotations

import inspect
import time
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from bn_replication.data import augment, load
from bn_replication.data.augment import _colour
from bn_replication.errors import UserError
from bn_replication.streams import generator

IMAGES = load("cifar10_sample").train.images[:64]
DIGITS = load("mnist_sample").train.images[:64]
UNIT = IMAGES.float() / 255
CONFIGS = Path(__file__).parents[1] / "configs/augment"
EACH = [
    {"flip": True},
    {"crop": 4},
    {"brightness": 0.5},
    {"contrast": 0.5},
    {"saturation": 0.5},
    {"hue": 0.1},
]


def draw(images=IMAGES, step=0, **options):
    return augment(images, generator(1, "augment", step), **options)


def test_nothing_asked_for_is_exactly_the_image():
    assert draw().equal(UNIT)
    assert draw(brightness=0.5, contrast=0.5, saturation=0.5, hue=0.1, strength=0.0).equal(UNIT)
    unused = generator(1, "augment")
    state = unused.get_state()
    augment(IMAGES, unused, strength=0.0, hue=0.1)
    assert unused.get_state().equal(state)  # no draw either


@pytest.mark.parametrize("options", EACH, ids=lambda options: next(iter(options)))
def test_every_option_acts_and_each_image_has_its_own_draw(options):
    same = IMAGES[:1].expand(64, -1, -1, -1).contiguous()
    out = draw(same, **options)
    assert out.dtype == torch.float32
    assert out.shape == same.shape
    assert 0 <= out.min() <= out.max() <= 1
    distinct = len(out.flatten(1).unique(dim=0))
    assert distinct == 2 if "flip" in options else distinct > 40
    assert draw(same, **options).equal(out)
    assert not draw(same, step=1, **options).equal(out)


def test_one_option_leaves_the_draws_of_the_others_alone():
    both = draw(flip=True, brightness=0.5)
    flipped, bright = draw(flip=True), draw(brightness=0.5)
    mirrored = (flipped != UNIT).flatten(1).any(1)
    assert both.equal(torch.where(mirrored[:, None, None, None], bright.flip(3), bright))


def test_crops_and_flips_move_pixels_as_padding_and_cutting_does():
    out = draw(flip=True, crop=4)
    padded = F.pad(UNIT, (4, 4, 4, 4))
    places, mirrored = set(), 0
    for image, source in zip(out, padded, strict=True):
        found = []
        for top in range(9):
            for left in range(9):
                cut = source[:, top : top + 32, left : left + 32]
                found += [(top, left, mirror) for mirror in (0, 1) if image.equal(cut.flip(2) if mirror else cut)]
        assert found
        places.add(found[0][:2])
        mirrored += found[0][2]
    assert len(places) > 30
    assert 16 < mirrored < 48


def test_every_place_of_a_crop_is_as_likely_as_any_other():
    """Of 3 by 3 pixels, padded by two: 25 places, the last of them too, each mirrored in half of the draws."""
    image = torch.arange(1, 10, dtype=torch.uint8).view(1, 1, 3, 3)
    out = (255 * draw(image.expand(10_000, -1, -1, -1), flip=True, crop=2)).round().to(torch.uint8)
    for source in (image, image.flip(3)):
        padded = F.pad(source, (2, 2, 2, 2))
        for top in range(5):
            for left in range(5):
                cut = padded[..., top : top + 3, left : left + 3]
                assert 130 < (out == cut).flatten(1).all(1).sum() < 270, (top, left)  # 200 in the mean


def test_half_of_the_images_are_mirrored_where_nothing_is_cut():
    image = torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2)
    out = draw(image.expand(4000, -1, -1, -1), flip=True)
    assert 0.46 < out[..., 0].mean().item() < 0.54
    assert out.sum(3).eq(1).all()


def test_grey_contrast_is_about_an_images_own_mean():
    """By hand: 0.1, 0.2, 0.3 and 0.6 lie about 0.3; with contrast 1.5 and brightness 0.8 about 0.24, 1.2 as far."""
    pixels = torch.tensor([[0.1, 0.2, 0.3, 0.6], [0.7, 0.7, 0.9, 0.9]]).view(2, 1, 2, 2)
    amount = torch.tensor([[-0.2, 0.5, 0, 0], [0, -1, 0, 0]])
    expected = torch.tensor([[0.0, 0.12, 0.24, 0.6], [0.8, 0.8, 0.8, 0.8]]).view(2, 1, 2, 2)
    torch.testing.assert_close(_colour(pixels, amount), expected, atol=1e-6, rtol=0)


def test_grey_images_take_brightness_and_contrast():
    out = draw(DIGITS, flip=True, crop=2, brightness=0.3, contrast=0.3)
    assert out.shape == DIGITS.shape
    assert not out.equal(DIGITS.float() / 255)


@settings(max_examples=20)
@given(amount=st.lists(st.floats(-0.3, 0.3), min_size=4, max_size=4))
def test_the_four_distortions_commute(amount):
    inner = 0.45 + UNIT[:4] / 10  # far from 0 and 1, so that nothing is clipped on the way
    once = _colour(inner, torch.tensor([amount]).expand(4, 4))
    for order in ((0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)):
        one_by_one = inner
        for choice in order:
            single = torch.zeros(4, 4)
            single[:, choice] = amount[choice]
            one_by_one = _colour(one_by_one, single)
        torch.testing.assert_close(one_by_one, once, atol=2e-6, rtol=0)


def test_what_each_distortion_means():
    def apply(column, value):
        amount = torch.zeros(64, 4)
        amount[:, column] = value
        return _colour(0.3 + UNIT / 3, amount)

    inner, luma = 0.3 + UNIT / 3, torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    close = {"atol": 1e-5, "rtol": 0}
    torch.testing.assert_close(apply(0, 0.2), inner * 1.2, **close)
    grey = (inner * luma).sum(1, keepdim=True)
    torch.testing.assert_close(apply(1, -1.0), grey.mean((1, 2, 3), keepdim=True).expand_as(inner), **close)
    torch.testing.assert_close(apply(2, -1.0), grey.expand_as(inner), **close)
    for angle in (0.1, 0.5):
        torch.testing.assert_close((apply(3, angle) * luma).sum(1, keepdim=True), grey, **close)  # luma stays
    torch.testing.assert_close(apply(3, 1.0), inner, **close)  # a full circle


def test_strength_scales_and_the_mean_stays():
    options = {"brightness": 0.5, "contrast": 0.5, "saturation": 0.5, "hue": 0.05}
    away = {}
    for strength in (0.25, 0.5, 1.0):
        out = torch.stack([draw(step=step, strength=strength, **options) for step in range(20)])
        away[strength] = (out - UNIT).abs().mean().item()
        assert out.mean().item() == pytest.approx(UNIT.mean().item(), abs=0.03)
    assert away[0.25] < 0.6 * away[0.5]
    assert away[0.5] < 0.65 * away[1.0]


def test_user_mistakes():
    for options, message in (
        ({"brightness": 0.8, "strength": 2.0}, "found brightness 0.8 times strength 2"),
        ({"hue": -0.1}, "found hue -0.1"),
        ({"strength": -1.0}, "found strength -1"),
        ({"crop": -1}, "found crop -1"),
    ):
        with pytest.raises(UserError, match=message):
            draw(**options)
    with pytest.raises(UserError, match=r"found 1 channel\(s\), expected 3"):
        draw(DIGITS, saturation=0.1)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_file_names_every_option(path):
    options = yaml.safe_load(path.read_text())
    assert options.pop("name") == path.stem
    parameters = inspect.signature(augment).parameters.values()
    keywords = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    assert list(options) == [*keywords, "area", "aspect"]
    del options["area"], options["aspect"]  # of the cut before
    assert draw(**options).equal(UNIT) is (path.stem == "none")


def test_it_is_cheap():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    options = {"flip": True, "crop": 4, "brightness": 0.5, "contrast": 0.5, "saturation": 0.5, "hue": 0.05}
    batch, seconds = IMAGES[:32], []
    for step in range(50):
        begin = time.thread_time()  # of this thread, the only one: whatever else the machine does
        draw(batch, step, **options)
        seconds.append(time.thread_time() - begin)
    torch.set_num_threads(threads)
    assert min(seconds) < 2e-3  # 0.4 ms measured; a step of the laptop net takes 60 ms and more
