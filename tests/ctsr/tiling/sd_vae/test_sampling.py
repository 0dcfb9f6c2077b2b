"""Where samples are taken, and what their parts count."""

import pytest
import torch
from torch import Tensor

from ctsr.tiling.sd_vae.sampling import Crop, Design, calibrate, features, features_of_whole, plan_crops, spread

DESIGN = Design(side=8, margin=1, share=1 / 8, most=2048)
SIZES = [(1, 1), (3, 40), (8, 8), (9, 8), (31, 57), (128, 128), (270, 480)]


def crops_of(batches: list[list[Crop]]) -> list[Crop]:
    return [crop for batch in batches for crop in batch]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_crops_lie_in_the_picture_and_are_of_one_size(height: int, width: int):
    batches = plan_crops(height, width, DESIGN, 600)
    for crop in crops_of(batches):
        for side, part, length in zip(crop.box, crop.counted, (height, width), strict=True):
            assert 0 <= side.start < side.stop <= length
            assert side.stop - side.start == min(8, length)
            assert 0 <= part.start < part.stop <= side.stop - side.start
            assert (part.start == 0) == (side.start == 0)  # the picture's own border, or a margin
            assert (part.stop == side.stop - side.start) == (side.stop == length)
    assert max(map(len, batches)) * min(8, height) * min(8, width) <= max(600, 64)
    assert max(map(len, batches)) - min(map(len, batches)) <= 1
    assert plan_crops(height, width, DESIGN, 600) == batches


@pytest.mark.parametrize(("height", "width"), [(128, 128), (270, 480), (60, 200)])
def test_the_share_is_measured_and_every_batch_is_spread(height: int, width: int):
    batches = plan_crops(height, width, DESIGN, 600)
    assert len(crops_of(batches)) * 36 / (height * width) == pytest.approx(1 / 8, rel=0.15)
    for batch in batches:
        assert min(crop.box[0].start for crop in batch) < height / 2 < max(crop.box[0].stop for crop in batch)
        assert min(crop.box[1].start for crop in batch) < width / 2 < max(crop.box[1].stop for crop in batch)


def test_the_sample_of_a_huge_picture_is_bounded():
    assert len(crops_of(plan_crops(4096, 4096, DESIGN, 6000))) <= 1.05 * DESIGN.most


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
