"""An adversarial realism term: a convolutional discriminator with logits at three scales.

Non-saturating logistic loss (arXiv 1406.2661) with a finite-difference form of the R1 penalty (arXiv 1801.04406): the
logits may not change much under a little noise on photographs. It sees the picture beside the enlarged low-resolution
one, so it can tell invention that fits from invention that does not. Its layers are normalised per pixel: with spectral
norm instead, logits stayed near zero for hundreds of steps, and the generator drew dots along edges meanwhile. What it
is shown is cut at a random place, so that no phase of its coarser grids is a blind spot.

The generator's gradient is scaled, picture by picture, to the size of that of an L1 loss, times `weight`, whatever the
discriminator's own scale: what VSD's normaliser does for that term. No picture's share depends on another, so
accumulated batches and several processes give the gradient of one large batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctsr.assess.vgg import STAGES, open_vgg
from ctsr.models.unet_mini import pixel_norm
from training.engine.draws import Draws
from training.engine.sources import Sample
from training.engine.turn import Turn
from training.model.one_step import enlarge, scale_of

DETAIL_GAIN = 5.0  # about what brings the detail that an enlargement lacks to unit size
MARGIN = 8  # px that the random cut takes away
JUDGED = range(1, 3)  # stages of VGG16 from 0: heads on the first cost as much as all else, beyond they see no texture
WIDTHS = (48, 80, 112)  # at 1/2, 1/4 and 1/8


@dataclass(frozen=True)
class Adversarial:
    """Settings of the term.

    Attributes:
        weight: size of its gradient beside that of an L1 loss; zero leaves the term out.
        penalty: of the logits' change under noise, per squared noise; 0 for none.
        noise: standard deviation of that noise, of [-1, 1] pictures.
        peak_rate: of the discriminator.
        features: VGG16 weights; the discriminator then judges frozen features instead of pixels.
        delay: steps in which the discriminator learns alone; then the weight grows over as many.
    """

    weight: float = 0.0
    penalty: float = 0.03
    noise: float = 0.05
    peak_rate: float = 5e-4
    delay: int = 100
    features: Path | None = None


class NormBlock(nn.Module):
    """x + conv(silu(conv(silu(norm(x))))), both 3x3, the norm per pixel over channels."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(F.silu(pixel_norm(x)))))


class Discriminator(nn.Module):
    """[B, 3, H, W] picture and its condition, H and W multiples of 8 -> logits [B, n] at 1/2, 1/4 and 1/8."""

    def __init__(self, widths: Sequence[int] = WIDTHS):
        super().__init__()
        self.conv_in = nn.Conv2d(6 * 4, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList(NormBlock(width) for width in widths)
        self.last = NormBlock(widths[-1])
        self.down = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in pairwise(widths))
        self.heads = nn.ModuleList(nn.Conv2d(width, 1, 3, padding=1) for width in widths)

    def forward(self, x: Tensor, condition: Tensor) -> list[Tensor]:
        detail = DETAIL_GAIN * (x - condition)  # else it would see little but brightness and colour at first
        cells = F.pixel_unshuffle(torch.cat([detail, condition], dim=1), 2)
        h = self.conv_in(cells.contiguous(memory_format=torch.channels_last))
        logits: list[Tensor] = []
        for level, (block, head) in enumerate(zip(self.blocks, self.heads, strict=True)):
            h = block(h)
            if level == len(self.down):
                h = self.last(h)
            logits.append(head(F.silu(pixel_norm(h))).flatten(1).float())
            if level < len(self.down):
                h = self.down[level](F.avg_pool2d(h, 2))
        return logits


def mean_over_scales(logits: Sequence[Tensor], loss: Callable[[Tensor], Tensor]) -> Tensor:
    """Each scale counts alike."""
    return torch.stack([loss(row).mean() for row in logits]).mean()


def cut(batch: Sample, seed: int, *pictures: Tensor) -> list[Tensor]:
    """Every sample's pictures [B, 3, H, W] at a random place of its own, `MARGIN` px smaller."""
    draws = Draws(batch["index"], seed)
    tops, lefts = draws.integers("top", 0, MARGIN).tolist(), draws.integers("left", 0, MARGIN).tolist()
    height, width = pictures[0].shape[2] - MARGIN, pictures[0].shape[3] - MARGIN
    places = list(zip(tops, lefts, strict=True))
    return [
        torch.stack([x[:, top : top + height, left : left + width] for x, (top, left) in zip(xs, places, strict=True)])
        for xs in pictures
    ]


class FeatureDiscriminator(nn.Module):
    """Logits [B, n] on frozen VGG16 features at 1/2 and 1/4, as projected GANs have it (arXiv 2111.01007).

    Features come trained, so that the heads need an order fewer steps than a discriminator on pixels.

    Args:
        path: VGG16 weights; see `ctsr.assess.vgg.read_weights`.
        width: channels of a head.
    """

    def __init__(self, path: Path, width: int = 64):
        super().__init__()
        self.vgg = open_vgg(path)
        self.heads = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, width, 1),
                nn.SiLU(),
                nn.Conv2d(width, width, 3, padding=1),
                nn.SiLU(),
                nn.Conv2d(width, 1, 1),
            )
            for channels, _ in (STAGES[number] for number in JUDGED)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Pictures [B, 3, H, W] in [-1, 1] -> a row of logits a level."""
        features = self.vgg(x, JUDGED.stop)[JUDGED.start :]
        if not x.requires_grad:
            features = [feature.detach() for feature in features]
        return [head(pixel_norm(f)).flatten(1).float() for head, f in zip(self.heads, features, strict=True)]


def look(discriminator: nn.Module, batch: Sample, seed: int, *pictures: Tensor) -> list[Sequence[Tensor]]:
    """Logits of each of the pictures [B, 3, H, W], a row [B, n] a scale.

    A discriminator on pixels sees them cut, beside the enlarged low-resolution picture, and all at once.
    """
    if isinstance(discriminator, FeatureDiscriminator):
        return [discriminator(x) for x in pictures]
    *shown, condition = cut(batch, seed, *pictures, enlarge(batch["lr"], scale_of(batch)))
    logits = cast("list[Tensor]", discriminator(torch.cat(shown), condition.repeat(len(shown), 1, 1, 1)))
    return list(zip(*(row.chunk(len(shown)) for row in logits), strict=True))


class AdversarialTerm:
    """The generator's side: the discriminator judges with fixed weights, the gradient goes through to the picture."""

    def __init__(self, settings: Adversarial, seed: int):
        self.settings, self.seed = settings, seed
        features = settings.features
        network = Discriminator() if features is None else FeatureDiscriminator(features)
        self.discriminator = network.to(memory_format=torch.channels_last)

    def direction(self, x: Tensor, batch: Sample) -> Tensor:
        """Gradient of the logistic loss by pictures x [B, 3, H, W], of root mean square 1 in each."""
        with torch.enable_grad():
            picture = x if x.requires_grad else x.detach().requires_grad_(True)
            (logits,) = look(self.discriminator, batch, self.seed, picture)
            loss = mean_over_scales(logits, lambda row: F.softplus(-row))
            (gradient,) = torch.autograd.grad(loss, picture, retain_graph=True)  # features serve other losses too
        return gradient / gradient.square().mean(dim=(1, 2, 3), keepdim=True).sqrt().clamp_min(1e-20)

    def share(self, step: int) -> float:
        """Of the weight, after `step` steps."""
        delay = self.settings.delay
        return 1.0 if delay == 0 else min(1.0, max(0.0, (step - delay) / delay))

    def loss(self, x: Tensor, batch: Sample) -> Tensor:
        """Weighted term of pictures [B, 3, H, W]; only its gradient means something, its value is about zero."""
        share = self.share(int(batch["step"]))
        if share == 0:
            return (0 * x).sum()
        return share * self.settings.weight * (self.direction(x, batch) * (x - x.detach())).mean()

    def turn(self) -> Turn:
        """The discriminator's own part of a step, after the generator's, whose pictures it finds as `fake`."""
        module = DiscriminatorLoss(self.discriminator, self.settings, self.seed)
        return Turn("discriminator", module, self.settings.peak_rate, betas=(0.0, 0.99), weight_decay=0.0)


class DiscriminatorLoss(nn.Module):
    """Logistic loss on photographs and on the generator's pictures, and the penalty."""

    def __init__(self, discriminator: nn.Module, settings: Adversarial, seed: int):
        super().__init__()
        self.discriminator, self.settings, self.seed = discriminator, settings, seed

    def forward(self, batch: Sample) -> dict[str, Tensor]:
        """`loss` of `batch["real"]`, or the photograph, as real and `batch["fake"]` as not, and its terms."""
        real = batch.get("real", batch["sharp"])
        pictures = [real, batch["fake"]]
        if self.settings.penalty:
            pictures.append(real + self.settings.noise * Draws(batch["index"], self.seed).normal("discriminator", real))
        reals, fakes, *noisies = look(self.discriminator, batch, self.seed, *pictures)
        logistic = mean_over_scales(reals, lambda row: F.softplus(-row)) + mean_over_scales(fakes, F.softplus)
        if not noisies:
            return {"loss": logistic}
        changes = [a - b for a, b in zip(noisies[0], reals, strict=True)]
        penalty = self.settings.penalty * mean_over_scales(changes, torch.square) / self.settings.noise**2
        return {"loss": logistic + penalty, "logistic": logistic, "penalty": penalty}
