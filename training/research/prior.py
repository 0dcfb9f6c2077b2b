"""The mini's prior: a small latent diffusion model of photographs, the stand-in for Stable Diffusion's.

    python -m training.research.prior mini --data.photos PHOTOS \\
        --start RUNS/autoencoder/model.safetensors --run.out RUNS/prior

Noise prediction on scaled latents of photographs by the frozen autoencoder's plain encoder, timesteps U{0..999}, the
schedule of SD 2.1. Score distillation needs it; alone it upscales nothing, though its file loads like all others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn

from ctsr import CTSRPipeline, TimeConditionedUNetMini
from ctsr.models.building import make_fast
from ctsr.models.forward import latent_channels
from training.data.datasets import Data, batches_of_one, mini_data, open_source
from training.engine.draws import Draws
from training.engine.loop import Report
from training.engine.processes import means
from training.engine.run import Run
from training.engine.sources import Sample
from training.engine.turn import Turn
from training.losses.score_networks import denoiser
from training.losses.vsd import add_noise, clean
from training.model.one_step import OneStep, open_pipeline
from training.stages.stage import Stage, main, save

SCORED = (100, 300, 500, 700, 900)


@dataclass(frozen=True)
class Recipe:
    """Defaults and their reasons.

    Attributes:
        start: file whose autoencoder is used.
        peak_rate: twice that of the one-step stages: no decoder in the loop, and every step sees other noise.
    """

    data: Data
    run: Run
    start: str
    peak_rate: float = 1e-3


MINI = Recipe(data=mini_data(), run=Run(out=tyro.MISSING, steps=2000, batch=16, ema=0.998), start=tyro.MISSING)
RECIPES = {"mini": ("ctsr-mini on two CPU cores", MINI)}


class NoiseLoss(nn.Module):
    """Mean squared error of the predicted noise."""

    def __init__(self, model: OneStep, seed: int):
        super().__init__()
        self.model, self.seed = model, seed

    def forward(self, batch: Sample) -> dict[str, Tensor]:
        """`loss` on the latents of `batch["sharp"]`."""
        with torch.no_grad():
            z = self.model.encode(batch["sharp"]).float()
        draws = Draws(batch["index"], self.seed)
        timestep, noise = draws.integers("timestep", 0, 999).to(z.device), draws.normal("noise", z)
        predicted = self.model.predict(add_noise(z, noise, timestep), timestep, accurately=False).float()
        return {"loss": F.mse_loss(predicted, noise)}


def score(model: OneStep, pairs: Sequence[Sample], seed: int) -> Report:
    """Relative error of the clean latent on held-back photographs at five timesteps: 1 is knowing nothing."""
    rows: dict[str, list[float]] = {f"tau={timestep}": [] for timestep in SCORED}
    for number, sample in enumerate(batches_of_one(pairs, model.unet)):
        z = model.encode(sample["sharp"]).float()
        noise = Draws(torch.tensor([number]), seed).normal("score", z)
        for timestep in SCORED:
            step = torch.tensor([timestep], device=z.device)
            noisy = add_noise(z, noise, step)
            x = clean(noisy, denoiser(model)(noisy, step), step)
            rows[f"tau={timestep}"].append(float(F.mse_loss(x, z) / z.var()))
    return Report(means(rows))


def build(recipe: Recipe) -> Stage:
    """The stage of a recipe."""
    vae = open_pipeline(recipe.start).vae
    channels = latent_channels(vae)
    unet = TimeConditionedUNetMini(in_channels=channels, out_channels=channels)
    pipeline = CTSRPipeline(vae.requires_grad_(False), make_fast(unet), family="osediff", parameterization="epsilon")
    model, seed = OneStep(pipeline), recipe.run.seed
    return Stage(
        turns=[Turn("prior", NoiseLoss(model, seed), recipe.peak_rate)],
        source=partial(open_source, recipe.data),
        validate=partial(score, model, seed=seed),
        write=lambda _: save(pipeline, recipe.run.out),
    )


if __name__ == "__main__":
    main(RECIPES, build)
