"""A conditional flow between latents, and its distillation into one step with a dial (OFTSR, arXiv 2412.09465).

    python -m training.research.oftsr mini-teacher --data.photos PHOTOS \\
        --start RUNS/autoencoder/model.safetensors --run.out FLOW
    python -m training.research.oftsr mini-distil --data.photos PHOTOS \\
        --start FLOW/model.safetensors --run.out RUNS/oftsr

and the same with sd21-teacher (--start SD21_BASE) and sd21-distil. The paper's flow lives in pixels; this one in the
latents of a frozen autoencoder: from the noised latent of the low-resolution picture to the photograph's, the UNet
seeing concat(x_t, z_L) at 999 t. So the decoder has to fit the plain encoder, which for the mini the autoencoder's own
stage sees to. `training.losses.flow` holds the maths. The paper's time is 1 minus the dial: its 1 is realistic. A
teacher's file loads as well, but only the faithful end of its dial is a picture: x_0 + v(x_0, 0), the mean of what is
possible.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
import tyro
from torch import Tensor, nn

from ctsr import CTSRPipeline
from ctsr.families import Endpoints
from ctsr.models import forward
from ctsr.models.forward import latent_channels
from training.data.datasets import Data, mini_data, open_source, sd21_data
from training.data.pairs import Pairs
from training.engine.draws import Draws
from training.engine.run import Run
from training.engine.sources import Sample
from training.engine.turn import Turn
from training.losses.flow import Solver, Velocity, distillation_losses, integrate, noisy_start, velocity_loss
from training.losses.realism import total
from training.losses.score_networks import adapters_off
from training.model.adapt import SD21_ADAPT, Adapt, Group, adapt
from training.model.lora import lora_parameters
from training.model.one_step import TIMESTEP, OneStep, enlarge, open_pipeline
from training.model.unet_channels import keep_groups, widen_conv_in
from training.stages.stage import Stage, finish_and_save, main, validate

MINI_ADAPT = Adapt(encoder="frozen", decoder=False, time_layers=False)
SD21_FLOW_ADAPT = replace(SD21_ADAPT, encoder="frozen", rank=64, alpha=128)


@dataclass(frozen=True)
class Recipe:
    """What teacher and student are both told.

    Attributes:
        start: a stage's file, or an SD 2.1 base folder.
        adapt: the UNet alone: start and end of the flow are latents that must stay what they are. SD's LoRA is of rank
            64, for another prediction at every t is more to learn than OSEDiff's correction at one; not measured.
    """

    data: Data
    run: Run
    start: str
    adapt: Adapt = MINI_ADAPT
    peak_rate: float = 1e-4


@dataclass(frozen=True)
class TeacherRecipe(Recipe):
    """Defaults and their reasons; see `Recipe` for the others.

    Attributes:
        peak_rate: the mini's prior's, for the same reasons; 1e-4, the paper's, at SD size.
        earliest: t is drawn from U[earliest, 1].
        sampled_steps: of the flow at validation.
    """

    peak_rate: float = 1e-3
    earliest: float = 0.001
    sampled_steps: int = 8


@dataclass(frozen=True)
class DistilRecipe(Recipe):
    """Defaults and their reasons; those of the losses are the paper's. See `Recipe` for the others.

    Attributes:
        start: the teacher's file; the student starts as the teacher.
        adapt: as the teacher's. A student by LoRA has the teacher beneath: it trains adapters alone, no conv_in.
        dt: of a step along the teacher's path.
        between: t is drawn from U of these.
        solver: of the teacher's step.
        align_weight, boundary_weight: beside the distillation's 1.
    """

    dt: float = 0.05
    between: tuple[float, float] = (0.01, 0.99)
    solver: Solver = "midpoint"
    align_weight: float = 0.01
    boundary_weight: float = 0.1


def sd21_run(steps: int, ema: float) -> Run:
    """Batches of one picture, 16 a step."""
    return Run(tyro.MISSING, steps=steps, batch=1, accumulation=16, ema=ema, schedule="constant")


RECIPES: dict[str, tuple[str, TeacherRecipe | DistilRecipe]] = {
    "mini-teacher": (
        "The flow for ctsr-mini on two CPU cores",
        TeacherRecipe(mini_data(), Run(tyro.MISSING, steps=6000, batch=16), tyro.MISSING),
    ),
    "mini-distil": (
        "Its distillation",
        DistilRecipe(mini_data(), Run(tyro.MISSING, steps=4000), tyro.MISSING),
    ),
    "sd21-teacher": (
        "The flow for Stable Diffusion 2.1-base on one 24 GB card",
        TeacherRecipe(sd21_data(), sd21_run(20000, ema=0.9999), tyro.MISSING, SD21_FLOW_ADAPT, peak_rate=1e-4),
    ),
    "sd21-distil": (
        "Its distillation",
        DistilRecipe(sd21_data(), sd21_run(10000, ema=0.999), tyro.MISSING, SD21_FLOW_ADAPT, peak_rate=5e-5),
    ),
}


@torch.no_grad()
def negate_conv_out(unet: nn.Module) -> None:
    """Minus the output: what other families subtract (b < 0 in `families.coefficients`), a velocity adds."""
    for parameter in cast(Any, unet).conv_out.parameters():
        parameter.neg_()


def velocity(unet: nn.Module, condition: Tensor, prompt: Tensor | None) -> Velocity:
    """v(x, t), fp32, of a UNet that sees concat(x, condition) [B, 2C, h, w] at 999 t."""
    embeds = None if prompt is None else prompt.expand(condition.shape[0], -1, -1)

    def call(x: Tensor, t: Tensor) -> Tensor:
        return forward.predict(unet, torch.cat([x.to(condition), condition], dim=1), TIMESTEP * t, embeds).float()

    return call


class FlowModel(OneStep):
    """A pipeline of family oftsr as it trains."""

    def __init__(self, pipeline: CTSRPipeline, seed: int):
        super().__init__(pipeline)
        self.seed = seed

    def velocity(self, condition: Tensor) -> Velocity:
        """Of its own UNet."""
        return velocity(self.unet, condition, self.prompt)

    @torch.no_grad()
    def start(self, lr: Tensor, noise: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """x_0 and z_L [B, C, h, w], fp32, of low-resolution pictures; `noise(z_L)` is eps."""
        condition = self.encode(enlarge(lr, self.scale)).float()
        return noisy_start(condition, noise(condition), self.family.sigma), condition

    def forward(self, lr: Tensor, timestep: Tensor | None = None) -> Endpoints:
        """LR [B, 3, h, w] in [-1, 1] -> the student's endpoints, from the same noise at every call."""
        generator = torch.Generator().manual_seed(self.seed)
        inputs = self.family.unet_inputs([self.encode(enlarge(lr, self.scale))], generator)
        return self.family.endpoints(inputs, [self.predict(each.sample, each.timestep) for each in inputs])


class SampledFlow(FlowModel):
    """The teacher, whose realistic end is sampled in several steps."""

    def __init__(self, pipeline: CTSRPipeline, seed: int, steps: int):
        super().__init__(pipeline, seed)
        self.steps = steps

    def forward(self, lr: Tensor, timestep: Tensor | None = None) -> Endpoints:
        """LR [B, 3, h, w] -> z0, the end of the flow, and z0 + delta = x_0 + v(x_0, 0)."""
        generator = torch.Generator().manual_seed(self.seed)
        x_0, condition = self.start(lr, lambda z: torch.randn(z.shape, generator=generator).to(z.device))
        v = self.velocity(condition)
        end, mean = integrate(v, x_0, self.steps, "midpoint"), x_0 + v(x_0, torch.zeros(len(lr), device=x_0.device))
        return Endpoints(end, mean - end)


class TeacherLoss(nn.Module):
    """The flow's loss."""

    def __init__(self, model: FlowModel, recipe: TeacherRecipe):
        super().__init__()
        self.model, self.recipe = model, recipe

    def forward(self, batch: Sample) -> dict[str, Tensor]:
        """`loss`: mean error of the velocity from the low-resolution picture to `batch["sharp"]`."""
        draws = Draws(batch["index"], self.recipe.run.seed)
        x_0, condition = self.model.start(batch["lr"], lambda z: draws.normal("start", z))
        with torch.no_grad():
            x_1 = self.model.encode(batch["sharp"]).float()
        t = draws.uniform("time", self.recipe.earliest, 1.0).to(x_0.device)
        return {"loss": velocity_loss(self.model.velocity(condition), x_0, x_1, t)}


class DistilLoss(nn.Module):
    """The student's loss.

    Args:
        model: the student, its adapters already in place.
        recipe: weights and times.
        teacher_unet: the teacher; None: it is the student's UNet less its adapters.
    """

    def __init__(self, model: FlowModel, recipe: DistilRecipe, teacher_unet: nn.Module | None):
        super().__init__()
        self.model, self.recipe, self.teacher_unet = model, recipe, teacher_unet

    def teacher(self, condition: Tensor) -> Velocity:
        """Its velocity."""
        if self.teacher_unet is not None:
            return velocity(self.teacher_unet, condition, self.model.prompt)
        inner = self.model.velocity(condition)

        def call(x: Tensor, t: Tensor) -> Tensor:
            with adapters_off(self.model.unet):
                return inner(x, t)

        return call

    def forward(self, batch: Sample) -> dict[str, Tensor]:
        """`loss` and its terms `distil`, `align` and `boundary`."""
        recipe = self.recipe
        draws = Draws(batch["index"], recipe.run.seed)
        x_0, condition = self.model.start(batch["lr"], lambda z: draws.normal("start", z))
        t = draws.uniform("time", *recipe.between).to(x_0.device)
        student, teacher = self.model.velocity(condition), self.teacher(condition)
        terms = distillation_losses(student, teacher, x_0, t, recipe.dt, recipe.solver)
        weights = {"distil": 1.0, "align": recipe.align_weight, "boundary": recipe.boundary_weight}
        return total({name: weights[name] * term for name, term in terms.items()})


def open_flow(start: str, pairs: Pairs) -> CTSRPipeline:
    """The pipeline of a start as one of family oftsr: one that is none yet gets the wider conv_in."""
    pipeline = open_pipeline(start, "osediff", pairs)
    if pipeline.config["family"] != "oftsr":
        keep_groups(pipeline.unet, latent_channels(pipeline.vae))
        widen_conv_in(pipeline.unet)
        negate_conv_out(pipeline.unet)
        pipeline.register_to_config(
            family="oftsr", parameterization=None, encoder_timesteps=None, time_aware_unet=False
        )
    return pipeline


def student_groups(model: FlowModel, what: Adapt) -> tuple[list[Group], nn.Module | None]:
    """What learns in a distillation, and the teacher: a frozen copy, or None where it is the base beneath LoRA."""
    if what.unet != "lora":
        teacher = copy.deepcopy(model.unet).requires_grad_(False)
        return adapt(model, what), teacher
    adapt(model, what)
    adapters = list(lora_parameters(model.unet))
    model.requires_grad_(False)
    for parameter in adapters:
        parameter.requires_grad_(True)
    return [{"params": adapters}], None


def build_teacher(recipe: TeacherRecipe) -> Stage:
    """The flow."""
    pipeline = open_flow(recipe.start, recipe.data.pairs)
    model = SampledFlow(pipeline, recipe.run.seed, recipe.sampled_steps)
    groups = adapt(model, recipe.adapt)
    return Stage(
        turns=[Turn("teacher", TeacherLoss(model, recipe), recipe.peak_rate, groups)],
        source=partial(open_source, recipe.data),
        validate=partial(validate, model, dial=(0.0, 1.0)),
        write=lambda _: finish_and_save(pipeline, model, recipe.adapt, recipe.run.out),
    )


def build_student(recipe: DistilRecipe) -> Stage:
    """The one-step model; raises ValueError if it does not start from a teacher's file."""
    pipeline = open_pipeline(recipe.start, pairs=recipe.data.pairs)
    if pipeline.config["family"] != "oftsr":
        raise ValueError(f"{recipe.start} is of family {pipeline.config['family']!r}: give the file of the teacher.")
    model = FlowModel(pipeline, recipe.run.seed)
    groups, teacher = student_groups(model, recipe.adapt)
    return Stage(
        turns=[Turn("student", DistilLoss(model, recipe, teacher), recipe.peak_rate, groups)],
        source=partial(open_source, recipe.data),
        validate=partial(validate, model),
        write=lambda _: finish_and_save(pipeline, model, recipe.adapt, recipe.run.out),
    )


def build(recipe: TeacherRecipe | DistilRecipe) -> Stage:
    """The stage of a recipe."""
    return build_teacher(recipe) if isinstance(recipe, TeacherRecipe) else build_student(recipe)


if __name__ == "__main__":
    main(RECIPES, build)
