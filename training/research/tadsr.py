"""One step at a timestep of its own, by which the realism is chosen (TADSR, arXiv 2508.16557).

    python -m training.research.tadsr mini --data.photos PHOTOS \\
        --start RUNS/fidelity/model.safetensors --run.out RUNS/tadsr
    python -m training.research.tadsr sd21 --data.photos PHOTOS --start SD21_BASE --run.out RUNS/tadsr

Each sample runs at its own tau_s: z_L = s E(x_L, tau_s), o = U(z_L, tau_s), z0 = z_L / sqrt(abar) - o. A small tau_s is
held to the photograph, a large one to its blurred version alone, and its realism term looks at noisier latents. After
the last step `training.research.calibrate` measures which tau does what; the two ends that it finds go into the file.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import tyro
from accelerate import PartialState
from torch import Tensor, nn

from ctsr import CTSRPipeline
from ctsr.families import Parameterization
from ctsr.models.forward import latent_channels
from training.data.datasets import mini_data, open_source, sd21_data
from training.engine.draws import Draws
from training.engine.run import Run
from training.engine.sources import Sample
from training.engine.turn import Turn
from training.losses.adversarial import Adversarial
from training.losses.dial_path import weigh_gradient
from training.losses.perceptual import NoDistance, perceptual_loss
from training.losses.realism import Realism, RealismTerms, open_realism, total
from training.losses.reconstruction import Reconstruction, gaussian_blur, reconstruction_losses
from training.losses.vsd import VSD, GuidanceLaw, half_timesteps, rising_guidance
from training.model.adapt import SD21_ADAPT, adapt
from training.model.one_step import TIMESTEP, OneStep, enlarge, open_pipeline
from training.model.unet_channels import keep_groups
from training.research.calibrate import TIMESTEPS, calibrate, show, store, write_table
from training.stages import osediff
from training.stages.stage import Stage, finish_and_save, main, validate

logger = logging.getLogger(__name__)

GENERATOR_TIMESTEPS = torch.linspace(1, 999, 50, dtype=torch.float64).long()
"""tau_s is one of these, each as likely."""


@dataclass(frozen=True)
class Recipe(osediff.Recipe):
    """Defaults and their reasons; see `osediff.Recipe` for the others.

    Attributes:
        parameterization: the paper's, or "residual" (z0 = z_L - o). The paper's has its encoder shrink z_L up to
            14.6-fold at large tau; an encoder that starts as a one-step model's would have to unlearn its latents.
        adversarial_by_timestep: the generator's gradient from the adversarial term times tau_s / 999, so that a small
            tau stays faithful. Score distillation needs no such thing, its law sees to it.
        timesteps: measured at the end for the dial's ends.
    """

    parameterization: Parameterization = "scaled_residual"
    adversarial_by_timestep: bool = False
    timesteps: tuple[int, ...] = TIMESTEPS


MINI = Recipe(
    data=mini_data(),
    run=Run(out=tyro.MISSING, steps=4000, ema=0.998),
    start=tyro.MISSING,
    reconstruction=Reconstruction(l1=1.0, l2=0.0, low=2.0, perceptual=0.0, features="none"),
    realism=Realism(vsd=VSD(weight=0.0, guidance=1.0, moved=True), adversarial=Adversarial(weight=0.4)),
    parameterization="residual",
    adversarial_by_timestep=True,
)
SD21 = Recipe(
    data=replace(sd21_data(), pairs=replace(sd21_data().pairs, bicubic_share=0.01)),
    run=Run(out=tyro.MISSING, steps=2000, batch=1, accumulation=24, ema=0.999, schedule="constant"),
    start=tyro.MISSING,
    adapt=replace(SD21_ADAPT, time_layers=True, autoencoder_factor=1.0),
    peak_rate=5e-5,
    reconstruction=Reconstruction(l2=1.0, perceptual=2.0, features="lpips"),
    realism=Realism(vsd=VSD(weight=1.0, guidance=7.5), adversarial=Adversarial(weight=0.0)),
    regulariser_lora="all",
)
RECIPES = {"mini": ("ctsr-mini on two CPU cores", MINI), "sd21": ("Stable Diffusion 2.1-base on one 24 GB card", SD21)}


def draw_timesteps(draws: Draws) -> Tensor:
    """tau_s, int64 [B]."""
    return GENERATOR_TIMESTEPS[draws.integers("generator timestep", 0, len(GENERATOR_TIMESTEPS) - 1)]


def blur_of(timestep: int) -> tuple[int, float]:
    """Size 5 + 4 floor(tau / 200) and sigma 1 + tau / 200 in px of the blur that a result at tau is compared under."""
    return 5 + 4 * (timestep // 200), 1 + timestep / 200


def blur_by_timestep(x: Tensor, timestep: Tensor) -> Tensor:
    """Every picture of [B, 3, H, W] under the blur of its own tau [B]; fp32, also under autocast."""
    with torch.autocast(x.device.type, enabled=False):
        rows = [gaussian_blur(row[None].float(), *blur_of(tau)) for row, tau in zip(x, timestep.tolist(), strict=True)]
    return torch.cat(rows)


def guidance_law(scale: float) -> GuidanceLaw | None:
    """`scale` + tau_v / 200, the paper's for 7.5; None, a constant 1, for a prior without prompts."""
    return None if scale == 1 else lambda timestep: rising_guidance(timestep) + (scale - 7.5)


class Generator(nn.Module):
    """The generator's loss."""

    def __init__(self, model: OneStep, recipe: Recipe, terms: RealismTerms):
        super().__init__()
        self.model, self.recipe, self.terms = model, recipe, terms
        self.perceptual = perceptual_loss(recipe.reconstruction.features, model, recipe.reconstruction.weights)

    def forward(self, batch: Sample) -> dict[str, Tensor]:
        """`loss`, its terms, and for the turns after it `fake` [B, 3, H, W], `latents` [B, C, h, w], `timestep` [B]."""
        timestep = draw_timesteps(Draws(batch["index"], self.recipe.run.seed)).to(batch["lr"].device)
        z = self.model.x0(self.model.encode(enlarge(batch["lr"], self.model.scale), timestep), timestep)
        x = self.model.decode(z)
        shown = weigh_gradient(x, timestep / TIMESTEP) if self.recipe.adversarial_by_timestep else x
        judged = self.terms.judged(z, x, batch)
        terms = self.distances(x, batch["sharp"], timestep) | self.terms.losses(judged, shown, batch, timestep)
        return {**total(terms), "fake": x, "latents": judged, "timestep": timestep}

    def distances(self, x: Tensor, truth: Tensor, timestep: Tensor) -> dict[str, Tensor]:
        """Weighted terms against the photograph: the perceptual one as it is, all others under the blur of tau."""
        weights = self.recipe.reconstruction
        blurred = (blur_by_timestep(picture, timestep) for picture in (x, truth))
        whole = replace(weights, l1=0.0, l2=0.0, low=0.0)
        return {
            **reconstruction_losses(*blurred, replace(weights, perceptual=0.0), NoDistance()),
            **reconstruction_losses(x, truth, whole, self.perceptual),
        }


def open_start(recipe: Recipe) -> CTSRPipeline:
    """The pipeline that `recipe.start` names, as one of family tadsr."""
    pipeline = open_pipeline(recipe.start, "tadsr", recipe.data.pairs)
    keep_groups(pipeline.unet, latent_channels(pipeline.vae))
    pipeline.register_to_config(
        family="tadsr", parameterization=recipe.parameterization, encoder_timesteps=None, dial_timesteps=None
    )
    return pipeline


def give_dial(pipeline: CTSRPipeline, path: Path, pairs: Sequence[Sample], timesteps: Sequence[int]) -> None:
    """Calibrates what was saved at `path` and gives the file the ends found; without any it keeps the family's."""
    calibration = calibrate(pipeline, pairs, timesteps)
    if not PartialState().is_main_process:
        return
    logger.info("calibrated:\n%s", show(calibration))
    write_table(calibration, path.with_suffix(".calibration.json"))
    if calibration.has_dial:
        store(pipeline, calibration, path)
    else:
        logger.warning("realism hardly grows with tau: the dial stays between tau = %s", pipeline.family.timesteps)


def build(recipe: Recipe) -> Stage:
    """The stage of a recipe."""
    pipeline = open_start(recipe)
    model = OneStep(pipeline)
    groups = adapt(model, recipe.adapt)
    terms = open_realism(recipe, half_timesteps, guidance_law(recipe.realism.vsd.guidance))

    def write(pairs: Sequence[Sample]) -> None:
        path = finish_and_save(pipeline, model, recipe.adapt, recipe.run.out)
        give_dial(pipeline, path, pairs, recipe.timesteps)

    return Stage(
        turns=[Turn("generator", Generator(model, recipe, terms), recipe.peak_rate, groups), *terms.turns],
        source=partial(open_source, recipe.data),
        validate=partial(validate, model),
        write=write,
    )


if __name__ == "__main__":
    main(RECIPES, build)
