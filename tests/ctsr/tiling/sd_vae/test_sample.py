"""Where samples are taken, and what their parts count."""

import pytest
import torch
from torch import Tensor

from ctsr.tiling.sd_vae.sample import calibrate, crop_weights, features, features_of_whole, plan_crops, spread

SIDE, MARGIN, AREA = 8, 1, 6000
SIZES = [(1, 1), (3, 40), (8, 8), (9, 8), (31, 57), (128, 128), (270, 480), (4096, 64)]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_crops_lie_in_the_picture_and_are_of_one_size(height: int, width: int):
    crops = plan_crops(height, width, SIDE, MARGIN, AREA)
    for crop in crops:
        for side, part, length in zip(crop.box, crop.counted, (height, width), strict=True):
            assert 0 <= side.start < side.stop <= length
            assert side.stop - side.start == min(SIDE, length)
            assert 0 <= part.start < part.stop <= side.stop - side.start
            assert (part.start == 0) == (side.start == 0)  # the picture's own border, or a margin
            assert (part.stop == side.stop - side.start) == (side.stop == length)
    assert len(crops) * min(SIDE, height) * min(SIDE, width) <= AREA
    assert plan_crops(height, width, SIDE, MARGIN, AREA) == crops


@pytest.mark.parametrize(("height", "width"), [(128, 128), (270, 480), (60, 200), (4096, 4096)])
def test_the_area_is_used_from_border_to_border(height: int, width: int):
    crops = plan_crops(height, width, SIDE, MARGIN, AREA)
    assert len(crops) * SIDE**2 > 0.75 * AREA
    for axis, length in enumerate((height, width)):
        assert min(crop.box[axis].start for crop in crops) == 0
        assert max(crop.box[axis].stop for crop in crops) == length


def test_there_is_always_a_crop():
    assert len(plan_crops(100, 100, SIDE, MARGIN, 1)) == 1


def test_spread_reaches_both_borders():
    assert spread(100, 8, 4.2) == [0, 31, 61, 92]
    assert spread(100, 8, 0.3) == [46]
    assert spread(8, 8, 5) == [0]
    assert spread(10, 8, 50) == [0, 1, 2]


def kinds(*columns: int) -> Tensor:
    """[C, 16, sum] of flat, textured, flat, ... columns."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(4, 16, sum(columns), generator=generator)
    levels = torch.tensor([0.05, 2.0]).repeat(len(columns))[: len(columns)]
    return noise * levels.repeat_interleave(torch.tensor(columns)) + 3


def test_features_of_the_whole_are_those_of_its_bands():
    x = torch.randn(3, 640, 24, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(features_of_whole(x, 1), features(x), rtol=0.02, atol=0.02)
    torch.testing.assert_close(features_of_whole(x, 10), features(x))


def test_weights_restore_the_picture_s_mixture():
    """A quarter of the picture is textured, but half of the sample: textured crops shall count for less."""
    x = kinds(96, 32)
    starts = [0, 20, 40, 60, 96, 101, 106, 112]
    sample = torch.stack([features(x[..., start : start + 16]) for start in starts])
    weights = torch.tensor(calibrate(sample, features_of_whole(x, 1)))
    assert weights.mean() == pytest.approx(1)
    assert weights[4:].sum() / weights.sum() == pytest.approx(0.25, abs=0.06)
    assert weights.min() > 0


def test_crops_of_a_picture_get_weights_that_are_1_on_average():
    weights = crop_weights(kinds(96, 32)[None], 1, plan_crops(16, 128, SIDE, MARGIN, 1000))
    assert sum(weights) / len(weights) == pytest.approx(1)
    assert max(weights) > 1.1 * min(weights)


def test_a_sample_that_is_like_the_picture_keeps_even_weights():
    flat = torch.ones(5, 12)
    assert calibrate(flat, flat[0]) == [1.0] * 5
    assert calibrate(flat[:1], flat[0] * 2) == [1.0]


def test_broken_numbers_leave_even_weights():
    sample = torch.full((3, 4), torch.nan)
    assert calibrate(sample, sample[0]) == [1.0] * 3


@pytest.mark.parametrize("height", [64, 65, 129])
def test_features_of_the_whole_are_those_of_its_bands_also_of_a_single_row(height: int):
    x = torch.rand(2, height, 40, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(features_of_whole(x, 1), features(x), rtol=0.03)


def test_one_row_has_no_changes():
    assert torch.equal(features(torch.ones(1, 1, 5)), torch.tensor([1.0, 1.0, 0.0, 0.0]))
