"""Which parameters of the one-step model learn, and how: all of them (the mini), or LoRA beside a frozen base (SD)."""

from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import nn

from ctsr.models.autoencoder_mini2 import TimeAwareAutoencoderMini2
from ctsr.precision import is_accurate
from training.model.lora import (
    ALPHA,
    RANK,
    add_lora,
    lora_parameters,
    merge_lora,
    train_conv_in,
    unet_targets,
    vae_targets,
)
from training.model.one_step import OneStep

How = Literal["full", "lora", "frozen"]


@dataclass(frozen=True)
class Adapt:
    """What learns.

    Attributes:
        unet, encoder: all weights, LoRA (OSEDiff's placement, and conv_in as a whole), or nothing.
        decoder: the decoder too. Training SD's hurts it; the mini's is tuned.
        time_layers: the encoder's timestep embedding and projections.
        autoencoder_factor: of the learning rate, for an autoencoder that starts trained.
        rank, alpha: of LoRA; alpha / rank = 2 is what OSEDiff's checkpoints have, though it is not stored in them.
        checkpointing: recompute activations on the way back.
        base_dtype: of frozen weights beside LoRA; but fp32 for a UNet whose error would be amplified too much in bf16,
            as that of predicted noise at tau = 999 is.
        keep_lora: leave LoRA apart in the stage's file instead of merging it.
    """

    unet: How = "full"
    encoder: How = "full"
    decoder: bool = True
    time_layers: bool = True
    autoencoder_factor: float = 0.4
    rank: int = RANK
    alpha: float = ALPHA
    checkpointing: bool = False
    base_dtype: Literal["fp32", "bf16"] = "fp32"
    keep_lora: bool = False


SD21_ADAPT = Adapt(unet="lora", encoder="lora", decoder=False, time_layers=False, checkpointing=True, base_dtype="bf16")

Group = dict[str, Any]
AS_OSEDIFF = {"betas": (0.9, 0.999), "weight_decay": 1e-2}
"""Of AdamW for LoRA, as OSEDiff, CTSR and TADSR have it."""


def autoencoder_groups(parameters: list[tuple[str, nn.Parameter]], factor: float) -> list[Group]:
    """Residual blocks at `factor` of the rate, the linear chain between them at a tenth of that.

    The mini's chain starts as a cosine transform, which larger steps would shake to pieces.
    """
    blocks = [p for name, p in parameters if "blocks_" in name or "time_" in name]
    chain = [p for name, p in parameters if not ("blocks_" in name or "time_" in name)]
    groups = [{"params": blocks, "factor": factor}, {"params": chain, "factor": 0.1 * factor}]
    return [group for group in groups if group["params"]]


def adapt(model: OneStep, what: Adapt) -> list[Group]:
    """Freezes `model` but for what shall learn, adds LoRA where asked, and returns the optimizer's groups."""
    model.requires_grad_(False)
    groups = adapt_unet(model, what) + adapt_autoencoder(model, what)
    if what.checkpointing:
        recompute(model.unet)
        recompute(model.vae)
    return groups


def recompute(module: nn.Module) -> None:
    """Gradient checkpointing; diffusers 0.30 has it in training mode only, which changes nothing else of these."""
    cast(Any, module).enable_gradient_checkpointing()
    module.train()


def adapt_unet(model: OneStep, what: Adapt) -> list[Group]:
    """The UNet's part of `adapt`."""
    unet = model.unet
    if what.unet == "full":
        unet.requires_grad_(True)
        return [{"params": list(unet.parameters())}]
    if what.unet == "frozen":
        return []
    to_base_dtype(unet, what, model.family.gain)
    add_lora(unet, unet_targets(unet), what.rank, what.alpha)
    return [{"params": [*lora_parameters(unet), *train_conv_in(unet)], **AS_OSEDIFF}]


def adapt_autoencoder(model: OneStep, what: Adapt) -> list[Group]:
    """The autoencoder's part of `adapt`."""
    vae = model.vae
    if what.encoder == "lora":
        to_base_dtype(vae, what)
        add_lora(vae, vae_targets(vae), what.rank, what.alpha)
    elif what.encoder == "full":
        cast(nn.Module, vae.encoder).requires_grad_(True)
        if quant_conv := getattr(vae, "quant_conv", None):  # of SD's autoencoder
            quant_conv.requires_grad_(True)
    for name, parameter in vae.named_parameters():
        if "time_" in name and "decoder" not in name:
            parameter.data = parameter.data.float()
            parameter.requires_grad_(what.time_layers)
    if what.decoder and hasattr(vae, "decoder"):  # ctsr-mini 2 decodes by a fixed transform
        cast(nn.Module, vae.decoder).requires_grad_(True)
    lora = lora_parameters(vae) if what.encoder == "lora" else []
    known = {id(p) for p in lora}
    rest = [(name, p) for name, p in vae.named_parameters() if p.requires_grad and id(p) not in known]
    groups: list[Group] = [{"params": lora, **AS_OSEDIFF}] if lora else []
    if isinstance(vae, TimeAwareAutoencoderMini2):  # starts untrained, as its UNet
        return [*groups, {"params": [p for _, p in rest]}] if rest else groups
    return groups + autoencoder_groups(rest, what.autoencoder_factor)


def to_base_dtype(module: nn.Module, what: Adapt, gain: float = 0.0) -> None:
    """Frozen weights in the dtype asked for, if results amplified `gain`-fold are accurate enough in it."""
    if what.base_dtype == "bf16" and is_accurate(torch.bfloat16, gain):
        nn.Module.to(module, dtype=torch.bfloat16)


def finish(model: OneStep, what: Adapt) -> None:
    """Back to fp32, and LoRA folded in unless it shall be kept.

    In the half precision of a frozen base, most of LoRA would be rounded away.
    """
    model.float()
    if not what.keep_lora:
        merge_lora(model.unet)
        merge_lora(model.vae)
