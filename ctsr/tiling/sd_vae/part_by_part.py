"""Levels over a picture in parts, normalised by statistics of the whole picture: memory does not grow with it.

Given the statistics, a level without attention is a local function: tiles with a halo are exact, and there are no
seams. The statistics themselves cannot be had in one pass, since a change of a GroupNorm's statistics changes those of
all later ones:

1. A sample of crops, run as one batch, gives statistics that agree with each other, but are off by a percent.
2. A survey runs every tile under these and measures it: the whole picture's statistics under the sample's.
3. The sample is run once more under the corrected statistics, GroupNorm by GroupNorm. How much what it meets has
   changed since the first time is how much the survey's later statistics have to change.

What remains is of second order. Measured on SD 2.1's decoder at 1024x1024 (benchmarks/README.md): mean error .04/255
and largest .6/255, where the sample alone leaves .8 and 13. A survey without a
sample, from tiles normalised by themselves, leaves 33 and 590 (a quarter of the widths).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product

import torch
from torch import Tensor

from ..plan import Span, plan_halo, plan_overlap, size_in_cells
from ..sink import move
from ..tiled import halo_tiled, overlap_tiled
from .levels import Levels, reach, run_levels
from .sample import crop_weights, plan_crops
from .statistics import GivenStatistics, Statistics, Survey, carry, pool, scaled

WINDOW = 128
"""Side in cells of a window, within which attention sees everything."""
WINDOW_OVERLAP = 32
"""Cells that windows share; more than twice the reach of the convolutions beside the attention."""


@dataclass(frozen=True)
class Parts:
    """How a picture is divided to gather its statistics, in cells.

    Attributes:
        core: longest side of what a part measures.
        halo: read around it.
        crop: side of the sample's crops.
        margin: of a crop, not measured.
    """

    core: int
    halo: int
    crop: int
    margin: int

    def boxes(self, height: int, width: int) -> list[tuple[Span, Span]]:
        """Rows and columns of every part of height x width cells."""
        rows, columns = (plan_halo(side, self.core, self.halo) for side in (height, width))
        return list(product(rows, columns))

    def count(self, height: int, width: int) -> int:
        """Steps of `whole_statistics`: the sample twice, and the survey."""
        return 2 + len(self.boxes(height, width))


WINDOWS = Parts(WINDOW - WINDOW_OVERLAP, WINDOW_OVERLAP // 2, crop=32, margin=6)


def in_tiles(tile: int, halo: int) -> Parts:
    """The parts of levels without attention."""
    return Parts(tile, halo, crop=8, margin=1)


def run_tiles(
    levels: Levels,
    x: Tensor,
    tile: int,
    device: torch.device,
    out_device: torch.device,
    step: Callable[..., None],
) -> Tensor:
    """The result of levels without attention, in tiles with a halo.

    Args:
        levels: that follow each other.
        x: [1, C, h * read_scale, w * read_scale], anywhere.
        tile: side of a tile in cells.
        device: where the levels compute.
        out_device: where the result is wanted.
        step: called `count_tiles` times.

    Returns:
        [1, C', h * write_scale, w * write_scale].
    """
    statistics = whole_statistics(levels, x, in_tiles(tile, reach(levels)), device, step)
    return halo_tiled(
        partial(run_levels, levels, normalise=GivenStatistics(statistics)),
        x,
        tile,
        reach(levels),
        read_scale=levels[0].read_scale,
        write_scale=levels[-1].write_scale,
        device=device,
        out_device=out_device,
        on_tile=step,
    )


def run_windows(
    levels: Levels, x: Tensor, device: torch.device, out_device: torch.device, step: Callable[..., None]
) -> Tensor:
    """The result of levels with attention, in blended windows; otherwise as `run_tiles`."""
    statistics = whole_statistics(levels, x, WINDOWS, device, step)
    return overlap_tiled(
        partial(run_levels, levels, normalise=GivenStatistics(statistics)),
        x,
        WINDOW,
        WINDOW_OVERLAP,
        read_scale=levels[0].read_scale,
        write_scale=levels[-1].write_scale,
        device=device,
        out_device=out_device,
        on_tile=step,
    )


def count_tiles(height: int, width: int, tile: int, halo: int) -> int:
    """Steps of `run_tiles` over height x width cells."""
    parts = in_tiles(tile, halo)
    return parts.count(height, width) + len(parts.boxes(height, width))


def count_windows(height: int, width: int) -> int:
    """Steps of `run_windows` over height x width cells."""
    rows, columns = (len(plan_overlap(side, WINDOW, WINDOW_OVERLAP)) for side in (height, width))
    return WINDOWS.count(height, width) + rows * columns


def whole_statistics(
    levels: Levels, x: Tensor, parts: Parts, device: torch.device, step: Callable[[], None]
) -> Statistics:
    """Statistics of the whole picture `x` that the levels' GroupNorms are to use: sample, survey, correction."""
    read_scale = levels[0].read_scale
    cells = size_in_cells(x, read_scale)
    crops = plan_crops(*cells, parts.crop, parts.margin, (parts.core + 2 * parts.halo) ** 2)
    weights = crop_weights(x, read_scale, crops)
    counted = [(crop.counted, weight) for crop, weight in zip(crops, weights, strict=True)]
    size = min(parts.crop, cells[0]), min(parts.crop, cells[1])

    def run_sample(survey: Survey) -> Survey:
        batch = torch.cat([x[(..., *scaled(crop.box, read_scale))] for crop in crops])
        run_levels(levels, move(batch, device), survey)
        step()
        return survey

    sampled = run_sample(Survey(size, counted, lambda _, met: met)).met
    surveyed = survey_picture(levels, x, parts, sampled, device, step)
    return run_sample(Survey(size, counted, lambda norm, met: carry(surveyed[norm], sampled[norm], met))).used


def survey_picture(
    levels: Levels, x: Tensor, parts: Parts, given: Statistics, device: torch.device, step: Callable[[], None]
) -> Statistics:
    """What the GroupNorms of the levels meet in the whole picture when they normalise by `given`."""
    read_scale = levels[0].read_scale
    surveys: list[Survey] = []
    for rows, columns in parts.boxes(*size_in_cells(x, read_scale)):
        size = rows.read_stop - rows.read_start, columns.read_stop - columns.read_start
        survey = Survey(size, [((rows.core(1), columns.core(1)), 1)], lambda norm, _: given[norm])
        run_levels(levels, move(x[..., rows.read(read_scale), columns.read(read_scale)], device), survey)
        surveys.append(survey)
        step()
    return {norm: pool([survey.met[norm] for survey in surveys]) for norm in given}
