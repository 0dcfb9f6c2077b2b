"""The realism teacher: one step, supervised, with a realism term (OSEDiff, arXiv 2406.08177).

    python -m training.stages.osediff mini --data.photos PHOTOS \\
        --start RUNS/fidelity/model.safetensors --run.out RUNS/osediff
    python -m training.stages.osediff sd21 --data.photos PHOTOS --start SD21_BASE --run.out RUNS/osediff

Generator: rec(x, x_H) + realism terms on the latent or the picture. sd21 is the paper's: L2 + 2 LPIPS + VSD, LoRA of
rank 4 on encoder and UNet. The mini's defaults are what measured best (README): an adversarial term, no VSD.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import tyro
from accelerate.utils import set_seed
from torch import Tensor, nn

from ctsr import CTSRPipeline
from ctsr.convert.prompts import encode_prompts
from training.data.data import Data, mini_data, open_photos, open_source, sd21_data
from training.engine.loop import Turn, fit
from training.engine.run import Run
from training.engine.sources import Sample
from training.losses import reconstruction
from training.losses.adversarial import Adversarial
from training.losses.perceptual import perceptual_loss
from training.losses.realism import Realism, RealismTerms, total
from training.losses.reconstruction import Reconstruction, reconstruction_losses
from training.losses.scores import RegulariserLora, Scores, open_scores
from training.losses.vsd import VSD
from training.model import adapt as adapting
from training.model.adapt import Adapt, adapt, finish
from training.model.base import NEGATIVE_PROMPT
from training.model.one_step import OneStep, open_pipeline
from training.stages.stage import main, save, validate


@dataclass(frozen=True)
class Recipe:
    """Defaults and their reasons.

    Attributes:
        start: "mini", a stage's file, or an SD 2.1 base folder.
        prior: for VSD: the file of `training.research.prior`, or the SD base folder.
        regulariser_lora: "mid" for parity with the released code, whose other adapters never acted.
    """

    data: Data
    run: Run
    start: str
    prior: Path | None = None
    adapt: Adapt = adapting.MINI
    peak_rate: float = 1.5e-4
    reconstruction: Reconstruction = reconstruction.MINI
    realism: Realism = field(default_factory=Realism)
    regulariser_lora: RegulariserLora | None = None


MINI = Recipe(
    data=mini_data(),
    run=Run(out=tyro.MISSING, steps=400, ema=0.98, warm_up=20, schedule="constant"),
    start=tyro.MISSING,
    # Encoder and decoder stay the lineage's common ones; stage 2 tunes the decoder.
    adapt=replace(adapting.MINI, encoder="frozen", decoder=False, time_layers=False),
    peak_rate=8e-5,  # at 1.5e-4 the generator outruns its discriminator and draws dots along edges
    reconstruction=replace(reconstruction.MINI, l2=3.0, sharpen=1.5),
    # 0.4 holds for hundreds of steps; at 1 and more the discriminator is fooled by step 500.
    realism=Realism(vsd=VSD(weight=0.0, guidance=1.0, moved=True), adversarial=Adversarial(weight=0.4)),
)
SD21 = Recipe(
    data=sd21_data(),
    run=Run(out=tyro.MISSING, steps=14000, batch=1, accumulation=16, ema=0.999, schedule="constant"),
    start=tyro.MISSING,
    prior=tyro.MISSING,
    adapt=adapting.SD21,
    peak_rate=5e-5,
    reconstruction=Reconstruction(l2=1.0, perceptual=2.0, features="lpips"),
    realism=Realism(vsd=VSD(weight=1.0, guidance=7.5), adversarial=Adversarial(weight=0.0)),
    regulariser_lora="all",
)
RECIPES = {"mini": ("ctsr-mini on two CPU cores", MINI), "sd21": ("Stable Diffusion 2.1-base on one 24 GB card", SD21)}


class Generator(nn.Module):
    """The generator's loss."""

    def __init__(self, model: OneStep, weights: Reconstruction, terms: RealismTerms):
        super().__init__()
        self.model, self.weights, self.terms = model, weights, terms
        self.perceptual = perceptual_loss(weights.features, model)

    def forward(self, batch: Sample) -> dict[str, Tensor]:
        """`loss`, its terms, and for the turns after it `fake` [B, 3, H, W] and `latents` [B, C, h, w]."""
        z = self.model(batch["lr"]).z0
        x = self.model.decode(z)
        judged = self.terms.judged(z, x, batch)
        terms = reconstruction_losses(x, batch["sharp"], self.weights, self.perceptual)
        return {**total(terms | self.terms.losses(judged, x, batch)), "fake": x, "latents": judged}


class WithPrior(Protocol):
    """A recipe that has realism terms: this one, and those of the stages that build on it."""

    @property
    def prior(self) -> Path | None: ...

    @property
    def adapt(self) -> Adapt: ...

    @property
    def realism(self) -> Realism: ...

    @property
    def regulariser_lora(self) -> RegulariserLora | None: ...


def prior_scores(recipe: WithPrior) -> Scores | None:
    """The score networks, if VSD is on."""
    if not recipe.realism.vsd.weight:
        return None
    if recipe.prior is None:
        raise ValueError("VSD needs a prior: give --prior, or set --realism.vsd.weight 0.")
    negative = None
    if recipe.realism.vsd.guidance != 1:
        if not recipe.prior.is_dir():
            raise ValueError(
                f"Guidance of {recipe.realism.vsd.guidance:g} needs a negative prompt, and {recipe.prior} has no text "
                "encoder: give a Stable Diffusion folder as --prior, or --realism.vsd.guidance 1."
            )
        negative = encode_prompts(recipe.prior, [NEGATIVE_PROMPT])
    return open_scores(
        open_pipeline(recipe.prior, "osediff"),
        recipe.regulariser_lora,
        recipe.adapt.rank,
        recipe.adapt.alpha,
        negative,
    )


def train(recipe: Recipe) -> None:
    """Trains, or goes on from the last checkpoint; at the end writes the networks."""
    set_seed(recipe.run.seed)
    photos, pairs = open_photos(recipe.data)
    pipeline: CTSRPipeline = open_pipeline(recipe.start, "osediff")
    model = OneStep(pipeline)
    groups = adapt(model, recipe.adapt)
    terms = RealismTerms(recipe.realism, recipe.run.seed, prior_scores(recipe))
    turns = [Turn("generator", Generator(model, recipe.reconstruction, terms), recipe.peak_rate, groups), *terms.turns]
    if fit(recipe.run, open_source(recipe.data, photos), turns, lambda: validate(model, pairs)):
        finish(model, recipe.adapt)
        save(pipeline, recipe.run.out)


if __name__ == "__main__":
    main(RECIPES, train)
