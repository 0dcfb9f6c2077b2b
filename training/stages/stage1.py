"""Stage 1 of CTSR (arXiv 2503.14272): a student of two teachers, the realistic end of the dial.

    python -m training.stages.stage1 mini --data.photos PHOTOS --start RUNS/osediff/model.safetensors \\
        --fidelity RUNS/fidelity/model.safetensors --run.out RUNS/stage1
    python -m training.stages.stage1 sd21 --data.photos PHOTOS --start RUNS/osediff/model.safetensors \\
        --fidelity RUNS/fidelity/model.safetensors --autoencoder SD21_BASE --run.out RUNS/stage1

L = L_rec + lambda_rn L_rn + lambda_fl L_fl with L_k = A_k + gamma B_k of `dual_teacher`. The student starts as the
realism teacher T_r; the faithful one, T_f, is a network of the same family trained by distances alone
(`training.stages.fidelity`), or another restorer, of which only the pictures are known (`--lr`, `--restored`, `--hr`).

The paper leaves open how tau is drawn, what is averaged, whether noise is shared, and where gradients flow. Here:
means, one noise for both latents, tau from 20 to 979, and the ground truth encoded by a plain encoder that no stage has
trained.
"""

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal, cast

import torch
import tyro
from torch import Tensor, nn

from ctsr.families import blend
from training.data.datasets import lowlight_data, mini2_data, mini_data, sd21_data
from training.engine.draws import Draws
from training.engine.run import Run
from training.engine.sources import Sample
from training.engine.turn import Turn
from training.losses.adversarial import Adversarial
from training.losses.dual_teacher import clean_consistency, directed, literal_agreement, literal_consistency, noised
from training.losses.perceptual import perceptual_loss
from training.losses.realism import Realism, RealismTerms, open_realism, total
from training.losses.reconstruction import Reconstruction, reconstruction_losses
from training.losses.score_networks import RegulariserLora
from training.losses.vsd import HIGHEST, LOWEST, VSD
from training.model.adapt import SD21_ADAPT, Adapt, adapt
from training.model.one_step import OneStep, open_pipeline
from training.stages import osediff
from training.stages.stage import Stage, finish_and_save, main, validate
from training.stages.teachers import (
    CTSRRecipe,
    Faithful,
    faithful_source,
    frozen,
    open_faithful,
    plain_latents,
    plain_vae,
)


@dataclass(frozen=True)
class Distillation:
    """The two teachers' terms; weights are the paper's.

    Attributes:
        mode: "vsd", normalised directions on clean latents, or "literal", distances of noises as the paper prints them.
            Literally, A_k trains the student at noised latents, where it is never deployed.
        teacher_as: "denoiser" asks the UNets at (z_tau, tau); "endpoint" takes a network's own restored latent of the
            same picture for what it sees behind any noise, the student's too. The mini's UNet was only ever trained at
            tau = 999 on z_L: its output elsewhere is undefined. Another restorer is always an endpoint.
        realism: lambda_rn.
        fidelity: lambda_fl.
        gamma: of B_k beside A_k.
        most_snr: largest weight of an endpoint's distance in "literal"; the SNR is 52 at tau = 20. 5 as in min-SNR
            weighting (arXiv 2303.09556).
    """

    mode: Literal["vsd", "literal"] = "vsd"
    teacher_as: Literal["denoiser", "endpoint"] = "denoiser"
    realism: float = 1.0
    fidelity: float = 2.0
    gamma: float = 5.5
    most_snr: float = 5.0


@dataclass(frozen=True)
class Recipe(CTSRRecipe):
    """Defaults and their reasons; see `CTSRRecipe` for the others.

    Attributes:
        realistic: folder of what another realistic restorer (Real-ESRGAN, say) made of the pictures of `lr`, whose
            ground truth is in `hr`: the realistic teacher then, in place of `start`.
        start: file of `training.stages.osediff`: the realism teacher, and the student's start.
        realism: terms beside the teachers'. The papers' have none; the mini keeps its adversarial one.
        prior, regulariser_lora: for VSD among these, as in `training.stages.osediff`.
    """

    realistic: Path | None = None
    distillation: Distillation = field(default_factory=Distillation)
    reconstruction: Reconstruction = field(default_factory=Reconstruction)
    realism: Realism = field(default_factory=Realism)
    prior: Path | None = None
    regulariser_lora: RegulariserLora | None = None


MINI = Recipe(
    data=mini_data(),
    # As `training.stages.osediff`, of which this goes on.
    run=Run(out=tyro.MISSING, steps=200, ema=0.98, warm_up=20, schedule="constant"),
    start=tyro.MISSING,
    adapt=Adapt(encoder="frozen", decoder=False, time_layers=False),
    peak_rate=8e-5,
    reconstruction=Reconstruction(l1=1.0, l2=3.0, low=2.0, perceptual=0.0, features="none", sharpen=1.5),
    # A hundredth of the paper's: beside L1 on pixels, whose gradient by a latent is far smaller, the paper's 16.5 on
    # the direction to the ground truth is some hundred times all the rest.
    distillation=Distillation(teacher_as="endpoint", realism=0.01, fidelity=0.02),
    realism=Realism(vsd=VSD(weight=0.0, guidance=1.0, moved=True), adversarial=Adversarial(weight=0.4)),
)
MINI2 = Recipe(
    data=mini2_data(softness=1.0),
    # As `training.stages.osediff`, of which this goes on.
    run=Run(out=tyro.MISSING, steps=200, batch=4, ema=0.99, max_norm=0.5),
    start=tyro.MISSING,
    peak_rate=2e-4,
    reconstruction=osediff.MINI2.reconstruction,
    # Beside L1, whose gradient by a latent is a sixth of a direction's at weight 1: .1 of it towards each teacher.
    distillation=Distillation(teacher_as="endpoint", realism=0.01, fidelity=0.02),
    realism=osediff.MINI2.realism,
)
LOWLIGHT = replace(MINI2, data=lowlight_data(), run=replace(MINI2.run, steps=120))
SD21 = Recipe(
    data=sd21_data(),
    run=Run(out=tyro.MISSING, steps=20000, batch=1, ema=0.999, schedule="constant"),
    start=tyro.MISSING,
    autoencoder=tyro.MISSING,
    adapt=SD21_ADAPT,
    peak_rate=5e-5,
    reconstruction=Reconstruction(l2=1.0, perceptual=2.0, features="lpips"),
)
RECIPES = {
    "mini": ("ctsr-mini on two CPU cores", MINI),
    "mini2": ("ctsr-mini 2 on two CPU cores; its perceptual weights are given apart", MINI2),
    "lowlight": ("ctsr-lowlight on two CPU cores; its perceptual weights are given apart", LOWLIGHT),
    "sd21": ("Stable Diffusion 2.1-base on one 24 GB card", SD21),
}


@dataclass(frozen=True)
class View:
    """What a step compares.

    Attributes:
        z, truth: the student's restored latent and the photograph's, [B, C, h, w].
        noisy: both with the same noise.
        timestep: [B].
        student: the clean latent that the student sees behind its own.
    """

    z: Tensor
    truth: Tensor
    noisy: tuple[Tensor, Tensor]
    timestep: Tensor
    student: Tensor


class DualTeacher(nn.Module):
    """lambda_rn L_rn + lambda_fl L_fl.

    Args:
        settings: weights and forms.
        realistic: T_r.
        faithful: T_f.
        vae: whose plain encoder encodes the ground truth.
        seed: of the run.
    """

    def __init__(self, settings: Distillation, realistic: OneStep, faithful: Faithful, vae: nn.Module, seed: int):
        super().__init__()
        self.settings, self.realistic, self.faithful, self.vae, self.seed = settings, realistic, faithful, vae, seed

    def forward(self, student: OneStep, z: Tensor, batch: Sample) -> dict[str, Tensor]:
        """Weighted `A_rn`, `B_rn`, `A_fl`, `B_fl` of restored latents z [B, C, h, w]."""
        view = self.view(student, z, batch)
        out: dict[str, Tensor] = {}
        for name, weight in (("rn", self.settings.realism), ("fl", self.settings.fidelity)):
            if weight:
                agreement, consistency = self.terms(view, name, batch)
                out |= {f"A_{name}": weight * agreement, f"B_{name}": weight * self.settings.gamma * consistency}
        return out

    def view(self, student: OneStep, z: Tensor, batch: Sample) -> View:
        """The latents, and what the student sees."""
        truth = plain_latents(self.vae, student.ground_truth(batch))
        draws = Draws(batch["index"], self.seed)
        timestep = draws.integers("distillation timestep", LOWEST, HIGHEST).to(z.device)
        noisy = noised(z, truth, draws.normal("distillation", z), timestep)
        if self.settings.teacher_as == "endpoint":
            return View(z, truth, noisy, timestep, z)
        with torch.set_grad_enabled(self.settings.mode == "literal" and torch.is_grad_enabled()):
            return View(z, truth, noisy, timestep, student.x0(noisy[0], timestep))

    def endpoint(self, name: str, batch: Sample) -> Tensor | None:
        """z_k of a teacher that is one; None for a denoiser."""
        if name == "rn" and "realistic" in batch:
            return plain_latents(self.vae, batch["realistic"])
        if name == "fl" and (self.settings.teacher_as == "endpoint" or self.faithful.network is None):
            return self.faithful(batch)
        if self.settings.teacher_as == "endpoint":
            with torch.no_grad():
                return blend(self.realistic(batch["lr"], self.realistic.told(batch)), 0.0)
        return None

    def terms(self, view: View, name: str, batch: Sample) -> tuple[Tensor, Tensor]:
        """A_k and B_k."""
        end = self.endpoint(name, batch)
        if end is not None:
            return endpoint_terms(view, end, self.settings)
        network = self.realistic if name == "rn" else cast(OneStep, self.faithful.network)
        sees = (network.x0(view.noisy[0], view.timestep), network.x0(view.noisy[1], view.timestep))
        if self.settings.mode == "vsd":
            return directed(view.z, view.student, sees[0]), clean_consistency(sees)
        agreement = literal_agreement(view.noisy[0], view.student, sees[0], view.timestep)
        return agreement, literal_consistency(view.noisy, sees, view.timestep)


def endpoint_terms(view: View, end: Tensor, settings: Distillation) -> tuple[Tensor, Tensor]:
    """A_k and B_k of a teacher that sees the same latent z_k [B, C, h, w] behind any noise."""
    if settings.mode == "vsd":
        return directed(view.z, view.student, end), directed(view.z, view.z, view.truth)
    agreement = literal_agreement(view.noisy[0], view.student, end, view.timestep, settings.most_snr)
    return agreement, literal_consistency(view.noisy, (end, end), view.timestep, settings.most_snr)


class Student(nn.Module):
    """The student's loss."""

    def __init__(self, model: OneStep, teachers: DualTeacher, weights: Reconstruction, terms: RealismTerms):
        super().__init__()
        self.model, self.teachers, self.weights, self.terms = model, teachers, weights, terms
        self.perceptual = perceptual_loss(weights.features, model, weights.weights)

    def forward(self, batch: Sample) -> dict[str, Tensor]:
        """`loss`, its terms, and for the turns after it `fake` and `real` [B, 3, H, W] and `latents` [B, C, h, w]."""
        z = self.model(batch["lr"], self.model.told(batch)).z0
        x = self.model.decode(z)
        judged = self.terms.judged(z, x, batch)
        real = self.model.ground_truth(batch)
        terms = reconstruction_losses(x, real, self.weights, self.perceptual)
        terms |= self.teachers(self.model, z, batch) | self.terms.losses(judged, x, batch)
        return {**total(terms), "fake": x, "real": real, "latents": judged}


def build(recipe: Recipe) -> Stage:
    """The stage of a recipe."""
    pipeline, teacher = (open_pipeline(recipe.start, pairs=recipe.data.pairs) for _ in range(2))
    model, realistic = OneStep(pipeline), frozen(teacher, recipe.adapt)
    vae = plain_vae(recipe, realistic)
    faithful = open_faithful(recipe, vae)
    teachers = DualTeacher(recipe.distillation, realistic, faithful, vae, recipe.run.seed)
    terms = open_realism(recipe)
    student = Student(model, teachers, recipe.reconstruction, terms)
    groups = adapt(model, recipe.adapt)
    return Stage(
        turns=[Turn("student", student, recipe.peak_rate, groups), *terms.turns],
        source=partial(faithful_source, recipe, realistic=recipe.realistic),
        validate=partial(validate, model, dial=(0.0,)),
        write=lambda _: finish_and_save(pipeline, model, recipe.adapt, recipe.run.out),
    )


if __name__ == "__main__":
    main(RECIPES, build)
