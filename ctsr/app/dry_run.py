"""`ctsr upscale --dry-run`: which files would be made of which, how large, with what memory and in what time."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import get_args

import torch

from ..errors import CTSRError
from ..images.header import read_header
from ..images.read import read_picture
from ..runtime.cost import duration
from ..runtime.memory import BUFFER_BYTES
from ..tiling.network import Stage
from .finished import Recipe
from .jobs import Job
from .upscale import check_picture, restore

WARM_UP_PIXELS = 10**6


@dataclass(frozen=True)
class Entry:
    """A job as it would be.

    Attributes:
        job: which.
        text: one line about it.
        pixels: of all frames of the result; 0 where nothing would be done.
        size: height and width of the result, if something would be.
    """

    job: Job
    text: str
    pixels: int = 0
    size: tuple[int, int] | None = None


def dry_run(jobs: Sequence[Job], recipe: Recipe) -> Iterator[str]:
    """Lines for a person; writes nothing. The first picture is upscaled in memory to measure the time."""
    todo: list[Entry] = []
    for job in jobs:
        entry = describe(job, recipe)
        yield entry.text
        todo += [entry] if entry.pixels else []
    total = sum(entry.pixels for entry in todo)
    yield f"{len(todo)} of {len(jobs)} to do, {total / 1e6:.1f} megapixels"
    if todo:
        largest = max((entry.size for entry in todo if entry.size), key=lambda size: size[0] * size[1])
        pipeline, tile = recipe.model.pipeline, recipe.options.tile
        work = max(pipeline.predicted_memory(stage, *largest, tile, recipe.model.device) for stage in get_args(Stage))
        need = largest[0] * largest[1] * BUFFER_BYTES + work
        yield f"memory: {need / 2**20:.0f} MiB and the model, for {largest[1]}x{largest[0]}"
        yield from estimate(todo, total, recipe)


def describe(job: Job, recipe: Recipe) -> Entry:
    """What would become of a job."""
    state, why = recipe.state_of(job)
    if state != "absent":
        return Entry(job, f"{job.target}: finished" if state == "finished" else f"Left as it is: {job.target} {why}")
    try:
        header = read_header(job.source)
    except CTSRError as error:
        return Entry(job, f"Error: {error}")
    new_height, new_width = recipe.options.size.of(header.height, header.width)
    frames = f", {header.frames} frames" if header.frames > 1 else ""
    line = f"{job.source} ({header.width}x{header.height}{frames}) -> {job.target} ({new_width}x{new_height})"
    return Entry(job, line, header.frames * new_height * new_width, (new_height, new_width))


def estimate(todo: Sequence[Entry], total: int, recipe: Recipe) -> Iterator[str]:
    """The time for all, from that of the first that can be read."""
    for entry in todo:
        try:
            picture = read_picture(entry.job.source)
            height, width = check_picture(picture, entry.job.target, recipe.options, recipe.model.device)
        except (CTSRError, ValueError) as error:
            yield f"Error: {error}"
            continue
        if height * width < WARM_UP_PIXELS:  # the first steps of a process take longer, which large pictures hide
            restore(picture, height, width, recipe.model, recipe.options)
        _ = recipe.model.pipeline  # loaded before the clock starts
        began = time.perf_counter()
        restore(picture, height, width, recipe.model, recipe.options)
        if recipe.model.device.type != "cpu":
            torch.accelerator.synchronize(recipe.model.device)
        each = (time.perf_counter() - began) / (height * width)
        yield f"time: {duration(each * total)} ({1e6 * each:.2g} s a megapixel, as {entry.job.source})"
        return
