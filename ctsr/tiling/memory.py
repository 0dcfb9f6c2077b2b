"""How much memory there is, what fits into it, and what happens when it runs out."""

import logging
import math
from pathlib import Path
from typing import Any, cast

import psutil
import torch

from ..errors import TileMemoryError

logger = logging.getLogger(__name__)

TILE_LADDER = (256, 192, 128, 96, 64, 48, 32)
"""Sides of a tile in cells; 2048 to 256 pixels for an autoencoder of factor 8."""
MEMORY_SHARE = 1 / 8
"""Part of the total memory that one pass of a network may work in; the rest is for weights, pictures and others."""
CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def total_memory(device: torch.device) -> int:
    """Bytes of memory that the machine (or its control group), or a CUDA device, has in all."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    physical = int(cast(Any, psutil).virtual_memory().total)
    limits = (path.read_text().strip() for path in CGROUP_LIMITS if path.is_file())
    return min([physical, *(int(limit) for limit in limits if limit.isdigit())])


def working_memory(height: int, width: int, bytes_per_cell: float) -> int:
    """Bytes that a network is predicted to work in: height x width cells, `bytes_per_cell` measured per network."""
    return math.ceil(height * width * bytes_per_cell)


def fits(height: int, width: int, bytes_per_cell: float, total_memory: int) -> bool:
    """Whether height x width cells can be worked on within `MEMORY_SHARE` of `total_memory` bytes."""
    return working_memory(height, width, bytes_per_cell) <= MEMORY_SHARE * total_memory


def fitting_tile(height: int, width: int, bytes_per_cell: float, total_memory: int, *, margin: int = 0) -> int | None:
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
