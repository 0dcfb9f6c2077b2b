"""What the measures share: grey, local means, a Gaussian, and where a map is high, as boxes."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels; right and bottom are outside."""

LUMA = (0.299, 0.587, 0.114)
"""ITU-R BT.601."""


def luma(picture: Tensor) -> Tensor:
    """[1, 3, h, w] -> [1, 1, h, w], the brightness that an eye sees."""
    return (picture * picture.new_tensor(LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)


def local_mean(x: Tensor, radius: int) -> Tensor:
    """Mean over windows of 2 * radius + 1 pixels a side, cut at the borders: [1, C, h, w] -> the same."""
    return F.avg_pool2d(x, 2 * radius + 1, 1, radius, count_include_pad=False)


def highest(x: Tensor, radius: int) -> Tensor:
    """Greatest value in windows of 2 * radius + 1 pixels a side, cut at the borders: [1, C, h, w] -> the same."""
    side = 2 * radius + 1
    return F.max_pool2d(F.max_pool2d(x, (1, side), 1, (0, radius)), (side, 1), 1, (radius, 0))  # half the time of both


def lowest(x: Tensor, radius: int) -> Tensor:
    """Least value in these windows."""
    return -highest(-x, radius)


def local_rms(x: Tensor, radius: int) -> Tensor:
    """Root mean square over channels and windows: [1, C, h, w] -> [1, 1, h, w]."""
    return local_mean(x.square().mean(1, keepdim=True), radius).sqrt()


def gaussian(x: Tensor, sigma: float) -> Tensor:
    """Each channel blurred by a Gaussian of `sigma` pixels; the border is repeated."""
    radius = max(1, math.ceil(3 * sigma))
    offsets = torch.arange(-radius, radius + 1, dtype=x.dtype, device=x.device)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = (kernel / kernel.sum()).expand(x.shape[1], 1, 1, -1)
    wide = F.conv2d(F.pad(x, (radius, radius, 0, 0), mode="replicate"), kernel, groups=x.shape[1])
    return F.conv2d(F.pad(wide, (0, 0, radius, radius), mode="replicate"), kernel.mT, groups=x.shape[1])


def boxes(mask: Tensor, cell: int, least: float = 0.5) -> list[Box]:
    """Where a mask is set, as boxes around its connected parts, largest first.

    Args:
        mask: [1, 1, h, w] bool.
        cell: side in pixels of the squares that are looked at.
        least: part of a square that is set for the square to count.
    """
    height, width = mask.shape[-2:]
    grid = F.avg_pool2d(mask.float(), cell, ceil_mode=True, count_include_pad=False)[0, 0] >= least
    left = {(int(row), int(column)) for row, column in grid.nonzero()}
    found: list[tuple[int, Box]] = []
    while left:
        part, pending = list[tuple[int, int]](), [left.pop()]
        while pending:
            row, column = pending.pop()
            part.append((row, column))
            near = {(row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= near
            pending += near
        rows, columns = [row for row, _ in part], [column for _, column in part]
        right, bottom = min(width, (max(columns) + 1) * cell), min(height, (max(rows) + 1) * cell)
        found.append((len(part), (min(columns) * cell, min(rows) * cell, right, bottom)))
    return [box for _, box in sorted(found, reverse=True)]
