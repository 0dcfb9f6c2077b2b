"""Stage 2: the realistic end, by a simple recipe that needs no second network.

    python -m training.realism --photos PHOTOS --fidelity RUNS/fidelity --run.out RUNS/realism \\
        --run.steps 600 --pairs.crop 128

The UNet of stage 1 splits its ends. The output group o moves to the photograph itself, not to the slightly soft picture
that the LR was made from, and to one of more acutance: an unsharp mask gives back some of the contrast at fine scales
that the mean over all photographs that fit a blurred picture has lost. L1 on pixels and on their gradients. delta
learns the way back to the faithful end, which keeps stage 1's loss. kappa stays zero.
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor

from ctsr.families import blend
from ctsr.models.autoencoder_mini import TimeAwareAutoencoderMini
from ctsr.models.unet_mini import TimeConditionedUNetMini
from training.autoencoder import gradient_l1, parameter_groups
from training.degradation import gaussian
from training.fidelity import fidelity_loss
from training.loop import Run, Sample, averaged, fit, rate, update
from training.one_step import OneStep, Pairs, held_back_pairs, make_pair, validate
from training.photos import Photos, load_photos


@dataclass(frozen=True)
class Recipe:
    """Defaults for two CPU cores."""

    photos: Path
    fidelity: Path
    run: Run
    pairs: Pairs = field(default_factory=Pairs)
    peak_rate: float = 2e-4  # the networks start trained
    autoencoder_factor: float = 0.3
    ema: float = 0.99
    l2_weight: float = 5.0
    gradient_weight: float = 0.5
    sharpen_sigma: float = 2.0  # px: the scale below which a x4 enlargement has lost most
    sharpen_amount: float = 1.25  # lowest NIQE before halos show


def sharpen(x: Tensor, sigma: float, amount: float) -> Tensor:
    """x + amount * (x - blurred x) of [3, H, W] in [-1, 1], clamped."""
    blurred = torch.from_numpy(gaussian(x.permute(1, 2, 0).numpy(), sigma)).permute(2, 0, 1)
    return (x + amount * (x - blurred)).clamp(-1, 1)


def make_sample(photos: Photos, recipe: Recipe, index: int) -> Sample:
    """A pair of `one_step.make_pair` with the `sharpened` photograph."""
    pair = make_pair(photos, recipe.pairs, index)
    return {**pair, "sharpened": sharpen(pair["sharp"], recipe.sharpen_sigma, recipe.sharpen_amount)}


def train(recipe: Recipe) -> None:
    """Trains, or goes on from the last checkpoint; at the end saves the averaged networks."""
    photos = load_photos(recipe.photos)
    torch.manual_seed(recipe.pairs.seed)
    model = OneStep(
        TimeAwareAutoencoderMini.from_pretrained(recipe.fidelity / "vae", low_cpu_mem_usage=False),
        TimeConditionedUNetMini.from_pretrained(recipe.fidelity / "unet", low_cpu_mem_usage=False),
    ).to(memory_format=torch.channels_last)
    average = averaged(model, recipe.ema)
    groups = [*parameter_groups(model.vae, recipe.autoencoder_factor), {"params": list(model.unet.parameters())}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=1e-3)
    pairs = held_back_pairs(photos, recipe.pairs)

    def step_of(step: int, batch: Sample) -> dict[str, float]:
        soft, target = (batch[name].contiguous(memory_format=torch.channels_last) for name in ("soft", "sharpened"))
        with torch.autocast("cpu", torch.bfloat16):
            ends = model(batch["lr"])
            x0, x1 = model.decode(blend(ends, 0.0)), model.decode(blend(ends, 1.0))
        faithful = fidelity_loss(x1, soft, recipe.l2_weight)
        realistic = F.l1_loss(x0, target) + recipe.gradient_weight * gradient_l1(x0, target)
        update(optimizer, faithful + realistic, rate(step, recipe.run.steps, recipe.peak_rate))
        average.update_parameters(model)
        return {"faithful": faithful.item(), "realistic": realistic.item()}

    parts = {"model": model, "average": average, "optimizer": optimizer}
    make = lambda index: make_sample(photos, recipe, index)  # noqa: E731
    if fit(recipe.run, make, step_of, parts, lambda: validate(average.module, pairs)):
        average.module.vae.save_pretrained(recipe.run.out / "vae")
        average.module.unet.save_pretrained(recipe.run.out / "unet")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    train(tyro.cli(Recipe))
