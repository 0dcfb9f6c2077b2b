"""Low-resolution twins: sizes, determinism, kernels, and that the two kinds do what they are for."""

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from training.data import degradation
from training.data.degradation import (
    FIRST,
    SECOND,
    degrade,
    draw_last,
    draw_order,
    jpeg,
    poisson,
    random_beta,
    random_kernel,
    random_sinc,
    sinc_kernel,
)


@pytest.fixture(scope="module")
def photo() -> NDArray[np.uint8]:
    """A picture with edges, texture and flat parts."""
    rng = np.random.default_rng(0)
    picture = np.full((128, 96, 3), 90.0)
    picture[:, 48:] = 200
    picture[64:] += rng.normal(0, 25, (64, 96, 3))
    return picture.clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("kind", ["camera", "realesrgan", "mix"])
def test_a_quarter_of_the_size_and_a_function_of_the_generator(photo: NDArray[np.uint8], kind: str) -> None:
    first, again, other = (degrade(photo, kind, np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert first.shape == (32, 24, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(("share", "kind"), [(1.0, "camera"), (0.0, "realesrgan")])
def test_the_mix_is_a_share(photo: NDArray[np.uint8], share: float, kind: str) -> None:
    rng = np.random.default_rng(5)
    rng.random()  # what the mix draws to choose
    assert np.array_equal(degrade(photo, "mix", np.random.default_rng(5), share), degrade(photo, kind, rng))


@pytest.mark.parametrize("order", [FIRST, SECOND])
def test_kernels_keep_the_mean(order: degradation.Order) -> None:
    rng = np.random.default_rng(1)
    for _ in range(200):
        for kernel in (random_kernel(order, rng), random_sinc(rng)):
            assert kernel.shape[0] == kernel.shape[1]
            assert 7 <= kernel.shape[0] <= 21
            assert kernel.sum() == pytest.approx(1, abs=1e-5)
            assert np.isfinite(kernel).all()


def test_the_lowest_cut_off_holds_for_large_sinc_kernels() -> None:
    rng = np.random.default_rng(2)
    kernels = [random_sinc(rng, lowest=np.pi) for _ in range(40)]
    large = [kernel for kernel in kernels if kernel.shape[0] >= 13]
    assert large
    assert all(np.array_equal(kernel, sinc_kernel(kernel.shape[0], np.pi)) for kernel in large)


def test_half_of_the_betas_are_below_one() -> None:
    rng = np.random.default_rng(3)
    betas = np.array([random_beta(0.5, 4, rng) for _ in range(400)])
    assert (betas.min(), betas.max()) == (pytest.approx(0.5, abs=0.02), pytest.approx(4, abs=0.1))
    assert np.mean(betas < 1) == pytest.approx(0.5, abs=0.08)
    assert min(random_beta(1, 2, rng) for _ in range(50)) == 1


@pytest.mark.parametrize(("order", "shares"), [(FIRST, (0.2, 0.7, 0.1)), (SECOND, (0.3, 0.4, 0.3))])
def test_orders_are_drawn_as_in_real_esrgan(order: degradation.Order, shares: tuple[float, float, float]) -> None:
    rng = np.random.default_rng(4)
    draws = [draw_order(order, rng) for _ in range(600)]
    factors = np.array([draw.factor for draw in draws])
    found = (np.mean(factors > 1), np.mean(factors < 1), np.mean(factors == 1))
    assert found == pytest.approx(shares, abs=0.06)
    assert order.resize_range[0] <= factors.min() < factors.max() <= order.resize_range[1]
    assert np.mean([draw.kernel is not None for draw in draws]) == pytest.approx(order.blur_probability, abs=0.06)
    assert np.mean([draw.grey for draw in draws]) == pytest.approx(0.4, abs=0.06)
    for is_gaussian, (low, high) in ((True, order.noise_sigma), (False, order.poisson_scale)):
        strengths = [draw.strength for draw in draws if draw.gaussian == is_gaussian]
        assert 200 < len(strengths) < 400
        assert low <= min(strengths) < max(strengths) <= high


def test_the_last_jpeg_comes_first_or_last_with_and_without_sinc() -> None:
    rng = np.random.default_rng(5)
    lasts = [draw_last(rng) for _ in range(300)]
    assert {(last.jpeg_last, last.sinc is None) for last in lasts} == {
        (a, b) for a in (True, False) for b in (True, False)
    }
    assert np.mean([last.sinc is not None for last in lasts]) == pytest.approx(0.8, abs=0.08)


@pytest.mark.parametrize("quality", [30, 90])
def test_jpeg_keeps_the_channels_apart_as_pillow_does(quality: int) -> None:
    small = np.random.default_rng(6).integers(0, 255, (16, 16, 3), np.uint8)
    picture = Image.fromarray(small).resize((64, 64), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    picture.save(file, "jpeg", quality=quality, subsampling="4:2:0")
    ours, theirs = jpeg(np.asarray(picture).astype(np.float32), quality), np.asarray(Image.open(file)).astype(float)
    assert np.sqrt(np.mean((ours - theirs) ** 2)) < 1


@pytest.mark.parametrize("grey", [True, False])
def test_shot_noise_grows_with_the_square_root_of_light(grey: bool) -> None:
    ramp = np.tile(np.arange(256, dtype=np.float32)[None, :, None], (200, 1, 3))
    noise = poisson(ramp, 0.5, grey, np.random.default_rng(7)) - ramp
    for level in (64, 128):  # 256 levels: variance of level/255 * 256 photons, in levels, times a half squared
        assert noise[:, level].std() == pytest.approx(0.5 * np.sqrt(level), rel=0.15)
    assert np.allclose(noise, noise[..., :1]) == grey


def test_camera_pictures_are_blurred_but_keep_their_brightness(photo: NDArray[np.uint8]) -> None:
    twins = np.stack([degrade(photo, "camera", np.random.default_rng(seed)) for seed in range(20)]).astype(float)
    assert abs(twins.mean() - photo.mean()) < 2
    assert np.abs(np.diff(twins[:, :14], axis=2)).max(axis=(1, 2, 3)).mean() < 110  # the edge had a step of 110


def test_realesrgan_is_the_rougher_of_the_two() -> None:
    flat = np.full((128, 128, 3), 128, np.uint8)
    noise = {
        kind: np.mean([degrade(flat, kind, np.random.default_rng(seed)).std() for seed in range(30)])
        for kind in ("camera", "realesrgan")
    }
    assert noise["camera"] < 3
    assert noise["realesrgan"] > 2 * noise["camera"]
