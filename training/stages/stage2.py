"""Stage 2 of CTSR (arXiv 2503.14272): the path from the realistic end to the faithful one.

    python -m training.stages.stage2 mini --data.photos PHOTOS --start RUNS/stage1/model.safetensors \\
        --fidelity RUNS/fidelity/model.safetensors --run.out RUNS/stage2

Our form of it: the UNet of stage 1 gets two more output groups, [o, delta, kappa], and z^t = z^0 + t delta +
t (1 - t) kappa, so that one pass serves every t. delta leads to the faithful teacher's latent; kappa curves the path so
that its pictures are the blends of the end pictures, which a straight line of latents misses. Other forms are in
`training.research.stage2_variants`. With x^t = D(z^t), z_f the faithful teacher's latent and x_H the ground truth,

    L = way |delta - (z_f - z^0)|^2 + end |x^1 - x_H|^2 + path |x^t - ((1 - t) x^0 + t x^1)|^2
        + faithful t |x^t - x_H|^2 + decoder |x^0 - x^0_stage1|^2 + (1 - t) realism terms on x^t
"""

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn

from ctsr import CTSRPipeline
from ctsr.families import Endpoints, blend
from ctsr.models.autoencoder_mini2 import LATENT_CHANNELS, TimeAwareAutoencoderMini2
from ctsr.models.forward import latent_channels
from training.data.datasets import lowlight_data, mini2_data, mini_data, sd21_data
from training.engine.draws import Draws
from training.engine.run import Run
from training.engine.sources import Sample
from training.engine.turn import Turn
from training.losses.dial_path import delta_loss, faithful_loss, path_loss, weigh_gradient
from training.losses.realism import Realism, RealismTerms, open_realism, total
from training.losses.score_networks import RegulariserLora
from training.losses.vsd import VSD
from training.model.adapt import SD21_ADAPT, Adapt, Group, adapt
from training.model.one_step import OneStep, enlarge, open_pipeline
from training.model.unet_channels import keep_groups, widen_conv_out
from training.stages.stage import Stage, finish_and_save, main, validate
from training.stages.teachers import CTSRRecipe, Faithful, faithful_source, frozen, open_faithful, plain_vae


@dataclass(frozen=True)
class Weights:
    """Of the terms.

    Attributes:
        way: delta against z^1 - z^0. Latents are of about unit variance, so one is enough.
        end: squared difference of the picture at t = 1 and the ground truth: delta's aim, which the teacher's latent is
            only near. The ground truth is a photograph as soft as a camera's, or another restorer's own picture.
        path: pictures between the ends against the blend of the end pictures; kappa learns from little else.
        faithful: t times the squared difference of a picture on the path and the ground truth.
        anchor: o against stage 1's, where features below conv_out learn; 0 where only delta and kappa do.
        decoder: the picture at t = 0 against stage 1's, where the decoder learns.
    """

    way: float = 1.0
    end: float = 1.0
    path: float = 1.0
    faithful: float = 1.0
    anchor: float = 0.0
    decoder: float = 1.0


@dataclass(frozen=True)
class Recipe(CTSRRecipe):
    """Defaults and their reasons; see `CTSRRecipe` for the others.

    Attributes:
        start: file of `training.stages.stage1`.
        adapt: what learns beside delta and kappa. "frozen" UNet and no decoder: t = 0 is stage 1's picture to the bit.
            The mini tunes its decoder, at a small rate; at SD size delta and kappa alone are 23 thousand weights, so
            LoRA helps them. The encoder is never trained here.
        realism: terms on pictures of the way, weighed by 1 - t.
        prior, regulariser_lora: for VSD among these, as in `training.stages.osediff`.
    """

    peak_rate: float = 5e-4
    weights: Weights = field(default_factory=Weights)
    realism: Realism = field(default_factory=Realism)
    prior: Path | None = None
    regulariser_lora: RegulariserLora | None = None


MINI = Recipe(
    data=mini_data(),
    run=Run(out=tyro.MISSING, steps=2000, ema=0.995),
    start=tyro.MISSING,
    adapt=Adapt(unet="frozen", encoder="frozen", time_layers=False, autoencoder_factor=0.05),
    realism=Realism(vsd=VSD(weight=0.0, guidance=1.0, moved=True)),
)
MINI2 = Recipe(
    data=mini2_data(),
    run=Run(out=tyro.MISSING, steps=800, ema=0.99, max_norm=0.5),
    start=tyro.MISSING,
    adapt=Adapt(unet="frozen", encoder="frozen", decoder=False, time_layers=False),
    # Its decoder is linear: the straight line of latents is the blend of the pictures, and kappa has nothing to bend.
    weights=Weights(path=0.0, faithful=0.0, decoder=0.0),
    realism=Realism(vsd=VSD(weight=0.0, guidance=1.0)),
)
LOWLIGHT = replace(MINI2, data=lowlight_data(), run=replace(MINI2.run, steps=400))
SD21 = Recipe(
    data=sd21_data(),
    run=Run(out=tyro.MISSING, steps=50000, batch=1, ema=0.999, schedule="constant"),
    start=tyro.MISSING,
    adapt=replace(SD21_ADAPT, encoder="frozen"),
    peak_rate=5e-5,
    weights=Weights(anchor=1.0),
)
RECIPES = {
    "mini": ("ctsr-mini on two CPU cores", MINI),
    "mini2": ("ctsr-mini 2 on two CPU cores", MINI2),
    "lowlight": ("ctsr-lowlight on two CPU cores", LOWLIGHT),
    "sd21": ("Stable Diffusion 2.1-base on one 24 GB card", SD21),
}


def check(recipe: Recipe) -> None:
    """Raises ValueError for settings under which the stage could not do what it is for."""
    check_encoder(recipe.adapt)
    if recipe.adapt.unet != "frozen" and not recipe.weights.anchor:
        raise ValueError("Beside a UNet that learns, t = 0 needs an anchor: give --weights.anchor 1.")


def check_encoder(what: Adapt) -> None:
    """Raises ValueError where stage 1's encoder would learn."""
    if what.encoder != "frozen" or what.time_layers:
        raise ValueError("Stage 2 keeps stage 1's encoder: give --adapt.encoder frozen --adapt.no-time-layers.")


def with_dial_groups(pipeline: CTSRPipeline) -> CTSRPipeline:
    """The pipeline as family ctsr: a UNet of one group gets those of the dial, which are zero.

    ctsr-mini 2's decoder is linear: the straight way's pictures are the blends of its ends', so it has no kappa.
    """
    name = pipeline.family.name
    if name not in ("ctsr", "osediff"):
        raise ValueError(f"Stage 2 starts from a file of family ctsr or osediff, not {name!r}: give one of stage 1.")
    straight = isinstance(pipeline.vae, TimeAwareAutoencoderMini2)
    if name == "osediff":
        widen_conv_out(pipeline.unet, 2 if straight else 3)
        pipeline.register_to_config(family="ctsr")
    elif straight:
        keep_groups(pipeline.unet, 2 * LATENT_CHANNELS)
    return pipeline


def dial_group(unet: nn.Module, first: int) -> Group:
    """Makes conv_out learn in fp32 but for its `first` channels, o's, whose gradient is zeroed.

    Without weight decay, which would move o's part without a gradient.
    """
    conv = cast(nn.Conv2d, getattr(unet.conv_out, "base_layer", unet.conv_out)).float().requires_grad_(True)

    def without_o(gradient: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(gradient[:first]), gradient[first:]])

    for parameter in conv.parameters():
        parameter.register_hook(without_o)
    return {"params": list(conv.parameters()), "weight_decay": 0.0}


class Bends(nn.Module):
    """The stage's loss. z^0 is held where it is: only the anchor loss updates o."""

    def __init__(self, model: OneStep, stage1: OneStep, faithful: Faithful, recipe: Recipe, terms: RealismTerms):
        super().__init__()
        self.model, self.stage1, self.faithful, self.terms = model, stage1, faithful, terms
        self.weights, self.decoder, self.seed = recipe.weights, recipe.adapt.decoder, recipe.run.seed

    def forward(self, batch: Sample) -> dict[str, Tensor]:
        """`loss`, its terms, and for the turns after it `fake` [B, 3, H, W] and `latents` [B, C, h, w]."""
        family = self.model.family_at(self.model.told(batch))
        z = self.model.encode(enlarge(batch["lr"], self.model.scale), family.encoder_timesteps[0])
        output = self.model.predict(z, family.timesteps[0])
        ends = family.endpoints(family.unet_inputs([z]), [output])
        ends = replace(ends, z0=ends.z0.detach())
        t = Draws(batch["index"], self.seed).uniform("dial").to(z.device)
        middle = blend(ends, t)
        x = self.model.decode(middle)
        terms = self.ends_terms(ends, x, t, batch)
        if self.weights.anchor:
            o = output[:, : z.shape[1]].float()
            with torch.no_grad():
                aim = self.stage1.predict(z, family.timesteps[0])[:, : z.shape[1]].float()
            terms["anchor"] = self.weights.anchor * F.mse_loss(o, aim)
        near, judged = 1 - t, self.terms.judged(middle, x, batch)
        terms |= self.terms.losses(weigh_gradient(judged, near), weigh_gradient(x, near), batch)
        return {**total(terms), "fake": x, "latents": judged}

    def ends_terms(self, ends: Endpoints, x: Tensor, t: Tensor, batch: Sample) -> dict[str, Tensor]:
        """Terms of the ends, and of a picture x at t between them."""
        weights, z1 = self.weights, blend(ends, 1.0)
        truth = self.faithful.truth(batch)
        x0, x1 = self.model.decode(ends.z0), self.model.decode(z1)
        terms = {
            "way": weights.way * delta_loss(cast(Tensor, ends.delta), ends.z0, self.faithful(batch)),
            "end": weights.end * F.mse_loss(x1, truth),
            "path": weights.path * path_loss(x, x0, x1, t),
            "faithful": weights.faithful * faithful_loss(x, truth, t),
        }
        if self.decoder:
            with torch.no_grad():
                aim = self.stage1.decode(ends.z0)
            terms["decoder"] = weights.decoder * F.mse_loss(x0, aim)
        return terms


def build(recipe: Recipe) -> Stage:
    """The stage of a recipe."""
    check(recipe)
    pipeline, before = (open_pipeline(recipe.start, pairs=recipe.data.pairs) for _ in range(2))
    model, stage1 = OneStep(with_dial_groups(pipeline)), frozen(before, recipe.adapt)
    terms = open_realism(recipe)
    groups = adapt(model, recipe.adapt)
    if recipe.adapt.unet != "full":
        groups.append(dial_group(model.unet, latent_channels(model.vae)))
    faithful = open_faithful(recipe, plain_vae(recipe, stage1))
    return Stage(
        turns=[Turn("bends", Bends(model, stage1, faithful, recipe, terms), recipe.peak_rate, groups), *terms.turns],
        source=partial(faithful_source, recipe),
        validate=partial(validate, model),
        write=lambda _: finish_and_save(pipeline, model, recipe.adapt, recipe.run.out),
    )


if __name__ == "__main__":
    main(RECIPES, build)
