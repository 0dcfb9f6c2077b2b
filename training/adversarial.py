"""The adversarial realism term: is this patch a photograph that fits its low-resolution twin?

A small spectral-norm patch discriminator (arXiv 1802.05957, 1611.07004) with the hinge loss, and feature matching
(pix2pixHD, arXiv 1711.11585), which stands in for a perceptual loss where LPIPS' weights cannot be had.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm


class PatchDiscriminator(nn.Module):
    """[B, 3, H, W] and its enlarged LR, both in [-1, 1] -> scores [B, 1, H/8, W/8] and the features before them."""

    def __init__(self, widths: tuple[int, int, int] = (64, 128, 192)):
        super().__init__()
        first, second, third = widths
        self.layers = nn.ModuleList(
            [
                spectral_norm(nn.Conv2d(2 * 3 * 4, first, 3, padding=1)),
                spectral_norm(nn.Conv2d(first, second, 4, stride=2, padding=1)),
                spectral_norm(nn.Conv2d(second, third, 4, stride=2, padding=1)),
                spectral_norm(nn.Conv2d(third, third, 3, padding=1)),
            ]
        )
        self.score = nn.Conv2d(third, 1, 3, padding=1)

    def forward(self, x: Tensor, enlarged: Tensor) -> tuple[Tensor, list[Tensor]]:
        h = F.pixel_unshuffle(torch.cat([x, enlarged], dim=1), 2)
        features: list[Tensor] = []
        for layer in self.layers:
            h = F.leaky_relu(layer(h), 0.2)
            features.append(h)
        return self.score(h).float(), features


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge loss of the two scores."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def feature_matching(fake: list[Tensor], real: list[Tensor]) -> Tensor:
    """Mean absolute difference of the discriminator's features; the real ones get no gradient."""
    terms = [F.l1_loss(a.float(), b.detach().float()) for a, b in zip(fake, real, strict=True)]
    return torch.stack(terms).mean()
