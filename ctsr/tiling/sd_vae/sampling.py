"""GroupNorm statistics of a picture that is too large to keep any activation of it: estimated from a sample.

A survey of the whole picture (`staged`) can then be corrected by the same sample.

The sample is small crops at native resolution, spread evenly; where they lie depends on the picture's size alone. Crops
run in batches of one tile's area, and every batch normalises by all that was met so far.

How much each crop counts is calibrated, as in survey sampling: weights as even as possible with which the sample has
the whole picture's means and energies of the network's input, which are known. So a sky that fills a third of the
picture counts for a third. On photographs this halves the error.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from ..tiles import move
from .group_norm import Box, CorrectingGroupNorm, MeasuringGroupNorm, Statistics, scaled

Network = Callable[[Tensor], Tensor]

STIFFNESS = 10
"""How much the fit to the whole picture counts against even weights."""
LEAST_WEIGHT = 0.1
"""Of a crop, where the mean is 1."""
BAND = 64
"""Rows of cells at a time, in passes over the whole input."""


@dataclass(frozen=True)
class Design:
    """How a sample is taken.

    Attributes:
        side: cells of a crop on each side, or the picture's where that is less.
        margin: cells on each side of a crop that are not measured, since zero padding changes them; less than half.
        share: part of the picture that is measured.
        most: crops; in a larger picture they are a smaller share.
    """

    side: int
    margin: int
    share: float
    most: int


@dataclass(frozen=True)
class Crop:
    """A part of a picture, in cells.

    Attributes:
        box: what is read.
        counted: what of it is measured, from its top left: without the margins, but up to the picture's border.
    """

    box: Box
    counted: Box

    def inner(self, scale: int) -> Box:
        """What is measured, in the picture, on a grid of `scale` samples a cell."""
        rows, columns = (
            slice(whole.start + part.start, whole.start + part.stop)
            for whole, part in zip(self.box, self.counted, strict=True)
        )
        return scaled((rows, columns), scale)


def plan_crops(height: int, width: int, design: Design, batch_area: int) -> list[list[Crop]]:
    """Batches of crops of equal size, each batch spread over a picture of height x width cells.

    Args:
        height: cells of the picture.
        width: cells of the picture.
        design: crops, and how much of the picture they are to measure.
        batch_area: cells that the crops of a batch may cover; one batch is filled at least.
    """
    high, wide, margin = min(design.side, height), min(design.side, width), design.margin
    batch = max(1, batch_area // (high * wide))
    share = math.ceil(design.share * height * width / (design.side - 2 * margin) ** 2)
    wanted = min(max(batch, share), design.most)
    tops = spread(height, high, math.sqrt(wanted * height / width))
    lefts = spread(width, wide, wanted / len(tops))
    rows = [(slice(top, top + high), counted(top, high, height, margin)) for top in tops]
    columns = [(slice(left, left + wide), counted(left, wide, width, margin)) for left in lefts]
    crops: list[Crop] = []
    for index, (row, part) in enumerate(rows):
        first = index % len(columns)  # else a batch could be one column
        crops += [Crop((row, column), (part, other)) for column, other in columns[first:] + columns[:first]]
    batches = math.ceil(len(crops) / batch)
    return [crops[first::batches] for first in range(batches)]


def spread(length: int, side: int, count: float) -> list[int]:
    """Where about `count` crops begin, evenly from border to border; a single one lies in the middle."""
    rounded = max(1, min(round(count), length - side + 1))
    if rounded == 1:
        return [(length - side) // 2]
    return [round(i * (length - side) / (rounded - 1)) for i in range(rounded)]


def counted(start: int, side: int, length: int, margin: int) -> slice:
    """The cells of a crop [start, start + side) that are measured, on one side of the picture."""
    return slice(0 if start == 0 else margin, side if start + side == length else side - margin)


class Sample:
    """Crops of a picture with their weights, which go through a network batch by batch.

    Args:
        x: the network's input [1, C, h * read_scale, w * read_scale], anywhere.
        read_scale: samples of `x` a cell.
        batches: of `plan_crops` for h and w.
        device: where the network computes.
    """

    def __init__(self, x: Tensor, read_scale: int, batches: Sequence[Sequence[Crop]], device: torch.device):
        self.x, self.read_scale, self.batches, self.device = x, read_scale, batches, device
        own = [[features(x[(0, slice(None), *crop.inner(read_scale))]) for crop in crops] for crops in batches]
        sample = torch.stack([part for parts in own for part in parts])
        weights = iter(calibrate(sample, features_of_whole(x[0], read_scale)))
        self.counted = [[(crop.counted, next(weights)) for crop in crops] for crops in batches]
        rows, columns = batches[0][0].box
        self.cells = rows.stop - rows.start, columns.stop - columns.start

    def estimate(self, fn: Network, step: Callable[[], None]) -> tuple[Statistics, Statistics]:
        """Statistics of the GroupNorms that `fn` calls, and those of the last batch, which ran under them.

        Args:
            fn: the network.
            step: called after every batch.
        """
        statistics: Statistics = []
        last: Statistics = []
        for crops, counted in zip(self.batches, self.counted, strict=True):
            with MeasuringGroupNorm(statistics, self.cells, counted) as norms:
                fn(self.read(crops))
            last = norms.met
            step()
        return statistics, last

    def correct(self, fn: Network, surveyed: Statistics, last: Statistics) -> Statistics:
        """The whole picture's statistics under themselves, by running the last batch once more.

        Args:
            fn: the network.
            surveyed: the whole picture's statistics under those of `estimate`.
            last: of the last batch, from `estimate`.
        """
        with CorrectingGroupNorm(surveyed, last, self.cells, self.counted[-1]) as norms:
            fn(self.read(self.batches[-1]))
        return norms.corrected

    def read(self, crops: Sequence[Crop]) -> Tensor:
        """A batch as the network's input."""
        parts = [self.x[(..., *scaled(crop.box, self.read_scale))] for crop in crops]
        return move(torch.cat(parts), self.device)


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
    solved = cast(Tensor, torch.linalg.solve(eye + STIFFNESS * gram, ones))  # pyright: ignore[reportUnknownMemberType]
    weights = solved.nan_to_num(nan=1.0).clamp(min=LEAST_WEIGHT)
    return [float(weight) for weight in weights / weights.mean()]
