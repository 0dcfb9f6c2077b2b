"""How Stable Diffusion's autoencoder is run over a picture of any size: the plan, its memory, and the run.

Each level runs in the first of these ways that the memory allows:

- whole, if that takes no more memory than the network takes on one tile;
- layer by layer, if two activations of the whole picture fit: the same result;
- in tiles, whose GroupNorms are given statistics of the whole picture: memory does not grow with the picture.

A level with attention is run whole up to `WHOLE_CELLS`. Beyond, it is run in blended windows, each of which attends to
itself: a cell sees at least the `part_by_part.WINDOW_OVERLAP` / 2 cells around it.

Errors of SD 2.1's decoder at 1024x1024 against the untiled result (benchmarks/README.md): layer by layer mean .015/255,
largest .37/255; in tiles .042/255 and .61/255.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import torch
from torch import Tensor

from ..network import TileCallback
from ..plan import size_in_cells
from . import layer_by_layer, part_by_part
from .levels import Level, Levels, reach, run_levels

Way = Literal["whole", "layers", "windows", "tiles"]

WHOLE_CELLS = 256**2
"""Cells up to which attention sees the whole picture, 2048x2048 pixels."""


@dataclass(frozen=True)
class Group:
    """Levels that follow each other and run in one way."""

    way: Way
    levels: Levels


def run(
    levels: Levels,
    x: Tensor,
    tile: int,
    budget: float,
    device: torch.device,
    on_tile: TileCallback | None = None,
) -> Tensor:
    """The network's result for pictures, one after the other.

    Args:
        levels: the network.
        x: [B, C, h * read_scale, w * read_scale], anywhere.
        tile: side of a tile in cells, for levels that are tiled.
        budget: values that a level may hold when it is run by layers.
        device: where the network computes.
        on_tile: called after every tile of every layer, survey and result, and after every run of a sample.

    Returns:
        [B, C', h * write_scale, w * write_scale] fp32 where x lies.
    """
    cells = size_in_cells(x, levels[0].read_scale)
    groups = plan(levels, *cells, tile, budget)
    step = Steps(len(x) * sum(count(group, *cells, tile) for group in groups), on_tile)
    results: list[Tensor] = []
    for y in x.chunk(len(x)):
        for group in groups:
            last = group is groups[-1]
            kept = not last and group.way in ("whole", "layers")  # small enough for the device
            y = _run_group(group, y, tile, device, device if kept else x.device, step)
        results.append(y.float())
    return torch.cat(results) if len(results) > 1 else results[0]


def _run_group(
    group: Group, x: Tensor, tile: int, device: torch.device, out_device: torch.device, step: Callable[..., None]
) -> Tensor:
    """The result of a group over one picture, on `out_device`."""
    if group.way == "layers":
        for level in group.levels:
            end = level is group.levels[-1]
            x = layer_by_layer.run(level, x, device, step, out_device=out_device if end else device)
        return x
    if group.way == "windows":
        return part_by_part.run_windows(group.levels, x, device, out_device, step)
    if group.way == "tiles":
        return part_by_part.run_tiles(group.levels, x, tile, device, out_device, step)
    y = run_levels(group.levels, x.to(device)).to(out_device)
    step()
    return y


class Steps:
    """Counts steps and tells `on_tile`."""

    def __init__(self, total: int, on_tile: TileCallback | None):
        self.done, self.total, self.on_tile = 0, total, on_tile

    def __call__(self, *_: int) -> None:
        self.done += 1
        if self.on_tile is not None:
            self.on_tile(self.done, self.total)


def plan(levels: Levels, height: int, width: int, tile: int, budget: float) -> list[Group]:
    """How a network is run over height x width cells."""
    one_tile = max(work(level, tile**2) for level in levels)

    def way(level: Level) -> Way:
        return choose_way(level, height * width, one_tile, budget)

    return [Group(way, tuple(members)) for way, members in groupby(levels, key=way)]


def choose_way(level: Level, cells: int, one_tile: float, budget: float) -> Way:
    """How a level is run over so many cells.

    Args:
        level: one of a network.
        cells: of the picture.
        one_tile: values that it may hold when it is run whole.
        budget: values that it may hold when it is run by layers.
    """
    if level.scale == 1:
        return "whole" if cells <= WHOLE_CELLS else "windows"
    if work(level, cells) <= one_tile:
        return "whole"
    return "layers" if layers_values(level, cells) <= budget else "tiles"


def work(level: Level, cells: float) -> float:
    """Values that a level holds while it runs on so many cells at once, measured (benchmarks/memory.py)."""
    before = 3 * level.width  # input, normalised, activated
    inside = level.width + 3.5 * level.result_width  # input, hidden, normalised, scaled and shifted
    attention = 6 * level.width if level.scale == 1 else 0  # input, normalised, query, key, value, result
    return max(before, inside, attention) * level.scale**2 * cells


def working_values(levels: Levels, height: int, width: int, tile: int, budget: float) -> float:
    """Values that a network is predicted to hold at its peak over height x width cells, on the device."""
    groups = plan(levels, height, width, tile, budget)
    held = [0, *(height * width * _kept_on_device(group) for group in groups)]
    return max(_group_values(group, height, width, tile) + given for group, given in zip(groups, held, strict=False))


def _kept_on_device(group: Group) -> int:
    """Values a cell that a group leaves on the device for the next."""
    last = group.levels[-1]
    return last.result_width * last.write_scale**2 if group.way in ("whole", "layers") else 0


def _group_values(group: Group, height: int, width: int, tile: int) -> float:
    """The same for one group of its plan."""
    cells = height * width
    if group.way == "layers":
        return max(layers_values(level, cells) for level in group.levels)
    if group.way == "whole":
        side = max(height, width)
    elif group.way == "windows":
        side = part_by_part.WINDOW
    else:
        side = tile + 2 * reach(group.levels)
    read = min(side, height) * min(side, width)
    return max(work(level, read) for level in group.levels)


def layers_values(level: Level, cells: int) -> float:
    """Values that a level holds when it runs by layers."""
    tile = min(cells, (layer_by_layer.longest_read() / level.scale) ** 2)
    return layer_by_layer.kept_values(level) * cells + work(level, tile)


def count(group: Group, height: int, width: int, tile: int) -> int:
    """How many steps a group takes over height x width cells."""
    if group.way == "whole":
        return 1
    if group.way == "layers":
        return sum(layer_by_layer.count(level, height, width) for level in group.levels)
    if group.way == "windows":
        return part_by_part.count_windows(height, width)
    return part_by_part.count_tiles(height, width, tile, reach(group.levels))
