"""The two score networks of VSD: a frozen prior, and a regulariser that starts as the prior and follows the generator.

At SD size both are one UNet: the prior is the base, the regulariser the base with LoRA (TADSR's way to save a UNet).
The released OSEDiff and TADSR activate only the middle block's adapter of the regulariser; `mid` does as they do.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from ctsr import CTSRPipeline
from training.engine.run import own_device
from training.losses.vsd import Denoiser
from training.model.adapt import AS_OSEDIFF, Adapt, Group, recompute, to_base_dtype
from training.model.lora import add_lora, lora_parameters, unet_targets
from training.model.one_step import OneStep

RegulariserLora = Literal["mid", "all"]
AS_IT_IS = Adapt()


@dataclass(frozen=True)
class ScoreNetworks:
    """Prior and regulariser.

    Attributes:
        prior, regulariser: noise predictions.
        encode: pictures [B, 3, H, W] in [-1, 1] to the latents that the prior knows, fp32 [B, C, H/8, W/8], by the
            frozen plain encoder of its file; a gradient goes through to the pictures.
        network: what the regulariser's optimizer moves a part of.
        groups: that part; None for all of it.
        negative_prompt: embeddings [1, L, D] that guidance goes against, or None.
    """

    prior: Denoiser
    regulariser: Denoiser
    encode: Callable[[Tensor], Tensor]
    network: nn.Module
    groups: Sequence[Group] | None
    negative_prompt: Tensor | None


def open_score_networks(
    base: CTSRPipeline,
    lora: RegulariserLora | None = None,
    what: Adapt = AS_IT_IS,
    negative_prompt: Tensor | None = None,
) -> ScoreNetworks:
    """Prior and regulariser of a pipeline that predicts noise: an SD 2.1 base, or a `training.research.prior` file.

    Args:
        base: its UNet is taken over, not copied.
        lora: which adapters of the regulariser learn; None trains a whole copy (the mini).
        what: rank and alpha of LoRA, the dtype of the frozen base beneath it, and whether the regulariser recomputes
            its activations.
        negative_prompt: for guidance.
    """
    device = own_device()  # the mini's prior is in no turn's module, so nobody else moves it
    model = OneStep(base).requires_grad_(False).to(device)
    if negative_prompt is not None:
        negative_prompt = negative_prompt.to(device)

    def encode(x: Tensor) -> Tensor:
        return model.encode(x).float()

    if lora is None:
        network = copy.deepcopy(model.unet).requires_grad_(True)
        twin = copy.copy(model)
        twin._modules = {**model._modules, "unet": network}
        if what.checkpointing:
            recompute(network)
        return ScoreNetworks(denoiser(model), denoiser(twin), encode, network, None, negative_prompt)
    targets = unet_targets(model.unet)
    chosen = targets if lora == "all" else {"default_others": targets["default_others"]}
    for module in (model.unet, model.vae):
        to_base_dtype(module, what)
    add_lora(model.unet, chosen, what.rank, what.alpha)
    if what.checkpointing:
        recompute(model.unet)
    groups: list[Group] = [{"params": lora_parameters(model.unet), **AS_OSEDIFF}]
    return ScoreNetworks(without_adapters(model), denoiser(model), encode, model.unet, groups, negative_prompt)


def denoiser(model: OneStep) -> Denoiser:
    """The UNet's first C output channels as a noise prediction, in autocast's dtype as it is a term's own error."""

    def call(z: Tensor, timestep: Tensor, prompt: Tensor | None = None) -> Tensor:
        return model.predict(z, timestep, prompt, accurately=False)[:, : z.shape[1]].float()

    return call


@contextmanager
def adapters_off(module: nn.Module) -> Iterator[None]:
    """The base without its adapters."""
    cast(Any, module).disable_adapters()
    try:
        yield
    finally:
        cast(Any, module).enable_adapters()


def without_adapters(model: OneStep) -> Denoiser:
    """The base's own noise prediction; never with a gradient."""
    inner = denoiser(model)

    @torch.no_grad()
    def call(z: Tensor, timestep: Tensor, prompt: Tensor | None = None) -> Tensor:
        with adapters_off(model.unet):
            return inner(z, timestep, prompt)

    return call
