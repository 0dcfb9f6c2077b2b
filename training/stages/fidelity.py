"""The fidelity teacher: one step, supervised, nothing but distances, as PiSA-SR's pixel LoRA (arXiv 2412.03017).

    python -m training.stages.fidelity mini --data.photos PHOTOS \\
        --start AUTOENCODER/model.safetensors --run.out RUNS/fidelity
    python -m training.stages.fidelity sd21 --data.photos PHOTOS --start SD21_BASE --run.out RUNS/fidelity

    L = l1 |x - x_H| + l2 (x - x_H)^2 + latent_weight (z - E(x_H))^2        x = D(z)

x_H is the ground truth, E the plain encoder before this stage. The mini's autoencoder (its encoder at tau = 999) learns
together with the UNet; the last term keeps latents what they were. Only the output group o learns: delta and kappa stay
zero. In place of the photographs, another restorer's pictures can be the target (`--restored`, `--lr`): then this makes
an in-family twin of that restorer.
"""

import copy
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn

from ctsr.models import forward
from training.data.datasets import (
    Data,
    lowlight_data,
    mini2_data,
    mini_data,
    open_source,
    restored_source,
    sd21_data,
)
from training.data.photos import Photos
from training.engine.run import Run
from training.engine.sources import Sample, Source
from training.engine.turn import Turn
from training.losses.perceptual import perceptual_loss
from training.losses.realism import total
from training.losses.reconstruction import Reconstruction, reconstruction_losses
from training.model.adapt import SD21_ADAPT, Adapt, adapt
from training.model.one_step import OneStep, open_pipeline
from training.stages.stage import Stage, finish_and_save, main, validate


@dataclass(frozen=True)
class Recipe:
    """Defaults and their reasons.

    Attributes:
        start: "mini", a stage's file, or an SD 2.1 base folder.
        reconstruction: for the mini L1 + 5 L2: PSNR is what this end is for, L1 alone under-weights edges.
        latent_weight: of the distance to the latents of the ground truth by the first encoder; none at SD size, whose
            decoder is frozen and holds the latents where they are.
        lr, restored: folders of low-resolution pictures and of what another restorer made of them, instead of
            degraded photographs.
    """

    data: Data
    run: Run
    start: str
    adapt: Adapt = field(default_factory=Adapt)
    peak_rate: float = 5e-4
    reconstruction: Reconstruction = field(default_factory=Reconstruction)
    latent_weight: float = 0.05
    lr: Path | None = None
    restored: Path | None = None


MINI = Recipe(
    data=mini_data(),
    run=Run(out=tyro.MISSING, steps=6000),
    start=tyro.MISSING,
    reconstruction=Reconstruction(l1=1.0, l2=5.0, perceptual=0.0, features="none"),
)
MINI2 = Recipe(
    data=mini2_data(),
    run=Run(out=tyro.MISSING, steps=7500, batch=8, ema=0.998, max_norm=0.5),
    start="new",
    reconstruction=Reconstruction(l1=1.0, l2=2.0, perceptual=0.0, features="none"),
    latent_weight=0.0,  # its decoder is a fixed transform, which holds the latents where they are
)
LOWLIGHT = replace(MINI2, data=lowlight_data(), run=replace(MINI2.run, steps=2700))
SD21 = Recipe(
    data=sd21_data(),
    run=Run(out=tyro.MISSING, steps=4000, batch=1, accumulation=16, ema=0.999, schedule="constant"),
    start=tyro.MISSING,
    adapt=SD21_ADAPT,
    peak_rate=5e-5,
    reconstruction=Reconstruction(l2=1.0, perceptual=0.0, features="none"),
    latent_weight=0.0,
)
RECIPES = {
    "mini": ("ctsr-mini on two CPU cores", MINI),
    "mini2": ("ctsr-mini 2 on two CPU cores", MINI2),
    "lowlight": ("ctsr-lowlight on two CPU cores", LOWLIGHT),
    "sd21": ("Stable Diffusion 2.1-base on one 24 GB card", SD21),
}


class Generator(nn.Module):
    """The generator's loss."""

    def __init__(self, model: OneStep, recipe: Recipe):
        super().__init__()
        self.model, self.recipe = model, recipe
        self.first_vae = copy.deepcopy(model.vae).requires_grad_(False) if recipe.latent_weight else None
        self.perceptual = perceptual_loss(recipe.reconstruction.features, model, recipe.reconstruction.weights)

    def forward(self, batch: Sample) -> dict[str, Tensor]:
        """`loss` and its terms."""
        truth = batch["soft"].contiguous(memory_format=torch.channels_last)
        z = self.model(batch["lr"], self.model.told(batch)).z0
        terms = reconstruction_losses(self.model.decode(z), truth, self.recipe.reconstruction, self.perceptual)
        if self.first_vae is not None:
            with torch.no_grad():
                aim = self.model.scaling_factor * forward.encode(self.first_vae, truth, None)
            terms["latents"] = self.recipe.latent_weight * F.mse_loss(z, aim.float())
        return total(terms)


def open_target(recipe: Recipe, photos: Photos) -> Source:
    """Degraded photographs, or another restorer's pictures."""
    if recipe.lr is None and recipe.restored is None:
        return open_source(recipe.data, photos)
    if recipe.lr is None or recipe.restored is None:
        raise ValueError("Give --lr and --restored together, folders of pictures of the same names.")
    return restored_source(recipe.data, recipe.lr, recipe.restored, None)


def build(recipe: Recipe) -> Stage:
    """The stage of a recipe."""
    pipeline = open_pipeline(recipe.start, "osediff", recipe.data.pairs)
    model = OneStep(pipeline)
    generator = Generator(model, recipe)
    groups = adapt(model, recipe.adapt)
    return Stage(
        turns=[Turn("generator", generator, recipe.peak_rate, groups)],
        source=partial(open_target, recipe),
        validate=partial(validate, model),
        write=lambda _: finish_and_save(pipeline, model, recipe.adapt, recipe.run.out),
    )


if __name__ == "__main__":
    main(RECIPES, build)
