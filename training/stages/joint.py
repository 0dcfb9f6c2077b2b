"""Both ends and the way between them at once, behind stage 2.

    python -m training.stages.joint mini --data.photos PHOTOS --start RUNS/stage2/model.safetensors --run.out RUNS/joint

Stage 2 reads the faithful end off features that were trained for the realistic one, by a single convolution: the
further a realism term has taken them, the less they say of the ground truth. Here every weight learns for all of the
dial:

    rec_r(x^0, x_H) + realism terms on x^0 + rec_f(x^1, x_H) + path(x^t)

x^t = D(z^t) with z^t of `ctsr.families.blend`, rec_r and rec_f the distances of `training.stages.osediff` and
`training.stages.fidelity`, path that of `training.losses.dial_path`. Other restorers' pictures may be what the ends are
to draw. The mini's alone: SD's decoder is frozen, so there is less that could learn together.
"""

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
import tyro
from torch import Tensor, nn

from ctsr.families import blend
from training.data.datasets import Data, mini2_data, mini_data, open_source, taught_source
from training.data.photos import Photos
from training.engine.draws import Draws
from training.engine.run import Run
from training.engine.sources import Sample, Source
from training.engine.turn import Turn
from training.losses.adversarial import Adversarial
from training.losses.dial_path import path_loss
from training.losses.perceptual import perceptual_loss
from training.losses.realism import Realism, RealismTerms, open_realism, total
from training.losses.reconstruction import Reconstruction, reconstruction_losses
from training.losses.score_networks import RegulariserLora
from training.losses.vsd import VSD
from training.model.adapt import Adapt, adapt
from training.model.one_step import OneStep, open_pipeline
from training.stages import fidelity, osediff
from training.stages.stage import Stage, finish_and_save, main, validate
from training.stages.stage2 import with_dial_groups


@dataclass(frozen=True)
class Recipe:
    """Defaults and their reasons.

    Attributes:
        start: a file of `training.stages.stage2`.
        prior, regulariser_lora: for VSD, as in `training.stages.osediff`.
        realistic, faithful: distances of the ends.
        path: weight of the pictures on the way against the blend of the end pictures. They differ by
            some 2e-5, squared, beside some .1 of the ends' distances: a weight of 4 does not disturb those.
        realism: terms on the realistic end.
        lr, hr: folders of low-resolution pictures and their ground truth, beside photographs.
        realistic_pictures, faithful_pictures: what two other restorers made of those of `lr`: there the ends are to
            draw these and not the ground truth.
        taught_share: of the samples, 0 to 1, come from these folders; the rest are photographs.
    """

    data: Data
    run: Run
    start: str
    prior: Path | None = None
    regulariser_lora: RegulariserLora | None = None
    adapt: Adapt = field(default_factory=Adapt)
    peak_rate: float = 2e-4
    realistic: Reconstruction = field(default_factory=Reconstruction)
    faithful: Reconstruction = field(default_factory=Reconstruction)
    path: float = 4.0
    realism: Realism = field(default_factory=Realism)
    lr: Path | None = None
    hr: Path | None = None
    realistic_pictures: Path | None = None
    faithful_pictures: Path | None = None
    taught_share: float = 0.5


MINI = Recipe(
    # Full-size pictures of a camera are softer than photographs from the web: trained on ground truths of at most 1 px,
    # the faithful end learned to undo blur that was the ground truth's own, and lost on them what it gained on others.
    data=replace(mini_data(), pairs=replace(mini_data().pairs, softness=2.0)),
    run=Run(out=tyro.MISSING, steps=2000, ema=0.99),
    start=tyro.MISSING,
    # Half of the factor with which fidelity trains the autoencoder, which is nearly there.
    adapt=Adapt(autoencoder_factor=0.2),
    # Less sharpening than osediff's, whose edges overshoot where a camera's own are soft.
    realistic=Reconstruction(l1=1.0, l2=3.0, low=2.0, perceptual=0.0, features="none", sharpen=1.0),
    faithful=Reconstruction(l1=1.0, l2=5.0, perceptual=0.0, features="none"),
    realism=Realism(vsd=VSD(weight=0.0, guidance=1.0, moved=True), adversarial=Adversarial(weight=0.5)),
)
MINI2 = Recipe(
    data=replace(
        mini2_data(softness=1.0), pairs=replace(mini2_data(softness=1.0).pairs, camera_share=0.6, bicubic_share=0.1)
    ),
    run=Run(out=tyro.MISSING, steps=3700, batch=4, ema=0.998, max_norm=0.5),
    start=tyro.MISSING,
    peak_rate=3e-4,
    realistic=replace(osediff.MINI2.reconstruction, l1=2.0),
    # Ten times those of fidelity: the realistic end has a perceptual loss, of some 30 times the gradient of L1.
    faithful=replace(fidelity.MINI2.reconstruction, l1=10.0, l2=20.0),
    path=0.0,  # its decoder is linear: every picture on the way is the blend of the ends
    realism=osediff.MINI2.realism,
)
RECIPES = {
    "mini": ("ctsr-mini on two CPU cores", MINI),
    "mini2": ("ctsr-mini 2 on two CPU cores; its perceptual weights are given apart", MINI2),
}


class Dial(nn.Module):
    """The generator's loss."""

    def __init__(self, model: OneStep, recipe: Recipe, terms: RealismTerms):
        super().__init__()
        self.model, self.recipe, self.terms = model, recipe, terms
        self.realistic_features = perceptual_loss(recipe.realistic.features, model, recipe.realistic.weights)
        self.faithful_features = perceptual_loss(recipe.faithful.features, model, recipe.faithful.weights)

    def forward(self, batch: Sample) -> dict[str, Tensor]:
        """`loss`, its terms, and for the turns after it `fake` and `real` [B, 3, H, W] and `latents` [B, C, h, w]."""
        ends = self.model(batch["lr"], self.model.told(batch))
        t = Draws(batch["index"], self.recipe.run.seed).uniform("dial").to(ends.z0.device)
        latents = torch.cat([ends.z0, blend(ends, 1.0), blend(ends, t)])
        x0, x1, x = self.model.decode(latents).chunk(3)
        real = self.model.ground_truth(batch)
        realistic, faithful = batch.get("realistic", real), batch.get("faithful", batch["soft"])
        distances = {
            "realistic": reconstruction_losses(x0, realistic, self.recipe.realistic, self.realistic_features),
            "faithful": reconstruction_losses(x1, faithful, self.recipe.faithful, self.faithful_features),
        }
        terms = {f"{end}_{name}": term for end, row in distances.items() for name, term in row.items()}
        if self.recipe.path:
            terms["path"] = self.recipe.path * path_loss(x, x0, x1, t)
        judged = self.terms.judged(ends.z0, x0, batch)
        return {**total(terms | self.terms.losses(judged, x0, batch)), "fake": x0, "real": real, "latents": judged}


def open_pictures(recipe: Recipe, photos: Photos) -> Source:
    """Degraded photographs, and the pictures of `lr` with what two restorers made of them."""
    folders = (recipe.lr, recipe.hr, recipe.realistic_pictures, recipe.faithful_pictures)
    if folders == (None, None, None, None):
        return open_source(recipe.data, photos)
    lr, hr, realistic, faithful = folders
    if lr is None or hr is None or realistic is None or faithful is None:
        raise ValueError("Give --lr, --hr, --realistic-pictures and --faithful-pictures together, or none of them.")
    return taught_source(recipe.data, photos, (lr, hr, realistic, faithful), recipe.taught_share)


def build(recipe: Recipe) -> Stage:
    """The stage of a recipe; raises ValueError for a UNet that does not learn as a whole."""
    if recipe.adapt.unet != "full":
        raise ValueError("What the two ends share must learn for both: give --adapt.unet full.")
    pipeline = with_dial_groups(open_pipeline(recipe.start, pairs=recipe.data.pairs))
    model = OneStep(pipeline)
    groups = adapt(model, recipe.adapt)
    terms = open_realism(recipe)
    return Stage(
        turns=[Turn("dial", Dial(model, recipe, terms), recipe.peak_rate, groups), *terms.turns],
        source=partial(open_pictures, recipe),
        validate=partial(validate, model),
        write=lambda _: finish_and_save(pipeline, model, recipe.adapt, recipe.run.out),
    )


if __name__ == "__main__":
    main(RECIPES, build)
