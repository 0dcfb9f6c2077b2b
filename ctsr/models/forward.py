"""The three networks of a pipeline as plain functions, mini or Stable Diffusion: encode, predict, decode.

Each takes its input in any float dtype and computes in the network's own. Differentiable; nothing here is tiled.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from ..families import Timestep

_DEFAULT_FACTOR = 8
"""Of an autoencoder that says nothing about its own, as diffusers assumes."""


def vae_scale_factor(vae: nn.Module) -> int:
    """Pixels a side of a latent: what the autoencoder says itself, else by its number of levels as in diffusers."""
    own = getattr(vae, "vae_scale_factor", None)
    if own is not None:
        return int(own)
    widths = cast(Any, vae).config.get("block_out_channels")
    return _DEFAULT_FACTOR if widths is None else 2 ** (len(widths) - 1)


def latent_channels(vae: nn.Module) -> int:
    """Channels of a latent: what the autoencoder says itself, else its configuration as in diffusers."""
    own = getattr(type(vae), "latent_channels", None)
    return int(own) if own is not None else int(cast(Any, vae).config["latent_channels"])


def encode(vae: nn.Module, x: Tensor, timestep: Timestep | None) -> Tensor:
    """Unscaled latents of a picture, the posterior's mode where there is one.

    Args:
        vae: the autoencoder, of factor f.
        x: [B, 3, H, W] in [-1, 1], H and W multiples of f.
        timestep: tau_e in 0..999, one for all or [B]; None for the plain encoder.

    Returns:
        [B, C, H / f, W / f] in the autoencoder's dtype.
    """
    known = {} if timestep is None else {"timestep": torch.as_tensor(timestep, device=x.device)}
    encoded = cast(Any, vae).encode(prepared(vae, x), **known)
    return encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents


def predict(unet: nn.Module, z: Tensor, timestep: Timestep, prompt_embeds: Tensor | None) -> Tensor:
    """Output groups of the UNet.

    Args:
        unet: the UNet.
        z: scaled latents [n * B, C, h, w], n tiles of each of B pictures.
        timestep: tau_u in 0..999, one for all or one each.
        prompt_embeds: [B, tokens, dim], None for a UNet without cross-attention.

    Returns:
        [n * B, groups * C, h, w] in the UNet's dtype.
    """
    z = prepared(unet, z)
    embeds = None if prompt_embeds is None else prompt_embeds.to(z).repeat(len(z) // len(prompt_embeds), 1, 1)
    return unet(z, torch.as_tensor(timestep, device=z.device), encoder_hidden_states=embeds).sample


def decode(vae: nn.Module, z: Tensor) -> Tensor:
    """Picture in about [-1, 1], [B, 3, f * h, f * w] in the autoencoder's dtype, of unscaled latents [B, C, h, w]."""
    return cast(Any, vae).decode(prepared(vae, z)).sample


def prepared(module: nn.Module, x: Tensor) -> Tensor:
    """`x` in the dtype that the module computes in, channels-last.

    A model of diffusers knows it: with `enable_layerwise_casting` its weights are stored in another one.
    """
    dtype: torch.dtype = getattr(module, "dtype", None) or next(module.parameters()).dtype
    return x.to(dtype).contiguous(memory_format=torch.channels_last)
