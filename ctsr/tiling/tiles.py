"""Tiles on the latent grid: how large, where, and how they are put together again.

One cell is one latent: f x f pixels for an autoencoder of factor f, 8 in Stable Diffusion.

Two ways of tiling, by what the network does:

- `halo_tiled` for networks that do not normalise over space: every tile is read with a halo of the receptive field
  and only its core is kept, so the result is the untiled one.
- `overlap_tiled` for networks that do (GroupNorm of the SD UNet): overlapping tiles are blended. The idea is
  OSEDiff's latent tiling (github.com/cswry/OSEDiff, Apache-2.0); ours has symmetric weights and cannot loop for ever.

Stable Diffusion's autoencoder normalises too, but its GroupNorms can be given the whole picture's statistics: see
`sd_vae`. The size of a tile depends on the picture and on the machine's total memory only, never on what ran before.

The result lies where the input lies, and is filled tile by tile: a network on a GPU never holds a whole picture there.
"""

import logging
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, cast

import psutil
import torch
from torch import Tensor

from ..errors import TileMemoryError

logger = logging.getLogger(__name__)

TileFunction = Callable[[Tensor], Tensor]
TileCallback = Callable[[float, int], None]
"""Called as `on_tile(done, total)` after every tile; an exception it raises ends the run (cancel)."""

TILE_LADDER = (256, 192, 128, 96, 64, 48, 32)
"""Sides of a tile in cells; 2048 to 256 pixels for an autoencoder of factor 8."""
MEMORY_SHARE = 1 / 8
"""Part of the total memory that one pass of a network may work in; the rest is for weights, pictures and others."""
CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


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


class Sink:
    """A result that is put together from tiles, on another device than theirs perhaps.

    From a CUDA device a tile is copied to pinned memory after its computation, and put in its place once the next tile
    is under way: this thread waits for no tile before it has told the device what to do next.

    Args:
        size: height and width of the result.
        device: where it lies.
        dtype: of the result; that of the tiles by default.
        add: tiles are added up, not put beside each other.
    """

    def __init__(
        self, size: tuple[int, int], device: torch.device, dtype: torch.dtype | None = None, *, add: bool = False
    ):
        self.size, self.device, self.dtype, self.add = size, device, dtype, add
        self.out: Tensor | None = None
        self.waiting: deque[tuple[Any, Tensor, torch.cuda.Event]] = deque()

    def write(self, place: Any, y: Tensor) -> None:
        """Puts a tile [B, C, h, w] at the index `place` of the result."""
        if y.device.type != "cuda" or self.device.type == "cuda":
            self.put(place, y)
            return
        # From a dense tile, or torch makes it so in memory that is not pinned, and waits.
        copy, copied = y.contiguous().to(self.device, non_blocking=True), torch.cuda.Event()
        copied.record(torch.cuda.current_stream(y.device))
        self.waiting.append((place, copy, copied))
        self.drain(1)

    def result(self) -> Tensor:
        """[B, C, *size], after the last tile."""
        self.drain(0)
        assert self.out is not None  # a plan is never empty
        return self.out

    def drain(self, left: int) -> None:
        """Puts copies in their places, as they finish, until so many are left."""
        while len(self.waiting) > left:
            place, copy, copied = self.waiting.popleft()
            copied.synchronize()
            self.put(place, copy)

    def put(self, place: Any, y: Tensor) -> None:
        """Into the result, which the first tile shapes."""
        if self.out is None:
            make = torch.zeros if self.add else torch.empty
            self.out = make((*y.shape[:-2], *self.size), dtype=self.dtype or y.dtype, device=self.device)
        if self.add:
            self.out[place] += y.to(self.device)
        else:
            self.out[place] = y


def halo_tiled(
    fn: TileFunction,
    x: Tensor,
    tile: int | None,
    halo: int,
    *,
    read_scale: int = 1,
    write_scale: int = 1,
    align: int = 1,
    out_dtype: torch.dtype | None = None,
    device: torch.device | None = None,
    out_device: torch.device | None = None,
    on_tile: TileCallback | None = None,
) -> Tensor:
    """`fn(x)` by tiles, equal to the untiled result if `halo` covers the receptive field of `fn`.

    Beyond `x` and the result, which is allocated once, memory holds one tile's work at a time. Conditions that vary
    over space belong into the channels of `x`.

    Args:
        fn: [B, C, hh * read_scale, ww * read_scale] -> [B, C', hh * write_scale, ww * write_scale], any hh and ww
            that are multiples of `align` (or reach the border).
        x: [B, C, h * read_scale, w * read_scale], any range and dtype that `fn` takes.
        tile: longest side of a core in cells; None runs the picture whole.
        halo: cells that `fn` sees beyond a cell: receptive radius in pixels / f, rounded up.
        read_scale: samples of `x` a cell on each side: f for a picture, 1 for latents.
        write_scale: samples of the result a cell on each side: f for a decoder, 1 for an encoder or UNet.
        align: factor by which `fn` downsamples the latent grid inside (2 for a UNet of two levels).
        out_dtype: dtype of the result; `fn`'s own by default.
        device: where `fn` computes, tiles are moved there; by default where x lies.
        out_device: where the result lies; by default where x lies.
        on_tile: called after every tile.

    Returns:
        [B, C', h * write_scale, w * write_scale].

    Raises:
        ValueError: `x` is not made of whole cells, or `tile` or `halo` is out of range.
    """
    height, width = cells(x, read_scale)
    side = max(height, width) if tile is None else tile
    tiles = list(product(plan_halo(height, side, halo, align), plan_halo(width, side, halo, align)))
    sink = Sink((height * write_scale, width * write_scale), out_device or x.device, out_dtype)
    for done, (rows, columns) in enumerate(tiles, start=1):
        y = fn(move(x[..., rows.read(read_scale), columns.read(read_scale)], device or x.device))
        core = y[..., rows.core(write_scale), columns.core(write_scale)]
        sink.write((..., rows.write(write_scale), columns.write(write_scale)), core)
        del y, core  # else two tiles' results are alive during the next call
        if on_tile is not None:
            on_tile(done, len(tiles))
    return sink.result()


def move(x: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """`x` on `device`. A GPU reads it in its own time; what goes to the CPU has arrived."""
    return x.to(device, dtype, non_blocking=device.type == "cuda")


def cells(x: Tensor, scale: int) -> tuple[int, int]:
    """Height and width in cells of [..., H, W] with `scale` samples a cell.

    Raises:
        ValueError: a side is empty or not a multiple of `scale`.
    """
    height, width = x.shape[-2:]
    if min(height, width) < 1 or height % scale or width % scale:
        raise ValueError(f"Pad {height}x{width} to multiples of {scale} before tiling.")
    return height // scale, width // scale


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


def overlap_tiled(
    fn: TileFunction,
    x: Tensor,
    tile: int | None,
    overlap: int,
    *,
    read_scale: int = 1,
    write_scale: int = 1,
    batch: int = 1,
    device: torch.device | None = None,
    out_device: torch.device | None = None,
    on_tile: TileCallback | None = None,
) -> Tensor:
    """`fn(x)` from weighted overlapping tiles: close to the untiled result, and without seams.

    For networks that normalise over space, whose tiles can never be exact. Every tile has the same shape.

    Args:
        fn: [B, C, hh * read_scale, ww * read_scale] -> [B, C', hh * write_scale, ww * write_scale],
            hh = min(tile, h), ww = min(tile, w).
        x: [B, C, h * read_scale, w * read_scale].
        tile: side of a tile in cells; None runs the picture whole.
        overlap: cells that neighbouring tiles share at least, smaller than `tile`.
        read_scale: samples of `x` a cell on each side: f for a picture, 1 for latents.
        write_scale: samples of the result a cell on each side: f for a decoder, 1 for an encoder or UNet.
        device: where `fn` computes, tiles are moved there; by default where x lies.
        out_device: where the result lies; by default where x lies.
        on_tile: called after every tile.

    Returns:
        [B, C', h * write_scale, w * write_scale] in fp32, in which tiles are added up.

    Raises:
        ValueError: `x` is not made of whole cells, or `overlap` is negative or not smaller than `tile`.
    """
    height, width = cells(x, read_scale)
    if tile is None:
        tile, overlap = max(height, width), 0
    device = device or x.device
    rows, columns = (
        [(start, weights.to(device)) for start, weights in plan_overlap(side, tile, overlap, write_scale)]
        for side in (height, width)
    )
    tiles = list(product(rows, columns))
    sink = Sink((height * write_scale, width * write_scale), out_device or x.device, torch.float32, add=True)
    high, wide = min(tile, height), min(tile, width)
    for first in range(0, len(tiles), batch):
        together = tiles[first : first + batch]
        parts = [x[(..., *window(top, left, high, wide, read_scale))] for (top, _), (left, _) in together]
        y = fn(move(torch.cat(parts), device)).float()
        for index, ((top, row_weights), (left, column_weights)) in enumerate(together):
            weights = row_weights[:, None] * column_weights
            own = slice(index * len(x), (index + 1) * len(x))
            sink.write((..., *window(top, left, high, wide, write_scale)), y[own].mul_(weights))
        del parts, y  # else two batches' results are alive during the next call
        if on_tile is not None:
            for done in range(first + 1, first + len(together) + 1):
                on_tile(done, len(tiles))
    return sink.result()


def window(top: int, left: int, height: int, width: int, scale: int) -> tuple[slice, slice]:
    """A rectangle of cells on a grid of `scale` samples a cell."""
    return slice(top * scale, (top + height) * scale), slice(left * scale, (left + width) * scale)


def working_memory(height: int, width: int, bytes_per_cell: float) -> int:
    """Bytes that a network is predicted to work in: height x width cells, `bytes_per_cell` measured per network."""
    return math.ceil(height * width * bytes_per_cell)


def fits(height: int, width: int, bytes_per_cell: float, total_memory: int) -> bool:
    """Whether height x width cells can be worked on within `MEMORY_SHARE` of `total_memory` bytes."""
    return working_memory(height, width, bytes_per_cell) <= MEMORY_SHARE * total_memory


def choose_tile(height: int, width: int, bytes_per_cell: float, total_memory: int, *, margin: int = 0) -> int | None:
    """Largest step of the ladder that fits a picture's tiles into memory.

    Args:
        height: cells of the picture.
        width: cells of the picture.
        bytes_per_cell: working memory of the network per latent.
        total_memory: bytes of the device, see `total_memory`; never what is free just now, so that the choice, and
            with it every bit of the picture, does not depend on history.
        margin: cells read beyond a tile on each side: the halo, 0 for `overlap_tiled`.

    Returns:
        Side of a tile in cells; None when the whole picture fits; the smallest step when nothing does.
    """
    if fits(height, width, bytes_per_cell, total_memory):
        return None
    for tile in TILE_LADDER:
        side = tile + 2 * margin
        if fits(min(side, height), min(side, width), bytes_per_cell, total_memory):
            return tile
    return TILE_LADDER[-1]


def total_memory(device: torch.device) -> int:
    """Bytes of memory that the machine (or its control group), or a CUDA device, has in all."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    physical = int(cast(Any, psutil).virtual_memory().total)
    limits = (path.read_text().strip() for path in CGROUP_LIMITS if path.is_file())
    return min([physical, *(int(limit) for limit in limits if limit.isdigit())])


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator of torch or Python gave up; torch's CPU and MPS ones raise a plain RuntimeError."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    phrases = ("out of memory", "not enough memory", "DefaultCPUAllocator")
    return isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in phrases)


def smaller(tile: int | None, longest: int) -> int:
    """The next smaller tile after memory ran out, with a warning.

    Args:
        tile: side in cells of those that were too large, None for untiled.
        longest: longer side of the picture in cells: larger steps would not be smaller than untiled.

    Raises:
        TileMemoryError: there is none.
    """
    side = longest if tile is None else min(tile, longest)
    step = next((step for step in TILE_LADDER if step < side), None)
    if step is None:
        raise TileMemoryError(
            f"Out of memory even with tiles of {tile or longest} cells: close other programs, choose a smaller scale, "
            "or run on the CPU."
        )
    failed = "the picture untiled" if tile is None else f"tiles of {tile} cells"
    logger.warning("Out of memory with %s: trying again with tiles of %d cells.", failed, step)
    return step
