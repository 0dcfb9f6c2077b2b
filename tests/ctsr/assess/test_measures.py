"""Noise, blur and JPEG's squares are read from a picture as they were put into it."""

import io

import pytest
import torch
from PIL import Image

from ctsr.assess.blocks import blocks
from ctsr.assess.blur import blur
from ctsr.assess.noise import noise_level
from ctsr.assess.windows import boxes
from ctsr.images.inputs import from_pil
from ctsr.images.tensors import as_pil
from tests.ctsr.assess.conftest import camera


@pytest.mark.parametrize("level", [0, 2, 5, 12])
def test_noise_is_measured_within_a_tenth(scene, level):
    assert 255 * noise_level(camera(scene, level / 255)) == pytest.approx(level, abs=0.35 + level / 10)


def test_a_picture_too_small_for_a_measure_has_nothing():
    tiny = torch.rand(1, 3, 5, 5)
    assert (noise_level(tiny), blur(tiny, 0.0), blocks(tiny)) == (0.0, None, 0.0)


def test_a_softer_lens_measures_softer(scene):
    widths = [blur(camera(scene, 1 / 255, lens), 1 / 255) for lens in (0.3, 0.8, 1.5)]
    assert all(width is not None for width in widths)
    lenses = [width.lens for width in widths if width is not None]
    assert lenses == sorted(lenses)
    assert lenses[2] > lenses[0] + 0.5
    assert lenses[2] == pytest.approx(1.5, abs=0.5)


def test_a_flat_picture_has_no_edge_to_tell_of_blur():
    assert blur(torch.full((1, 3, 64, 64), 0.5), 0.0) is None


def test_squares_of_jpeg_are_told_from_none_and_grow_with_compression(photo):
    def compressed(quality: int) -> float:
        buffer = io.BytesIO()
        as_pil(photo).save(buffer, "JPEG", quality=quality)
        return blocks(from_pil(Image.open(buffer)))

    steps = [blocks(photo), compressed(90), compressed(60), compressed(30)]
    assert steps == sorted(steps)
    assert 255 * steps[0] < 0.6
    assert 255 * steps[3] > 2


def test_boxes_are_around_what_touches_largest_first():
    mask = torch.zeros(1, 1, 32, 40, dtype=torch.bool)
    mask[..., 4:8, 4:8] = True
    mask[..., 16:28, 20:36] = True
    assert boxes(mask, 4) == [(20, 16, 36, 28), (4, 4, 8, 8)]
    assert boxes(torch.zeros_like(mask), 4) == []
