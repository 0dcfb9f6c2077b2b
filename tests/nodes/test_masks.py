"""Masks as maps of t over the latents."""

import pytest
import torch
from torch import Tensor

SIZE, CELLS = (192, 320), (24, 40)  # of the result in pixels and latents
OUTSIDE, INSIDE = 0.2, 0.9


@pytest.fixture
def dial_map(masks):
    """`masks.dial_map` from 0.2 to 0.9 on the size of this file."""

    def build(mask: Tensor, feather: int = 0, size: tuple[int, int] = SIZE, cells: tuple[int, int] = CELLS) -> Tensor:
        return masks.dial_map(mask, OUTSIDE, INSIDE, feather, size, cells, 8)

    return build


def half(height: int = SIZE[0], width: int = SIZE[1]) -> Tensor:
    """1 in the right half."""
    mask = torch.zeros(1, height, width)
    mask[..., width // 2 :] = 1
    return mask


def test_a_mask_of_ones_is_t_inside_and_of_zeros_t(dial_map):
    for feather in (0, 32, 1024):
        inside, outside = dial_map(torch.ones(1, *SIZE), feather), dial_map(torch.zeros(1, *SIZE), feather)
        assert inside.shape == outside.shape == (1, 1, *CELLS)
        assert torch.allclose(inside, torch.tensor(INSIDE), rtol=0, atol=1e-6)
        assert torch.allclose(outside, torch.tensor(OUTSIDE), rtol=0, atol=1e-6)


def test_without_a_feather_the_border_is_sharp(dial_map):
    row = dial_map(half())[0, 0, 12]
    assert torch.allclose(row[:20], torch.tensor(OUTSIDE))
    assert torch.allclose(row[20:], torch.tensor(INSIDE))


def test_a_grey_mask_is_between(dial_map):
    assert torch.allclose(dial_map(torch.full((1, *SIZE), 0.5)), torch.tensor((OUTSIDE + INSIDE) / 2))


@pytest.mark.parametrize("feather", [64, 96, 160])
def test_the_feather_is_monotone_and_about_as_wide_as_asked(dial_map, feather):
    share = (dial_map(half(), feather)[0, 0, 12] - OUTSIDE) / (INSIDE - OUTSIDE)
    assert (share.diff() >= -1e-6).all()
    assert share[20] + share[19] == pytest.approx(1, abs=1e-3)  # it stands on the border of the mask
    width = 8 * int(((share > 0.02) & (share < 0.98)).sum())
    assert feather - 16 <= width <= feather + 16


def test_the_feather_goes_both_ways(dial_map):
    down = dial_map(half(*SIZE[::-1]).mT, 64)
    across = dial_map(half(*SIZE[::-1]), 64, SIZE[::-1], CELLS[::-1])
    assert torch.allclose(down, across.mT, atol=1e-6)
    assert down[0, 0, 0, 0] < 0.21
    assert down[0, 0, -1, 0] > 0.89


def test_a_small_picture_takes_a_wide_feather(dial_map):
    both = dial_map(half(8, 16), 1024, (8, 16), (1, 2))[0, 0, 0]
    assert OUTSIDE < both[0] < both[1] < INSIDE


def blob(height: int, width: int) -> Tensor:
    """A smooth spot, the same at every size."""
    y, x = torch.linspace(-1, 1, height)[:, None], torch.linspace(-1, 1, width)
    return torch.exp(-4 * (x**2 + y**2))[None]


@pytest.mark.parametrize("scale", [1 / 8, 1 / 4, 1 / 2, 2, 3])
def test_a_mask_of_any_scale_gives_the_same_map(dial_map, scale):
    """A hard border is soft to about one pixel of a small mask; a smooth mask is the same up to its sampling."""
    height, width = round(scale * SIZE[0]), round(scale * SIZE[1])
    for feather in (0, 64):
        assert (dial_map(blob(height, width), feather) - dial_map(blob(*SIZE), feather)).abs().max() < 0.03
        hard = (dial_map(half(height, width), feather) - dial_map(half(), feather)).abs()
        assert hard.max() < 0.1
        assert hard[..., [*range(18), *range(22, 40)]].max() < 0.02


def test_the_padding_beyond_the_picture_repeats_its_border(dial_map):
    padded = dial_map(half(184, 312), 0, (184, 312), (24, 40))
    assert torch.allclose(padded[..., -1, :], padded[..., -2, :])
    assert torch.allclose(padded[..., -1], torch.tensor(INSIDE))


def test_one_mask_a_picture(dial_map):
    masks = torch.cat([half(), 1 - half(), torch.zeros(1, *SIZE)])
    batch = dial_map(masks, 32)
    assert batch.shape == (3, 1, *CELLS)
    for i in range(3):
        assert torch.equal(batch[i : i + 1], dial_map(masks[i : i + 1], 32))
    assert torch.equal(dial_map(masks[0], 32), batch[:1])  # a mask without a batch


def test_values_outside_of_0_to_1_are_clamped(dial_map):
    assert torch.equal(dial_map(half() * 5 - 2, 32), dial_map(half(), 32))
    assert torch.equal(dial_map(half().to(torch.uint8), 32), dial_map(half(), 32))


def test_the_map_stays_within_0_and_1_at_the_ends_of_the_dial(masks):
    for ends in ((0.0, 1.0), (1.0, 0.0)):
        both = masks.dial_map(half(), *ends, 40, SIZE, CELLS, 8)
        assert both.min() >= 0
        assert both.max() <= 1


def test_the_placeholder_of_a_picture_without_alpha(masks):
    assert masks.is_placeholder(torch.zeros(1, 64, 64))
    assert masks.is_placeholder(torch.zeros(64, 64))
    assert not masks.is_placeholder(torch.zeros(1, 64, 65))
    spot = torch.zeros(1, 64, 64)
    spot[0, 3, 3] = 0.01
    assert not masks.is_placeholder(spot)
