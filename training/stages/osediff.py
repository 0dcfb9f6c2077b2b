"""The realism teacher: one step, supervised, with a realism term (OSEDiff, arXiv 2406.08177).

    python -m training.stages.osediff mini --data.photos PHOTOS \\
        --start RUNS/fidelity/model.safetensors --run.out RUNS/osediff
    python -m training.stages.osediff sd21 --data.photos PHOTOS --start SD21_BASE --run.out RUNS/osediff

Generator: rec(x, x_H) + realism terms on the latent or the picture. sd21 is the paper's: L2 + 2 LPIPS + VSD, LoRA of
rank 4 on encoder and UNet. The mini's defaults are what measured best (README): an adversarial term, no VSD.
"""

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import tyro
from torch import Tensor, nn

from training.data.datasets import Data, lowlight_data, mini2_data, mini_data, open_source, sd21_data
from training.engine.run import Run
from training.engine.sources import Sample
from training.engine.turn import Turn
from training.losses.adversarial import Adversarial
from training.losses.perceptual import perceptual_loss
from training.losses.realism import Realism, RealismTerms, open_realism, total
from training.losses.reconstruction import Reconstruction, reconstruction_losses
from training.losses.score_networks import RegulariserLora
from training.losses.vsd import VSD
from training.model.adapt import SD21_ADAPT, Adapt, adapt
from training.model.one_step import OneStep, open_pipeline
from training.stages.stage import Stage, finish_and_save, main, validate


@dataclass(frozen=True)
class Recipe:
    """Defaults and their reasons.

    Attributes:
        start: "mini", a stage's file, or an SD 2.1 base folder.
        prior: for VSD: the file of `training.research.prior`, or an SD base folder; None is the one of `start`.
        regulariser_lora: "mid" for parity with the released code, whose other adapters never acted.
    """

    data: Data
    run: Run
    start: str
    prior: Path | None = None
    adapt: Adapt = field(default_factory=Adapt)
    peak_rate: float = 1.5e-4
    reconstruction: Reconstruction = field(default_factory=Reconstruction)
    realism: Realism = field(default_factory=Realism)
    regulariser_lora: RegulariserLora | None = None


MINI = Recipe(
    data=mini_data(),
    run=Run(out=tyro.MISSING, steps=400, ema=0.98, warm_up=20, schedule="constant"),
    start=tyro.MISSING,
    # Encoder and decoder stay the lineage's common ones; stage 2 tunes the decoder.
    adapt=Adapt(encoder="frozen", decoder=False, time_layers=False),
    peak_rate=8e-5,  # at 1.5e-4 the generator outruns its discriminator and draws dots along edges
    reconstruction=Reconstruction(l1=1.0, l2=3.0, low=2.0, perceptual=0.0, features="none", sharpen=1.5),
    # 0.4 holds for hundreds of steps; at 1 and more the discriminator is fooled by step 500.
    realism=Realism(vsd=VSD(weight=0.0, guidance=1.0, moved=True), adversarial=Adversarial(weight=0.4)),
)
MINI2 = Recipe(
    # A realism term has nothing to add to a very soft ground truth: most of what it sees is crisp.
    data=mini2_data(softness=1.5),
    run=Run(out=tyro.MISSING, steps=2400, batch=4, ema=0.998, max_norm=0.5),
    start=tyro.MISSING,
    peak_rate=4e-4,
    # By a pixel the perceptual loss has some 30 times the gradient of L1 at one weight (LOG.md).
    reconstruction=Reconstruction(l1=5.0, l2=0.0, low=2.0, perceptual=1.0, features="vgg"),
    # Frozen features come trained: their heads tell photographs from results within tens of steps.
    realism=Realism(vsd=VSD(weight=0.0, guidance=1.0), adversarial=Adversarial(weight=8.0, penalty=0.0, delay=50)),
)
LOWLIGHT = replace(MINI2, data=lowlight_data(), run=replace(MINI2.run, steps=700))
SD21 = Recipe(
    data=sd21_data(),
    run=Run(out=tyro.MISSING, steps=14000, batch=1, accumulation=16, ema=0.999, schedule="constant"),
    start=tyro.MISSING,
    adapt=SD21_ADAPT,
    peak_rate=5e-5,
    reconstruction=Reconstruction(l2=1.0, perceptual=2.0, features="lpips"),
    realism=Realism(vsd=VSD(weight=1.0, guidance=7.5), adversarial=Adversarial(weight=0.0)),
    regulariser_lora="all",
)
RECIPES = {
    "mini": ("ctsr-mini on two CPU cores", MINI),
    "mini2": ("ctsr-mini 2 on two CPU cores; its perceptual weights are given apart", MINI2),
    "lowlight": ("ctsr-lowlight on two CPU cores; its perceptual weights are given apart", LOWLIGHT),
    "sd21": ("Stable Diffusion 2.1-base on one 24 GB card", SD21),
}


class Generator(nn.Module):
    """The generator's loss."""

    def __init__(self, model: OneStep, weights: Reconstruction, terms: RealismTerms):
        super().__init__()
        self.model, self.weights, self.terms = model, weights, terms
        self.perceptual = perceptual_loss(weights.features, model, weights.weights)

    def forward(self, batch: Sample) -> dict[str, Tensor]:
        """`loss`, its terms, and for the turns after it `fake` and `real` [B, 3, H, W] and `latents` [B, C, h, w]."""
        z = self.model(batch["lr"], self.model.told(batch)).z0
        x, real = self.model.decode(z), self.model.ground_truth(batch)
        judged = self.terms.judged(z, x, batch)
        terms = reconstruction_losses(x, real, self.weights, self.perceptual)
        return {**total(terms | self.terms.losses(judged, x, batch)), "fake": x, "real": real, "latents": judged}


def build(recipe: Recipe) -> Stage:
    """The stage of a recipe."""
    pipeline = open_pipeline(recipe.start, "osediff", recipe.data.pairs)
    model = OneStep(pipeline)
    groups = adapt(model, recipe.adapt)
    terms = open_realism(recipe)
    generator = Generator(model, recipe.reconstruction, terms)
    return Stage(
        turns=[Turn("generator", generator, recipe.peak_rate, groups), *terms.turns],
        source=partial(open_source, recipe.data),
        validate=partial(validate, model),
        write=lambda _: finish_and_save(pipeline, model, recipe.adapt, recipe.run.out),
    )


if __name__ == "__main__":
    main(RECIPES, build)
