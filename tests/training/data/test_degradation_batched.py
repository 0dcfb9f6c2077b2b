"""Batches on the device: independent of batch mates, and like those of the NumPy path."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from training.data import degradation
from training.data import degradation_batched as batched
from training.data.degradation import TwoOrders
from training.data.degradation_batched import Camera, PairsOnDevice, draw_degradation, draw_sample
from training.data.pairs import Pairs, make_pair
from training.data.photos import Crop, Photos
from training.data.photos import cut as cut_pixels

KINDS = ("camera", "realesrgan", "mix")


def to_batch(pixels: NDArray[np.uint8], count: int = 1) -> Tensor:
    """[H, W, 3] uint8 -> [count, 3, H, W] fp32 in 0..255."""
    return torch.tensor(pixels).permute(2, 0, 1).float().expand(count, -1, -1, -1)


def to_pixels(x: Tensor) -> NDArray[np.float32]:
    """[B, 3, H, W] -> [B, H, W, 3]."""
    return x.permute(0, 2, 3, 1).numpy()


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


@pytest.fixture(scope="module")
def picture() -> NDArray[np.uint8]:
    """Left flat grey, right coloured texture, an edge between them; 96 px."""
    small = np.random.default_rng(0).integers(0, 255, (24, 12, 3), np.uint8)
    texture = np.asarray(Image.fromarray(small).resize((48, 96), Image.Resampling.BICUBIC))
    return np.concatenate([np.full((96, 48, 3), 100, np.uint8), texture], axis=1)


@pytest.fixture(scope="module")
def photos(picture: NDArray[np.uint8]) -> Photos:
    return Photos({"a": picture, "b": np.ascontiguousarray(picture[:80, ::-1])}, {}, ())


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_four_is_four_batches_of_one(photos: Photos, kind: str) -> None:
    make = PairsOnDevice(photos, Pairs(crop=64, degradation=kind, bicubic_share=0.1), "cpu")
    numbers = torch.tensor([11, 3, 8, 5])
    four, ones = make(numbers), [make(number[None]) for number in numbers]
    for key in four:
        alone = torch.cat([one[key] for one in ones])
        assert torch.allclose(four[key], alone, atol=1e-5), key


@pytest.mark.parametrize("kind", KINDS)
def test_samples_are_functions_of_seed_and_number(photos: Photos, kind: str) -> None:
    pairs = Pairs(crop=32, degradation=kind)
    first, again, other = (
        PairsOnDevice(photos, Pairs(crop=32, degradation=kind, seed=seed), "cpu")(torch.tensor([2, 2**40]))
        for seed in (0, 0, 1)
    )
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["lr"], other["lr"])
    single = make_pair(photos, pairs, 2**40)
    assert {key: (x.shape[1:], x.dtype) for key, x in first.items()} == {
        key: (x.shape, x.dtype) for key, x in single.items()
    }
    assert first["index"].tolist() == [2, 2**40]


def test_crops_and_softness_are_those_of_the_other_path(photos: Photos) -> None:
    pairs = Pairs(crop=48)
    batch = PairsOnDevice(photos, pairs, "cpu")(torch.arange(6))
    for number in range(6):
        single = make_pair(photos, pairs, number)
        assert torch.allclose(batch["sharp"][number], single["sharp"], atol=1e-6)
        assert (batch["soft"][number] - single["soft"]).abs().max() < 1.01 / 127.5  # a level, by rounding


def test_plain_bicubic_is_that_of_the_other_path(photos: Photos) -> None:
    pairs = Pairs(crop=48, bicubic_share=1)
    batch = PairsOnDevice(photos, pairs, "cpu")(torch.arange(4))
    single = torch.stack([make_pair(photos, pairs, number)["lr"] for number in range(4)])
    assert torch.equal(batch["soft"], batch["sharp"])
    assert (batch["lr"] - single).abs().mean() < 0.1 / 127.5  # Pillow rounds and clips between its two directions


def test_without_noise_and_jpeg_a_camera_is_that_of_the_other_path(picture: NDArray[np.uint8]) -> None:
    compared = 0
    for seed in range(40):
        draw = draw_degradation(Pairs(degradation="camera"), np.random.default_rng(seed))
        assert isinstance(draw, Camera)
        if draw.grain is None and draw.quality is None:
            ours = to_pixels(batched.degrade(to_batch(picture), [draw], generators(1)))[0]
            theirs = degradation.degrade(picture, "camera", np.random.default_rng(seed))
            assert np.abs(ours - theirs).max() <= 1
            compared += 1
    assert compared >= 4


def test_the_first_order_up_to_its_noise_is_that_of_the_other_path(picture: NDArray[np.uint8]) -> None:
    """Bilinear and bicubic: `area` averages whole pixels."""
    compared = 0
    for seed in range(30):
        draw = draw_degradation(Pairs(degradation="realesrgan"), np.random.default_rng(seed))
        assert isinstance(draw, TwoOrders)
        first = draw.first
        if first.how == "area" or first.kernel is None:
            continue
        side = first.side(96)
        blurred = batched.blur(to_batch(picture), [first.kernel], [96])[0]
        ours = to_pixels(batched.resize(blurred, side, first.how)[None])[0]
        blurred = degradation.blur(picture.astype(np.float32), first.kernel)
        theirs = degradation.resize(blurred, side, side, first.how)
        assert np.abs(ours - theirs).max() < 0.1
        compared += 1
    assert compared >= 10


def test_each_picture_on_a_canvas_is_blurred_as_if_alone(picture: NDArray[np.uint8]) -> None:
    rng = np.random.default_rng(1)
    kernels = [degradation.random_kernel(degradation.FIRST, rng), None, degradation.sinc_kernel(21, 1.0)]
    sides = [96, 40, 7]  # the last is smaller than the border
    canvases = to_batch(picture, 3).clone()
    out = to_pixels(batched.blur(canvases, kernels, sides))
    for number, (kernel, side) in enumerate(zip(kernels, sides, strict=True)):
        alone = np.ascontiguousarray(picture[:side, :side]).astype(np.float32)
        expected = alone if kernel is None else degradation.blur(alone, kernel)
        assert np.abs(out[number, :side, :side] - expected).max() < 0.01


@pytest.mark.parametrize(("quality", "tolerance"), [(30, 0.05), (60, 0.05), (95, 0.15)])
def test_jpeg_is_near_the_codec(picture: NDArray[np.uint8], quality: int, tolerance: float) -> None:
    """It harms luma as much, at 95 by less than a level; chroma, which it subsamples more softly, nearly as much."""
    gentle = (0.4 * picture + 70).astype(np.uint8)  # no clipping
    both = batched.jpeg(to_batch(gentle, 2), [quality, None])
    assert torch.equal(both[1], to_batch(gentle)[0])
    ours, theirs = to_pixels(both)[0] - gentle, degradation.jpeg(gentle.astype(np.float32), quality) - gentle
    assert np.std(ours @ batched.LUMA) == pytest.approx(np.std(theirs @ batched.LUMA), rel=tolerance)
    assert np.std(ours) == pytest.approx(np.std(theirs), rel=0.15)
    assert np.std(ours - theirs) < 0.5 * np.std(theirs)


@pytest.mark.parametrize("grey", [True, False])
@pytest.mark.parametrize("kind", ["noisy", "poisson"])
def test_noise_is_that_of_the_other_path(kind: str, grey: bool) -> None:
    ramp = np.tile(np.arange(256, dtype=np.float32)[None, :, None], (256, 1, 3))
    x = torch.tensor(ramp).permute(2, 0, 1)
    strength = 12.0 if kind == "noisy" else 0.8
    ours = to_pixels((getattr(batched, kind)(x, strength, grey, generators(1)[0]) - x)[None])[0]
    theirs = getattr(degradation, kind)(ramp, strength, grey, np.random.default_rng(0)) - ramp
    for columns in (slice(40, 60), slice(120, 140), slice(180, 200)):
        assert ours[:, columns].std() == pytest.approx(theirs[:, columns].std(), rel=0.05)
        assert abs(ours[:, columns].mean()) < 0.03 * ours[:, columns].std() + 0.1
    assert np.allclose(ours, ours[..., :1], atol=1e-4) == grey


@pytest.mark.parametrize(("kind", "count"), [("camera", 120), ("realesrgan", 120)])
def test_both_paths_are_alike_in_brightness_blur_and_noise(kind: str, count: int) -> None:
    """Many twins of one edge: its mean slope shows the blur, the spread along it the noise.

    Within half a level in brightness, 5 % in slope and 12 % in noise.
    """
    edge = np.full((64, 64, 3), (80, 100, 90), np.uint8)
    edge[:, 32:] = (170, 160, 180)
    draws = [draw_degradation(Pairs(degradation=kind), np.random.default_rng(seed)) for seed in range(count)]
    ours = to_pixels(batched.degrade(to_batch(edge, count), draws, generators(count)))
    theirs = np.stack([degradation.degrade(edge, kind, np.random.default_rng(seed)) for seed in range(count)])
    brightness, slope, noise = (
        [float(measure(twins.astype(np.float64))) for twins in (ours, theirs)]
        for measure in (
            np.mean,
            lambda twins: np.diff(twins.mean((0, 1, 3)))[7],
            lambda twins: twins.std(axis=1).mean(),
        )
    )
    assert brightness[0] == pytest.approx(brightness[1], abs=0.5)
    assert slope[0] == pytest.approx(slope[1], rel=0.05)
    assert noise[0] == pytest.approx(noise[1], rel=0.12)


def test_crops_taken_at_half_size_are_near_those_of_the_other_path() -> None:
    small = np.random.default_rng(3).integers(0, 255, (16, 16, 3), np.uint8)
    picture = np.asarray(Image.fromarray(small).resize((128, 128), Image.Resampling.BICUBIC))
    for crop in (Crop(0, 0, 64, 2, True, 3), Crop(5, 9, 64, 1, True, 1)):
        ours = to_pixels(batched.cut(torch.tensor(picture).permute(2, 0, 1), crop)[None])[0]
        assert np.abs(ours - cut_pixels(picture, crop)).mean() < (0.5 if crop.step == 2 else 1e-6)


def test_plans_follow_the_shares() -> None:
    pairs = Pairs(crop=32, camera_share=0.3, bicubic_share=0.2)
    plans = [draw_sample([(64, 80), (90, 50)], pairs, number)[2].degradation for number in range(300)]
    shares = [np.mean([isinstance(plan, kind) for plan in plans]) for kind in (Camera, TwoOrders, type(None))]
    assert shares == pytest.approx([0.24, 0.56, 0.2], abs=0.08)


def test_photographs_smaller_than_the_crop_are_an_error(photos: Photos) -> None:
    with pytest.raises(ValueError, match="smaller than the crop of 96 px, leave them out: b"):
        PairsOnDevice(photos, Pairs(crop=96), "cpu")
