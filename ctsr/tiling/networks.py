"""The three networks of a pipeline as functions that can be tiled: encoder, UNet, decoder, mini or SD.

What a network needs for tiling is read from the model: one with a receptive radius (`encoder_halo`, `halo`,
`decoder_halo`) is tiled by halo and crop, exactly. Stable Diffusion's autoencoder, which normalises over space, is
run as `sd_vae.schedule` plans. Tiles of any other, such as Stable Diffusion's UNet, are blended.
"""

import logging
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, Protocol, TypedDict, cast

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor, nn

from ..errors import CheckpointError
from ..families import Timestep
from ..models import forward
from ..models.building import settle
from ..precision import in_fp32
from . import heap, tiles
from .layers import is_compiled, reporting_layers
from .sd_vae import schedule
from .sd_vae.levels import Levels, decoder_levels, encoder_levels, has_levels, reach

logger = logging.getLogger(__name__)

Stage = Literal["encode", "unet", "decode"]
DEFAULT_OVERLAP = 128
"""Pixels that blended tiles share; half a tile where that is less."""
SMALLEST_TILE = 128
"""Pixels; smaller tiles are mostly halo."""
ATTENTION_TILE = 96
"""Latents on the longest side of an automatic tile with attention, whose time grows with the side's fourth power.

OSEDiff's released code tiles beyond as many (github.com/cswry/OSEDiff, Apache-2.0).
"""
CPU_TILE = 1024
"""Pixels of an automatic tile of an exactly tileable network on a CPU: as fast as untiled, in less memory."""
REPORTING_PIXELS = 2**16
"""From which size on a tile on a CPU reports its layers."""
MOST_TILES = 8
"""Blended tiles at once on a GPU: enough to keep a large one busy."""


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
        levels: Stable Diffusion's autoencoder level by level, as `sd_vae.schedule` runs it; else empty.
        attends: every latent of a tile sees all others.
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
    levels: Levels = ()
    attends: bool = False

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


def _cells_of(pixels: int | None, factor: int) -> int | None:
    """Latents that cover so many pixels."""
    return None if pixels is None else -(-pixels // factor)


def bytes_per_pixel(module: nn.Module, stage: str, factor: int) -> float:
    """Working bytes a pixel, measured (benchmarks/memory.py): of the mini, and of SD 2.1 by its narrowest width."""
    size = next(module.parameters()).element_size()
    measured = getattr(module, "working_values_per_pixel", None)
    if measured is not None:
        return size * measured[stage]
    width = cast(Any, module).config["block_out_channels"][0]
    values = {"encode": 4.5 * width, "decode": 6 * width, "unet": 32 * width / factor**2}
    return size * values[stage]


def encoder(vae: nn.Module, timestep: Timestep | None) -> Network:
    """Picture in [-1, 1] -> unscaled latents; the mode of the posterior where there is one.

    Args:
        vae: the autoencoder.
        timestep: that the encoder is told. Best a tensor on the device where it computes: of a number every tile makes
            one, for which a GPU waits.
    """
    factor = forward.vae_scale_factor(vae)
    levels = encoder_levels(cast(AutoencoderKL, vae), timestep) if has_levels(vae) else ()
    return Network(
        "encode",
        vae,
        factor,
        partial(forward.encode, vae, timestep=timestep),
        read_scale=factor,
        write_scale=1,
        halo=_tiles_halo(levels) if levels else _cells_of(getattr(vae, "encoder_halo", None), factor),
        align=1,
        bytes_per_pixel=bytes_per_pixel(vae, "encode", factor),
        levels=levels,
    )


def decoder(vae: nn.Module) -> Network:
    """Unscaled latents -> picture in about [-1, 1]."""
    factor = forward.vae_scale_factor(vae)
    levels = decoder_levels(cast(AutoencoderKL, vae)) if has_levels(vae) else ()
    return Network(
        "decode",
        vae,
        factor,
        partial(forward.decode, vae),
        read_scale=1,
        write_scale=factor,
        halo=_tiles_halo(levels) if levels else _cells_of(getattr(vae, "decoder_halo", None), factor),
        align=1,
        bytes_per_pixel=bytes_per_pixel(vae, "decode", factor),
        levels=levels,
    )


def _tiles_halo(levels: Levels) -> int:
    """Latents that the levels which may be tiled reach; the one at the latents' resolution never is."""
    return reach(tuple(level for level in levels if level.scale > 1))


def unet(module: nn.Module, factor: int, timestep: Timestep, prompt_embeds: Tensor | None) -> Network:
    """Scaled latents -> output groups.

    Args:
        module: the UNet.
        factor: of the autoencoder whose latents it takes.
        timestep: that it is told, see `encoder`.
        prompt_embeds: [B, tokens, dim] for B pictures, of which a call may get several tiles each.
    """
    return Network(
        "unet",
        module,
        factor,
        partial(forward.predict, module, timestep=timestep, prompt_embeds=prompt_embeds),
        read_scale=1,
        write_scale=1,
        halo=cast("int | None", getattr(module, "halo", None)),
        align=unet_alignment(module),
        bytes_per_pixel=bytes_per_pixel(module, "unet", factor),
        attends=prompt_width(module) is not None,
    )


def prompt_width(module: nn.Module) -> int | None:
    """Width of the prompt embeddings that a UNet attends to; None for one without cross-attention."""
    config = cast(Any, module).config
    blocks = (*config.get("down_block_types", ()), config.get("mid_block_type"))
    return config["cross_attention_dim"] if any("CrossAttn" in str(block) for block in blocks) else None


def unet_alignment(module: nn.Module) -> int:
    """Latents that the UNet's lowest level makes one of."""
    return 2 ** (len(cast(Any, module).config["block_out_channels"]) - 1)


def choose_tile(network: Network, height: int, width: int, tile: int, device: torch.device) -> int | None:
    """Side of a tile in latents: as asked (pixels, rounded up to the alignment), or automatic for 0; None: untiled."""
    if tile:
        cells = -(-tile // (network.factor * network.align)) * network.align
        return None if cells >= max(height, width) else cells
    total = tiles.total_memory(device)
    fitting = tiles.choose_tile(height, width, network.bytes_per_cell, total, margin=network.halo or 0)
    if network.attends and height * width > ATTENTION_TILE**2:
        return min(fitting or ATTENTION_TILE, ATTENTION_TILE)
    if network.tiling == "exact" and device.type == "cpu" and max(height, width) > CPU_TILE // network.factor:
        return min(fitting or tiles.TILE_LADDER[0], CPU_TILE // network.factor)
    return fitting


def work_memory(device: torch.device) -> float:
    """Bytes of a device that one pass of a network may work in."""
    return tiles.MEMORY_SHARE * tiles.total_memory(device)


def tiles_at_once(
    network: Network, height: int, width: int, tile: int | None, budget: float, device: torch.device
) -> int:
    """How many tiles of height x width latents run as one batch within `budget` bytes.

    Blended ones on a GPU only, where a small tile leaves most of it idle. On a CPU a batch is no faster by much, and
    between tiles is where a run can be cancelled.
    """
    if tile is None or network.tiling != "blended" or device.type == "cpu":
        return 1
    one = tiles.working_memory(min(tile, height), min(tile, width), network.bytes_per_cell)
    return max(1, min(MOST_TILES, int(budget // one)))


def predicted_memory(
    network: Network, height: int, width: int, tile: int | None, budget: float, device: torch.device
) -> int:
    """Bytes that a network will work in over height x width latents, with the `tile` of `choose_tile`.

    Args:
        network: which.
        height: latents of the picture.
        width: latents of the picture.
        tile: side in latents, None for untiled.
        budget: bytes that it may work in, see `work_memory`.
        device: where it computes.
    """
    if tile is None:
        return tiles.working_memory(height, width, network.bytes_per_cell)
    if network.levels:
        size = network.module_dtype.itemsize
        return int(size * schedule.working_values(network.levels, height, width, tile, budget / size))
    side = tile + 2 * (network.halo or 0)
    one = tiles.working_memory(min(side, height), min(side, width), network.bytes_per_cell)
    return one * tiles_at_once(network, height, width, tile, budget, device)


def describe_tiles(network: Network, height: int, width: int, tile: int | None, budget: float) -> str:
    """In words, how `run_tiled` goes over height x width latents."""
    if tile is None:
        return "untiled"
    pixels = f"tiles of {tile * network.factor} pixels"
    if network.halo is None:
        return f"{pixels} (blended)"
    if network.levels:
        groups = schedule.plan(network.levels, height, width, tile, budget / network.module_dtype.itemsize)
        if not {"tiles", "windows"} & {group.way for group in groups}:
            return "untiled, in layers"
        return f"{pixels} (normalised as one picture)"
    return f"{pixels} (halo {network.halo * network.factor})"


def run_tiled(
    network: Network,
    x: Tensor,
    tile: int | None,
    overlap: int,
    on_tile: tiles.TileCallback | None,
    device: torch.device | None = None,
    budget: float = 0,
) -> Tensor:
    """The network over the whole of `x`, fp32, where x lies: tile by tile, so that x may be larger than the device.

    Args:
        network: what to run; see `sd_vae`, `tiles.halo_tiled` and `tiles.overlap_tiled` for what the tiles equal.
        x: [B, C, h * read_scale, w * read_scale].
        tile: side in latents, None for untiled.
        overlap: latents that blended tiles share, at most half a tile.
        on_tile: called after every tile.
        device: where the network computes; by default where x lies.
        budget: bytes of it to work in: the more, the more exact a network in levels, and the more tiles at once.
    """
    scales: Any = {"read_scale": network.read_scale, "write_scale": network.write_scale}
    device = device or x.device
    # The mini's tiles leave little, and are done in no time.
    if network.tiling != "exact" and tile is not None and device.type == "cpu":
        on_tile = _giving_back(on_tile)
    if network.levels and tile is not None:
        wake(network.module)
        values = budget / network.module_dtype.itemsize
        return schedule.run(network.levels, x, tile, values, device, on_tile)
    if network.halo is None:
        shared = min(overlap, tile // 2) if tile else 0
        batch = tiles_at_once(network, *tiles.cells(x, network.read_scale), tile, budget, device)
        return tiles.overlap_tiled(network.call, x, tile, shared, **scales, batch=batch, device=device, on_tile=on_tile)
    return tiles.halo_tiled(
        network.call,
        x,
        tile,
        network.halo,
        **scales,
        align=network.align,
        out_dtype=torch.float32,
        device=device,
        on_tile=on_tile,
    )


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
            `DEFAULT_OVERLAP`, or half a tile where that is less. Other networks compute their own margins.
        callback: progress and cancel.
    """

    tile: int
    tile_overlap: int | None
    callback: Progress | None


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
    cells = tiles.cells(x, network.read_scale)
    overlap = (DEFAULT_OVERLAP if tile_overlap is None else tile_overlap) // network.factor
    on_tile = None if callback is None else partial(callback, network.stage)
    wide = False
    side = chosen = choose_tile(network, *cells, tile, device)
    while True:
        out = None
        budget = work_memory(device) if side == chosen else 0  # nothing fits beyond tiles smaller than predicted
        try:
            reporting = _progress_of(network, cells, side, overlap, device, on_tile)
            with in_fp32(network.module) if wide else nullcontext(), reporting as report:
                out = run_tiled(network, x, side, overlap, report, device, budget)
        except (RuntimeError, MemoryError) as error:
            if not tiles.is_out_of_memory(error):
                raise
        if out is None:  # no longer inside `except`, where the traceback would hold the failed run's tensors
            side = tiles.smaller(side, max(cells))
            if free_memory is not None:
                free_memory()
        elif _is_finite(out):
            return out
        elif wide or network.module_dtype == torch.float32:
            message = f"The {network.stage} step gives NaN or infinity even in fp32: the weights are damaged"
            raise CheckpointError(f"{message}; fetch them again.")
        else:
            kind = network.module_dtype
            logger.warning("The %s step overflowed in %s: running it again in fp32.", network.stage, kind)
            network, wide = network.in_fp32(), True
            side = chosen = choose_tile(network, *cells, tile, device)


def _progress_of(
    network: Network,
    cells: tuple[int, int],
    tile: int | None,
    overlap: int,
    device: torch.device,
    on_tile: tiles.TileCallback | None,
) -> AbstractContextManager[tiles.TileCallback | None]:
    """Inside, what to call after every tile: on a CPU layers report in between, where a tile is large.

    Not of networks in levels, which report every layer or tile of them, nor of compiled ones.
    """
    sides = [side if tile is None else min(side, tile) for side in cells]
    small = sides[0] * sides[1] * network.factor**2 < REPORTING_PIXELS
    part = cast("nn.Module", getattr(network.module, f"{network.stage}r", network.module))  # of an autoencoder
    in_levels = network.tiling == "levels" and tile is not None
    if on_tile is None or device.type != "cpu" or small or in_levels or is_compiled(part):
        return nullcontext(on_tile)
    if tile is None:
        total = 1
    elif network.halo is not None:
        total = math.prod(len(tiles.plan_halo(side, tile, network.halo, network.align)) for side in cells)
    else:
        total = math.prod(len(tiles.plan_overlap(side, tile, min(overlap, tile // 2))) for side in cells)
    return reporting_layers(part, total, on_tile)


def _is_finite(x: Tensor) -> bool:
    """Whether `x` holds no NaN and no infinity, without a copy of it: a sum shows either."""
    return bool(x.sum().isfinite())


def _giving_back(on_tile: tiles.TileCallback | None) -> tiles.TileCallback:
    """The same, after freed heap memory was returned to the operating system."""

    def after(done: float, total: int) -> None:
        heap.give_back()
        if on_tile is not None:
            on_tile(done, total)

    return after


def wake(module: nn.Module) -> None:
    """Has accelerate's offloading bring a model to its device, as a call of the model itself would."""
    hook = getattr(module, "_hf_hook", None)
    if hook is not None:
        hook.pre_forward(module)
