"""Perceptual losses; the recipe names one, nothing falls back by itself.

"lpips" is the papers' training loss (Zhang et al., arXiv 1801.03924) through the `lpips` package; "vgg" is LPIPS and
DISTS from one pass of VGG16, with weights from a folder; "encoder" compares what the blocks of an encoder of ours see;
"none" is zero.
"""

import copy
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctsr.assess.perceptual import dists_distance, lpips_level, products, read_heads, read_shares
from ctsr.assess.vgg import VGG_FILE, open_vgg
from training.model.one_step import OneStep

PerceptualName = Literal["lpips", "vgg", "encoder", "none"]


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


class VGGDistance(nn.Module):
    """LPIPS (arXiv 1801.03924) and DISTS (arXiv 2004.07728) from one pass through VGG16, half each.

    LPIPS compares features pixel by pixel, DISTS their means and covariances over the picture, which lets texture be
    texture that is not the ground truth's own. LPIPS's heads were fitted to features pooled by maximum; here both see
    DISTS's pooling.

    Args:
        folder: with `vgg16_imagenet_features.npz`, `lpips_vgg_lin.npz` (`lin0` ... `lin4`, [C]) and
            `dists_alpha_beta.npz` (`alpha` and `beta`, [1, 1475, 1, 1]).
    """

    def __init__(self, folder: Path):
        super().__init__()
        self.vgg = open_vgg(folder / VGG_FILE)
        heads = read_heads(folder / "lpips_vgg_lin.npz")
        self.heads = nn.ParameterList(nn.Parameter(head, requires_grad=False) for head in heads)
        self.register_buffer("shares", read_shares(folder), persistent=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Mean distance of [B, 3, H, W] pictures in [-1, 1], fp32 scalar."""
        y = y.detach()
        pairs = zip(self.vgg(x), self.vgg(y), strict=True)
        with torch.autocast(x.device.type, enabled=False):
            pixels, levels = products((x + 1) / 2, (y + 1) / 2), [products(*pair) for pair in pairs]
            lpips = torch.stack([lpips_level(of, head) for of, head in zip(levels, self.heads, strict=True)]).sum()
            dists = dists_distance([pixels, *levels], cast(Tensor, self.shares))
        return (lpips + dists) / 2


class NoDistance(nn.Module):
    """Zero."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Scalar 0."""
        return x.new_zeros(())


def perceptual_loss(name: PerceptualName, model: OneStep, weights: Path | None = None) -> nn.Module:
    """The loss of that name; "vgg" reads the folder `weights`, "encoder" copies the model's own as it is now."""
    if name == "vgg":
        if weights is None:
            raise ValueError("The perceptual loss 'vgg' needs weights: give --reconstruction.weights FOLDER.")
        return VGGDistance(weights)
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
