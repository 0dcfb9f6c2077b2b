"""How noisy a picture is."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .windows import gaussian, luma

BLOCK = 8
"""Pixels a side of the squares that are measured."""
FLATTEST = 0.2
"""Part of the squares, those with the least slope, that noise is read from."""
CLIPPED = 3 / 255
"""Squares whose mean is nearer to black or white than this are left out: noise is cut off there."""


def noise_level(picture: Tensor) -> float:
    """Standard deviation of the noise, in [0, 1], root mean square over the channels.

    Immerkaer's difference of two Laplacians, which cancels slopes and edges (Computer Vision and Image Understanding
    64, 1996), over the flattest squares of the picture alone. Noise that a camera or JPEG smoothed reads as less.

    Args:
        picture: [1, 3, h, w] in [0, 1].
    """
    if min(picture.shape[-2:]) < BLOCK + 2:
        return 0.0
    mask = picture.new_tensor([[1, -2, 1], [-2, 4, -2], [1, -2, 1]]).expand(3, 1, 3, 3) / 6
    power = F.avg_pool2d(F.conv2d(picture, mask, groups=3).square(), BLOCK).flatten(2)[0]  # [3, squares]
    smooth = gaussian(luma(picture), 1.5)
    slope = (smooth.diff(dim=-1)[..., :-1, :].square() + smooth.diff(dim=-2)[..., :-1].square()).sqrt()
    slope = F.avg_pool2d(slope[..., 1:, 1:], BLOCK).flatten()
    mean = F.avg_pool2d(luma(picture)[..., 1:-1, 1:-1], BLOCK).flatten()
    inside = (mean > CLIPPED) & (mean < 1 - CLIPPED)
    if not bool(inside.any()):
        return 0.0
    power, slope = power[:, inside], slope[inside]
    flattest = slope <= torch.quantile(slope[: 2**24], FLATTEST)
    return float(power[:, flattest].median(1).values.mean().sqrt())
