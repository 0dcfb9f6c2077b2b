"""Other forms of CTSR's stage 2, for comparison with that of `training.stages.stage2`; `--variant` chooses.

    python -m training.research.stage2_variants mini --data.photos PHOTOS --start RUNS/stage1/model.safetensors \\
        --fidelity RUNS/fidelity/model.safetensors --run.out RUNS/stage2-b2

B2 tells the UNet t, one pass for each; "literal" is Eq. 5 to 8 as printed, where the student is a velocity: two passes,
and experimental, for nothing in these equations leads to a faithful end. Neither can be put into a ctsr file, whose
three groups must give every t at once: a file of their two ends would promise a way between them that they do not have.
So their UNet is written by itself, for `open_variant`, `b2_latent` and `literal_latent`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
import tyro
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn

from ctsr.families import coefficients, predict_x0
from ctsr.models import forward
from training.data.datasets import mini_data, sd21_data
from training.engine.draws import Draws
from training.engine.run import Run
from training.engine.sources import Sample
from training.engine.turn import Turn
from training.losses.dial_path import flow_loss, printed_path_loss
from training.losses.flow import between, per_sample
from training.losses.realism import total
from training.model.adapt import SD21_ADAPT, Adapt, Group, adapt, finish
from training.model.one_step import TIMESTEP, OneStep, enlarge, open_pipeline
from training.stages.stage import Stage, main, validate
from training.stages.stage2 import check_encoder
from training.stages.teachers import CTSRRecipe, Faithful, faithful_source, frozen, open_faithful, plain_vae


@dataclass(frozen=True)
class Recipe(CTSRRecipe):
    """Defaults and their reasons; see `CTSRRecipe` for the others.

    Attributes:
        start: file of `training.stages.stage1`.
        variant: which form.
        adapt: what learns: the UNet, as a whole or by LoRA.
        flow: of B2: weight of OFTSR's form. A straight path has nothing for it to learn beyond what B2 learns without.
    """

    variant: Literal["B2", "literal"] = "B2"
    flow: float = 0.0


MINI = Recipe(
    data=mini_data(),
    run=Run(out=tyro.MISSING, steps=2000, ema=0.995),
    start=tyro.MISSING,
    adapt=Adapt(encoder="frozen", decoder=False, time_layers=False, autoencoder_factor=0.05),
)
SD21 = Recipe(
    data=sd21_data(),
    run=Run(out=tyro.MISSING, steps=50000, batch=1, ema=0.999, schedule="constant"),
    start=tyro.MISSING,
    adapt=replace(SD21_ADAPT, encoder="frozen"),
    peak_rate=5e-5,
)
RECIPES = {"mini": ("ctsr-mini on two CPU cores", MINI), "sd21": ("Stable Diffusion 2.1-base on one 24 GB card", SD21)}


def check(recipe: Recipe) -> None:
    """Raises ValueError for settings under which the stage could not do what it is for."""
    check_encoder(recipe.adapt)
    if recipe.adapt.unet == "frozen" or recipe.adapt.decoder:
        raise ValueError(f"Variant {recipe.variant} is the UNet's: give --adapt.unet full or lora, and no decoder.")


def add_time_condition(unet: nn.Module) -> None:
    """A second condition of the timestep's width, through a projection that starts at zero; in place."""
    embedding = cast(Any, unet).time_embedding
    width = embedding.linear_1.in_features
    embedding.cond_proj = nn.Linear(width, width, bias=False)
    nn.init.zeros_(embedding.cond_proj.weight)
    cast(Any, unet).register_to_config(time_cond_proj_dim=width)


def time_group(unet: nn.Module) -> Group:
    """The timestep's embedding with the condition's projection, fp32."""
    embedding = cast(nn.Module, unet.time_embedding).float().requires_grad_(True)
    return {"params": list(embedding.parameters())}


def b2_latent(model: OneStep, z_L: Tensor, t: float | Tensor) -> Tensor:  # noqa: N803
    """G(x_L, t) of B2, one UNet pass: encoded pictures [B, C, h, w] and t, a number or [B] -> latents, fp32."""
    unet, timestep = model.unet, model.family.timesteps[0]
    width = cast(Any, unet).config["time_cond_proj_dim"]
    dial = torch.as_tensor(t, dtype=torch.float32, device=z_L.device).reshape(-1).expand(z_L.shape[0])
    condition = get_timestep_embedding(TIMESTEP * dial, width, flip_sin_to_cos=True, downscale_freq_shift=0)
    z = forward.prepared(unet, z_L)
    embeds = None if model.prompt is None else model.prompt.expand(z.shape[0], -1, -1).to(z)
    o = unet(z, timestep, timestep_cond=condition.to(z), encoder_hidden_states=embeds).sample[:, : z.shape[1]]
    return predict_x0(z_L, o, *coefficients(model.family.parameterization, timestep))


def way_at(model: OneStep, z: Tensor, t: Tensor) -> Tensor:
    """t eps(z, t) of the printed equations, t [B]: see `velocity`."""
    return per_sample(t, z) * velocity(model, z, t)


def velocity(model: OneStep, z: Tensor, t: Tensor) -> Tensor:
    """The first output group, fp32, read as a velocity; as printed, t in 0..1 is fed where a timestep belongs."""
    return model.predict(z, t)[:, : z.shape[1]].float()


def literal_latent(stage1: OneStep, student: OneStep, z_L: Tensor, t: float) -> Tensor:  # noqa: N803
    """z_0 + t eps_S(z_0, t) of the printed equations, two UNet passes: encoded pictures [B, C, h, w] -> latents."""
    z0 = stage1.x0(z_L, stage1.family.timesteps[0])
    return z0 + way_at(student, z0, torch.full((z0.shape[0],), t, device=z0.device))


def open_variant(start: Path | str, unet: Path) -> OneStep:
    """An ablation as trained: all of stage 1's file but the UNet, which is the folder that stage 2 wrote."""
    pipeline = open_pipeline(start)
    pipeline.unet = cast(Any, type(pipeline.unet)).from_pretrained(unet, low_cpu_mem_usage=False)
    return OneStep(pipeline)


class TimeConditioned(nn.Module):
    """B2's loss."""

    def __init__(self, model: OneStep, stage1: OneStep, faithful: Faithful, recipe: Recipe):
        super().__init__()
        self.model, self.stage1, self.faithful = model, stage1, faithful
        self.flow, self.seed = recipe.flow, recipe.run.seed

    def latent(self, lr: Tensor, t: float) -> Tensor:
        """Latent of a low-resolution picture at t."""
        return b2_latent(self.model, encoded(self.model, lr), t)

    def forward(self, batch: Sample) -> dict[str, Tensor]:
        """`loss` and its terms."""
        z = encoded(self.model, batch["lr"])
        with torch.no_grad():
            start, end = self.stage1.x0(z, self.stage1.family.timesteps[0]), self.faithful(batch)
        t, later = dial_and_later(Draws(batch["index"], self.seed), z)
        now = b2_latent(self.model, z, t)
        terms = {"path": F.mse_loss(now, between(start, end, t))}
        if self.flow:
            then = b2_latent(self.model, z, later)
            terms["flow"] = self.flow * flow_loss(now - start, then - start, end - start, later - t)
        return total(terms)


class Printed(nn.Module):
    """The loss of Eq. 5 to 8 as printed."""

    def __init__(self, model: OneStep, stage1: OneStep, recipe: Recipe):
        super().__init__()
        self.model, self.stage1, self.seed = model, stage1, recipe.run.seed

    def latent(self, lr: Tensor, t: float) -> Tensor:
        """Latent of a low-resolution picture at t."""
        return literal_latent(self.stage1, self.model, encoded(self.model, lr), t)

    def forward(self, batch: Sample) -> dict[str, Tensor]:
        """`loss`."""
        z = encoded(self.model, batch["lr"])
        with torch.no_grad():
            z0 = self.stage1.x0(z, self.stage1.family.timesteps[0])
            t, later = dial_and_later(Draws(batch["index"], self.seed), z)
            way, later_way = way_at(self.stage1, z0, t), way_at(self.stage1, z0, later)
        return {"loss": printed_path_loss(way, later_way, velocity(self.model, z0 + way, t), later - t)}


def encoded(model: OneStep, lr: Tensor) -> Tensor:
    """z_L of low-resolution pictures [B, 3, h, w]; no gradient, the encoder is stage 1's."""
    with torch.no_grad():
        return model.encode(enlarge(lr, model.scale), model.family.encoder_timesteps[0])


def dial_and_later(draws: Draws, like: Tensor) -> tuple[Tensor, Tensor]:
    """t < t', both of U(0, 1) in their order, [B] each on the device of `like`."""
    both = torch.stack([draws.uniform("dial"), draws.uniform("later")]).sort(dim=0).values.to(like.device)
    return both[0], both[1]


def build(recipe: Recipe) -> Stage:
    """The stage of a recipe; it writes the UNet alone, by `save_pretrained`."""
    check(recipe)
    pipeline, before = (open_pipeline(recipe.start, pairs=recipe.data.pairs) for _ in range(2))
    model, stage1 = OneStep(pipeline), frozen(before, recipe.adapt)
    if recipe.variant == "B2":
        add_time_condition(model.unet)
        groups = adapt(model, recipe.adapt)
        if recipe.adapt.unet == "lora":
            groups.append(time_group(model.unet))
        faithful = open_faithful(recipe, plain_vae(recipe, stage1))
        loss = TimeConditioned(model, stage1, faithful, recipe)
    else:
        groups = adapt(model, recipe.adapt)
        loss = Printed(model, stage1, recipe)

    def write(pairs: Sequence[Sample]) -> None:
        finish(model, replace(recipe.adapt, keep_lora=False))
        unet = model.unet.to(memory_format=torch.contiguous_format)  # older releases of diffusers refuse channels-last
        cast(Any, unet).save_pretrained(recipe.run.out / "unet")

    return Stage(
        turns=[Turn(recipe.variant, loss, recipe.peak_rate, groups)],
        source=partial(faithful_source, recipe),
        validate=partial(validate, model, latent=loss.latent),
        write=write,
    )


if __name__ == "__main__":
    main(RECIPES, build)
