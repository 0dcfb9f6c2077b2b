"""Runs a network over a picture, tile by tile, with smaller tiles where memory runs out.

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
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import product
from typing import Protocol, TypedDict, cast

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..models.building import settle
from ..precision import in_fp32
from .heap import giving_back
from .layers import is_compiled, reporting_layers
from .memory import is_out_of_memory, smaller
from .network import Network, TileCallback, choose_tile, shared_cells, tiles_at_once, work_memory
from .plan import plan_halo, plan_overlap, size_in_cells, window
from .sink import Sink, move

logger = logging.getLogger(__name__)

SMALLEST_TILE = 128
"""Pixels; smaller tiles are mostly halo."""
REPORTING_PIXELS = 2**16
"""From which size on a tile on a CPU reports its layers."""
TileFunction = Callable[[Tensor], Tensor]


class Progress(Protocol):
    """Called after every tile, and on a CPU inside large ones; raise an exception in it to cancel."""

    def __call__(self, stage: str, done: float, total: int) -> None:
        """`stage` is "encode", "unet" or "decode"; `done` of `total` tiles of that stage are finished, or a fraction.

        Counted anew for every picture, for every pass of a stage that has two, and for a stage that is tried again.
        """
        ...


class Tiling(TypedDict, total=False):
    """How a network goes over a picture, in keyword arguments of every step of a pipeline.

    Attributes:
        tile: side of a tile in pixels of the result; 0, the default, chooses by picture size and total memory.
        tile_overlap: pixels that blended tiles share, in practice those of Stable Diffusion's UNet; by default
            `network.DEFAULT_OVERLAP`, or half a tile where that is less. Other networks compute their own margins.
        callback: progress and cancel.
    """

    tile: int
    tile_overlap: int | None
    callback: Progress | None


class _Grid(TypedDict):
    """Samples a latent on each side, before and behind a network, and where it computes."""

    read_scale: int
    write_scale: int
    device: torch.device


def run(
    network: Network,
    x: Tensor,
    device: torch.device,
    free_memory: Callable[[], None] | None = None,
    *,
    tile: int = 0,
    tile_overlap: int | None = None,
    callback: Progress | None = None,
) -> Tensor:
    """The network over one picture, fp32, where x lies.

    It is tried again with smaller tiles where memory runs out, and in fp32 where a lower precision overflows.

    Args:
        network: what to run.
        x: [1, C, h * read_scale, w * read_scale].
        device: where the network computes.
        free_memory: called when memory ran out, before the next try.
        tile, tile_overlap, callback: see `Tiling`.

    Raises:
        TileMemoryError: memory ran out with the smallest tiles.
        CheckpointError: the result is not finite even in fp32.
    """
    settle(network.module)
    cells = size_in_cells(x, network.read_scale)
    grid: _Grid = {"read_scale": network.read_scale, "write_scale": network.write_scale, "device": device}
    wide = False
    side = chosen = choose_tile(network, *cells, tile, device)
    while True:
        out = None
        budget = work_memory(device) if side == chosen else 0  # nothing fits beyond tiles smaller than predicted
        shared = shared_cells(network, side, tile_overlap)
        batch = tiles_at_once(network, *cells, side, budget, device)
        try:
            reporting = _progress_of(network, cells, side, shared, device, callback)
            with in_fp32(network.module) if wide else nullcontext(), reporting as report:
                if network.run_levels is not None and side is not None:
                    out = network.run_levels(x, side, budget, device, report)
                elif network.halo is None:
                    out = overlap_tiled(network.call, x, side, shared, batch=batch, on_tile=report, **grid)
                else:
                    exact = partial(halo_tiled, align=network.align, out_dtype=torch.float32)
                    out = exact(network.call, x, side, network.halo, on_tile=report, **grid)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        if out is None:  # no longer inside `except`, where the traceback would hold the failed run's tensors
            side = smaller(side, max(cells))
            if free_memory is not None:
                free_memory()
        elif bool(out.sum().isfinite()):  # without a copy: a sum shows NaN and infinity
            return out
        elif wide or network.module_dtype == torch.float32:
            message = f"The {network.stage} step gives NaN or infinity even in fp32: the weights are damaged"
            raise CheckpointError(f"{message}; fetch them again.")
        else:
            kind = network.module_dtype
            logger.warning("The %s step overflowed in %s: running it again in fp32.", network.stage, kind)
            network, wide = network.in_fp32(), True
            side = chosen = choose_tile(network, *cells, tile, device)


@contextmanager
def _progress_of(
    network: Network,
    cells: tuple[int, int],
    tile: int | None,
    overlap: int,
    device: torch.device,
    callback: Progress | None,
) -> Generator[TileCallback | None, None, None]:
    """Inside, what to call after every tile: on a CPU layers report in between, where a tile is large.

    Not of networks in levels, which report every layer or tile of them, nor of compiled ones. On a CPU what a tile has
    left in the heap is returned to the system first; the mini's tiles leave little, and are done in no time.
    """
    on_tile = None if callback is None else partial(callback, network.stage)
    on_cpu, in_levels = device.type == "cpu", network.tiling == "levels" and tile is not None
    height, width = (side if tile is None else min(side, tile) for side in cells)
    large = height * width * network.factor**2 >= REPORTING_PIXELS
    part = cast("nn.Module", getattr(network.module, f"{network.stage}r", network.module))  # of an autoencoder
    reporting = nullcontext(on_tile)
    if on_tile is not None and on_cpu and large and not in_levels and not is_compiled(part):
        if tile is None:
            total = 1
        elif network.halo is not None:
            total = math.prod(len(plan_halo(side, tile, network.halo, network.align)) for side in cells)
        else:
            total = math.prod(len(plan_overlap(side, tile, overlap)) for side in cells)
        reporting = reporting_layers(part, total, on_tile)
    with reporting as report:
        yield giving_back(report) if on_cpu and tile is not None and network.tiling != "exact" else report


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
    height, width = size_in_cells(x, read_scale)
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
        batch: tiles that one call of `fn` gets, side by side as B times as many pictures.
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
    height, width = size_in_cells(x, read_scale)
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
