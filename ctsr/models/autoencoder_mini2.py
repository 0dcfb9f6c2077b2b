"""Time-aware autoencoder of ctsr-mini 2: an orthonormal transform with a small time-aware encoder in front of it.

The latent of a picture is the 4x4 cosine transform of its pixels: 48 numbers for 4x4x3, orthonormal, so the decoder
is the exact inverse and adds no error, no border and no cost. The encoder adds what two convolutions make of that
latent, scaled and shifted by the timestep as in TADSR (arXiv 2508.16557), so that the UNet behind it is handed an
input prepared for the timestep. Our own shape and code. Apache-2.0.

Nothing in it normalises over space, so a tile with a halo of `encoder_halo` gives exactly the pixels of the whole
picture.
"""

import math
from typing import cast

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import (
    ConfigMixin,
    register_to_config,  # pyright: ignore[reportUnknownVariableType]
)
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor, nn

from .autoencoder_mini import MiniEncoderOutput, zero_

FACTOR = 4
"""Pixels of a picture to a latent on each side."""
LATENT_CHANNELS = 3 * FACTOR**2


def cosine_transform(factor: int = FACTOR) -> Tensor:
    """Orthonormal 2-D cosine transform (DCT-II) of factor x factor pixels as a matrix [factor^2, factor^2], fp32.

    Rows are frequencies, the mean first; columns are pixels in the order of `torch.nn.functional.pixel_unshuffle`.
    """
    grid = torch.arange(factor, dtype=torch.float64)
    rows = torch.cos(math.pi / factor * grid[:, None] * (grid + 0.5)) * math.sqrt(2 / factor)
    rows[0] /= math.sqrt(2)
    return torch.kron(rows, rows).float()


def colour_transform(dtype: torch.dtype, device: torch.device) -> Tensor:
    """`cosine_transform` of three colours, [48, 48]; no buffer, since weights are loaded into models built empty.

    Made at every call, which costs next to nothing: one that is kept from a plan's fake tensors would be none.
    """
    return torch.kron(torch.eye(3), cosine_transform()).to(dtype=dtype, device=device)


class TimeAwareBlock(nn.Module):
    """x + conv2(relu(conv1(x) * (1 + scale) + shift)), 3x3, scale and shift from the timestep's embedding.

    conv2 and the projection of the embedding start at zero, so a new block is the identity at every timestep. With
    one embedding for the whole batch, scale and shift are folded into conv1: the timestep costs nothing.
    """

    def __init__(self, in_channels: int, channels: int, time_embed_dim: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.conv2 = zero_(nn.Conv2d(channels, in_channels, 3, padding=1))
        self.time_proj = zero_(nn.Linear(time_embed_dim, 2 * channels))

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """[B, in_channels, h, w] and an embedding [1 or B, time_embed_dim] -> the shape of x."""
        scale, shift = self.time_proj(F.silu(emb)).chunk(2, dim=1)
        if emb.shape[0] == 1:
            weight = self.conv1.weight * (1 + scale[0])[:, None, None, None]
            h = F.conv2d(x, weight, cast(Tensor, self.conv1.bias) * (1 + scale[0]) + shift[0], padding=1)
        else:
            h = self.conv1(x) * (1 + scale)[:, :, None, None] + shift[:, :, None, None]
        return x + self.conv2(F.relu(h, inplace=not torch.is_grad_enabled()))


class TimeEmbedding(nn.Module):
    """Sinusoids of a timestep, then two linear layers, as diffusers' UNets embed theirs."""

    def __init__(self, dim: int):
        super().__init__()
        self.sinusoids = Timesteps(dim, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.mlp = TimestepEmbedding(dim, dim)

    def forward(self, timestep: Tensor | float, like: Tensor) -> Tensor:
        """Timestep in 0..999, one for all or one a picture -> [1 or B, dim], dtype and device of `like`."""
        steps = torch.as_tensor(timestep, dtype=torch.float32, device=like.device).reshape(-1)
        return self.mlp(self.sinusoids(steps).to(like.dtype))


class TimeAwareAutoencoderMini2(ModelMixin, ConfigMixin):
    """Autoencoder of factor 4 with 48 latent channels whose encoder knows the timestep.

    Args:
        width: channels of the encoder's block.
        time_embed_dim: width of the timestep embedding.
        scaling_factor: s in z = s * E(x); makes the latents of photographs about unit variance.
    """

    config_name = "config.json"
    vae_scale_factor = FACTOR
    latent_channels = LATENT_CHANNELS

    @register_to_config
    def __init__(self, width: int = 64, time_embed_dim: int = 64, scaling_factor: float = 2.0):
        super().__init__()
        self.time_embedding = TimeEmbedding(time_embed_dim)
        self.encoder = TimeAwareBlock(LATENT_CHANNELS, width, time_embed_dim)

    @property
    def encoder_halo(self) -> int:
        """Pixels of the input around a tile that its latents depend on: two 3x3 convolutions of latents."""
        return 2 * FACTOR

    @property
    def decoder_halo(self) -> int:
        """Pixels of the output that one latent reaches beyond its own 4x4 square: none."""
        return 0

    @property
    def working_values_per_pixel(self) -> dict[str, float]:
        """Numbers alive at once for each pixel of the picture, measured at the default width (benchmarks/memory.py)."""
        return {"encode": 20.0, "decode": 9.0}

    @apply_forward_hook
    def encode(
        self, x: Tensor, timestep: Tensor | float | None = None, return_dict: bool = True
    ) -> MiniEncoderOutput | tuple[Tensor]:
        """Unscaled latents of a picture.

        Args:
            x: [B, 3, H, W] in [-1, 1], H and W multiples of 4.
            timestep: tau in 0..999, one for all or one a picture; None is the plain orthonormal transform.

        Returns:
            `MiniEncoderOutput`, or a tuple with `latents` [B, 48, H/4, W/4].
        """
        latents = self._transform(F.pixel_unshuffle(x, FACTOR), inverse=False)
        if timestep is not None:
            latents = self.encoder(latents, self.time_embedding(timestep, latents))
        return MiniEncoderOutput(latents=latents) if return_dict else (latents,)

    @apply_forward_hook
    def decode(self, z: Tensor, return_dict: bool = True) -> DecoderOutput | tuple[Tensor]:
        """Picture of unscaled latents, the exact inverse of the plain encoder.

        Args:
            z: [B, 48, h, w].

        Returns:
            `DecoderOutput`, or a tuple with `sample` [B, 3, 4h, 4w] in about [-1, 1].
        """
        picture = F.pixel_shuffle(self._transform(z, inverse=True), FACTOR)
        return DecoderOutput(sample=picture) if return_dict else (picture,)

    def _transform(self, x: Tensor, inverse: bool) -> Tensor:
        """The cosine transform of each colour's 16 pixels, or back: [B, 48, h, w], colours outermost."""
        matrix = colour_transform(x.dtype, x.device)
        return F.conv2d(x, (matrix.T if inverse else matrix)[:, :, None, None])
