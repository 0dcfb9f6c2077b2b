"""Low-resolution twins: sizes, determinism, kernels, and that the two kinds do what they are for."""

import numpy as np
import pytest
from numpy.typing import NDArray

from training import degradation
from training.degradation import FIRST, SECOND, degrade, random_kernel, random_sinc


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


@pytest.mark.parametrize("order", [FIRST, SECOND])
def test_kernels_keep_the_mean(order: degradation.Order) -> None:
    rng = np.random.default_rng(1)
    for _ in range(200):
        for kernel in (random_kernel(order, rng), random_sinc(rng)):
            assert kernel.shape[0] == kernel.shape[1]
            assert 7 <= kernel.shape[0] <= 21
            assert kernel.sum() == pytest.approx(1, abs=1e-5)
            assert np.isfinite(kernel).all()


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
