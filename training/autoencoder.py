"""Stage 0: the time-aware autoencoder of ctsr-mini, the ceiling of everything behind it.

    python -m training.autoencoder --photos PHOTOS --run.out RUNS/autoencoder --run.steps 5000

L1 on pixels and on their gradients; a little noise on the latent and a weak pull to zero keep the latent smooth and of
bounded size, so that the one-step UNet can move in it. Ends by measuring the gate of the recipe on held-back
photographs.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ctsr.models.autoencoder_mini import TimeAwareAutoencoderMini
from training.dct_init import dct_init_
from training.loop import Run, Sample, averaged, fit, rate, update
from training.photos import Photos, load_photos, random_crop

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """Defaults for two CPU cores."""

    photos: Path
    run: Run
    crop: int = 128  # 16x16 latents: twice the decoder's receptive radius
    peak_rate: float = 2e-4  # at 5e-4 and more the loss rises again after the warm-up
    ema: float = 0.998  # some 500 steps: the run is short
    soft_share: float = 0.25  # the encoder also meets enlarged, blurred pictures: that is what it will see
    gradient_weight: float = 1.0
    latent_noise: float = 0.003  # of latents of about unit size
    latent_weight: float = 1e-5
    seed: int = 0


def to_tensor(pixels: NDArray[np.uint8]) -> Tensor:
    """[H, W, 3] uint8 -> [3, H, W] fp32 in [-1, 1]."""
    return torch.tensor(pixels).permute(2, 0, 1).float() / 127.5 - 1


def soften(pixels: NDArray[np.uint8], factor: float) -> NDArray[np.uint8]:
    """The picture made `factor` times smaller and bicubically enlarged again."""
    size = pixels.shape[1], pixels.shape[0]
    small = max(1, round(size[0] / factor)), max(1, round(size[1] / factor))
    image = Image.fromarray(pixels).resize(small, Image.Resampling.BICUBIC)
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC))


def make_sample(photos: Photos, recipe: Recipe, index: int) -> Sample:
    """A crop of a photograph, now and then softened."""
    rng = np.random.default_rng((recipe.seed, index))
    pixels = list(photos.train.values())[rng.integers(len(photos.train))]
    crop = random_crop(pixels, recipe.crop, rng)
    if rng.random() < recipe.soft_share:
        crop = soften(crop, rng.uniform(1.5, 4))
    return {"hr": to_tensor(crop)}


def gradients(x: Tensor) -> tuple[Tensor, Tensor]:
    """Differences of neighbouring pixels, horizontal and vertical."""
    return x[..., :, 1:] - x[..., :, :-1], x[..., 1:, :] - x[..., :-1, :]


def gradient_l1(x: Tensor, y: Tensor) -> Tensor:
    """Mean absolute difference of the pixel gradients."""
    return sum((F.l1_loss(a, b) for a, b in zip(gradients(x), gradients(y), strict=True)), torch.zeros(()))


def loss_of(model: TimeAwareAutoencoderMini, x: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Reconstruction through a slightly noisy latent, plus the pull on the latent's size."""
    with torch.autocast("cpu", torch.bfloat16):
        z = model.encode(x).latents
        noise = torch.randn(z.shape, generator=generator).to(z.dtype)
        y = model.decode(z + recipe.latent_noise * noise).sample
    y = y.float()
    return (
        F.l1_loss(y, x) + recipe.gradient_weight * gradient_l1(y, x) + recipe.latent_weight * z.float().square().mean()
    )


def psnr(x: Tensor, y: Tensor) -> float:
    """PSNR in dB of [-1, 1] pictures."""
    return float(10 * torch.log10(4 / F.mse_loss(x, y).clamp_min(1e-12)))


@torch.no_grad()
def validate(model: torch.nn.Module, photos: Photos, crop: int = 384) -> dict[str, float]:
    """The gate's two PSNRs on the middle of each held-back photograph, and the latent's standard deviation."""
    rows = {"hr": [], "bicubic": []}
    deviations: list[float] = []
    for pixels in photos.held_back.values():
        h, w = pixels.shape[:2]
        top, left = (h - crop) // 2, (w - crop) // 2
        middle = np.ascontiguousarray(pixels[top : top + crop, left : left + crop])
        for name, picture in (("hr", middle), ("bicubic", soften(middle, 4))):
            x = to_tensor(picture)[None].contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16):
                z = model.encode(x).latents
                y = model.decode(z).sample
            rows[name].append(psnr(y.float().clamp(-1, 1), x))
            if name == "hr":
                deviations.append(float(z.float().std()))
    return {**{k: float(np.mean(v)) for k, v in rows.items()}, "std": float(np.mean(deviations))}


def parameter_groups(vae: torch.nn.Module, factor: float = 1.0) -> list[dict[str, Any]]:
    """Residual blocks at `factor` of the rate, the linear chain between them at a tenth of that.

    The chain starts as a cosine transform, which larger steps would shake to pieces.
    """
    named = list(vae.named_parameters())
    blocks = [p for name, p in named if "blocks_" in name]
    chain = [p for name, p in named if "blocks_" not in name]
    return [{"params": blocks, "factor": factor}, {"params": chain, "factor": 0.1 * factor}]


def train(recipe: Recipe) -> None:
    """Trains, or goes on from the last checkpoint; at the end saves the averaged networks."""
    photos = load_photos(recipe.photos)
    logger.info("%d photographs, %d held back", len(photos.train), len(photos.held_back))
    torch.manual_seed(recipe.seed)
    model = TimeAwareAutoencoderMini().to(memory_format=torch.channels_last)
    dct_init_(model)
    average = averaged(model, recipe.ema)
    optimizer = torch.optim.AdamW(parameter_groups(model), betas=(0.9, 0.99), weight_decay=1e-4)

    def step_of(step: int, batch: Sample) -> dict[str, float]:
        x = batch["hr"].contiguous(memory_format=torch.channels_last)
        loss = loss_of(model, x, recipe, torch.Generator().manual_seed(step))
        update(optimizer, loss, rate(step, recipe.run.steps, recipe.peak_rate))
        average.update_parameters(model)
        return {"loss": loss.item()}

    parts = {"model": model, "average": average, "optimizer": optimizer}
    make = lambda index: make_sample(photos, recipe, index)  # noqa: E731
    if fit(recipe.run, make, step_of, parts, lambda: validate(average.module, photos)):
        vae = average.module
        vae.register_to_config(scaling_factor=round(1 / validate(vae, photos)["std"], 4))
        vae.save_pretrained(recipe.run.out / "vae")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    train(tyro.cli(Recipe))
