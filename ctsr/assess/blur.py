"""How soft a picture is, and whether the lens or the scene made it so."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .windows import gaussian, luma

FIRST, SECOND = 0.7, 1.5
"""Pixels of the two blurs that slopes are compared between."""
SHARPEST = 0.25
"""Part of the edges, the sharpest, that tell of the lens."""
STEEP = 0.02
"""Least slope of an edge, a pixel, in [0, 1]; noise raises it."""
FEWEST = 30
"""Edges, below which nothing is said."""
SOFTEST = 6.0
"""Pixels; wider edges are slopes."""


@dataclass(frozen=True)
class Blur:
    """Standard deviation in pixels of the blur at edges.

    Attributes:
        lens: of the sharpest edges: the whole picture is at least that soft.
        scene: of the middle edge: large beside a small `lens` where much lies out of focus or is smooth by itself.
    """

    lens: float
    scene: float


def slope(plane: Tensor) -> Tensor:
    """Length of the gradient by central differences, [1, 1, h, w] -> [1, 1, h - 2, w - 2]."""
    across = (plane[..., 1:-1, 2:] - plane[..., 1:-1, :-2]) / 2
    down = (plane[..., 2:, 1:-1] - plane[..., :-2, 1:-1]) / 2
    return torch.hypot(across, down)


def blur(picture: Tensor, noise: float) -> Blur | None:
    """Blur at the picture's edges, from how much two known blurs flatten them; None for a picture without edges.

    An edge of width s has the slope 1 / sqrt(s^2 + b^2) after a blur of b (Zhuo and Sim, Pattern Recognition 44, 2011,
    who compare with the unblurred picture; noise would then pass for sharpness). Lines read sharper than steps.

    Args:
        picture: [1, 3, h, w] in [0, 1].
        noise: its standard deviation.
    """
    if min(picture.shape[-2:]) < 16:
        return None
    grey = luma(picture)
    first, second = slope(gaussian(grey, FIRST)), slope(gaussian(grey, SECOND))
    ridge = first == F.max_pool2d(first, 3, 1, 1)
    edges = ridge & (first > STEEP + 2 * noise) & (second > 0)
    if int(edges.sum()) < FEWEST:
        return None
    ratio = (first[edges] / second[edges]).square().clamp_min(1 + 1e-3)[: 2**24]
    variance = (SECOND**2 - ratio * FIRST**2) / (ratio - 1)
    width = variance.clamp(0, SOFTEST**2).sqrt()
    return Blur(float(torch.quantile(width, SHARPEST)), float(width.median()))
