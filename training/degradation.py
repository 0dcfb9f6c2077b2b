"""Low-resolution twins of photographs.

`camera`: what a lens, a sensor and an in-camera JPEG do to a picture that was sharp: anisotropic blur, integration over
the larger pixel, a little noise, light JPEG. `realesrgan`: the two-order chain of Real-ESRGAN (arXiv 2107.10833) with
the parameters that OSEDiff and its relatives train on. `mix` draws one of the two for every sample.
Pictures are [H, W, 3] fp32 in 0..255 inside; everything random comes from the generator that is passed in.
"""

from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.special import j1

Picture = NDArray[Any]  # fp32; OpenCV does not say
Degradation = Literal["camera", "realesrgan", "mix"]

SCALE = 4
CAMERA_SHARE = 0.8  # of the mix: real pictures are blurred but fairly clean
RESIZERS = (cv2.INTER_AREA, cv2.INTER_LINEAR, cv2.INTER_CUBIC)


@dataclass(frozen=True)
class Order:
    """One order of Real-ESRGAN's chain."""

    blur_probability: float
    sigma: tuple[float, float]
    resize_probabilities: tuple[float, float, float]  # up, down, keep
    resize_range: tuple[float, float]
    noise_sigma: tuple[float, float]
    poisson_scale: tuple[float, float]


FIRST = Order(1.0, (0.2, 3.0), (0.2, 0.7, 0.1), (0.15, 1.5), (1.0, 30.0), (0.05, 3.0))
SECOND = Order(0.8, (0.2, 1.5), (0.3, 0.4, 0.3), (0.3, 1.2), (1.0, 25.0), (0.05, 2.5))
GREY_NOISE, GAUSSIAN_NOISE, SINC, FINAL_SINC = 0.4, 0.5, 0.1, 0.8
JPEG_QUALITY = (30, 95)


def clip(x: Picture) -> Picture:
    """0..255."""
    return np.clip(x, 0, 255)


def blur(x: Picture, kernel: NDArray[np.float32]) -> Picture:
    """Convolution with mirrored borders."""
    return cv2.filter2D(x, -1, kernel, borderType=cv2.BORDER_REFLECT_101)


def gaussian(x: Picture, sigma: float) -> Picture:
    """Isotropic Gaussian blur."""
    return cv2.GaussianBlur(x, (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101) if sigma > 0.05 else x


def jpeg(x: Picture, quality: int) -> Picture:
    """Through the JPEG codec."""
    coded = cv2.imencode(".jpg", clip(np.rint(x)).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return cv2.imdecode(coded, cv2.IMREAD_COLOR).astype(np.float32)


def resize(x: Picture, height: int, width: int, how: int) -> Picture:
    """To a size, by OpenCV's `how`."""
    return cv2.resize(x, (width, height), interpolation=how)


def distances(size: int, sigma: tuple[float, float], angle: float) -> NDArray[np.float64]:
    """Squared Mahalanobis distance of each kernel cell from the middle."""
    ax = np.arange(size) - size // 2
    xx, yy = np.meshgrid(ax, ax)
    u, v = xx * np.cos(angle) + yy * np.sin(angle), -xx * np.sin(angle) + yy * np.cos(angle)
    return (u / sigma[0]) ** 2 + (v / sigma[1]) ** 2


def normalised(kernel: NDArray[np.float64]) -> NDArray[np.float32]:
    """Sum one."""
    return (kernel / kernel.sum()).astype(np.float32)


def sinc_kernel(size: int, cutoff: float) -> NDArray[np.float32]:
    """Circular low-pass with ringing."""
    ax = np.arange(size) - size // 2
    r = np.hypot(*np.meshgrid(ax, ax))
    with np.errstate(invalid="ignore", divide="ignore"):
        kernel = cutoff * j1(cutoff * r) / (2 * np.pi * r)
    kernel[size // 2, size // 2] = cutoff**2 / (4 * np.pi)
    return normalised(kernel)


def random_sinc(rng: np.random.Generator) -> NDArray[np.float32]:
    """Size 7..21; the smaller, the higher the cut-off."""
    size = int(2 * rng.integers(3, 11) + 1)
    return sinc_kernel(size, rng.uniform(np.pi / 3 if size < 13 else np.pi / 5, np.pi))


def random_kernel(order: Order, rng: np.random.Generator) -> NDArray[np.float32]:
    """Iso- or anisotropic; Gaussian, generalised Gaussian or plateau; or, one in ten, sinc."""
    if rng.random() < SINC:
        return random_sinc(rng)
    size = int(2 * rng.integers(3, 11) + 1)
    kind = rng.choice(6, p=(0.45, 0.25, 0.12, 0.03, 0.12, 0.03))
    first = rng.uniform(*order.sigma)
    second = rng.uniform(*order.sigma) if kind % 2 else first
    d = distances(size, (first, second), rng.uniform(-np.pi, np.pi) if kind % 2 else 0.0)
    if kind < 2:
        return normalised(np.exp(-0.5 * d))
    if kind < 4:
        return normalised(np.exp(-0.5 * d ** rng.uniform(0.5, 4)))
    return normalised(1 / (1 + d ** rng.uniform(1, 2)))


def noisy(x: Picture, sigma: float, grey: bool, rng: np.random.Generator) -> Picture:
    """Gaussian noise, per channel or one for all."""
    shape = (*x.shape[:2], 1 if grey else 3)
    return clip(x + sigma * rng.standard_normal(shape, dtype=np.float32))


def poisson(x: Picture, scale: float, grey: bool, rng: np.random.Generator) -> Picture:
    """Shot noise, `scale` times that of 255 levels of photons."""
    base = x.mean(axis=2, keepdims=True) if grey else x
    levels = 2.0 ** np.ceil(np.log2(max(2, len(np.unique(np.rint(base))))))
    shot = rng.poisson(clip(base) / 255 * levels) / levels * 255 - base
    return clip(x + scale * shot.astype(np.float32))


def one_order(x: Picture, order: Order, size: tuple[int, int], rng: np.random.Generator) -> Picture:
    """Blur, resize relative to `size`, noise."""
    if rng.random() < order.blur_probability:
        x = blur(x, random_kernel(order, rng))
    how = rng.choice(3, p=order.resize_probabilities)
    low, high = order.resize_range
    factor = (rng.uniform(1, high), rng.uniform(low, 1), 1.0)[how]
    x = resize(x, max(4, round(size[0] * factor)), max(4, round(size[1] * factor)), RESIZERS[rng.integers(3)])
    grey = bool(rng.random() < GREY_NOISE)
    if rng.random() < GAUSSIAN_NOISE:
        return noisy(clip(x), rng.uniform(*order.noise_sigma), grey, rng)
    return poisson(clip(x), rng.uniform(*order.poisson_scale), grey, rng)


def realesrgan(hr: Picture, rng: np.random.Generator) -> Picture:
    """Both orders; the last resize to a quarter, the last sinc and the last JPEG in random order."""
    h, w = hr.shape[0] // SCALE, hr.shape[1] // SCALE
    x = jpeg(one_order(hr, FIRST, hr.shape[:2], rng), int(rng.integers(JPEG_QUALITY[0], JPEG_QUALITY[1] + 1)))
    x = one_order(x, SECOND, (h, w), rng)
    quality, how = int(rng.integers(JPEG_QUALITY[0], JPEG_QUALITY[1] + 1)), RESIZERS[rng.integers(3)]
    sinc_first, sinc = rng.random() < 0.5, rng.random() < FINAL_SINC
    if sinc_first or not sinc:
        x = resize(x, h, w, how)
        x = blur(x, random_sinc(rng)) if sinc else x
        return jpeg(x, quality)
    return blur(resize(jpeg(x, quality), h, w, how), random_sinc(rng))


def camera(hr: Picture, rng: np.random.Generator) -> Picture:
    """Lens blur of 0.3 to 3 px (an ellipse), area sampling; often a little noise, light JPEG or sharpening."""
    first = rng.uniform(0.3, 3.0)
    second = float(np.clip(first * rng.uniform(0.7, 1.4), 0.3, 3.2))
    x = blur(hr, normalised(np.exp(-0.5 * distances(21, (first, second), rng.uniform(0, np.pi)))))
    x = resize(x, hr.shape[0] // SCALE, hr.shape[1] // SCALE, cv2.INTER_AREA if rng.random() < 0.7 else cv2.INTER_CUBIC)
    if rng.random() < 0.5:
        x = noisy(x, 6 * rng.random() ** 2, bool(rng.random() < GREY_NOISE), rng)
    if rng.random() < 0.3:
        x = clip(x + rng.uniform(0.1, 0.6) * (x - gaussian(x, rng.uniform(0.6, 1.2))))
    if rng.random() < 0.5:
        x = jpeg(x, int(rng.integers(75, 98)))
    return x


def degrade(hr: NDArray[np.uint8], kind: Degradation, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A quarter-size twin.

    Args:
        hr: photograph [H, W, 3] uint8, H and W multiples of 4.
        kind: `camera`, `realesrgan`, or `mix` of the two.
        rng: where all randomness comes from.

    Returns:
        [H/4, W/4, 3] uint8.
    """
    if kind == "mix":
        kind = "camera" if rng.random() < CAMERA_SHARE else "realesrgan"
    x = (camera if kind == "camera" else realesrgan)(hr.astype(np.float32), rng)
    return clip(np.rint(x)).astype(np.uint8)
