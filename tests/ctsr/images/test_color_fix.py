"""Colour fix: what is matched, what stays, small and constant pictures."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ctsr.images.color_fix import adain, apply_color_fix, from_lab, lab, low_pass, to_lab, wavelet

FIXES = [wavelet, adain]
Fix = Callable[[Tensor, Tensor], Tensor]


def pictures(height: int, width: int, batch: int = 2) -> tuple[Tensor, Tensor]:
    """Restored picture and reference, [B, 3, H, W] in [0, 1], of clearly different colours."""
    g = torch.Generator().manual_seed(height * 1000 + width)
    sr, reference = torch.rand(2, batch, 3, height, width, generator=g)
    return sr, reference * 0.5 + torch.tensor([0.1, 0.3, 0.0])[:, None, None]


def low_pass_in_two_dimensions(x: Tensor) -> Tensor:
    """The published form: five 3x3 convolutions of [B, 3, H, W] with replicate padding."""
    kernel = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]).div(16).expand(3, 1, 3, 3)
    for level in range(5):
        d = 2**level
        x = F.conv2d(F.pad(x, (d, d, d, d), mode="replicate"), kernel, dilation=d, groups=3)
    return x


@pytest.mark.parametrize(("height", "width"), [(33, 40), (64, 17), (9, 70)])
def test_wavelet_equals_the_published_form(height: int, width: int):
    sr, reference = pictures(height, width)
    expected = (sr - low_pass_in_two_dimensions(sr)) + low_pass_in_two_dimensions(reference)
    torch.testing.assert_close(wavelet(sr, reference), expected, rtol=0, atol=2e-6)


def test_low_pass_keeps_a_constant_and_removes_noise():
    torch.testing.assert_close(low_pass(torch.full((5, 70), 0.3)), torch.full((5, 70), 0.3))
    noise = torch.randn(128, 128, generator=torch.Generator().manual_seed(0))
    assert low_pass(noise.clone()).std() < 0.05 * noise.std()


def test_wavelet_takes_low_frequencies_and_keeps_high_ones():
    reference = torch.linspace(0.2, 0.6, 160).expand(1, 3, 160, 160)
    texture = 0.05 * (1 - 2 * (torch.arange(160) % 2)).expand(1, 3, 160, 160)
    shifted = reference * 0.8 + 0.15 + texture
    inner = (..., slice(40, -40), slice(40, -40))
    torch.testing.assert_close(wavelet(shifted, reference)[inner], (reference + texture)[inner], rtol=0, atol=1e-3)


def test_adain_matches_mean_and_deviation():
    sr, reference = pictures(50, 60)
    out = adain(sr, reference)
    torch.testing.assert_close(out.mean((-2, -1)), reference.mean((-2, -1)), rtol=0, atol=1e-5)
    torch.testing.assert_close(out.std((-2, -1)), reference.std((-2, -1)), rtol=0, atol=1e-4)


@pytest.mark.parametrize("fix", FIXES)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 7), (5, 1), (20, 45)])
def test_a_picture_is_its_own_reference(fix: Fix, height: int, width: int):
    sr, _ = pictures(height, width)
    torch.testing.assert_close(fix(sr, sr), sr, rtol=0, atol=1e-6)


@pytest.mark.parametrize("fix", FIXES)
def test_one_pixel_takes_the_reference(fix: Fix):
    sr, reference = pictures(1, 1)
    torch.testing.assert_close(fix(sr, reference), reference, rtol=0, atol=1e-6)


@pytest.mark.parametrize("fix", FIXES)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 40), (16, 16)])
def test_constant_pictures_take_the_reference(fix: Fix, height: int, width: int):
    out = fix(torch.full((1, 3, height, width), 0.25), torch.full((1, 3, height, width), 0.75))
    torch.testing.assert_close(out, torch.full_like(out, 0.75), rtol=0, atol=1e-5)


@pytest.mark.parametrize("fix", FIXES)
def test_inputs_stay_and_pictures_are_independent(fix: Fix):
    sr, reference = pictures(24, 31, batch=3)
    before = sr.clone(), reference.clone()
    out = fix(sr, reference)
    assert torch.equal(sr, before[0])
    assert torch.equal(reference, before[1])
    for i in range(3):
        assert torch.equal(fix(sr[i : i + 1], reference[i : i + 1]), out[i : i + 1])


@pytest.mark.parametrize("fix", FIXES)
def test_memory_layout_does_not_matter(fix: Fix):
    sr, reference = pictures(24, 31)
    last = torch.channels_last
    out = fix(sr.to(memory_format=last), reference.to(memory_format=last))
    torch.testing.assert_close(out, fix(sr, reference), rtol=0, atol=1e-6)


def test_names():
    sr, reference = pictures(8, 8)
    assert apply_color_fix("none", sr, reference) is sr
    assert torch.equal(apply_color_fix("wavelet", sr, reference), wavelet(sr, reference))
    assert torch.equal(apply_color_fix("adain", sr, reference), adain(sr, reference))
    with pytest.raises(ValueError, match="none, wavelet, adain"):
        apply_color_fix("histogram", sr, reference)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("fix", FIXES)
def test_shapes_must_agree(fix: Fix):
    with pytest.raises(ValueError, match="resize the reference"):
        fix(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 9))


@pytest.mark.parametrize(
    ("rgb", "expected"),
    [((1, 0, 0), (53.24, 80.09, 67.20)), ((0, 1, 0), (87.73, -86.18, 83.18)), ((0.5, 0.5, 0.5), (53.39, 0, 0))],
)
def test_cielab_of_known_colours(rgb: tuple[float, ...], expected: tuple[float, ...]):
    found = to_lab(torch.tensor(rgb, dtype=torch.float32).view(3, 1, 1)).flatten()
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float32), rtol=0, atol=0.01)


def test_cielab_and_back():
    picture = torch.rand(3, 30, 40, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(from_lab(to_lab(picture)), picture, rtol=0, atol=1e-4)


def test_lab_takes_colour_from_the_reference_and_keeps_lightness():
    light = torch.rand(1, 1, 90, 90, generator=torch.Generator().manual_seed(4)) * 0.4 + 0.3
    grey, tinted = light.expand(-1, 3, -1, -1), (light.mean() * torch.tensor([1.1, 1.0, 0.7]).view(1, 3, 1, 1))
    out = lab(grey, tinted.expand(1, 3, 90, 90))
    before, after, source = (to_lab(x[0]) for x in (grey, out, tinted.expand(1, 3, 90, 90)))
    torch.testing.assert_close(after[1:].mean((-2, -1)), source[1:].mean((-2, -1)), rtol=0, atol=0.5)
    detail = (before[0] - before[0].mean()) - (after[0] - after[0].mean())
    assert detail.abs().mean() < 0.05  # of 100
