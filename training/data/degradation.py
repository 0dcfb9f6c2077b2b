"""Low-resolution twins of photographs.

`camera`: what a lens, a sensor and an in-camera JPEG do to a picture that was sharp: anisotropic blur, integration over
the larger pixel, a little noise, light JPEG. `realesrgan`: the two-order chain of Real-ESRGAN (arXiv 2107.10833) with
the parameters that OSEDiff and its relatives train on. `mix` draws one of the two for every sample.
Pictures are [H, W, 3] fp32 in 0..255 inside; everything random comes from the generator that is passed in.

What is drawn is drawn by the functions `draw_...`; `degradation_batched` draws with them too and works on tensors.
"""

from dataclasses import dataclass
from math import ceil
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.special import j1

Picture = NDArray[Any]  # fp32; OpenCV does not say
Kernel = NDArray[np.float32]
Degradation = Literal["camera", "realesrgan", "mix"]
Resizer = Literal["area", "bilinear", "bicubic"]

SCALE = 4  # by default, and the one that the lens of `camera` is given for
CAMERA_SHARE = 0.8  # of the mix: real pictures are blurred but fairly clean
RESIZERS: tuple[Resizer, ...] = ("area", "bilinear", "bicubic")
INTERPOLATION = {"area": cv2.INTER_AREA, "bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}


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
GAUSSIAN_BETA, PLATEAU_BETA = (0.5, 4.0), (1.0, 2.0)
JPEG_QUALITY = (30, 95)


@dataclass(frozen=True)
class OrderDraw:
    """One order as drawn, all but the noise itself.

    Attributes:
        kernel: of the blur; None for none.
        factor: of the resize.
        how: to resize.
        grey: one noise for all channels.
        gaussian: noise; else Poisson.
        strength: sigma of the Gaussian noise in levels of 255, or scale of the Poisson noise.
    """

    kernel: Kernel | None
    factor: float
    how: Resizer
    grey: bool
    gaussian: bool
    strength: float

    def side(self, side: int) -> int:
        """`side` px after the resize."""
        return max(4, round(side * self.factor))


@dataclass(frozen=True)
class LastDraw:
    """The end of Real-ESRGAN's chain: the resize to the LR size and the sinc filter, before or after the last JPEG."""

    quality: int
    how: Resizer
    jpeg_last: bool
    sinc: Kernel | None


@dataclass(frozen=True)
class TwoOrders:
    """Real-ESRGAN's chain as drawn, all but the noise itself; `quality`: of the JPEG between the orders."""

    first: OrderDraw
    quality: int
    second: OrderDraw
    last: LastDraw


def clip(x: Picture) -> Picture:
    """0..255."""
    return np.clip(x, 0, 255)


def blur(x: Picture, kernel: Kernel) -> Picture:
    """Convolution with mirrored borders."""
    return cv2.filter2D(x, -1, kernel, borderType=cv2.BORDER_REFLECT_101)


def gaussian(x: Picture, sigma: float) -> Picture:
    """Isotropic Gaussian blur."""
    return cv2.GaussianBlur(x, (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101) if sigma > 0.05 else x


def jpeg(x: Picture, quality: int) -> Picture:
    """Through the JPEG codec, 4:2:0."""
    bgr = cv2.cvtColor(clip(np.rint(x)).astype(np.uint8), cv2.COLOR_RGB2BGR)
    coded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return cv2.cvtColor(cv2.imdecode(coded, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB).astype(np.float32)


def resize(x: Picture, height: int, width: int, how: Resizer) -> Picture:
    """To a size; `bilinear` and `bicubic` do not antialias."""
    return cv2.resize(x, (width, height), interpolation=INTERPOLATION[how])


def distances(size: int, sigma: tuple[float, float], angle: float) -> NDArray[np.float64]:
    """Squared Mahalanobis distance of each kernel cell from the middle."""
    ax = np.arange(size) - size // 2
    xx, yy = np.meshgrid(ax, ax)
    u, v = xx * np.cos(angle) + yy * np.sin(angle), -xx * np.sin(angle) + yy * np.cos(angle)
    return (u / sigma[0]) ** 2 + (v / sigma[1]) ** 2


def normalised(kernel: NDArray[np.float64]) -> Kernel:
    """Sum one."""
    return (kernel / kernel.sum()).astype(np.float32)


def sinc_kernel(size: int, cutoff: float) -> Kernel:
    """Circular low-pass with ringing."""
    ax = np.arange(size) - size // 2
    r = np.hypot(*np.meshgrid(ax, ax))
    with np.errstate(invalid="ignore", divide="ignore"):
        kernel = cutoff * j1(cutoff * r) / (2 * np.pi * r)
    kernel[size // 2, size // 2] = cutoff**2 / (4 * np.pi)
    return normalised(kernel)


def random_sinc(rng: np.random.Generator, lowest: float = np.pi / 5) -> Kernel:
    """Size 7..21; cut-off up to pi, from pi/3 for sizes under 13 and from `lowest` for the others."""
    size = int(2 * rng.integers(3, 11) + 1)
    return sinc_kernel(size, rng.uniform(np.pi / 3 if size < 13 else lowest, np.pi))


def random_beta(low: float, high: float, rng: np.random.Generator) -> float:
    """Shape of a kernel's flank: half of them in [low, 1], half in [1, high], as BasicSR draws it."""
    return rng.uniform(low, 1) if rng.random() < 0.5 else rng.uniform(1, high)


def random_kernel(order: Order, rng: np.random.Generator) -> Kernel:
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
        return normalised(np.exp(-0.5 * d ** random_beta(*GAUSSIAN_BETA, rng)))
    return normalised(1 / (1 + d ** random_beta(*PLATEAU_BETA, rng)))


def draw_order(order: Order, rng: np.random.Generator) -> OrderDraw:
    """One order of the chain."""
    kernel = random_kernel(order, rng) if rng.random() < order.blur_probability else None
    direction = rng.choice(3, p=order.resize_probabilities)
    low, high = order.resize_range
    factor = (rng.uniform(1, high), rng.uniform(low, 1), 1.0)[direction]
    how = RESIZERS[rng.integers(3)]
    grey, is_gaussian = bool(rng.random() < GREY_NOISE), bool(rng.random() < GAUSSIAN_NOISE)
    strength = rng.uniform(*(order.noise_sigma if is_gaussian else order.poisson_scale))
    return OrderDraw(kernel, factor, how, grey, is_gaussian, strength)


def draw_quality(rng: np.random.Generator) -> int:
    """Of a JPEG of Real-ESRGAN's chain."""
    return int(rng.integers(JPEG_QUALITY[0], JPEG_QUALITY[1] + 1))


def draw_last(rng: np.random.Generator) -> LastDraw:
    """The end of the chain."""
    quality, how, jpeg_last = draw_quality(rng), RESIZERS[rng.integers(3)], bool(rng.random() < 0.5)
    return LastDraw(quality, how, jpeg_last, random_sinc(rng, np.pi / 3) if rng.random() < FINAL_SINC else None)


def draw_two_orders(rng: np.random.Generator) -> TwoOrders:
    """The whole chain."""
    return TwoOrders(draw_order(FIRST, rng), draw_quality(rng), draw_order(SECOND, rng), draw_last(rng))


def draw_lens(rng: np.random.Generator, scale: int = SCALE) -> tuple[Kernel, Resizer]:
    """Of a camera: an elliptic Gaussian of 0.3 to 3 px at x4, and how the larger pixels sample it."""
    first = rng.uniform(0.3, 3.0)
    second = float(np.clip(first * rng.uniform(0.7, 1.4), 0.3, 3.2))
    sigma, size = (first * scale / SCALE, second * scale / SCALE), 2 * ceil(2.5 * max(scale, SCALE)) + 1
    kernel = normalised(np.exp(-0.5 * distances(size, sigma, rng.uniform(0, np.pi))))
    return kernel, "area" if rng.random() < 0.7 else "bicubic"


def draw_grain(rng: np.random.Generator) -> tuple[float, bool] | None:
    """Of a camera, in half of the pictures: sigma in levels of 255, mostly small, and whether it is grey."""
    return (6 * rng.random() ** 2, bool(rng.random() < GREY_NOISE)) if rng.random() < 0.5 else None


def draw_sharpening(rng: np.random.Generator) -> tuple[float, float] | None:
    """Of a camera, in three of ten pictures: amount and sigma in px of an unsharp mask."""
    return (rng.uniform(0.1, 0.6), rng.uniform(0.6, 1.2)) if rng.random() < 0.3 else None


def draw_camera_quality(rng: np.random.Generator) -> int | None:
    """Of a camera's JPEG, in half of the pictures."""
    return int(rng.integers(75, 98)) if rng.random() < 0.5 else None


def draw_kind(kind: Degradation, camera_share: float, rng: np.random.Generator) -> Literal["camera", "realesrgan"]:
    """One of the two."""
    if kind == "mix":
        return "camera" if rng.random() < camera_share else "realesrgan"
    return kind


def noisy(x: Picture, sigma: float, grey: bool, rng: np.random.Generator) -> Picture:
    """Gaussian noise, per channel or one for all."""
    shape = (*x.shape[:2], 1 if grey else 3)
    return clip(x + sigma * rng.standard_normal(shape, dtype=np.float32))


def poisson(x: Picture, scale: float, grey: bool, rng: np.random.Generator) -> Picture:
    """Shot noise, `scale` times that of as many photons at white as the picture has levels, up to a power of two."""
    base = np.rint(clip(cv2.cvtColor(x, cv2.COLOR_RGB2GRAY)[..., None] if grey else x))
    levels = 2.0 ** np.ceil(np.log2(max(2, len(np.unique(base)))))
    shot = rng.poisson(base / 255 * levels) / levels * 255 - base
    return clip(x + scale * shot.astype(np.float32))


def one_order(x: Picture, draw: OrderDraw, size: tuple[int, int], rng: np.random.Generator) -> Picture:
    """Blur, resize relative to `size`, noise."""
    if draw.kernel is not None:
        x = blur(x, draw.kernel)
    x = clip(resize(x, draw.side(size[0]), draw.side(size[1]), draw.how))
    return (noisy if draw.gaussian else poisson)(x, draw.strength, draw.grey, rng)


def realesrgan(hr: Picture, rng: np.random.Generator, scale: int = SCALE) -> Picture:
    """Both orders; the last resize to the LR size with the last sinc, and the last JPEG, in random order."""
    h, w = hr.shape[0] // scale, hr.shape[1] // scale
    draw = draw_two_orders(rng)
    x = jpeg(one_order(hr, draw.first, hr.shape[:2], rng), draw.quality)
    x = one_order(x, draw.second, (h, w), rng)
    if not draw.last.jpeg_last:
        x = jpeg(x, draw.last.quality)
    x = resize(x, h, w, draw.last.how)
    if draw.last.sinc is not None:
        x = blur(x, draw.last.sinc)
    return jpeg(x, draw.last.quality) if draw.last.jpeg_last else x


def camera(hr: Picture, rng: np.random.Generator, scale: int = SCALE) -> Picture:
    """Lens blur of 0.3 to 3 px at x4 (an ellipse), area sampling; often a little noise, light JPEG or sharpening."""
    kernel, how = draw_lens(rng, scale)
    x = resize(blur(hr, kernel), hr.shape[0] // scale, hr.shape[1] // scale, how)
    grain = draw_grain(rng)
    if grain is not None:
        x = noisy(x, *grain, rng)
    sharpening = draw_sharpening(rng)
    if sharpening is not None:
        amount, sigma = sharpening
        x = clip(x + amount * (x - gaussian(x, sigma)))
    quality = draw_camera_quality(rng)
    return x if quality is None else jpeg(x, quality)


def degrade(
    hr: NDArray[np.uint8],
    kind: Degradation,
    rng: np.random.Generator,
    camera_share: float = CAMERA_SHARE,
    scale: int = SCALE,
) -> NDArray[np.uint8]:
    """A low-resolution twin.

    Args:
        hr: photograph [H, W, 3] uint8, H and W multiples of `scale`.
        kind: `camera`, `realesrgan`, or `mix` of the two.
        rng: where all randomness comes from.
        camera_share: share of `camera` in the mix.
        scale: side of `hr` / side of the twin.

    Returns:
        [H/scale, W/scale, 3] uint8.
    """
    make = camera if draw_kind(kind, camera_share, rng) == "camera" else realesrgan
    return clip(np.rint(make(hr.astype(np.float32), rng, scale))).astype(np.uint8)
