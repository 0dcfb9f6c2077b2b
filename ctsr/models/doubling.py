"""Nearest-neighbour doubling and the 3x3 convolution after it as one sub-pixel convolution of the small picture.

Under the kernel lie at most 2x2 different samples of the small picture. So each of the four phases of the result (even
and odd rows and columns) is a 2x2 convolution of it, by sums of the kernel's rows and columns: 4/9 of the arithmetic,
and the same result but for rounding. Sub-pixel convolution: Shi et al., arXiv 1609.07009.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor, nn


class DoublingConv2d(nn.Conv2d):
    """The weights of a 3x3 convolution with padding 1; its input is the picture before it is doubled.

    [B, C, h, w] -> [B, C', 2h, 2w].
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        biases = None if bias is None else bias.repeat(4)
        phases = F.conv2d(input, _phase_kernels(weight), biases, padding=1)
        return interleave(phases, *input.shape[2:])


def double_by_phases(vae: nn.Module) -> None:
    """Has the decoder of Stable Diffusion's autoencoder double so, in place; others are left alone."""
    if not isinstance(vae, AutoencoderKL):
        return
    for block in cast(Any, vae.decoder).up_blocks:
        for upsampler in getattr(block, "upsamplers", None) or ():
            if type(upsampler.conv) is nn.Conv2d and upsampler.interpolate:  # else it has adapters, or is done
                upsampler.conv = doubling(upsampler.conv)
                upsampler.interpolate = False


def doubling(conv: nn.Conv2d) -> DoublingConv2d:
    """With the same parameters."""
    made = DoublingConv2d(
        conv.in_channels, conv.out_channels, 3, padding=1, bias=conv.bias is not None, device="meta"
    ).train(conv.training)
    made.weight, made.bias = conv.weight, conv.bias
    return made


def _phase_kernels(weight: Tensor) -> Tensor:
    """[C', C, 3, 3] -> [4C', C, 2, 2], summed at least in fp32.

    The order of the phases: even rows and columns, even rows and odd columns, odd rows and even columns, both odd.
    """
    rows = pairs(weight.to(torch.promote_types(weight.dtype, torch.float32)), 2)
    kernels = torch.cat([columns for each in rows for columns in pairs(each, 3)])
    return kernels.to(weight.dtype).contiguous(memory_format=torch.channels_last)


def pairs(weight: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """What three taps on a doubled grid weigh of two neighbours on the single one, at its even and its odd samples."""
    before, middle, after = weight.unbind(side)
    return torch.stack([before, middle + after], side), torch.stack([before + middle, after], side)


def interleave(phases: Tensor, height: int, width: int) -> Tensor:
    """[B, 4C, height + 1, width + 1] -> [B, C, 2 * height, 2 * width]; odd samples begin one further on."""
    batch, channels = len(phases), phases.shape[1] // 4
    size = batch, channels, 2 * height, 2 * width
    result = torch.empty(size, dtype=phases.dtype, device=phases.device, memory_format=torch.channels_last)
    for index, phase in enumerate(phases.chunk(4, dim=1)):
        top, left = divmod(index, 2)
        result[..., top::2, left::2] = phase[..., top : top + height, left : left + width]
    return result
