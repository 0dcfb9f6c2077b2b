"""Channels at a UNet's ends, changed after construction: what a start of another family lacks or has too many of.

All act in place, and on the config too, so that the UNet is saved and built again as it is then.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn


def plain_conv(unet: nn.Module, name: str) -> nn.Conv2d:
    """`conv_in` or `conv_out`; raises ValueError where it carries an adapter."""
    conv = getattr(unet, name)
    if not isinstance(conv, nn.Conv2d):
        raise ValueError(f"{name} carries an adapter: call merge_lora(unet), then change its channels.")
    return conv


def register_channels(unet: nn.Module, **channels: int) -> None:
    """`in_channels` or `out_channels` in the config, as if they had been asked for at construction."""
    config = cast(Any, unet).config
    # What diffusers noted as left at its default when the model was built would be dropped by `from_config`.
    defaults = [name for name in config.get("_use_default_values", []) if name not in channels]
    cast(Any, unet).register_to_config(**channels, _use_default_values=defaults)


@torch.no_grad()
def widen_conv_in(unet: nn.Module) -> None:
    """Gives `conv_in` twice its channels; the new half, for z_L, starts at zero.

    Raises:
        ValueError: `conv_in` carries an adapter.
    """
    conv = plain_conv(unet, "conv_in")
    conv.weight = nn.Parameter(torch.cat([conv.weight, torch.zeros_like(conv.weight)], dim=1))
    conv.in_channels *= 2
    register_channels(unet, in_channels=conv.in_channels)


def widen_conv_out(unet: nn.Module, groups: int = 3) -> None:
    """Gives `conv_out` `groups` times its channels; the new ones are zero.

    Family `ctsr` reads the groups as [o, delta, kappa]: a widened UNet gives its old picture at every t.

    Raises:
        ValueError: `conv_out` carries an adapter.
    """
    conv = plain_conv(unet, "conv_out")
    set_outputs(unet, *(torch.cat([p, *[torch.zeros_like(p)] * (groups - 1)]) for p in conv.parameters()))


def keep_groups(unet: nn.Module, channels: int) -> None:
    """Cuts `conv_out` down to its first `channels` outputs, the groups that are wanted.

    Raises:
        ValueError: `conv_out` has fewer, or carries an adapter.
    """
    conv = plain_conv(unet, "conv_out")
    if conv.out_channels < channels:
        raise ValueError(f"conv_out has {conv.out_channels} channels: give a model of {channels} or more.")
    set_outputs(unet, *(p[:channels] for p in conv.parameters()))


def set_outputs(unet: nn.Module, weight: Tensor, bias: Tensor) -> None:
    """Gives `conv_out` this weight [C, ...] and bias [C]."""
    conv = plain_conv(unet, "conv_out")
    conv.weight, conv.bias = (nn.Parameter(p.detach().clone()) for p in (weight, bias))
    conv.out_channels = len(bias)
    register_channels(unet, out_channels=conv.out_channels)
