"""What a run will cost, told before it: tiles, passes, memory against what is free, time, and whether it can be."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil

import psutil
import torch

from ..tiling import networks
from ..tiling.memory import total_memory
from ..tiling.network import Network, Stage, choose_tile, shared_cells, work_memory
from ..tiling.plan import plan_halo, plan_overlap
from .memory import BUFFER_BYTES, BUFFER_SHARE
from .speed import Speed

FP32 = 4
"""Bytes of a number."""
PICTURE = 3 * FP32
"""Bytes a pixel of a picture at work."""


@dataclass(frozen=True)
class StagePlan:
    """One network's part.

    Attributes:
        stage: "encode", "unet" or "decode".
        passes: of the network over each picture.
        tiles: of a pass.
        how: in words, such as "untiled" or "tiles of 512 pixels (halo 32)".
        work: bytes that the network works in, beside the pictures.
        seconds: of all passes over one picture; None where no speed was measured.
    """

    stage: Stage
    passes: int
    tiles: int
    how: str
    work: int
    seconds: float | None


@dataclass(frozen=True)
class Need:
    """Bytes that a run adds at its peak, what is free now, and what there is in all."""

    need: int
    free: int
    total: int

    def __str__(self) -> str:
        """In GiB."""
        return f"{gib(self.need)} of {gib(self.free)} free"


@dataclass(frozen=True)
class Plan:
    """What a run will cost.

    Attributes:
        pictures: how many.
        size: height and width of the largest result.
        stages: of the largest picture.
        machine: memory of the machine, without the weights, which are there already.
        device: memory of the GPU that the networks run on, None for a CPU.
        seconds: of all pictures; None where no speed was measured.
        refusal: why it cannot be done and what can, None if it can.
        warning: what slows it down or may go wrong, None for nothing.
    """

    pictures: int
    size: tuple[int, int]
    stages: tuple[StagePlan, ...]
    machine: Need
    device: Need | None
    seconds: float | None
    refusal: str | None
    warning: str | None

    def rows(self) -> list[tuple[str, str]]:
        """Names and values for a person."""
        height, width = self.size
        largest = "" if self.pictures == 1 else " at most"
        rows = [("results", f"{self.pictures} of {width}x{height}{largest}")]
        for stage in self.stages:
            passes = "" if stage.passes == 1 else f"{stage.passes} passes, "
            count = "" if stage.tiles == 1 else f"{stage.tiles} "
            rows.append((stage.stage, f"{passes}{count}{stage.how}, {gib(stage.work)}"))
        rows.append(("memory", str(self.machine)))
        if self.device is not None:
            rows.append(("GPU memory", str(self.device)))
        if self.seconds is not None:
            rows.append(("time", duration(self.seconds)))
        rows.extend(("note", text) for text in (self.warning,) if text is not None)
        rows.append(("verdict", self.refusal or "can be done"))
        return rows

    def __str__(self) -> str:
        """One line for each row."""
        return "\n".join(f"{name}: {value}" for name, value in self.rows())


def gib(count: float) -> str:
    """Bytes in words."""
    return f"{count / 2**20:.0f} MiB" if count < 2**30 else f"{count / 2**30:.1f} GiB"


def duration(seconds: float) -> str:
    """Seconds in words."""
    if seconds < 120:
        return f"about {max(seconds, 0.1):.1f} s" if seconds < 10 else f"about {seconds:.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 7200 else f"about {seconds / 3600:.1f} h"


def make_plan(
    each: Sequence[tuple[Network, int]],
    sizes: Sequence[tuple[int, int]],
    multiple: int,
    latents: float,
    device: torch.device,
    tile: int,
    kept: int,
    speed: Mapping[Stage, Speed] | None,
    tile_overlap: int | None = None,
) -> Plan:
    """Plans a run over pictures, one at a time.

    Args:
        each: the networks and the passes of each over a picture.
        sizes: height and width of each result in pixels.
        multiple: pixels that the networks' pictures are padded to a multiple of.
        latents: numbers of one latent a pixel of the result.
        device: that the networks run on.
        tile: side of a tile in pixels of the result, 0 for automatic.
        kept: bytes a pixel of every result that stays in memory until the end.
        speed: of each stage; None leaves the time out.
        tile_overlap: pixels of the result that blended tiles share; None is the default.
    """

    def stages_of(size: tuple[int, int]) -> tuple[StagePlan, ...]:
        return tuple(plan_stage(*one, size, multiple, device, tile, speed, tile_overlap) for one in each)

    largest = max(sizes, key=lambda size: size[0] * size[1])
    stages = stages_of(largest)
    pixels = sum(height * width for height, width in sizes)
    seconds = None
    if speed is not None:
        seconds = 0.0
        for size in set(sizes):
            seconds += sizes.count(size) * sum(stage.seconds or 0 for stage in stages_of(size))
    on_cpu = device.type == "cpu"
    buffers = peak_of_buffers(stages, largest[0] * largest[1], latents, with_work=on_cpu)
    cpu = torch.device("cpu")
    total = total_memory(cpu)
    machine = Need(buffers + kept * pixels, min(psutil.virtual_memory().available, total), total)
    gpu = None if on_cpu else Need(max(stage.work for stage in stages), free_memory(device), total_memory(device))
    refusal = refuse(sizes, kept, total)
    return Plan(len(sizes), largest, stages, machine, gpu, seconds, refusal, warn(machine, gpu))


def plan_stage(
    network: Network,
    passes: int,
    size: tuple[int, int],
    multiple: int,
    device: torch.device,
    tile: int,
    speed: Mapping[Stage, Speed] | None,
    tile_overlap: int | None = None,
) -> StagePlan:
    """One network over a result of height and width `size`."""
    height, width = (ceil(side / multiple) * multiple // network.factor for side in size)
    side, memory = choose_tile(network, height, width, tile, device), work_memory(device)
    work = networks.predicted_memory(network, height, width, side, memory, device)
    shapes = tile_shapes(network, height, width, side, tile_overlap)
    seconds = None if speed is None else passes * sum(speed[network.stage].seconds(*shape) for shape in shapes)
    how = networks.describe_tiles(network, height, width, side, memory)
    return StagePlan(network.stage, passes, 1 if how.startswith("untiled") else len(shapes), how, work, seconds)


def tile_shapes(
    network: Network, height: int, width: int, tile: int | None, tile_overlap: int | None
) -> list[tuple[int, int]]:
    """Height and width in latents of what the network is run over, tile by tile."""
    if tile is None or network.levels:  # layers and stages do each part of the picture about once
        return [(height, width)]
    if network.halo is None:
        shared = shared_cells(network, tile, tile_overlap)
        count = [len(plan_overlap(side, tile, shared)) for side in (height, width)]
        return [(min(tile, height), min(tile, width))] * (count[0] * count[1])
    rows, columns = (plan_halo(side, tile, network.halo, network.align) for side in (height, width))
    return [(row.read_stop - row.read_start, col.read_stop - col.read_start) for row in rows for col in columns]


def peak_of_buffers(stages: Sequence[StagePlan], pixels: int, latents: float, with_work: bool) -> int:
    """Bytes at the peak of one picture on the machine: pictures, latents, and the networks' work if they run there.

    Encoding holds the enlarged picture, padded and not; the UNet the latents that go in and three groups that come out;
    decoding the blended latents and the result; the colour fix what `BUFFER_BYTES` says.
    """
    work = {stage.stage: stage.work if with_work else 0 for stage in stages}
    latent = FP32 * latents
    held = {
        "encode": pixels * (PICTURE + latent) + work["encode"],
        "unet": pixels * 4 * latent + work["unet"],
        "decode": pixels * (2 * latent + PICTURE) + work["decode"],
        "colours": pixels * (BUFFER_BYTES + 2 * latent),
    }
    return ceil(max(held.values()))


def free_memory(device: torch.device) -> int:
    """Bytes that a GPU has free now, with what torch keeps for itself."""
    if device.type != "cuda":
        return total_memory(device)
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def refuse(sizes: Sequence[tuple[int, int]], kept: int, total: int) -> str | None:
    """Why a run cannot be done whatever the tiles, and what can: one sentence, or None."""
    have = BUFFER_SHARE * total
    height, width = max(sizes, key=lambda size: size[0] * size[1])
    one = height * width * BUFFER_BYTES
    if one > have:
        return (
            f"The result of {width}x{height} pixels would take {gib(one)} of memory, and no more than {gib(have)} can "
            "be used here: choose a smaller size."
        )
    held = kept * sum(h * w for h, w in sizes)
    if one + held > have:
        fitting = int((have - one) // (kept * height * width))
        remedy = f"do at most {fitting} at a time" if fitting > 0 else "choose a smaller size"
        return (
            f"{len(sizes)} results of up to {width}x{height} would take {gib(held)} of memory at once, and no more "
            f"than {gib(have)} can be used here: {remedy}, or write each to a file as `ctsr upscale` does."
        )
    return None


def warn(machine: Need, device: Need | None) -> str | None:
    """What a run that can be done may still meet."""
    if device is not None and device.need > device.free:
        return f"{gib(device.need)} of GPU memory are not free now: smaller tiles will be tried, which takes longer"
    if machine.need > machine.free:
        return f"{gib(machine.need)} are not free now: close other programs, or the machine may swap"
    return None
