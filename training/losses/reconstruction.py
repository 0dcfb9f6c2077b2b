"""Losses against a known picture: the terms, and the weights that a stage gives them."""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.losses.perceptual import PerceptualName

SHARPEN_SIZE, SHARPEN_SIGMA = 13, 2.0  # px: the scale below which a x4 enlargement has lost most
LOW = 4  # side of the cells that the low-frequency term compares


@dataclass(frozen=True)
class Reconstruction:
    """Weights.

    Attributes:
        l1, l2: mean absolute and squared difference of [-1, 1] pictures.
        low: mean absolute difference of 4x4 averages: brightness and colour, which no realism term may move.
        perceptual: of the perceptual loss.
        features: which perceptual loss.
        weights: folder of its weights, for "vgg" (see `training.losses.perceptual.VGGDistance`).
        sharpen: amount of an unsharp mask on the ground truth. Real-ESRGAN (arXiv 2107.10833) sharpens its targets too:
            the mean of all photographs that fit a blurred one is softer than each of them.
    """

    l1: float = 0.0
    l2: float = 1.0
    low: float = 0.0
    perceptual: float = 2.0
    features: PerceptualName = "lpips"
    sharpen: float = 0.0
    weights: Path | None = None


MINI = Reconstruction(l1=1.0, l2=0.0, low=2.0, perceptual=0.0, features="none")


def gaussian_blur(x: Tensor, size: int, sigma: float) -> Tensor:
    """[B, C, H, W] with a Gaussian of odd `size` and `sigma` pixels, mirrored borders."""
    offsets = torch.arange(size, dtype=torch.float32, device=x.device) - size // 2
    row = torch.exp(-0.5 * (offsets / sigma) ** 2)
    row = (row / row.sum()).expand(x.shape[1], 1, 1, size)
    half = size // 2
    x = F.conv2d(F.pad(x, (half, half, 0, 0), mode="reflect"), row, groups=x.shape[1])
    return F.conv2d(F.pad(x, (0, 0, half, half), mode="reflect"), row.transpose(2, 3), groups=x.shape[1])


def sharpened(x: Tensor, amount: float) -> Tensor:
    """x + amount * (x - blurred x), clamped to [-1, 1]; x itself for 0."""
    return (x + amount * (x - gaussian_blur(x, SHARPEN_SIZE, SHARPEN_SIGMA))).clamp(-1, 1) if amount else x


def low_frequency(x: Tensor, y: Tensor) -> Tensor:
    """Mean absolute difference of cell averages."""
    return F.l1_loss(F.avg_pool2d(x, LOW), F.avg_pool2d(y, LOW))


def reconstruction_losses(
    x: Tensor, truth: Tensor, weights: Reconstruction, perceptual: nn.Module
) -> dict[str, Tensor]:
    """The weighted terms by name, of [B, 3, H, W] pictures in [-1, 1]; those of weight zero are left out."""
    truth = sharpened(truth, weights.sharpen)
    terms = {
        "l1": (weights.l1, lambda: F.l1_loss(x, truth)),
        "l2": (weights.l2, lambda: F.mse_loss(x, truth)),
        "low": (weights.low, lambda: low_frequency(x, truth)),
        "perceptual": (weights.perceptual, lambda: perceptual(x, truth)),
    }
    return {name: weight * term() for name, (weight, term) in terms.items() if weight}
