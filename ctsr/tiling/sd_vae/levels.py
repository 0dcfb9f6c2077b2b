"""Stable Diffusion's autoencoder as two chains of levels, each at one resolution.

A chain computes what `AutoencoderKL.encode(...).latent_dist.mode()` or `.decode(...).sample` does, by the same layers.
The forward of resnets and of the middle block is written out here, so that whoever runs a level decides how its
GroupNorms are computed.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d_blocks import UNetMidBlock2D
from torch import Tensor, nn

from ...families import Timestep
from ...models.autoencoder_kl_time_aware import TimeAwareAutoencoderKL, steps_of
from ...models.forward import vae_scale_factor

_BLOCKS = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}
ATTENTION_SCORES = 2**27
"""Scores of attention at a time, for devices where torch has no implementation that keeps none."""
Modules = tuple[nn.Module, ...]
Normalise = Callable[[nn.GroupNorm, Tensor], Tensor]
"""Computes a GroupNorm of [B, C, h, w]."""


def _by_itself(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """GroupNorm by the statistics of its argument, as ever."""
    return norm(x)


class Mode(nn.Module):
    """The posterior's mean, which is its mode, out of mean and logarithm of the variance: [B, 2C, h, w] -> half."""

    def forward(self, moments: Tensor) -> Tensor:
        return moments.chunk(2, dim=1)[0]


@dataclass(frozen=True)
class Level:
    """A part of a network at one resolution. It may begin by doubling the grid, or end by halving it.

    Attributes:
        before: modules without GroupNorm, or with attention.
        resnets: diffusers' `ResnetBlock2D`.
        after: what follows them.
        read_scale: samples a cell of the input.
        write_scale: samples a cell of the result.
        embed: the time embedding that the resnets get, in the dtype and on the device of its argument; None for none.
    """

    before: Modules
    resnets: Modules
    after: Modules
    read_scale: int
    write_scale: int
    embed: Callable[[Tensor], Tensor | None]

    def __call__(self, x: Tensor, normalise: Normalise = _by_itself) -> Tensor:
        """[B, C, h * read_scale, w * read_scale] -> [B, C', h * write_scale, w * write_scale]."""
        emb = self.embed(x)
        for module in (*self.before, *self.resnets, *self.after):
            x = forward(module, x, emb, normalise)
        return x

    @property
    def scale(self) -> int:
        """Samples a cell of the finer of its two grids, on which it works."""
        return max(self.read_scale, self.write_scale)

    @property
    def convolutions(self) -> list[nn.Conv2d]:
        """All of them, without those of adapters, which reach no further."""
        modules = (*self.before, *self.resnets, *self.after)
        named = [item for module in modules for item in cast(Any, module).named_modules()]
        return [module for name, module in named if isinstance(module, nn.Conv2d) and "lora_" not in name]

    @property
    def radius(self) -> int:
        """Samples of the finer grid that its convolutions reach; one that halves the grid is left out."""
        return sum(conv.kernel_size[0] // 2 for conv in self.convolutions if conv.stride[0] == 1)

    @property
    def width(self) -> int:
        """Channels of its widest activation on the finer grid."""
        return max(conv.in_channels for conv in self.convolutions)

    @property
    def result_width(self) -> int:
        """Channels after its resnets."""
        return int(cast(Any, self.resnets[-1]).out_channels)

    @property
    def input_width(self) -> int:
        """Channels of its input."""
        return self.convolutions[0].in_channels


Levels = tuple[Level, ...]


def run_levels(levels: Levels, x: Tensor, normalise: Normalise = _by_itself) -> Tensor:
    """Levels one after the other, in the dtype of their weights."""
    dtype = next(levels[0].resnets[0].parameters()).dtype
    x = x.to(dtype).contiguous(memory_format=torch.channels_last)
    for level in levels:
        x = level(x, normalise)
    return x


def forward(module: nn.Module, x: Tensor, emb: Tensor | None, normalise: Normalise) -> Tensor:
    """A module of a level."""
    if isinstance(module, nn.GroupNorm):
        return normalise(module, x)
    if isinstance(module, ResnetBlock2D):
        return resnet(module, x, emb, normalise)
    if isinstance(module, UNetMidBlock2D):
        return middle_block(module, x, emb, normalise)
    return module(x)


def middle_block(block: Any, x: Tensor, emb: Tensor | None, normalise: Normalise) -> Tensor:
    """Resnets with attention between them."""
    x = resnet(block.resnets[0], x, emb, normalise)
    for attention, following in zip(block.attentions, block.resnets[1:], strict=True):
        if attention is not None:
            x = _attend(attention, x, normalise)
        x = resnet(following, x, emb, normalise)
    return x


def resnet(block: Any, x: Tensor, emb: Tensor | None, normalise: Normalise) -> Tensor:
    """[B, C, h, w] -> [B, C', h, w]."""
    h = block.conv1(block.nonlinearity(normalise(block.norm1, x)))
    h = modulate(block, normalise(block.norm2, h), emb)
    h = block.conv2(block.nonlinearity(h))
    shortcut = x if block.conv_shortcut is None else block.conv_shortcut(x)
    return (shortcut + h) / block.output_scale_factor


def modulate(block: Any, h: Tensor, emb: Tensor | None) -> Tensor:
    """h * (1 + scale) + shift by the time embedding, where there is one."""
    if emb is None or block.time_emb_proj is None:
        return h
    scale, shift = block.time_emb_proj(emb)[:, :, None, None].chunk(2, dim=1)
    return h * (1 + scale) + shift


def _attend(attention: Any, x: Tensor, normalise: Normalise) -> Tensor:
    """Attention of every sample to all others, by SDPA; queries go in chunks of at most `ATTENTION_SCORES` scores."""
    tokens = normalise(attention.group_norm, x.contiguous()).flatten(2).mT  # as diffusers lays it out: the same bits
    query, key, value = (
        project(tokens).unflatten(2, (attention.heads, -1)).transpose(1, 2)
        for project in (attention.to_q, attention.to_k, attention.to_v)
    )
    chunks = query.split(max(1, ATTENTION_SCORES // key.shape[-2]), dim=-2)
    h = torch.cat([F.scaled_dot_product_attention(chunk, key, value) for chunk in chunks], dim=-2)
    h = attention.to_out[0](h.transpose(1, 2).flatten(2))
    return (h.mT.unflatten(2, x.shape[-2:]) + x) / attention.rescale_output_factor


def reach(levels: Levels) -> int:
    """Cells around a cell on which its result depends by convolutions; attention is not counted."""
    samples = 0
    for level in reversed(levels):
        if level.write_scale < level.read_scale:
            samples = 2 * samples + 1  # stride 2 over 3 samples, padded after the last
        samples += level.radius
        if level.write_scale > level.read_scale:
            samples = -(-samples // 2)
    return -(-samples // levels[0].read_scale)


def has_levels(vae: nn.Module) -> bool:
    """Whether an autoencoder is of Stable Diffusion's shape."""
    if not isinstance(vae, AutoencoderKL):
        return False
    config = cast(Any, vae).config
    return all(set(config[key]) == {block} for key, block in _BLOCKS.items()) and len(config["block_out_channels"]) > 1


def decoder_levels(vae: AutoencoderKL) -> Levels:
    """Unscaled latents -> picture in about [-1, 1]; the first level has the middle block with its attention."""
    decoder: Any = vae.decoder
    blocks = list(decoder.up_blocks)
    post = () if vae.post_quant_conv is None else (vae.post_quant_conv,)
    first = (*post, decoder.conv_in, decoder.mid_block)
    last = (decoder.conv_norm_out, decoder.conv_act, decoder.conv_out)
    return tuple(
        Level(
            before=first if level == 0 else parts(blocks[level - 1], "upsamplers"),
            resnets=parts(block, "resnets"),
            after=last if level == len(blocks) - 1 else (),
            read_scale=max(1, 2**level // 2),
            write_scale=2**level,
            embed=lambda x: None,
        )
        for level, block in enumerate(blocks)
    )


def encoder_levels(vae: AutoencoderKL, timestep: Timestep | None) -> Levels:
    """Picture in [-1, 1] -> unscaled latents, the posterior's mode; the last level has the middle block."""
    encoder: Any = vae.encoder
    blocks = list(encoder.down_blocks)
    quant = () if vae.quant_conv is None else (vae.quant_conv,)
    last = (encoder.mid_block, encoder.conv_norm_out, encoder.conv_act, encoder.conv_out, *quant, Mode())
    factor = vae_scale_factor(vae)
    return tuple(
        Level(
            before=(encoder.conv_in,) if level == 0 else (),
            resnets=parts(block, "resnets"),
            after=last if level == len(blocks) - 1 else parts(block, "downsamplers"),
            read_scale=factor >> level,
            write_scale=max(1, factor >> (level + 1)),
            embed=lambda x: None if timestep is None else embedding(vae, timestep, x),
        )
        for level, block in enumerate(blocks)
    )


def parts(block: nn.Module, name: str) -> Modules:
    """The resnets, upsamplers or downsamplers of a block."""
    return tuple(cast("Iterable[nn.Module] | None", getattr(block, name)) or ())


def embedding(vae: AutoencoderKL, timestep: Timestep, x: Tensor) -> Tensor:
    """Activated embedding of a time-aware encoder's timestep, [B | 1, 256] in x's dtype."""
    encoder = cast(TimeAwareAutoencoderKL, vae).encoder
    return F.silu(encoder.time_embedding(encoder.time_proj(steps_of(timestep, x)).to(x.dtype)))
