"""Where tiles lie on the latent grid, and how much each counts.

One cell is one latent: f x f pixels for an autoencoder of factor f, 8 in Stable Diffusion.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


def size_in_cells(x: Tensor, scale: int) -> tuple[int, int]:
    """Height and width in cells of [..., H, W] with `scale` samples a cell.

    Raises:
        ValueError: a side is empty or not a multiple of `scale`.
    """
    height, width = x.shape[-2:]
    if min(height, width) < 1 or height % scale or width % scale:
        raise ValueError(f"Pad {height}x{width} to multiples of {scale} before tiling.")
    return height // scale, width // scale


@dataclass(frozen=True)
class Span:
    """One side of a tile in cells, half-open: [`start`, `stop`) is written, [`read_start`, `read_stop`) is read."""

    start: int
    stop: int
    read_start: int
    read_stop: int

    def read(self, scale: int) -> slice:
        """What the network sees, on a grid of `scale` samples a cell."""
        return slice(self.read_start * scale, self.read_stop * scale)

    def write(self, scale: int) -> slice:
        """Where the core goes in the whole result."""
        return slice(self.start * scale, self.stop * scale)

    def core(self, scale: int) -> slice:
        """Where the core lies in the network's result."""
        return slice((self.start - self.read_start) * scale, (self.stop - self.read_start) * scale)


def plan_halo(length: int, tile: int, halo: int, align: int = 1) -> tuple[Span, ...]:
    """Spans whose cores cover `length` cells once, in order.

    The fewest tiles of at most `tile` cells, all equally long; the last one ends at the border, and writes only what
    its neighbour left. Halos stop at the border, so that a tile meets the zero padding that the whole picture meets.

    Args:
        length: cells of the picture on this side, >= 1.
        tile: longest core in cells, >= 1.
        halo: cells read beyond the core, >= 0.
        align: tiles are read from (and up to) multiples of this, for networks that downsample the grid by `align`.

    Raises:
        ValueError: `tile` < 1 or `halo` < 0.
    """
    if tile < 1 or halo < 0:
        raise ValueError(f"A tile needs at least 1 cell and a halo of at least 0, not {tile} and {halo}.")
    count = math.ceil(length / tile)
    size = math.ceil(length / count)
    spans: list[Span] = []
    for start in range(0, length, size):
        stop = min(start + size, length)
        first, last = stop - size - halo, stop + halo
        spans.append(Span(start, stop, max(0, first // align * align), min(length, -(-last // align) * align)))
    return tuple(spans)


def plan_overlap(length: int, tile: int, overlap: int, scale: int = 1) -> tuple[tuple[int, Tensor], ...]:
    """Starts and weights of overlapping tiles of equal length min(tile, length), the last one ending at the border.

    The window is sin^2 at half samples: symmetric and never zero. Weights are divided by their sum over the tiles,
    so at every sample they add up to 1, and so do the products of two sides.

    Args:
        length: cells of the picture on this side, >= 1.
        tile: cells of a tile, >= 1.
        overlap: cells that neighbours share at least, 0 <= overlap < tile.
        scale: samples of the result a cell.

    Returns:
        (start in cells, weights) for every tile; weights [min(tile, length) * scale], fp32, in (0, 1].

    Raises:
        ValueError: `overlap` is negative or not smaller than `tile`.
    """
    if not 0 <= overlap < tile:
        raise ValueError(
            f"Tiles of {tile} cells cannot overlap by {overlap}: choose an overlap from 0 to {tile - 1}"
            " or a larger tile."
        )
    size = min(tile, length)
    count = math.ceil((length - size) / (tile - overlap)) + 1
    starts = [min(i * (tile - overlap), length - size) for i in range(count)]
    samples = size * scale
    window = torch.sin(math.pi * (torch.arange(samples, dtype=torch.float64) + 0.5) / samples).square()
    total = torch.zeros(length * scale, dtype=torch.float64)
    for start in starts:
        total[start * scale : start * scale + samples] += window
    return tuple((start, (window / total[start * scale : start * scale + samples]).float()) for start in starts)


def window(top: int, left: int, height: int, width: int, scale: int) -> tuple[slice, slice]:
    """A rectangle of cells on a grid of `scale` samples a cell."""
    return slice(top * scale, (top + height) * scale), slice(left * scale, (left + width) * scale)
