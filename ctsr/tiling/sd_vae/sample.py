"""A sample of a picture, to estimate GroupNorm statistics by: small crops at native resolution, spread evenly.

Where the crops lie depends on the picture's size alone. How much each counts is calibrated, as in survey sampling:
weights as even as possible with which the sample has the whole picture's means and energies of the network's input,
which are known. So a sky that fills a third of the picture counts for a third. On photographs this halves the
sample's error.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from .statistics import Box, scaled

_STIFFNESS = 10
"""How much the fit to the whole picture counts against even weights."""
_LEAST_WEIGHT = 0.1
"""Of a crop, where the mean is 1."""
BAND = 64
"""Rows of cells at a time, in passes over the whole input."""


@dataclass(frozen=True)
class Crop:
    """A part of a picture, in cells.

    Attributes:
        box: what is read.
        counted: what of it is measured, from its top left: without the margins, but up to the picture's border.
    """

    box: Box
    counted: Box

    def measured(self, scale: int) -> Box:
        """What is measured, in the picture, on a grid of `scale` samples a cell."""
        rows, columns = (
            slice(whole.start + part.start, whole.start + part.stop)
            for whole, part in zip(self.box, self.counted, strict=True)
        )
        return scaled((rows, columns), scale)


def plan_crops(height: int, width: int, side: int, margin: int, area: int) -> list[Crop]:
    """Crops of equal size, spread over a picture of height x width cells.

    Args:
        height: cells of the picture.
        width: cells of the picture.
        side: cells of a crop on each side, or the picture's where that is less.
        margin: cells on each side of a crop that are not measured, since zero padding changes them; less than half.
        area: cells that all crops together may cover; there is one at least.
    """
    high, wide = min(side, height), min(side, width)
    most = max(1, area // (high * wide))
    tops = spread(height, high, min(most, math.sqrt(most * height / width)))
    lefts = spread(width, wide, most // len(tops))
    rows = [(slice(top, top + high), counted(top, high, height, margin)) for top in tops]
    columns = [(slice(left, left + wide), counted(left, wide, width, margin)) for left in lefts]
    return [Crop((row, column), (part, other)) for row, part in rows for column, other in columns]


def spread(length: int, side: int, count: float) -> list[int]:
    """Where about `count` crops begin, evenly from border to border; a single one lies in the middle."""
    rounded = max(1, min(round(count), length - side + 1))
    if rounded == 1:
        return [(length - side) // 2]
    return [round(i * (length - side) / (rounded - 1)) for i in range(rounded)]


def counted(start: int, side: int, length: int, margin: int) -> slice:
    """The cells of a crop [start, start + side) that are measured, on one side of the picture."""
    return slice(0 if start == 0 else margin, side if start + side == length else side - margin)


def crop_weights(x: Tensor, read_scale: int, crops: Sequence[Crop]) -> list[float]:
    """How much each crop counts, 1 on average.

    Args:
        x: the network's input [1, C, h * read_scale, w * read_scale].
        read_scale: samples of `x` a cell.
        crops: of `plan_crops` for h and w.
    """
    sample = torch.stack([features(x[(0, slice(None), *crop.measured(read_scale))]) for crop in crops])
    return calibrate(sample, features_of_whole(x[0], read_scale))


def features(x: Tensor) -> Tensor:
    """What tells parts of a picture apart: of each channel mean, energy, and energy of its changes along both sides.

    [C, h, w] -> [4C] fp32. Along a side of one sample nothing changes.
    """
    x = x.float()
    steps = [x.diff(dim=side) for side in (1, 2)]
    changes = [step.square().sum((1, 2)) / max(1, step[0].numel()) for step in steps]
    return torch.cat([x.mean((1, 2)), x.square().mean((1, 2)), *changes])


def features_of_whole(x: Tensor, read_scale: int) -> Tensor:
    """The same of the whole input, by bands; changes from one band to the next are left out."""
    height, step = x.shape[1], BAND * read_scale
    bands = [x[:, top : top + step] for top in range(0, height, step)]
    return torch.stack([features(band) * (band.shape[1] / height) for band in bands]).sum(0)


def calibrate(sample: Tensor, whole: Tensor) -> list[float]:
    """Weights of crops, 1 on average.

    Minimises |w - 1|^2 + STIFFNESS * |mean over features of the weighted deviations from the whole|^2.

    Args:
        sample: [crops, features].
        whole: [features].
    """
    sample, whole = sample.cpu().double(), whole.cpu().double()  # in this order: not every GPU has fp64
    deviation = sample - whole
    scale = sample.std(0, correction=0)
    deviation = torch.where(scale > 0, deviation / scale, 0)
    gram = deviation @ deviation.mT / deviation.shape[1]
    eye, ones = torch.eye(len(sample), dtype=torch.float64), torch.ones(len(sample), dtype=torch.float64)
    solved = cast(Tensor, torch.linalg.solve(eye + _STIFFNESS * gram, ones))  # pyright: ignore[reportUnknownMemberType]
    weights = solved.nan_to_num(nan=1.0).clamp(min=_LEAST_WEIGHT)
    return [float(weight) for weight in weights / weights.mean()]
