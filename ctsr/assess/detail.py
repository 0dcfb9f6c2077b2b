"""What a result adds to its input's detail, what it drops of it, how far it sharpens, and what it clips."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..images.tensors import resize
from .camera import Camera
from .windows import gaussian, highest, local_mean, local_rms, lowest, luma

FLOOR = 2 / 255
"""Contrast below which nothing is seen."""
CLIP_MARGIN = 12 / 255
"""Distance from black and white from which an input counts as not clipped."""
JPEG = 2.0
"""Deviation of the pixels inside JPEG's squares for a step of one between these."""
LOST_RADIUS = 4
"""Pixels of the input around each, over which dropped detail is measured."""
EDGE = 0.12
"""Range of brightness, in [0, 1], from which the surroundings count as an edge."""
AROUND = 2
"""Pixels of the input around each, in which an edge is seen; of its two sides each must be as wide as that window."""
LINE = 0.15
"""Part of an edge's height by which its sides may stand out of their surroundings: more is a line or a dot."""
FEWEST = 30
"""Pixels at edges, below which nothing is said of halos."""
CLIP_RADIUS = 2
"""Pixels of the input around each, of which none may be near black or white where the result is newly clipped."""


def added_detail(result: Tensor, faithful: Tensor, scale: float) -> Tensor:
    """Detail of a result that a faithful one does not share, beside the contrast there: [1, 1, H, W] in [0, 1].

    added / (added + contrast), both as local rms of what is finer than a pixel of the input; .5 is as much again as
    there was.

    Args:
        result: [1, 3, H, W] in [0, 1].
        faithful: the same picture at t = 1 (or enlarged bicubically), [1, 3, H, W].
        scale: side of the result / side of the input.
    """
    fine = max(1.0, scale / 2)
    radius = max(1, round(scale))
    difference, detail = luma(result) - luma(faithful), luma(faithful)
    added = local_rms(difference - gaussian(difference, fine), radius)
    contrast = local_rms(detail - gaussian(detail, fine), radius)
    return added.div(added + contrast + FLOOR)


def lost_detail(picture: Tensor, camera: Camera, noise: float, blocks: float) -> Tensor:
    """Where a result smoothed away texture that its input shows: [1, 1, h, w] in [0, 1], 1 where nothing is left of it.

    Measured as the part of the input's high frequencies that the returned result shares; 0 where they do not stand out
    of the noise, and where something else took their place.

    Args:
        picture: the input, [1, 3, h, w] fp32 in [0, 1].
        camera: fitted to it and to its result.
        noise: the input's, see `noise_level`.
        blocks: the input's, see `blocks`: what JPEG left is no texture.
    """
    grey, left = luma(picture), luma(camera.residual)
    kept = grey - left  # the returned result
    high, returned = grey - gaussian(grey, 1.0), kept - gaussian(kept, 1.0)
    energy = local_mean(high.square(), LOST_RADIUS) - noise_power(noise)
    lost = 1 - local_mean(high * returned, LOST_RADIUS) / energy.clamp_min(1e-9)
    stands_out = energy > max(noise, FLOOR, JPEG * blocks) ** 2
    smoother = local_mean(returned.square(), LOST_RADIUS) < energy / 2
    same_brightness = local_mean(left, LOST_RADIUS).square() < energy / 4
    return lost.clamp(0, 1) * (stands_out & smoother & same_brightness)


def noise_power(noise: float) -> float:
    """Variance that white noise of three channels leaves in the high frequencies of their luma."""
    return noise**2 * 0.447 * 0.76  # sum of squared LUMA; 1 - 2 g(0) + sum of g^2 for a Gaussian of one pixel


def halo(picture: Tensor, result: Tensor, noise: float, where: Tensor) -> float:
    """How far a result, at its input's size, leaves the brightness on both sides of edges, as a part of their height.

    Edges of lines and dots do not count: a sharper picture of these than a blurred input shows is no halo. A side of
    an edge is what stays when all that is narrower than the window is taken away (morphological opening and closing).

    Args:
        picture: the input, [1, 3, h, w] fp32 in [0, 1].
        result: [1, 3, H, W] fp32 in [0, 1].
        noise: the input's, a standard deviation in [0, 1].
        where: [1, 1, h, w] bool, places that count.
    """
    grey, small = luma(picture), luma(resize(result, *picture.shape[-2:]))
    high, low = highest(grey, AROUND), lowest(grey, AROUND)
    opened, closed = highest(lowest(grey, AROUND), AROUND), lowest(highest(grey, AROUND), AROUND)
    height = high - low
    line = torch.maximum(high - highest(opened, AROUND), lowest(closed, AROUND) - low) > LINE * height
    edges = where & (height > EDGE + 6 * noise) & ~line
    if int(edges.sum()) < FEWEST:
        return 0.0
    beyond = (small - high).clamp_min(0) + (low - small).clamp_min(0)
    return float((beyond[edges] / height[edges]).mean())


def sharpening(result: Tensor, faithful: Tensor, scale: float) -> float:
    """By how much more a result has of the same detail that a faithful one has: 0 for the same, 1 for twice as much.

    Args:
        result: [1, 3, H, W] in [0, 1].
        faithful: the same picture at t = 1.
        scale: side of the result / side of the input.
    """
    detail, difference = luma(faithful), luma(result) - luma(faithful)
    detail, difference = detail - gaussian(detail, max(1.0, scale)), difference - gaussian(difference, max(1.0, scale))
    return float((difference * detail).mean() / detail.square().mean().clamp_min(FLOOR**2 / 16))


def clipped(picture: Tensor, result: Tensor) -> float:
    """Part of the result that is black or white in a channel where its input is not, nor near it.

    `picture` is [1, 3, h, w] and `result` [1, 3, H, W], fp32 in [0, 1]; the part is in [0, 1].
    """
    high, low = highest(picture, CLIP_RADIUS), lowest(picture, CLIP_RADIUS)
    size = result.shape[-2:]
    blown = (result >= 1) & (F.interpolate(high, size=size) < 1 - CLIP_MARGIN)
    drowned = (result <= 0) & (F.interpolate(low, size=size) > CLIP_MARGIN)
    return float((blown | drowned).any(1).float().mean())
