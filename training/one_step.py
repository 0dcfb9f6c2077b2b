"""The one-step model as the stages train it: encoder at one timestep, UNet, endpoints, decoder."""

from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctsr.families import Endpoints, Family, blend, get_family
from ctsr.models.autoencoder_mini import TimeAwareAutoencoderMini
from ctsr.models.unet_mini import TimeConditionedUNetMini
from training.autoencoder import to_tensor
from training.degradation import SCALE, Degradation, degrade, gaussian
from training.loop import Sample
from training.photos import Photos, random_crop

TIMESTEP = 999  # one step from the far end, as OSEDiff; the time-aware encoder and the UNet both see it


@dataclass(frozen=True)
class Pairs:
    """How low-resolution twins are made."""

    crop: int = 160
    degradation: Degradation = "mix"
    softness: float = 1.0  # px: the truth of a camera picture is not razor-sharp, so the faithful target is not either
    seed: int = 0


def make_pair(photos: Photos, pairs: Pairs, index: int) -> Sample:
    """`lr` [3, crop/4, crop/4], `soft` (what the LR was made from) and `sharp` (the photograph) [3, crop, crop]."""
    rng = np.random.default_rng((pairs.seed, index))
    pixels = list(photos.train.values())[rng.integers(len(photos.train))]
    sharp = random_crop(pixels, pairs.crop, rng)
    sigma = pairs.softness * rng.random() if rng.random() < 0.75 else 0.0
    soft = np.rint(gaussian(sharp.astype(np.float32), sigma)).astype(np.uint8)
    lr = degrade(soft, pairs.degradation, rng)
    return {"lr": to_tensor(lr), "soft": to_tensor(soft), "sharp": to_tensor(sharp)}


def enlarge(lr: Tensor) -> Tensor:
    """Bicubic x4 as the pipeline does it, [B, 3, h, w] -> [B, 3, 4h, 4w]."""
    return F.interpolate(lr, scale_factor=SCALE, mode="bicubic", antialias=True).contiguous(
        memory_format=torch.channels_last
    )


class OneStep(nn.Module):
    """Pictures to endpoints, and latents to pictures."""

    def __init__(self, vae: TimeAwareAutoencoderMini, unet: TimeConditionedUNetMini):
        super().__init__()
        self.vae, self.unet = vae, unet
        self.family: Family = replace(get_family("ctsr"), parameterization="residual")

    @property
    def scaling_factor(self) -> float:
        return cast(float, self.vae.config["scaling_factor"])

    def encode(self, x: Tensor) -> Tensor:
        """z_L, scaled: [B, 3, H, W] in [-1, 1] -> [B, C, H/8, W/8]."""
        return self.scaling_factor * self.vae.encode(x, TIMESTEP).latents

    def forward(self, lr: Tensor) -> Endpoints:
        """LR [B, 3, h, w] in [-1, 1] -> endpoints."""

        def predict(z: Tensor, timestep: int, variant: str | None) -> Tensor:
            return self.unet(z, timestep).sample

        return self.family.endpoints(predict, [self.encode(enlarge(lr))])

    def decode(self, z: Tensor) -> Tensor:
        """Scaled latents -> fp32 picture, not clamped."""
        return self.vae.decode(z / self.scaling_factor).sample.float()


def held_back_pairs(photos: Photos, pairs: Pairs, size: int = 384) -> list[Sample]:
    """One fixed pair, `camera` degraded, from the middle of every held-back photograph."""
    out: list[Sample] = []
    for index, pixels in enumerate(photos.held_back.values()):
        rng = np.random.default_rng((pairs.seed, 1, index))
        top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
        sharp = np.ascontiguousarray(pixels[top : top + size, left : left + size])
        soft = np.rint(gaussian(sharp.astype(np.float32), pairs.softness * rng.random())).astype(np.uint8)
        lr = degrade(soft, "camera", rng)
        out.append({"lr": to_tensor(lr), "soft": to_tensor(soft), "sharp": to_tensor(sharp)})
    return out


def luma(x: Tensor) -> Tensor:
    """BT.601 luma in 16..235 of [B, 3, H, W] in [-1, 1]."""
    weights = torch.tensor([65.481, 128.553, 24.966], device=x.device).view(1, 3, 1, 1)
    return (weights * (x.clamp(-1, 1) + 1) / 2).sum(1, keepdim=True) + 16


def psnr_y(x: Tensor, y: Tensor) -> float:
    """Luma PSNR in dB of [-1, 1] pictures."""
    return float(10 * torch.log10(255**2 / F.mse_loss(luma(x), luma(y)).clamp_min(1e-10)))


@torch.no_grad()
def validate(model: OneStep, pairs: list[Sample]) -> dict[str, float]:
    """Mean luma PSNR over held-back pairs: bicubic and the two ends against what the LR was made from."""
    rows: list[tuple[float, float, float]] = []
    for pair in pairs:
        lr, truth = pair["lr"][None], pair["soft"][None]
        with torch.autocast("cpu", torch.bfloat16):
            ends = model(lr)
            x0, x1 = model.decode(blend(ends, 0.0)), model.decode(blend(ends, 1.0))
        rows.append((psnr_y(enlarge(lr), truth), psnr_y(x0, truth), psnr_y(x1, truth)))
    bicubic, realistic, faithful = np.mean(rows, axis=0)
    return {"bicubic": bicubic, "t=0": realistic, "t=1": faithful, "gain": faithful - bicubic}
