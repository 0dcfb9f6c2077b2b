"""`ctsr upscale --dry-run`: which files would be made of which, how large, with what memory and in what time."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch
from PIL import ExifTags, Image

from ..errors import CTSRError
from ..images.frames import look_for_frames
from ..images.optional_formats import is_raw_under_another_name, optional_format
from ..images.read import read_picture, reading
from ..runtime.memory import BUFFER_BYTES
from ..tiling import networks
from ..tiling.networks import Stage
from .finished import Finished
from .plan import Job
from .upscale import check_picture, restore

WARM_UP_PIXELS = 10**6
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations


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


def dry_run(jobs: Sequence[Job], found: Finished) -> Iterator[str]:
    """Lines for a person; writes nothing. The first picture is upscaled in memory to measure the time."""
    todo: list[Entry] = []
    for job in jobs:
        entry = describe(job, found)
        yield entry.text
        todo += [entry] if entry.pixels else []
    total = sum(entry.pixels for entry in todo)
    yield f"{len(todo)} of {len(jobs)} to do, {total / 1e6:.1f} megapixels"
    if todo:
        largest = max((entry.size for entry in todo if entry.size), key=lambda size: size[0] * size[1])
        yield f"memory: {peak_memory(found, largest) / 2**20:.0f} MiB and the model, for {largest[1]}x{largest[0]}"
        yield from estimate(todo, total, found)


def describe(job: Job, found: Finished) -> Entry:
    """What would become of a job."""
    state, why = found(job)
    if state != "absent":
        return Entry(job, f"{job.target}: finished" if state == "finished" else f"Left as it is: {job.target} {why}")
    try:
        width, height, count = size_of(job.source)
    except CTSRError as error:
        return Entry(job, f"Error: {error}")
    new_height, new_width = found.options.size.of(height, width)
    frames = f", {count} frames" if count > 1 else ""
    line = f"{job.source} ({width}x{height}{frames}) -> {job.target} ({new_width}x{new_height})"
    return Entry(job, line, count * new_height * new_width, (new_height, new_width))


def size_of(path: Path) -> tuple[int, int, int]:
    """Width and height of a file as it is seen, and the number of frames; decodes only what must be (RAW, HEIC).

    Raises:
        ImageReadError: it cannot be read.
    """
    with reading(path):
        is_plain = optional_format(path) is None
    with contextlib.suppress(CTSRError), reading(path), Image.open(path) as image:
        if is_plain and not is_raw_under_another_name(image):
            turned = image.format != "TIFF" and image.getexif().get(ExifTags.Base.Orientation) in SIDEWAYS
            width, height = image.size[::-1] if turned else image.size
            return width, height, len(look_for_frames(path).indices)
    picture = read_picture(path)
    return picture.width, picture.height, 1


def peak_memory(found: Finished, size: tuple[int, int]) -> int:
    """Bytes for a result of that height and width: its buffers and the largest of the stages."""
    pipe, device, tile = found.model.pipeline, found.model.device, found.options.tile
    cells = [-(-side // pipe.pad_multiple) * pipe.pad_multiple // pipe.vae_scale_factor for side in size]
    memory, needs = networks.work_memory(device), list[int]()
    for stage in get_args(Stage):
        network = pipe.network(stage)
        side = networks.choose_tile(network, cells[0], cells[1], tile, device)
        needs.append(networks.predicted_memory(network, cells[0], cells[1], side, memory, device))
    return size[0] * size[1] * BUFFER_BYTES + max(needs)


def estimate(todo: Sequence[Entry], total: int, found: Finished) -> Iterator[str]:
    """The time for all, from that of the first that can be read."""
    for entry in todo:
        try:
            picture = read_picture(entry.job.source)
            height, width = check_picture(picture, entry.job.target, found.options, found.model.device)
        except (CTSRError, ValueError) as error:
            yield f"Error: {error}"
            continue
        if height * width < WARM_UP_PIXELS:  # the first steps of a process take longer, which large pictures hide
            restore(picture, height, width, found.model, found.options)
        _ = found.model.pipeline  # loaded before the clock starts
        began = time.perf_counter()
        restore(picture, height, width, found.model, found.options)
        if found.model.device.type != "cpu":
            torch.accelerator.synchronize(found.model.device)
        each = (time.perf_counter() - began) / (height * width)
        yield f"time: about {describe_seconds(each * total)} ({1e6 * each:.2g} s a megapixel, as {entry.job.source})"
        return


def describe_seconds(seconds: float) -> str:
    """Such as "40 s", "12 min", "3.5 h"."""
    if seconds < 100:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
