"""The three networks of a pipeline as functions that can be tiled: encoder, UNet, decoder, mini or SD.

What a network needs for tiling is read from the model: one with a receptive radius (`encoder_halo`, `halo`,
`decoder_halo`) is tiled by halo and crop, exactly. Stable Diffusion's autoencoder, which normalises over space, is
run as `sd_vae.schedule` plans. Tiles of any other, such as Stable Diffusion's UNet, are blended.
"""

from functools import partial
from typing import Any, cast

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor, nn

from ..families import Timestep
from ..models import forward
from .memory import working_memory
from .network import Network, TileCallback, tiles_at_once
from .sd_vae import schedule
from .sd_vae.levels import Levels, decoder_levels, encoder_levels, has_levels, reach


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
        run_levels=partial(_run_levels, vae, levels) if levels else None,
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
        run_levels=partial(_run_levels, vae, levels) if levels else None,
    )


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
        halo=getattr(module, "halo", None),
        align=unet_alignment(module),
        bytes_per_pixel=bytes_per_pixel(module, "unet", factor),
        attends=prompt_width(module) is not None,
    )


def _cells_of(pixels: int | None, factor: int) -> int | None:
    """Latents that cover so many pixels."""
    return None if pixels is None else -(-pixels // factor)


def _tiles_halo(levels: Levels) -> int:
    """Latents that the levels which may be tiled reach; the one at the latents' resolution never is."""
    return reach(tuple(level for level in levels if level.scale > 1))


def bytes_per_pixel(module: nn.Module, stage: str, factor: int) -> float:
    """Working bytes a pixel, measured (benchmarks/memory.py): of the mini, and of SD 2.1 by its narrowest width."""
    size = next(module.parameters()).element_size()
    measured = getattr(module, "working_values_per_pixel", None)
    if measured is not None:
        return size * measured[stage]
    width = cast(Any, module).config["block_out_channels"][0]
    values = {"encode": 4.5 * width, "decode": 6 * width, "unet": 32 * width / factor**2}
    return size * values[stage]


def prompt_width(module: nn.Module) -> int | None:
    """Width of the prompt embeddings that a UNet attends to; None for one without cross-attention."""
    config = cast(Any, module).config
    blocks = (*config.get("down_block_types", ()), config.get("mid_block_type"))
    return config["cross_attention_dim"] if any("CrossAttn" in str(block) for block in blocks) else None


def unet_alignment(module: nn.Module) -> int:
    """Latents that the UNet's lowest level makes one of."""
    return 2 ** (len(cast(Any, module).config["block_out_channels"]) - 1)


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
        return working_memory(height, width, network.bytes_per_cell)
    if network.levels:
        size = network.module_dtype.itemsize
        return int(size * schedule.working_values(network.levels, height, width, tile, budget / size))
    side = tile + 2 * (network.halo or 0)
    one = working_memory(min(side, height), min(side, width), network.bytes_per_cell)
    return one * tiles_at_once(network, height, width, tile, budget, device)


def describe_tiles(network: Network, height: int, width: int, tile: int | None, budget: float) -> str:
    """In words, how `tiled.run` goes over height x width latents."""
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


def _run_levels(
    vae: nn.Module,
    levels: Levels,
    x: Tensor,
    tile: int,
    budget: float,
    device: torch.device,
    on_tile: TileCallback | None,
) -> Tensor:
    """See `Network.run_levels`."""
    hook = getattr(vae, "_hf_hook", None)
    if hook is not None:
        hook.pre_forward(vae)  # accelerate's offloading brings the weights, as a call of the model itself would
    size = next(vae.parameters()).dtype.itemsize
    return schedule.run(levels, x, tile, budget / size, device, on_tile)
