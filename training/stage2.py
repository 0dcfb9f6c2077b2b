"""Stage 2 of CTSR (arXiv 2503.14272): the way from the realistic end to the faithful one.

    python -m training.stage2 mini --data.photos PHOTOS --start RUNS/stage1/model.safetensors \\
        --fidelity RUNS/fidelity/model.safetensors --run.out RUNS/stage2
    python -m training.stage2 mini ... --variant B2 --adapt.unet full --adapt.no-decoder

B1, ours: the UNet of stage 1 gets two more output groups, [o, delta, kappa], and z^t = z^0 + t delta + t (1 - t) kappa,
so that one pass serves every t. delta leads to the faithful teacher's latent; kappa bends the way so that its pictures
are the blends of the end pictures, which a straight line of latents misses.

B2 and "literal" are ablations. B2 tells the UNet t, one pass for each; "literal" is Eq. 5 to 8 as printed, where the
student is a velocity: two passes, and experimental, for nothing in these equations leads to a faithful end. Neither can
be put into a ctsr file, whose three groups must give every t at once: a file of their two ends would promise a way
between them that they do not have. So their UNet is written by itself, for `open_variant`, `b2_latent` and
`literal_latent`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from accelerate.utils import set_seed
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn

from ctsr import CTSRPipeline, networks
from ctsr.families import Endpoints, blend, coefficients, predict_x0
from training import adapt as adapting
from training import osediff
from training.adapt import Adapt, Group, adapt, finish
from training.base import widen_conv_out
from training.data import Data, batched, mini_data, open_photos, sd21_data
from training.draws import Draws
from training.flow import between, per_sample
from training.loop import Report, Run, Turn, fit
from training.one_step import TIMESTEP, OneStep, enlarge, open_pipeline
from training.path import faithful_loss, flow_loss, path_loss, printed_path_loss, way_loss, weigh_gradient
from training.realism import Realism, RealismTerms, total
from training.scores import RegulariserLora
from training.sources import Sample
from training.stage import main, psnr_y, save, validate
from training.stage1 import Faithful, faithful_source, frozen, open_faithful, plain_vae

GROUPS = 3  # o, delta, kappa
DIAL = (0.0, 0.5, 1.0)


@dataclass(frozen=True)
class Weights:
    """Of the terms.

    Attributes:
        way: delta against z^1 - z^0. Latents are of about unit variance, so one is enough.
        end: squared difference of the picture at t = 1 and the truth: delta's real aim, which the teacher's latent only
            stands near.
        path: pictures on the way against the blend of the end pictures; kappa learns from little else.
        faithful: t times the squared difference of a picture on the way and the truth.
        anchor: o against stage 1's, where features below conv_out learn; 0 where only delta and kappa do.
        decoder: the picture at t = 0 against stage 1's, where the decoder learns.
        flow: of B2, OFTSR's form. A straight path has nothing for it to learn beyond what B2 learns without.
    """

    way: float = 1.0
    end: float = 1.0
    path: float = 1.0
    faithful: float = 1.0
    anchor: float = 0.0
    decoder: float = 1.0
    flow: float = 0.0


@dataclass(frozen=True)
class Recipe:
    """Defaults and their reasons.

    Attributes:
        start: file of `training.stage1`.
        fidelity: file of `training.fidelity`: its results are the faithful end.
        lr, restored, hr: instead of it and of the photographs, folders of low-resolution pictures, what another
            restorer made of them, and the truth.
        autoencoder: whose plain encoder encodes these pictures, as in `training.stage1`.
        variant: "B1", or an ablation.
        adapt: what learns beside delta and kappa. "frozen" UNet and no decoder: t = 0 is stage 1's picture to the bit.
            The mini tunes its decoder, at a small rate; at SD size delta and kappa alone are 23 thousand weights, so
            LoRA helps them. The encoder is never trained here.
        realism: terms on pictures of the way, weighed by 1 - t.
        prior, regulariser_lora: for VSD among these, as in `training.osediff`.
    """

    data: Data
    run: Run
    start: str
    fidelity: Path | None = None
    lr: Path | None = None
    restored: Path | None = None
    hr: Path | None = None
    autoencoder: str | None = None
    variant: Literal["B1", "B2", "literal"] = "B1"
    adapt: Adapt = adapting.MINI
    peak_rate: float = 5e-4
    weights: Weights = field(default_factory=Weights)
    realism: Realism = field(default_factory=Realism)
    prior: Path | None = None
    regulariser_lora: RegulariserLora | None = None


MINI = Recipe(
    data=mini_data(),
    run=Run(out=tyro.MISSING, steps=2000, ema=0.995),
    start=tyro.MISSING,
    adapt=replace(adapting.MINI, unet="frozen", encoder="frozen", time_layers=False, autoencoder_factor=0.05),
)
SD21 = Recipe(
    data=sd21_data(),
    run=Run(out=tyro.MISSING, steps=50000, batch=1, ema=0.999, schedule="constant"),
    start=tyro.MISSING,
    adapt=replace(adapting.SD21, encoder="frozen"),
    peak_rate=5e-5,
    weights=Weights(anchor=1.0),
)
RECIPES = {"mini": ("ctsr-mini on two CPU cores", MINI), "sd21": ("Stable Diffusion 2.1-base on one 24 GB card", SD21)}


def check(recipe: Recipe) -> None:
    """Raises ValueError for settings under which the stage could not do what it is for."""
    what = recipe.adapt
    if what.encoder != "frozen" or what.time_layers:
        raise ValueError("Stage 2 keeps stage 1's encoder: give --adapt.encoder frozen --adapt.no-time-layers.")
    if recipe.variant == "B1" and what.unet != "frozen" and not recipe.weights.anchor:
        raise ValueError("Beside a UNet that learns, t = 0 needs an anchor: give --weights.anchor 1.")
    if recipe.variant != "B1" and (what.unet == "frozen" or what.decoder):
        raise ValueError(f"Variant {recipe.variant} is the UNet's: give --adapt.unet full or lora, and no decoder.")


def faithful_end(recipe: Recipe, stage1: OneStep) -> Faithful:
    """z^1 of the recipe's faithful teacher."""
    vae = plain_vae(recipe.autoencoder, stage1, recipe.adapt)
    return open_faithful(recipe.fidelity, recipe.restored, recipe.adapt, vae)


# --- B1: two more groups ----------------------------------------------------------------------------------------------


def with_bends(pipeline: CTSRPipeline) -> CTSRPipeline:
    """The pipeline as family ctsr: a UNet of one group gets two that are zero."""
    name = pipeline.family.name
    if name not in ("ctsr", "osediff"):
        raise ValueError(f"Stage 2 starts from a file of family ctsr or osediff, not {name!r}: give one of stage 1.")
    if name == "osediff":
        widen_conv_out(pipeline.unet)
        pipeline.register_to_config(family="ctsr")
    return pipeline


def bend_group(unet: nn.Module) -> Group:
    """Makes delta's and kappa's part of conv_out learn, in fp32, and nothing of o's: its gradient is zeroed.

    Without weight decay, which would move o's part without a gradient.
    """
    conv = cast(nn.Conv2d, getattr(unet.conv_out, "base_layer", unet.conv_out)).float().requires_grad_(True)
    first = conv.out_channels // GROUPS

    def without_o(gradient: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(gradient[:first]), gradient[first:]])

    for parameter in conv.parameters():
        parameter.register_hook(without_o)
    return {"params": list(conv.parameters()), "weight_decay": 0.0}


class Bends(nn.Module):
    """B1's loss. z^0 is held where it is: only the anchor speaks to o."""

    def __init__(self, model: OneStep, stage1: OneStep, faithful: Faithful, recipe: Recipe, terms: RealismTerms):
        super().__init__()
        self.model, self.stage1, self.faithful, self.terms = model, stage1, faithful, terms
        self.weights, self.decoder, self.seed = recipe.weights, recipe.adapt.decoder, recipe.run.seed

    def forward(self, batch: Sample) -> dict[str, Tensor]:
        """`loss`, its terms, and for the turns after it `fake` [B, 3, H, W] and `latents` [B, C, h, w]."""
        z = self.model.encode(enlarge(batch["lr"]), self.model.family.encoder_timesteps[0])
        output = self.model.predict(z, self.model.family.timesteps[0])
        ends = self.model.family.endpoints(lambda sample, timestep, variant: output, [z])
        ends = replace(ends, z0=ends.z0.detach())
        t = Draws(batch["index"], self.seed).uniform("dial").to(z.device)
        middle = blend(ends, t)
        x = self.model.decode(middle)
        terms = self.ends_terms(ends, x, t, batch)
        if self.weights.anchor:
            o = output[:, : z.shape[1]].float()
            with torch.no_grad():
                aim = self.stage1.predict(z, self.model.family.timesteps[0])[:, : z.shape[1]].float()
            terms["anchor"] = self.weights.anchor * F.mse_loss(o, aim)
        near = 1 - t
        terms |= self.terms.losses(weigh_gradient(middle, near), weigh_gradient(x, near), batch)
        return {**total(terms), "fake": x, "latents": middle}

    def ends_terms(self, ends: Endpoints, x: Tensor, t: Tensor, batch: Sample) -> dict[str, Tensor]:
        """Terms of the ends, and of a picture x at t between them."""
        weights, truth, z1 = self.weights, batch["soft"], blend(ends, 1.0)
        x0, x1 = self.model.decode(ends.z0), self.model.decode(z1)
        terms = {
            "way": weights.way * way_loss(cast(Tensor, ends.delta), ends.z0, self.faithful(batch)),
            "end": weights.end * F.mse_loss(x1, truth),
            "path": weights.path * path_loss(x, x0, x1, t),
            "faithful": weights.faithful * faithful_loss(x, truth, t),
        }
        if self.decoder:
            with torch.no_grad():
                aim = self.stage1.decode(ends.z0)
            terms["decoder"] = weights.decoder * F.mse_loss(x0, aim)
        return terms


def train_bends(recipe: Recipe) -> None:
    """B1."""
    photos, pairs = open_photos(recipe.data)
    pipeline = with_bends(open_pipeline(recipe.start))
    model, stage1 = OneStep(pipeline), frozen(open_pipeline(recipe.start), recipe.adapt)
    terms = RealismTerms(recipe.realism, recipe.run.seed, osediff.prior_scores(recipe))
    groups = adapt(model, recipe.adapt)
    if recipe.adapt.unet != "full":
        groups.append(bend_group(model.unet))
    loss = Bends(model, stage1, faithful_end(recipe, stage1), recipe, terms)
    turns = [Turn("bends", loss, recipe.peak_rate, groups), *terms.turns]
    source = faithful_source(recipe.data, photos, recipe.lr, recipe.restored, recipe.hr)
    if fit(recipe.run, source, turns, lambda: validate(model, pairs, DIAL)):
        finish(model, recipe.adapt)
        save(pipeline, recipe.run.out)


# --- B2 and literal: another network ----------------------------------------------------------------------------------


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
    z = networks.working(unet, z_L)
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
        self.weights, self.seed = recipe.weights, recipe.run.seed

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
        terms = {"path": self.weights.path * F.mse_loss(now, between(start, end, t))}
        if self.weights.flow:
            then = b2_latent(self.model, z, later)
            terms["flow"] = self.weights.flow * flow_loss(now - start, then - start, end - start, later - t)
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
        return model.encode(enlarge(lr), model.family.encoder_timesteps[0])


def dial_and_later(draws: Draws, like: Tensor) -> tuple[Tensor, Tensor]:
    """t < t', both of U(0, 1) in their order, [B] each on the device of `like`."""
    both = torch.stack([draws.uniform("dial"), draws.uniform("later")]).sort(dim=0).values.to(like.device)
    return both[0], both[1]


@torch.no_grad()
def validate_variant(loss: TimeConditioned | Printed, pairs: Sequence[Sample]) -> Report:
    """Mean luma PSNR along the dial on held-back pairs."""
    device = next(loss.model.unet.parameters()).device
    rows: dict[str, list[float]] = {f"t={t:g}": [] for t in DIAL}
    for pair in pairs:
        sample = {name: tensor.to(device) for name, tensor in batched(pair).items()}
        for t in DIAL:
            picture = loss.model.decode(loss.latent(sample["lr"], t))
            rows[f"t={t:g}"].append(psnr_y(picture, sample["soft"]))
    return Report({name: float(np.mean(row)) for name, row in rows.items()})


def train_variant(recipe: Recipe) -> None:
    """B2 or literal; at the end writes the UNet alone, by save_pretrained."""
    photos, pairs = open_photos(recipe.data)
    model, stage1 = OneStep(open_pipeline(recipe.start)), frozen(open_pipeline(recipe.start), recipe.adapt)
    if recipe.variant == "B2":
        add_time_condition(model.unet)
        groups = adapt(model, recipe.adapt)
        if recipe.adapt.unet == "lora":
            groups.append(time_group(model.unet))
        loss = TimeConditioned(model, stage1, faithful_end(recipe, stage1), recipe)
    else:
        groups = adapt(model, recipe.adapt)
        loss = Printed(model, stage1, recipe)
    turn = Turn(recipe.variant, loss, recipe.peak_rate, groups)
    source = faithful_source(recipe.data, photos, recipe.lr, recipe.restored, recipe.hr)
    if fit(recipe.run, source, [turn], lambda: validate_variant(loss, pairs)):
        finish(model, replace(recipe.adapt, keep_lora=False))
        unet = model.unet.to(memory_format=torch.contiguous_format)  # older releases of diffusers refuse channels-last
        cast(Any, unet).save_pretrained(recipe.run.out / "unet")


def train(recipe: Recipe) -> None:
    """Trains, or goes on from the last checkpoint; at the end writes the networks."""
    check(recipe)
    set_seed(recipe.run.seed)
    (train_bends if recipe.variant == "B1" else train_variant)(recipe)


if __name__ == "__main__":
    main(RECIPES, train)
