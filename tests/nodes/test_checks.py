"""What nodes refuse, each in one sentence with the input's name and the remedy, and what they just accept."""

import math
import re

import pytest
import torch
from torch import Tensor

NAN, INF = math.nan, math.inf


def sentence(refusal: pytest.ExceptionInfo[ValueError]) -> str:
    """The message, which must be one line that ends like a sentence."""
    text = str(refusal.value)
    assert "\n" not in text
    assert text.endswith((".", "(R)."))
    return text


# ---------------------------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize("value", [0.1, 16, 3.5])
def test_a_range_holds_its_ends(checks, value):
    checks.check_number("scale", value, 0.1, 16.0)


@pytest.mark.parametrize("value", [0, 16.1, NAN, INF, "4", None])
def test_values_outside_a_range_are_refused(checks, value):
    with pytest.raises(ValueError, match=r"^scale is .*: give a number from 0.1 to 16") as refusal:
        checks.check_number("scale", value, 0.1, 16.0)
    sentence(refusal)


@pytest.mark.parametrize("value", [0, 1024, 100.0])
def test_whole_numbers_are_taken_also_as_floats(checks, value):
    whole = checks.whole("feather", value, 0, 1024)
    assert whole == value
    assert isinstance(whole, int)


@pytest.mark.parametrize("value", [-1, 1025, 0.5, NAN, INF, "4", None])
def test_what_is_no_whole_number_in_the_range_is_refused(checks, value):
    with pytest.raises(ValueError, match=r"^feather is .*: give a whole number from 0 to 1024") as refusal:
        checks.whole("feather", value, 0, 1024)
    sentence(refusal)


def test_choices(checks):
    checks.check_choice("color_fix", "adain", ["none", "adain"])
    with pytest.raises(ValueError, match="color_fix is 'Adain': choose one of none, adain") as refusal:
        checks.check_choice("color_fix", "Adain", ["none", "adain"])
    sentence(refusal)
    with pytest.raises(ValueError, match=r"choose one of a; or put it there\.$"):
        checks.check_choice("checkpoint", "b", ["a"], "put it there")


# ----------------------------------------------------------------------------------------------------------- images


def image(channels: int = 3, height: int = 4, width: int = 5, batch: int = 2) -> Tensor:
    return torch.rand(batch, height, width, channels, generator=torch.Generator().manual_seed(0))


def test_rgb_is_moved_and_has_no_alpha(checks):
    given = image()
    rgb, alpha = checks.split_image(given)
    assert torch.equal(rgb, given.movedim(-1, 1))
    assert rgb.data_ptr() == given.data_ptr(), "a long batch is not copied"
    assert alpha is None


def test_grey_becomes_three_equal_channels(checks):
    rgb, alpha = checks.split_image(image(1))
    assert rgb.shape == (2, 3, 4, 5)
    assert torch.equal(rgb[:, 0], image(1)[..., 0])
    assert torch.equal(rgb[:, 1], rgb[:, 0])
    assert torch.equal(rgb[:, 2], rgb[:, 0])
    assert alpha is None


def test_alpha_is_split_off_and_clamped(checks):
    picture = image(4)
    picture[0, 0, 0, 3], picture[0, 0, 1, 3] = 1.2, -0.2
    rgb, alpha = checks.split_image(picture)
    assert torch.equal(rgb, picture[..., :3].movedim(-1, 1))
    assert torch.equal(alpha, picture[..., 3:].movedim(-1, 1).clamp(0, 1))
    assert alpha[0, 0, 0, :2].tolist() == [1, 0]


def test_halves_are_taken_as_fp32(checks):
    rgb, alpha = checks.split_image(image(4).half())
    assert rgb.dtype == alpha.dtype == torch.float32


@pytest.mark.parametrize("value", [-0.5, 1.5])
def test_a_little_outside_of_0_to_1_is_a_resamplers_overshoot(checks, value):
    assert checks.split_image(torch.full((1, 1, 1, 3), value))[0].max() == value


@pytest.mark.parametrize("shape", [(4, 5, 3), (1, 4, 5, 2), (1, 4, 5, 5), (1, 3, 4, 5), (1, 2, 4, 5, 3), ()])
def test_other_shapes_are_no_image(checks, shape):
    with pytest.raises(ValueError, match=r"^image has shape .*: connect an IMAGE with 1, 3 or 4 channels") as refusal:
        checks.split_image(torch.zeros(shape))
    assert str(list(shape)) in sentence(refusal)


@pytest.mark.parametrize("shape", [(1, 0, 5, 3), (1, 4, 0, 3), (0, 4, 5, 3)])
def test_empty_images_are_refused(checks, shape):
    with pytest.raises(ValueError, match=r"^image is empty .*: connect one with pixels") as refusal:
        checks.split_image(torch.zeros(shape))
    sentence(refusal)


@pytest.mark.parametrize("value", [1.51, -0.51, 255, NAN, INF, -INF])
def test_values_that_are_no_pictures_are_refused(checks, value):
    picture = image()
    picture[1, 2, 3, 0] = value
    with pytest.raises(ValueError, match=r"^image holds values from .*: connect one with values from") as refusal:
        checks.split_image(picture)
    sentence(refusal)


# ---------------------------------------------------------------------------------------------------------- latents


def test_a_latent_that_fits(checks):
    checks.check_samples(torch.zeros(2, 4, 6, 8), 4, alignment=2)
    checks.check_samples(torch.full((1, 4, 200, 200), 10.0).half(), 4)  # its sum overflows fp16


@pytest.mark.parametrize("shape", [(1, 16, 8, 8), (4, 8, 8), (1, 4, 2, 8, 8), (1, 4, 0, 8), (0, 4, 8, 8)])
def test_latents_of_another_shape_are_refused(checks, shape):
    with pytest.raises(ValueError, match=r"^latent has shape .* 4 channels: connect the latent of Time") as refusal:
        checks.check_samples(torch.zeros(shape), 4)
    assert str(list(shape)) in sentence(refusal)


@pytest.mark.parametrize(("height", "width"), [(7, 8), (8, 7)])
def test_latents_that_the_unet_cannot_halve_are_refused(checks, height, width):
    checks.check_samples(torch.zeros(1, 4, height, width), 4)
    with pytest.raises(ValueError, match="multiples of 2; connect Time-Aware Encode, which pads them") as refusal:
        checks.check_samples(torch.zeros(1, 4, height, width), 4, alignment=2)
    assert f"latent is {width}x{height}" in sentence(refusal)


@pytest.mark.parametrize("bad", [(NAN,), (INF,), (INF, -INF)])
def test_latents_with_holes_are_refused(checks, bad):
    samples = torch.zeros(1, 4, 8, 8)
    samples[0, 3, 7, : len(bad)] = torch.tensor(bad)
    with pytest.raises(ValueError, match=r"^latent holds NaN or infinite values: look at what comes") as refusal:
        checks.check_samples(samples, 4)
    sentence(refusal)


# ------------------------------------------------------------------------------------------------------------ masks

SIZE = (68, 88)  # of the result: height, width


@pytest.mark.parametrize(
    "shape",
    [(1, 68, 88), (68, 88), (1, 17, 22), (1, 136, 176), (1, 34, 44), (2, 17, 22), (1, 67, 88), (1, 17, 23), (1, 1, 1)],
)
def test_masks_of_any_scale(checks, shape):
    checks.check_mask(torch.zeros(shape), 2, SIZE)


def test_a_mask_resized_in_another_way_than_its_picture(checks):
    """Rounding may move the four sides in opposite directions: 208x232 x3.7 and x6.256."""
    checks.check_mask(torch.zeros(1, 1301, 1452), 1, (770, 858))


@pytest.mark.parametrize("shape", [(1, 64, 64), (1, 88, 68), (1, 17, 28), (1, 100, 88)])
def test_masks_of_another_picture_are_refused(checks, shape):
    with pytest.raises(ValueError, match=r"^mask is .* 88x68 result: connect the mask of the same picture") as refusal:
        checks.check_mask(torch.zeros(shape), 1, SIZE)
    assert f"{shape[2]}x{shape[1]}" in sentence(refusal)


def test_a_stretched_pictures_own_mask_is_taken(checks):
    mask = torch.zeros(1, 50, 100)
    checks.check_mask(mask, 1, (400, 400), picture=(50, 100))
    with pytest.raises(ValueError, match="proportions"):
        checks.check_mask(mask, 1, (400, 400), picture=(100, 50))


@pytest.mark.parametrize("shape", [(88,), (1, 1, 68, 88), (1, 0, 88), (0, 68, 88)])
def test_other_shapes_are_no_mask(checks, shape):
    with pytest.raises(ValueError, match=r"^mask has shape .*: connect a MASK, \[batch, height, width\]") as refusal:
        checks.check_mask(torch.zeros(shape), 1, SIZE)
    sentence(refusal)


@pytest.mark.parametrize(("masks", "batch"), [(2, 1), (2, 3), (3, 2)])
def test_as_many_masks_as_pictures_or_one(checks, masks, batch):
    checks.check_mask(torch.zeros(batch, *SIZE), batch, SIZE)
    with pytest.raises(ValueError, match=f"^mask holds {masks} masks for {batch} pictures: connect one, or") as refusal:
        checks.check_mask(torch.zeros(masks, *SIZE), batch, SIZE)
    sentence(refusal)


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_masks_with_holes_are_refused(checks, value):
    mask = torch.zeros(1, *SIZE)
    mask[0, 5, 6] = value
    with pytest.raises(ValueError, match=r"^mask holds NaN or infinite values: connect one with") as refusal:
        checks.check_mask(mask, 1, SIZE)
    sentence(refusal)


@pytest.mark.parametrize("hdr", ["clamp", "tone-map"])
def test_highlights_beyond_1_are_drawn_in_by_choice(checks, hdr):
    picture = torch.tensor([[0.2, 0.4, 0.6], [3.0, 1.5, 0.75], [0.9, -0.9, 0.0]]).view(1, 1, 3, 3)
    with pytest.raises(ValueError, match=r"image holds values from -0.9 to 3: .* set hdr to clamp or tone-map"):
        checks.split_image(picture)
    rgb, _ = checks.split_image(picture, hdr)
    assert rgb.min() >= 0
    assert rgb.max() <= 1
    assert torch.equal(rgb[0, :, 0, 0], picture[0, 0, 0])
    kept = rgb[0, :, 0, 1]
    assert torch.allclose(kept / kept[0], torch.tensor([1, 0.5, 0.25]) if hdr == "tone-map" else kept)


@pytest.mark.parametrize("hdr", ["refuse", "clamp", "tone-map"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_choice_makes_a_picture_of_nan(checks, hdr, value):
    with pytest.raises(ValueError, match="image holds values"):
        checks.split_image(torch.full((1, 2, 2, 3), value), hdr)


@pytest.mark.parametrize("value", ["0.5", None, [1]])
def test_what_is_no_number_is_shown_as_what_it_is(checks, value):
    for check in (checks.check_number, checks.whole):
        with pytest.raises(ValueError, match=rf"t is {re.escape(repr(value))}: give"):
            check("t", value, 0, 1)
