"""Time-conditioned one-step UNet of ctsr-mini.

Blocks after NAFNet (arXiv 2204.04676: gates instead of activations) with the norm taken per pixel over channels and
without its global channel attention, so that nothing depends on the picture outside the receptive field; the timestep
scales and shifts each norm as in DiT's adaLN-Zero (arXiv 2212.09748). No attention, no text, no GroupNorm. Our own
code. Apache-2.0.

Called as diffusers' `UNet2DConditionModel` is; `encoder_hidden_states` is accepted and ignored.
"""

from typing import cast

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import (
    ConfigMixin,
    register_to_config,  # pyright: ignore[reportUnknownVariableType]
)
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import Tensor, nn

from .autoencoder_mini import conv_radius, zero_


def pixel_norm(x: Tensor) -> Tensor:
    """LayerNorm over the channels of each pixel of [B, C, h, w], without weights."""
    return F.layer_norm(x.permute(0, 2, 3, 1), (x.shape[1],), eps=1e-5).permute(0, 3, 1, 2)


def gate(x: Tensor) -> Tensor:
    """NAFNet's SimpleGate: the product of the two halves of the channels."""
    a, b = x.chunk(2, dim=1)
    return a * b


class GatedBlock(nn.Module):
    """Depthwise mixing, then channel mixing, each x + f(norm(x)); both start at zero, so a new block is x."""

    def __init__(self, channels: int, time_embed_dim: int, kernel_size: int):
        super().__init__()
        self.time_proj = zero_(nn.Linear(time_embed_dim, 4 * channels))
        wide = 2 * channels
        self.expand = nn.Conv2d(channels, wide, 1)
        self.depthwise = nn.Conv2d(wide, wide, kernel_size, padding=kernel_size // 2, groups=wide)
        self.project = zero_(nn.Conv2d(channels, channels, 1))
        self.mix_in = nn.Conv2d(channels, wide, 1)
        self.mix_out = zero_(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        scale_1, shift_1, scale_2, shift_2 = self.time_proj(F.silu(emb))[:, :, None, None].chunk(4, dim=1)
        h = pixel_norm(x) * (1 + scale_1) + shift_1
        x = x + self.project(gate(self.depthwise(self.expand(h))))
        h = pixel_norm(x) * (1 + scale_2) + shift_2
        return x + self.mix_out(gate(self.mix_in(h)))


class TimeConditionedUNetMini(ModelMixin, ConfigMixin):
    """Two-level UNet on latents with output groups [o, delta, kappa].

    Args:
        in_channels: channels of the latent.
        out_channels: channels of the output; three groups of `in_channels` for the `ctsr` family.
        block_out_channels: widths at the latent's resolution and at half of it.
        layers_per_block: blocks before the descent (and as many after the ascent), and at the bottom.
        kernel_size: of the depthwise convolutions.
        time_embed_dim: width of the timestep embedding.
        time_cond_proj_dim: width of a second condition beside the timestep, as in diffusers' UNet; None for none. It
            enters through a projection that starts at zero.
    """

    config_name = "config.json"

    @register_to_config
    def __init__(
        self,
        in_channels: int = 112,
        out_channels: int = 336,
        block_out_channels: tuple[int, int] = (192, 384),
        layers_per_block: tuple[int, int] = (3, 4),
        kernel_size: int = 5,
        time_embed_dim: int = 128,
        time_cond_proj_dim: int | None = None,
    ):
        super().__init__()
        top, bottom = block_out_channels
        self.time_proj = Timesteps(time_embed_dim, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(time_embed_dim, time_embed_dim, cond_proj_dim=time_cond_proj_dim)
        if time_cond_proj_dim is not None:
            nn.init.zeros_(cast(nn.Linear, self.time_embedding.cond_proj).weight)

        def blocks(channels: int, count: int) -> nn.ModuleList:
            return nn.ModuleList(GatedBlock(channels, time_embed_dim, kernel_size) for _ in range(count))

        self.conv_in = nn.Conv2d(in_channels, top, 3, padding=1)
        self.down_blocks = blocks(top, layers_per_block[0])
        self.down = nn.Conv2d(top, bottom, 2, stride=2)
        self.mid_blocks = blocks(bottom, layers_per_block[1])
        self.up = nn.Conv2d(bottom, 4 * top, 1)
        self.up_blocks = blocks(top, layers_per_block[0])
        self.conv_out = zero_(nn.Conv2d(top, out_channels, 3, padding=1))

    @property
    def halo(self) -> int:
        """Receptive radius in latents; one more for the pairing of latents at the lower level."""
        top = (self.conv_in, self.down_blocks, self.up_blocks, self.conv_out)
        return sum(map(conv_radius, top)) + 2 * conv_radius(self.mid_blocks) + 1

    @property
    def working_values_per_pixel(self) -> dict[str, float]:
        """Numbers alive at once a pixel of the picture, measured at the default widths (benchmarks/memory.py)."""
        return {"unet": 32.0}

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor | None = None,
        timestep_cond: Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DConditionOutput | tuple[Tensor]:
        """Predicts the output groups.

        Args:
            sample: latents [B, in_channels, h, w]; an odd side is padded inside and cropped again.
            timestep: 0..999, one for all or one a picture.
            encoder_hidden_states: ignored.
            timestep_cond: second condition [B, time_cond_proj_dim]; None leaves it out.

        Returns:
            `UNet2DConditionOutput` with `sample` [B, out_channels, h, w], or a tuple.
        """
        height, width = sample.shape[-2:]
        steps = torch.as_tensor(timestep, dtype=torch.float32, device=sample.device).reshape(-1).expand(sample.shape[0])
        emb = self.time_embedding(self.time_proj(steps).to(sample.dtype), timestep_cond)
        x = self.conv_in(F.pad(sample, (0, width % 2, 0, height % 2), mode="replicate"))
        for block in self.down_blocks:
            x = block(x, emb)
        skip = x
        x = self.down(x)
        for block in self.mid_blocks:
            x = block(x, emb)
        x = F.pixel_shuffle(self.up(x), 2) + skip
        for block in self.up_blocks:
            x = block(x, emb)
        x = self.conv_out(x)[..., :height, :width]
        return UNet2DConditionOutput(sample=x) if return_dict else (x,)
