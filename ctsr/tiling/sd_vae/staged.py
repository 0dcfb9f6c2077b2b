"""A network with GroupNorm over a picture of any size, as if it saw the picture whole.

Each stage runs in the first of these ways that the memory allows:

- whole, if that takes no more than its network does on one tile;
- layer by layer (`layerwise`), if what is kept between layers fits: the same result;
- by tiles with halo and crop, whose GroupNorms are given statistics of the whole picture: then a stage is a local
  function, and tiles are exact but for the statistics. Seams cannot arise.

Statistics of tiles take a sample and a survey, that is one more pass over the tiles. A survey alone would not do, since
whatever is changed in a GroupNorm's statistics changes those of all later ones:

1. A sample of crops (`sampling`) gives statistics that agree with each other, but are off by a percent.
2. Every tile is run under these, and its core is measured: the whole picture's statistics under the sample's.
3. A batch of the sample is run under the corrected ones, GroupNorm by GroupNorm. How much it changes since the first
   time is how much the survey's later statistics have to change.

What remains is of second order: SD 2.1's decoder, of random weights, on half flat, half textured latents of 128x128 in
tiles of 64: mean error 0.03/255, largest 0.4/255, where the sample alone leaves 0.8 and 13. The cost is that of two
passes over the tiles, and of at most two times 128 crops of 8x8 cells.

A stage with attention is run whole up to `WHOLE_CELLS`. Beyond, it is run in blended windows, each of which attends to
itself: a cell sees at least the `WINDOW_OVERLAP` / 2 cells around it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import groupby, product
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .. import tiles
from . import layerwise
from .group_norm import SharedGroupNorm, Statistics, SurveyingGroupNorm, pool
from .sampling import Crop, Design, Sample, plan_crops
from .stages import Stage, Stages, reach

Way = Literal["whole", "layers", "windows", "tiles"]

WHOLE_CELLS = 256**2
"""Cells up to which attention sees the whole picture, 2048x2048 pixels."""
WINDOW = 128
"""Side of a window in cells, beyond that."""
WINDOW_OVERLAP = 32
"""Cells that windows share; more than twice the reach of the convolutions beside the attention."""
TILES_SAMPLE = Design(side=8, margin=1, share=1 / 8, most=128)
WINDOWS_SAMPLE = Design(side=32, margin=6, share=1 / 4, most=2048)
ATTENTION_SCORES = 2**27
"""Scores of attention at a time, where torch has no implementation that keeps none."""


@dataclass(frozen=True)
class Group:
    """Stages that follow each other and run in one way."""

    way: Way
    stages: Stages

    def __call__(self, x: Tensor) -> Tensor:
        """All stages on `x`, in the dtype of their weights."""
        dtype = next(self.stages[0].resnets[0].parameters()).dtype
        x = x.to(dtype).contiguous(memory_format=torch.channels_last)
        for stage in self.stages:
            x = stage(x)
        return x


def run(
    stages: Stages,
    x: Tensor,
    tile: int,
    memory: float,
    device: torch.device,
    on_tile: tiles.TileCallback | None = None,
) -> Tensor:
    """The network's result for pictures, one after the other.

    Args:
        stages: the network.
        x: [B, C, h * read_scale, w * read_scale], anywhere.
        tile: side of a tile in cells, for stages that are tiled.
        memory: values that a stage may hold when it is run by layers.
        device: where the network computes.
        on_tile: called after every tile of every layer, stage and survey, and after every batch of a sample.

    Returns:
        [B, C', h * write_scale, w * write_scale] fp32 where x lies.
    """
    cells = tiles.cells(x, stages[0].read_scale)
    groups = plan(stages, *cells, tile, memory)
    step = Steps(len(x) * sum(count(group, *cells, tile) for group in groups), on_tile)
    results: list[Tensor] = []
    for index in range(len(x)):
        y = x[index : index + 1]
        for group in groups:
            last = group is groups[-1]
            kept = not last and group.way in ("whole", "layers")  # small enough for the device
            y = run_group(group, y, cells, tile, device, device if kept else x.device, step)
        results.append(y.float())
    return torch.cat(results) if len(results) > 1 else results[0]


class Steps:
    """Counts steps and tells `on_tile`."""

    def __init__(self, total: int, on_tile: tiles.TileCallback | None):
        self.done, self.total, self.on_tile = 0, total, on_tile

    def __call__(self, *_: int) -> None:
        self.done += 1
        if self.on_tile is not None:
            self.on_tile(self.done, self.total)


def plan(stages: Stages, height: int, width: int, tile: int, memory: float) -> list[Group]:
    """How a network is run over height x width cells."""
    one_tile = max(work(stage, tile**2) for stage in stages)

    def way(stage: Stage) -> Way:
        return choose_way(stage, height * width, one_tile, memory)

    return [Group(way, tuple(members)) for way, members in groupby(stages, key=way)]


def choose_way(stage: Stage, cells: int, one_tile: float, memory: float) -> Way:
    """How a stage is run over so many cells.

    Args:
        stage: one of a network.
        cells: of the picture.
        one_tile: values that it may hold when it is run whole.
        memory: values that it may hold when it is run by layers.
    """
    if stage.scale == 1:
        return "whole" if cells <= WHOLE_CELLS else "windows"
    if work(stage, cells) <= one_tile:
        return "whole"
    return "layers" if layers_values(stage, cells) <= memory else "tiles"


def work(stage: Stage, cells: float) -> float:
    """Values that a stage holds while it runs on so many cells at once, measured (benchmarks/memory.py)."""
    before = 3 * stage.width  # input, normalised, activated
    inside = stage.width + 3.5 * stage.result_width  # input, hidden, normalised, scaled and shifted
    attention = 6 * stage.width if stage.scale == 1 else 0  # input, normalised, query, key, value, result
    return max(before, inside, attention) * stage.scale**2 * cells


def working_values(stages: Stages, height: int, width: int, tile: int, memory: float) -> float:
    """Values that a network is predicted to hold at its peak over height x width cells, on the device."""
    groups = plan(stages, height, width, tile, memory)
    held = [0, *(height * width * kept_on_device(group) for group in groups)]
    return max(group_values(group, height, width, tile) + given for group, given in zip(groups, held, strict=False))


def kept_on_device(group: Group) -> int:
    """Values a cell that a group leaves on the device for the next."""
    last = group.stages[-1]
    return last.result_width * last.write_scale**2 if group.way in ("whole", "layers") else 0


def group_values(group: Group, height: int, width: int, tile: int) -> float:
    """The same for one group of its plan."""
    cells = height * width
    if group.way == "layers":
        return max(layers_values(stage, cells) for stage in group.stages)
    if group.way == "whole":
        side = max(height, width)
    elif group.way == "windows":
        side = WINDOW
    else:
        side = tile + 2 * reach(group.stages)
    read = min(side, height) * min(side, width)
    return max(work(stage, read) for stage in group.stages)


def layers_values(stage: Stage, cells: int) -> float:
    """Values that a stage holds when it runs by layers."""
    tile = min(cells, (layerwise.longest_read() / stage.scale) ** 2)
    return layerwise.kept_values(stage) * cells + work(stage, tile)


def count(group: Group, height: int, width: int, tile: int) -> int:
    """How many steps a group takes over height x width cells."""
    if group.way == "whole":
        return 1
    if group.way == "layers":
        return sum(layerwise.count(stage, height, width) for stage in group.stages)
    batches = len(sample_of(group, height, width, tile))
    if group.way == "windows":
        rows, columns = (len(tiles.plan_overlap(side, WINDOW, WINDOW_OVERLAP)) for side in (height, width))
        return batches + rows * columns
    rows, columns = (len(tiles.plan_halo(side, tile, reach(group.stages))) for side in (height, width))
    return batches + rows * columns + 1 + rows * columns  # sample, survey, correction, result


def sample_of(group: Group, height: int, width: int, tile: int) -> list[list[Crop]]:
    """The crops that the statistics of a tiled group are measured on."""
    if group.way == "windows":
        return plan_crops(height, width, WINDOWS_SAMPLE, WINDOW**2)
    return plan_crops(height, width, TILES_SAMPLE, (tile + 2 * reach(group.stages)) ** 2)


def run_group(
    group: Group,
    x: Tensor,
    cells: tuple[int, int],
    tile: int,
    device: torch.device,
    out_device: torch.device,
    step: Steps,
) -> Tensor:
    """The result of a group over height x width `cells`, on `out_device`."""
    with ChunkedAttention():
        if group.way == "layers":
            for stage in group.stages:
                end = stage is group.stages[-1]
                x = layerwise.run(stage, x, device, step, out_device=out_device if end else device)
            return x
        if group.way == "whole":
            y = group(x.to(device)).to(out_device)
            step()
            return y
        return run_parts(group, x, cells, tile, device, out_device, step)


def run_parts(
    group: Group,
    x: Tensor,
    cells: tuple[int, int],
    tile: int,
    device: torch.device,
    out_device: torch.device,
    step: Steps,
) -> Tensor:
    """The same for a group in windows or tiles."""
    if group.way == "windows":
        tiled = partial(tiles.overlap_tiled, tile=WINDOW, overlap=WINDOW_OVERLAP)
    else:
        tiled = partial(tiles.halo_tiled, tile=tile, halo=reach(group.stages))
    return tiled(
        under(whole_statistics(group, x, cells, tile, device, step), group),
        x,
        read_scale=group.stages[0].read_scale,
        write_scale=group.stages[-1].write_scale,
        device=device,
        out_device=out_device,
        on_tile=step,
    )


def whole_statistics(
    group: Group,
    x: Tensor,
    cells: tuple[int, int],
    tile: int,
    device: torch.device,
    step: Callable[[], None],
) -> Statistics:
    """Those of the whole picture that a group is to normalise by: windows a sample's, tiles a survey's."""
    sample = Sample(x, group.stages[0].read_scale, sample_of(group, *cells, tile), device)
    sampled, last = sample.estimate(group, step)
    if group.way == "windows":
        return sampled
    surveyed = survey(group, x, cells, tile, device, sampled, step)
    statistics = sample.correct(group, surveyed, last)
    step()
    return statistics


def under(statistics: Statistics, group: Group) -> Callable[[Tensor], Tensor]:
    """The group, normalised by `statistics`."""

    def local(part: Tensor) -> Tensor:
        with SharedGroupNorm(statistics):
            return group(part)

    return local


def survey(
    group: Group,
    x: Tensor,
    cells: tuple[int, int],
    tile: int,
    device: torch.device,
    statistics: Statistics,
    step: Callable[[], None],
) -> Statistics:
    """What the GroupNorms of a group meet in the whole picture when they normalise by `statistics`."""
    met: list[Statistics] = []
    read = group.stages[0].read_scale
    spans = (tiles.plan_halo(side, tile, reach(group.stages)) for side in cells)
    for rows, columns in product(*spans):
        size = rows.read_stop - rows.read_start, columns.read_stop - columns.read_start
        with SurveyingGroupNorm(statistics, size, [((rows.core(1), columns.core(1)), 1)]) as norms:
            group(tiles.move(x[..., rows.read(read), columns.read(read)], device))
        met.append(norms.met)
        step()
    return [pool(parts) for parts in zip(*met, strict=True)]


class ChunkedAttention(TorchFunctionMode):
    """Inside, attention goes over its queries in chunks of at most `ATTENTION_SCORES` scores."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        if func is not F.scaled_dot_product_attention or len(args) != 3 or options.get("attn_mask") is not None:
            return func(*args, **options)
        query, *rest = args
        chunks = query.split(max(1, ATTENTION_SCORES // rest[0].shape[-2]), dim=-2)
        results = [func(chunk, *rest, **options) for chunk in chunks]
        return torch.cat(results, dim=-2) if len(results) > 1 else results[0]
