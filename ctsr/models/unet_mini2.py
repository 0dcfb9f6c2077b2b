"""Time-conditioned one-step UNet of ctsr-mini 2.

Residual blocks of plain 3x3 convolutions at the resolution of the low-resolution picture, after EDSR
(arXiv 1707.02921); the timestep scales and shifts each block. No attention, no text, no normalisation, so nothing
depends on the picture outside the receptive field. Our own code. Apache-2.0.

Called as diffusers' `UNet2DConditionModel` is; `encoder_hidden_states` is accepted and ignored.
"""

from diffusers.configuration_utils import (
    ConfigMixin,
    register_to_config,  # pyright: ignore[reportUnknownVariableType]
)
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import Tensor, nn

from .autoencoder_mini import zero_
from .autoencoder_mini2 import LATENT_CHANNELS, TimeAwareBlock, TimeEmbedding


class TimeConditionedUNetMini2(ModelMixin, ConfigMixin):
    """Residual network on latents with output groups [o, delta]: the decoder is linear, so its dial needs no kappa.

    Args:
        in_channels: channels of the latent.
        out_channels: channels of the output; two groups of `in_channels` for the `ctsr` family.
        block_out_channels: the width, in a tuple as diffusers' UNets have it; one level.
        layers_per_block: residual blocks.
        time_embed_dim: width of the timestep embedding.
    """

    config_name = "config.json"

    @register_to_config
    def __init__(
        self,
        in_channels: int = LATENT_CHANNELS,
        out_channels: int = 2 * LATENT_CHANNELS,
        block_out_channels: tuple[int] = (64,),
        layers_per_block: int = 9,
        time_embed_dim: int = 64,
    ):
        super().__init__()
        (width,) = block_out_channels
        self.time_embedding = TimeEmbedding(time_embed_dim)
        self.conv_in = nn.Conv2d(in_channels, width, 3, padding=1)
        self.blocks = nn.ModuleList(TimeAwareBlock(width, width, time_embed_dim) for _ in range(layers_per_block))
        self.conv_out = zero_(nn.Conv2d(width, out_channels, 3, padding=1))

    @property
    def halo(self) -> int:
        """Receptive radius in latents: one for each 3x3 convolution on the way."""
        return 2 + 2 * len(self.blocks)

    @property
    def working_values_per_pixel(self) -> dict[str, float]:
        """Numbers alive at once for each pixel of the picture, measured at the default width (benchmarks/memory.py)."""
        return {"unet": 24.0}

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DConditionOutput | tuple[Tensor]:
        """Predict the output groups.

        Args:
            sample: latents [B, in_channels, h, w].
            timestep: 0..999, one for all or one a picture.
            encoder_hidden_states: ignored.

        Returns:
            `UNet2DConditionOutput` with `sample` [B, out_channels, h, w], or a tuple.
        """
        emb = self.time_embedding(timestep, sample)
        x = self.conv_in(sample)
        for block in self.blocks:
            x = block(x, emb)
        x = self.conv_out(x)
        return UNet2DConditionOutput(sample=x) if return_dict else (x,)
