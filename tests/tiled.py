"""A network over a picture in tiles of so many latents, within a budget that the machine need not have."""

from collections.abc import Callable
from unittest.mock import patch

import torch
from torch import Tensor

from ctsr.tiling import tiled
from ctsr.tiling.network import Network

CPU = torch.device("cpu")


def run_tiled(
    network: Network,
    x: Tensor,
    tile: int,
    overlap: int,
    on_tile: Callable[[float, int], None] | None = None,
    budget: float = 0,
) -> Tensor:
    """`tiled.run` with sides in latents and memory in bytes."""
    callback = None if on_tile is None else lambda stage, done, total: on_tile(done, total)
    sides = {"tile": tile * network.factor, "tile_overlap": overlap * network.factor}
    with patch.object(tiled, "work_memory", lambda device: budget):
        return tiled.run(network, x, CPU, **sides, callback=callback)
