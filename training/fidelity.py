"""Stage 1: the faithful end, supervised.

    python -m training.fidelity --photos PHOTOS --autoencoder RUNS/autoencoder/vae --run.out RUNS/fidelity \\
        --run.steps 1800 --pairs.crop 128

The autoencoder (its encoder at tau = 999) learns together with the UNet: L1 and L2 on decoded pixels, and a little L2
to the latents that the autoencoder of stage 0 gives the truth, so that latents stay what they were. Only the output
group o learns: delta and kappa stay zero.
"""

import copy
import logging
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor

from ctsr.models.autoencoder_mini import TimeAwareAutoencoderMini
from ctsr.models.unet_mini import TimeConditionedUNetMini
from training.autoencoder import parameter_groups
from training.loop import Run, Sample, averaged, fit, rate, update
from training.one_step import OneStep, Pairs, held_back_pairs, make_pair, validate
from training.photos import load_photos


@dataclass(frozen=True)
class Recipe:
    """Defaults for two CPU cores."""

    photos: Path
    autoencoder: Path
    run: Run
    pairs: Pairs = field(default_factory=Pairs)
    peak_rate: float = 5e-4
    autoencoder_factor: float = 0.4  # it starts trained
    ema: float = 0.998
    l2_weight: float = 5.0  # PSNR is what this end is for; L1 alone under-weights edges
    latent_weight: float = 0.05


def fidelity_loss(x: Tensor, truth: Tensor, l2_weight: float) -> Tensor:
    """L1 + l2_weight * L2 on [-1, 1] pictures."""
    return F.l1_loss(x, truth) + l2_weight * F.mse_loss(x, truth)


def build(autoencoder: Path) -> OneStep:
    """A fresh UNet behind the trained autoencoder."""
    vae = TimeAwareAutoencoderMini.from_pretrained(autoencoder)
    channels = vae.config["latent_channels"]
    unet = TimeConditionedUNetMini(in_channels=channels, out_channels=3 * channels)
    return OneStep(vae, unet).to(memory_format=torch.channels_last)


def train(recipe: Recipe) -> None:
    """Trains, or goes on from the last checkpoint; at the end saves the averaged networks."""
    photos = load_photos(recipe.photos)
    torch.manual_seed(recipe.pairs.seed)
    model = build(recipe.autoencoder)
    teacher = copy.deepcopy(model.vae).requires_grad_(False)
    average = averaged(model, recipe.ema)
    groups = [*parameter_groups(model.vae, recipe.autoencoder_factor), {"params": list(model.unet.parameters())}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=1e-3)
    pairs = held_back_pairs(photos, recipe.pairs)

    def step_of(step: int, batch: Sample) -> dict[str, float]:
        truth = batch["soft"].contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                target = model.scaling_factor * teacher.encode(truth).latents
            z = model(batch["lr"]).z0
            x = model.decode(z)
        pixels = fidelity_loss(x, truth, recipe.l2_weight)
        latents = F.mse_loss(z, target.float())
        update(optimizer, pixels + recipe.latent_weight * latents, rate(step, recipe.run.steps, recipe.peak_rate))
        average.update_parameters(model)
        return {"pixels": pixels.item(), "latents": latents.item()}

    parts = {"model": model, "average": average, "optimizer": optimizer}
    make = lambda index: make_pair(photos, recipe.pairs, index)  # noqa: E731
    if fit(recipe.run, make, step_of, parts, lambda: validate(average.module, pairs)):
        average.module.vae.save_pretrained(recipe.run.out / "vae")
        average.module.unet.save_pretrained(recipe.run.out / "unet")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    train(tyro.cli(Recipe))
