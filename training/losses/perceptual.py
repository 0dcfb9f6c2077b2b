"""Perceptual losses: LPIPS (VGG), or distances between our own networks' features where its weights cannot be had.

LPIPS: Zhang et al., arXiv 1801.03924, through the `lpips` package, which is the papers' training loss. The other one
compares what the blocks of an encoder of ours see; the recipe chooses, nothing falls back by itself.
"""

import copy
from importlib import import_module
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.model.one_step import OneStep

PerceptualName = Literal["lpips", "encoder", "none"]


class Lpips(nn.Module):
    """LPIPS with VGG16; needs the `lpips` package and torchvision's VGG16 weights."""

    def __init__(self) -> None:
        super().__init__()
        try:
            lpips = import_module("lpips")
        except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision built for another torch
            raise ImportError(
                f"The perceptual loss 'lpips' needs the lpips package and torchvision ({error}): "
                "`pip install lpips`, or do without: --reconstruction.features none --reconstruction.perceptual 0."
            ) from error
        self.net = cast(nn.Module, lpips.LPIPS(net="vgg", verbose=False)).requires_grad_(False).eval()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Mean distance of [B, 3, H, W] pictures in [-1, 1]."""
        return self.net(x, y).mean()


class EncoderFeatures(nn.Module):
    """Distance between the features of a frozen encoder of `TimeAwareAutoencoderMini`, after each of its blocks.

    Features are scaled to unit length at every pixel, as LPIPS does, so that each level counts alike.
    """

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = copy.deepcopy(encoder).requires_grad_(False)

    def features(self, x: Tensor) -> list[Tensor]:
        """[B, C, h, w] after the blocks at 1/4 and at 1/8."""
        net = cast(Any, self.encoder)
        x = net.conv_in(F.pixel_unshuffle(x, 4))
        out: list[Tensor] = []
        for block in net.blocks_4:
            x = block(x)
            out.append(x)
        x = net.down(F.pixel_unshuffle(x, 2))
        for block in net.blocks_8:
            x = block(x)
            out.append(x)
        return [F.normalize(feature.float(), dim=1) for feature in out]

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Mean distance of [B, 3, H, W] pictures in [-1, 1], fp32 scalar."""
        with torch.no_grad():
            aims = self.features(y)
        pairs = zip(self.features(x), aims, strict=True)
        return torch.stack([(a - b).square().sum(1).mean() for a, b in pairs]).mean()


class NoDistance(nn.Module):
    """Zero."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Scalar 0."""
        return x.new_zeros(())


def perceptual_loss(name: PerceptualName, model: OneStep) -> nn.Module:
    """The loss of that name; "encoder" takes a copy of the model's own as it is now."""
    if name == "lpips":
        return Lpips()
    if name == "none":
        return NoDistance()
    encoder = cast(nn.Module, model.vae.encoder)
    if not hasattr(encoder, "blocks_4"):
        raise ValueError(
            "The perceptual loss 'encoder' needs a ctsr-mini autoencoder: give --reconstruction.features lpips for SD."
        )
    return EncoderFeatures(encoder)
