"""Degradations that keep a picture's size, for tasks other than super-resolution.

`lowlight`: what a photograph becomes in the dark. Half are darkened as b (a x)^g (arXiv 1908.00682), as low-light
enhancement synthesises its pairs, half by an exposure of 1/2 to 1/16 in linear light; then the noise of a sensor, most
of it where little light was, and often JPEG. `deblur`: defocus or straight motion, and a little noise. `dejpeg`: JPEG
of low quality.

As in `degradation`, pictures are [H, W, 3] fp32 in 0..255, and what is drawn is drawn apart from what is done with it.
"""

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from training.data.degradation import Kernel, Picture, blur, clip, distances, jpeg, normalised

Task = Literal["sr", "lowlight", "deblur", "dejpeg"]
"""What a model is trained to do; all but "sr" at the picture's own size."""

DISPLAY_GAMMA = 2.2


@dataclass(frozen=True)
class Light:
    """x -> 255 gain (x / 255)^gamma."""

    gain: float
    gamma: float


def exposure(stops: float) -> Light:
    """2^-stops of the light: linear light is about (x / 255)^2.2, so in x it is a gain."""
    return Light(2.0 ** (-stops / DISPLAY_GAMMA), 1.0)


@dataclass(frozen=True)
class SameSize:
    """What is done to a picture, as drawn, all but the noise itself; None leaves a step out.

    Attributes:
        light: how it is darkened.
        kernel: of the blur.
        noise: sigma in levels of 255 at black, and by how much the variance grows with each level.
        quality: of the JPEG at the end.
    """

    light: Light | None = None
    kernel: Kernel | None = None
    noise: tuple[float, float] | None = None
    quality: int | None = None


def draw_lowlight(rng: np.random.Generator) -> SameSize:
    """Darkness, noise, and in half of the pictures JPEG."""
    if rng.random() < 0.5:
        gamma = rng.uniform(1.5, 3.5)
        light = Light(rng.uniform(0.5, 1.0) * rng.uniform(0.9, 1.0) ** gamma, gamma)
    else:
        light = exposure(rng.uniform(1, 4))
    noise = (3 * rng.random() ** 2, 0.3 * rng.random() ** 2)
    return SameSize(light, None, noise, int(rng.integers(75, 98)) if rng.random() < 0.5 else None)


def motion_kernel(length: float, angle: float) -> Kernel:
    """A straight line of `length` px, antialiased."""
    size = 2 * int(np.ceil(length / 2 + 1)) + 1
    middle, half = size // 2, length / 2 * np.array([np.cos(angle), np.sin(angle)])
    fine = 16  # cv2 counts in 1/16 px
    ends = [tuple(int(v) for v in np.rint(fine * (middle + sign * half))) for sign in (-1, 1)]
    line = cv2.line(np.zeros((size, size), np.uint8), ends[0], ends[1], 255, 1, cv2.LINE_AA, 4)
    return normalised(line.astype(np.float64))


def draw_deblur(rng: np.random.Generator) -> SameSize:
    """Defocus (a Gaussian of .7 to 3 px) or straight motion of 3 to 15 px; noise of at most 2 levels."""
    if rng.random() < 0.5:
        sigma = rng.uniform(0.7, 3.0)
        kernel = normalised(np.exp(-0.5 * distances(21, (sigma, sigma), 0.0)))
    else:
        kernel = motion_kernel(rng.uniform(3, 15), rng.uniform(0, np.pi))
    return SameSize(kernel=kernel, noise=(2 * rng.random(), 0.0))


def draw_dejpeg(rng: np.random.Generator) -> SameSize:
    """Quality 10 to 60."""
    return SameSize(quality=int(rng.integers(10, 61)))


DRAWS = {"lowlight": draw_lowlight, "deblur": draw_deblur, "dejpeg": draw_dejpeg}


def darken(x: Picture, light: Light) -> Picture:
    """Less light."""
    return 255 * light.gain * (x / 255) ** light.gamma


def sensor_noise(x: Picture, noise: tuple[float, float], rng: np.random.Generator) -> Picture:
    """Gaussian noise whose variance grows with the level."""
    sigma = np.sqrt(noise[0] ** 2 + noise[1] * clip(x))
    return clip(x + sigma * rng.standard_normal(x.shape, dtype=np.float32))


def spoil(picture: NDArray[np.uint8], draw: SameSize, rng: np.random.Generator) -> NDArray[np.uint8]:
    """The picture [H, W, 3] uint8 after all that was drawn, of the same size."""
    x: Picture = picture.astype(np.float32)
    if draw.light is not None:
        x = darken(x, draw.light)
    if draw.kernel is not None:
        x = blur(x, draw.kernel)
    if draw.noise is not None:
        x = sensor_noise(x, draw.noise, rng)
    if draw.quality is not None:
        x = jpeg(x, draw.quality)
    return clip(np.rint(x)).astype(np.uint8)
