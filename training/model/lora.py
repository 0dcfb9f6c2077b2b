"""Which modules of Stable Diffusion OSEDiff adapts, and in which groups.

Paper: OSEDiff (arXiv 2406.08177). Original repository: cswry/OSEDiff (Apache-2.0; no code taken). Group names, rank and
alpha are its checkpoints'. The adapters themselves are `ctsr.models.lora`'s; its functions can be imported from here
too.
"""

import re
from collections.abc import Mapping
from types import MappingProxyType

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn

from ctsr.models.lora import add_lora, lora_parameters, merge_lora

__all__ = ["ALPHA", "RANK", "add_lora", "lora_parameters", "merge_lora", "train_conv_in", "unet_targets", "vae_targets"]

RANK = 4
ALPHA = 8.0  # OSEDiff passes none: peft's default, so the adapters' share is 2; its checkpoints do not say

ADAPTED = re.compile(
    r"(^|\.)(to_[qkv]|to_out\.0|proj_in|proj_out|ff\.net\.0\.proj|ff\.net\.2"
    r"|conv|conv_in|conv_out|conv1|conv2|conv_shortcut|quant_conv)$"
)
UNET_GROUPS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "default_encoder": ("conv_in", "down_blocks"),
        "default_decoder": ("up_blocks", "conv_out"),
        "default_others": ("mid_block",),
    }
)
VAE_GROUP = "default_encoder"
VAE_PARTS = ("encoder", "quant_conv")


def adapted(model: nn.Module, parts: tuple[str, ...]) -> list[str]:
    """Names of the convolutions and linear layers that OSEDiff's rule takes from these parts of a model."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and name.split(".")[0] in parts and ADAPTED.search(name)
    ]


def unet_targets(unet: UNet2DConditionModel) -> dict[str, list[str]]:
    """OSEDiff's three groups: convolutions, attention, feed-forward and projections, but no time layers.

    94, 148 and 16 modules at SD 2.1 size.
    """
    return {group: adapted(unet, parts) for group, parts in UNET_GROUPS.items()}


def vae_targets(vae: AutoencoderKL) -> dict[str, list[str]]:
    """One group, convolutions and attention of the encoder with `quant_conv`; no time layers. 32 at SD 2.1 size."""
    return {VAE_GROUP: adapted(vae, VAE_PARTS)}


def train_conv_in(unet: UNet2DConditionModel) -> list[nn.Parameter]:
    """Unfreezes weight and bias of `conv_in` under its adapter, as OSEDiff does, and returns them.

    They become fp32, since steps of 5e-5 vanish in half precision: run such a UNet under autocast.
    """
    layer: nn.Module = getattr(unet.conv_in, "base_layer", unet.conv_in)
    return list(layer.float().requires_grad_(True).parameters())
