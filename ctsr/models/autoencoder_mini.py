"""Time-aware, norm-free autoencoder of ctsr-mini.

Idea of the time-aware encoder: TADSR (arXiv 2508.16557). The shape is our own; no code is taken from elsewhere.
Differs from diffusers' `AutoencoderTiny`: blocks of any width, 112 latents, inputs stay in [-1, 1] on every path, no
squashing of latents or outputs, and a sinusoidal timestep that scales and shifts every encoder block. Licence:
Apache-2.0.

Nothing in it normalises over space, so a tile with a halo of `encoder_halo` / `decoder_halo` gives exactly the pixels
of the whole picture.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

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
from diffusers.utils.outputs import BaseOutput
from torch import Tensor, nn


@dataclass
class MiniEncoderOutput(BaseOutput):
    """`latents`: unscaled latents, [B, latent_channels, H/f, W/f], the input's dtype."""

    latents: Tensor


LayerT = TypeVar("LayerT", nn.Conv2d, nn.Linear)


def zero_(layer: LayerT) -> LayerT:
    """Starts a layer with a bias at zero, so that what it ends is the identity."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(cast(Tensor, layer.bias))
    return layer


class TimeAwareResBlock(nn.Module):
    """x + conv2(silu(time(conv1(silu(x))))), both 3x3; `conv2` and `time_proj` start at zero, so a new block is x."""

    def __init__(self, channels: int, time_embed_dim: int | None = None):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = zero_(nn.Conv2d(channels, channels, 3, padding=1))
        self.time_proj = None if time_embed_dim is None else zero_(nn.Linear(time_embed_dim, 2 * channels))

    def forward(self, x: Tensor, emb: Tensor | None = None) -> Tensor:
        h = self.conv1(F.silu(x))
        if emb is not None and self.time_proj is not None:
            scale, shift = self.time_proj(F.silu(emb))[:, :, None, None].chunk(2, dim=1)
            h = h * (1 + scale) + shift
        return x + self.conv2(F.silu(h))


def conv_radius(module: nn.Module) -> int:
    """How many pixels the convolutions of `module`, run one after the other, see beyond their own."""
    return sum(cast(int, m.padding[0]) for m in module.modules() if isinstance(m, nn.Conv2d))


class MiniEncoder(nn.Module):
    """[B, 3, H, W] in [-1, 1] -> [B, latent_channels, H/8, W/8]; H and W multiples of 8."""

    def __init__(self, latent_channels: int, widths: Sequence[int], layers: Sequence[int], time_embed_dim: int):
        super().__init__()
        quarter, eighth = widths
        self.conv_in = nn.Conv2d(3 * 16, quarter, 3, padding=1)
        self.blocks_4 = nn.ModuleList(TimeAwareResBlock(quarter, time_embed_dim) for _ in range(layers[0]))
        self.down = nn.Conv2d(4 * quarter, eighth, 1)
        self.blocks_8 = nn.ModuleList(TimeAwareResBlock(eighth, time_embed_dim) for _ in range(layers[1]))
        self.conv_out = nn.Conv2d(eighth, latent_channels, 3, padding=1)

    @property
    def halo(self) -> int:
        """Receptive radius in pixels, from the convolutions themselves."""
        quarter = conv_radius(self.conv_in) + conv_radius(self.blocks_4)
        eighth = conv_radius(self.down) + conv_radius(self.blocks_8) + conv_radius(self.conv_out)
        return 4 * quarter + 8 * eighth

    def forward(self, x: Tensor, emb: Tensor | None = None) -> Tensor:
        x = self.conv_in(F.pixel_unshuffle(x, 4))
        for block in self.blocks_4:
            x = block(x, emb)
        x = self.down(F.pixel_unshuffle(x, 2))
        for block in self.blocks_8:
            x = block(x, emb)
        return self.conv_out(x)


class MiniDecoder(nn.Module):
    """[B, latent_channels, h, w] -> [B, 3, 8h, 8w] in about [-1, 1]."""

    def __init__(self, latent_channels: int, widths: Sequence[int], layers: Sequence[int]):
        super().__init__()
        half, quarter, eighth = widths
        self.conv_in = nn.Conv2d(latent_channels, eighth, 3, padding=1)
        self.blocks_8 = nn.ModuleList(TimeAwareResBlock(eighth) for _ in range(layers[2]))
        self.up_4 = nn.Conv2d(eighth, 4 * quarter, 1)
        self.blocks_4 = nn.ModuleList(TimeAwareResBlock(quarter) for _ in range(layers[1]))
        self.up_2 = nn.Conv2d(quarter, 4 * half, 1)
        self.blocks_2 = nn.ModuleList(TimeAwareResBlock(half) for _ in range(layers[0]))
        self.conv_out = nn.Conv2d(half, 3 * 4, 3, padding=1)

    @property
    def halo(self) -> int:
        """Receptive radius in pixels of the output."""
        eighth = conv_radius(self.conv_in) + conv_radius(self.blocks_8)
        half = conv_radius(self.blocks_2) + conv_radius(self.conv_out)
        return 8 * eighth + 4 * conv_radius(self.blocks_4) + 2 * half

    def forward(self, z: Tensor) -> Tensor:
        x = self.conv_in(z)
        for block in self.blocks_8:
            x = block(x)
        x = F.pixel_shuffle(self.up_4(x), 2)
        for block in self.blocks_4:
            x = block(x)
        x = F.pixel_shuffle(self.up_2(x), 2)
        for block in self.blocks_2:
            x = block(x)
        return F.pixel_shuffle(self.conv_out(x), 2)


class TimeAwareAutoencoderMini(ModelMixin, ConfigMixin):
    """Autoencoder of factor 8 whose encoder knows the timestep.

    Args:
        latent_channels: channels of a latent.
        block_out_channels: widths at 1/2, 1/4 and 1/8 of the picture's side; the encoder starts at 1/4.
        layers_per_block: residual blocks at 1/2, 1/4 and 1/8.
        time_embed_dim: width of the timestep embedding.
        scaling_factor: s in z = s * E(x); makes the latents of photographs about unit variance.
    """

    config_name = "config.json"

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 112,
        block_out_channels: tuple[int, int, int] = (64, 128, 192),
        layers_per_block: tuple[int, int, int] = (1, 2, 2),
        time_embed_dim: int = 128,
        scaling_factor: float = 1.0,
    ):
        super().__init__()
        self.time_proj = Timesteps(time_embed_dim, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(time_embed_dim, time_embed_dim)
        self.encoder = MiniEncoder(latent_channels, block_out_channels[1:], layers_per_block[1:], time_embed_dim)
        self.decoder = MiniDecoder(latent_channels, block_out_channels, layers_per_block)

    @property
    def vae_scale_factor(self) -> int:
        """Pixels a side of a latent."""
        return 8

    @property
    def encoder_halo(self) -> int:
        """Pixels of the input around a tile that its latents depend on."""
        return self.encoder.halo

    @property
    def decoder_halo(self) -> int:
        """Pixels of the output that one latent reaches beyond its own 8x8 square."""
        return self.decoder.halo

    @property
    def working_values_per_pixel(self) -> dict[str, float]:
        """Numbers alive at once a pixel of the picture, measured at the default widths (benchmarks/memory.py)."""
        return {"encode": 35.0, "decode": 70.0}

    @apply_forward_hook
    def encode(
        self, x: Tensor, timestep: Tensor | float | None = None, return_dict: bool = True
    ) -> MiniEncoderOutput | tuple[Tensor]:
        """Unscaled latents of a picture.

        Args:
            x: [B, 3, H, W] in [-1, 1], H and W multiples of 8.
            timestep: tau in 0..999, one for all or one a picture; None is the plain encoder.

        Returns:
            `MiniEncoderOutput`, or a tuple with `latents` [B, latent_channels, H/8, W/8].
        """
        emb = None
        if timestep is not None:
            steps = torch.as_tensor(timestep, dtype=torch.float32, device=x.device).reshape(-1).expand(x.shape[0])
            emb = self.time_embedding(self.time_proj(steps).to(x.dtype))
        latents = self.encoder(x, emb)
        return MiniEncoderOutput(latents=latents) if return_dict else (latents,)

    @apply_forward_hook
    def decode(self, z: Tensor, return_dict: bool = True) -> DecoderOutput | tuple[Tensor]:
        """Picture of unscaled latents: [B, latent_channels, h, w] -> [B, 3, 8h, 8w], about [-1, 1], not clamped."""
        sample = self.decoder(z)
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def forward(self, sample: Tensor, timestep: Tensor | float | None = None) -> DecoderOutput:
        """Encode and decode, [B, 3, H, W] in [-1, 1]."""
        encoded = cast(MiniEncoderOutput, self.encode(sample, timestep))
        return cast(DecoderOutput, self.decode(encoded.latents))
