"""A network as something that can be tiled, and how large its tiles are."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from . import memory
from .sd_vae.levels import Levels

Stage = Literal["encode", "unet", "decode"]
ATTENTION_TILE = 96
"""Latents on the longest side of an automatic tile with attention, whose time grows with the side's fourth power.

OSEDiff's released code tiles beyond as many (github.com/cswry/OSEDiff, Apache-2.0).
"""
CPU_TILE = 1024
"""Pixels of an automatic tile of an exactly tileable network on a CPU: as fast as untiled, in less memory."""
DEFAULT_OVERLAP = 128
"""Pixels that blended tiles share; half a tile where that is less."""
MOST_TILES = 8
"""Blended tiles at once on a GPU: enough to keep a large one busy."""
TileCallback = Callable[[float, int], None]
"""Called as `on_tile(done, total)` after every tile; an exception it raises ends the run (cancel)."""


@dataclass(frozen=True)
class Network:
    """A network over a picture.

    Attributes:
        stage: of a pipeline.
        module: whose parameters it uses.
        factor: pixels a latent on each side, of the autoencoder.
        call: [B, C, h * read_scale, w * read_scale] -> [B, C', h * write_scale, w * write_scale], the module's dtype.
        read_scale: input samples a latent on each side.
        write_scale: output samples a latent on each side.
        halo: latents around a tile that its result depends on: of an "exact" network exactly, of one in levels those
            that its tiled levels reach, by which memory is predicted; None for "blended".
        align: latents that a tile's position and size must be multiples of.
        bytes_per_pixel: working memory a pixel of the picture, without input and output.
        attends: every latent of a tile sees all others.
        levels: Stable Diffusion's autoencoder level by level; else empty.
        run_levels: runs the levels over x in tiles of a side in latents: (x, tile, budget in bytes, device, on_tile).
    """

    stage: Stage
    module: nn.Module
    factor: int
    call: Callable[[Tensor], Tensor]
    read_scale: int
    write_scale: int
    halo: int | None
    align: int
    bytes_per_pixel: float
    attends: bool = False
    levels: Levels = ()
    run_levels: Callable[[Tensor, int, float, torch.device, "TileCallback | None"], Tensor] | None = None

    @property
    def tiling(self) -> Literal["exact", "levels", "blended"]:
        """How its tiles are put together: with a halo and nothing lost, level by level, or blended over an overlap."""
        if self.levels:
            return "levels"
        return "blended" if self.halo is None else "exact"

    @property
    def bytes_per_cell(self) -> float:
        """Working memory a latent, without input and output."""
        return self.bytes_per_pixel * self.factor**2

    @property
    def module_dtype(self) -> torch.dtype:
        """dtype of the parameters."""
        return next(self.module.parameters()).dtype

    def in_fp32(self) -> "Network":
        """The same for when its module will be in fp32: it works in more memory."""
        return replace(self, bytes_per_pixel=self.bytes_per_pixel * 4 / self.module_dtype.itemsize)


def choose_tile(network: Network, height: int, width: int, tile: int, device: torch.device) -> int | None:
    """Side of a tile in latents: as asked (pixels, rounded up to the alignment), or automatic for 0; None: untiled."""
    if tile:
        cells = -(-tile // (network.factor * network.align)) * network.align
        return None if cells >= max(height, width) else cells
    total = memory.total_memory(device)
    fitting = memory.fitting_tile(height, width, network.bytes_per_cell, total, margin=network.halo or 0)
    if network.attends and height * width > ATTENTION_TILE**2:
        return min(fitting or ATTENTION_TILE, ATTENTION_TILE)
    if network.tiling == "exact" and device.type == "cpu" and max(height, width) > CPU_TILE // network.factor:
        return min(fitting or memory.TILE_LADDER[0], CPU_TILE // network.factor)
    return fitting


def shared_cells(network: Network, tile: int | None, tile_overlap: int | None) -> int:
    """Latents that neighbouring blended tiles share: as asked in pixels of the result, at most half a tile."""
    overlap = (DEFAULT_OVERLAP if tile_overlap is None else tile_overlap) // network.factor
    return 0 if tile is None else min(overlap, tile // 2)


def work_memory(device: torch.device) -> float:
    """Bytes of a device that one pass of a network may work in."""
    return memory.MEMORY_SHARE * memory.total_memory(device)


def tiles_at_once(
    network: Network, height: int, width: int, tile: int | None, budget: float, device: torch.device
) -> int:
    """How many tiles of height x width latents run as one batch within `budget` bytes.

    Blended ones on a GPU only, where a small tile leaves most of it idle. On a CPU a batch is no faster by much, and
    between tiles is where a run can be cancelled.
    """
    if tile is None or network.tiling != "blended" or device.type == "cpu":
        return 1
    one = memory.working_memory(min(tile, height), min(tile, width), network.bytes_per_cell)
    return max(1, min(MOST_TILES, int(budget // one)))
