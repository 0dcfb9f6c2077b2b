"""What both stages of CTSR (arXiv 2503.14272) start from: frozen teachers, and the plain encoder of clean pictures.

The faithful teacher is a network of the student's family, or another restorer, of which only the pictures are known.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ctsr import CTSRPipeline
from ctsr.families import blend
from ctsr.models import forward
from training.data.datasets import Data, open_source, restored_source
from training.data.photos import Photos
from training.engine.run import Run
from training.engine.sources import Sample, Source
from training.model.adapt import Adapt, recompute, to_base_dtype
from training.model.one_step import OneStep, open_pipeline


@dataclass(frozen=True)
class CTSRRecipe:
    """What the recipes of both stages name.

    Attributes:
        start: file of the stage before.
        fidelity: file of `training.stages.fidelity`: the faithful teacher.
        lr, restored, hr: instead of it and of the photographs, folders of low-resolution pictures, what another
            restorer made of them, and the ground truth.
        autoencoder: whose plain encoder encodes clean pictures: for SD the base, since LoRA trained that of `start`;
            None is `start`'s own.
    """

    data: Data
    run: Run
    start: str
    fidelity: Path | None = None
    lr: Path | None = None
    restored: Path | None = None
    hr: Path | None = None
    autoencoder: str | None = None
    adapt: Adapt = field(default_factory=Adapt)
    peak_rate: float = 1e-4


def frozen(pipeline: CTSRPipeline, what: Adapt) -> OneStep:
    """A teacher: nothing of it learns, and its weights are in the dtype of a frozen base."""
    model = OneStep(pipeline).requires_grad_(False)
    to_base_dtype(model.unet, what, model.family.gain)
    to_base_dtype(model.vae, what)
    if what.checkpointing:
        recompute(model.unet)  # B_k's gradient runs through it
    return model


class Faithful(nn.Module):
    """The faithful end: what a network restores, or the latent of what another restorer made (`batch["soft"]`)."""

    def __init__(self, network: OneStep | None, vae: nn.Module):
        super().__init__()
        self.network, self.vae = network, vae

    def truth(self, batch: Sample) -> Tensor:
        """What the faithful end is measured by, [B, 3, H, W] in [-1, 1]."""
        return batch["sharp" if self.network is None else "soft"]

    @torch.no_grad()
    def forward(self, batch: Sample) -> Tensor:
        """z_f, scaled, fp32 [B, C, h, w]."""
        if self.network is None:
            return plain_latents(self.vae, batch["soft"])
        return blend(self.network(batch["lr"], self.network.told(batch)), 1.0)


def plain_latents(vae: nn.Module, x: Tensor) -> Tensor:
    """Scaled latents of pictures [B, 3, H, W] in [-1, 1] by the encoder without a timestep, fp32; no gradient."""
    with torch.no_grad():
        return float(cast(Any, vae).config["scaling_factor"]) * forward.encode(vae, x, None).float()


def plain_vae(recipe: CTSRRecipe, start: OneStep) -> nn.Module:
    """The frozen autoencoder whose plain encoder gives latents of clean pictures: of a base, or `start`'s own."""
    if recipe.autoencoder is None:
        return start.vae
    vae = cast(nn.Module, open_pipeline(recipe.autoencoder, "osediff").vae).requires_grad_(False)
    to_base_dtype(vae, recipe.adapt)
    return vae


def open_faithful(recipe: CTSRRecipe, vae: nn.Module) -> Faithful:
    """The faithful teacher: a network's file, or another restorer's pictures, which `vae` encodes."""
    if (recipe.fidelity is None) == (recipe.restored is None):
        raise ValueError("Give one faithful teacher: --fidelity FILE, or --lr, --restored and --hr FOLDER.")
    if recipe.fidelity is None:
        return Faithful(None, vae)
    network = frozen(open_pipeline(recipe.fidelity), recipe.adapt)
    if network.scale != recipe.data.pairs.scale:
        raise ValueError(f"{recipe.fidelity} is for scale {network.scale:g}, not {recipe.data.pairs.scale}.")
    return Faithful(network, vae)


def faithful_source(recipe: CTSRRecipe, photos: Photos, realistic: Path | None = None) -> Source:
    """Degraded photographs, or other restorers' pictures as `soft` and `realistic` with the ground truth as `sharp`.

    Where the faithful teacher is a network and only `realistic` pictures are given, `soft` is the ground truth.
    """
    if recipe.restored is None and realistic is None:
        return open_source(recipe.data, photos)
    if recipe.lr is None or recipe.hr is None:
        raise ValueError(
            "--restored and --realistic need the folders that their pictures belong to: give --lr and --hr too."
        )
    return restored_source(recipe.data, recipe.lr, recipe.restored or recipe.hr, recipe.hr, realistic)
