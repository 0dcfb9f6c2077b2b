"""The one-step model as the stages train it: the networks of a pipeline, differentiable and without tiles."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctsr import CTSRPipeline
from ctsr.families import Endpoints, Family, Timestep, coefficients, get_family, predict_x0
from ctsr.load import load_pipeline
from ctsr.models import forward
from ctsr.models.autoencoder_mini2 import LATENT_CHANNELS, TimeAwareAutoencoderMini2
from ctsr.models.building import make_fast
from ctsr.models.lora import merge_lora
from ctsr.models.unet_mini2 import TimeConditionedUNetMini2
from ctsr.precision import is_accurate
from training.data.degradation import SCALE
from training.data.pairs import Pairs
from training.model.sd21 import load_base

logger = logging.getLogger(__name__)

TIMESTEP = 999  # one step from the far end, as OSEDiff


def enlarge(lr: Tensor, scale: int = SCALE) -> Tensor:
    """Bicubic as the pipeline does it, [B, 3, h, w] -> [B, 3, scale * h, scale * w]."""
    return F.interpolate(lr, scale_factor=scale, mode="bicubic", antialias=True).contiguous(
        memory_format=torch.channels_last
    )


def scale_of(batch: Mapping[str, Tensor]) -> int:
    """Side of a batch's ground truth / side of its LR pictures."""
    return batch["sharp"].shape[-1] // batch["lr"].shape[-1]


NEW = "new"
DEFAULT_TIMESTEP = 999  # the crispest ground truth


def new_mini(family: str) -> CTSRPipeline:
    """A ctsr-mini 2 that has yet to be trained: it gives back the enlarged picture."""
    groups = min(2, get_family(family).output_groups)  # its decoder is linear: no kappa
    return CTSRPipeline(
        make_fast(TimeAwareAutoencoderMini2()),
        make_fast(TimeConditionedUNetMini2(out_channels=groups * LATENT_CHANNELS)),
        family=family,
        parameterization="residual",
        encoder_timesteps=[DEFAULT_TIMESTEP],
        time_aware_unet=True,
    )


def is_base(start: Path | str) -> bool:
    """Whether it is the folder of an SD 2.1 base model, and no pipeline of ours."""
    index = Path(start) / "model_index.json"
    return Path(start).is_dir() and not (index.is_file() and "CTSRPipeline" in index.read_text(encoding="utf-8"))


def open_pipeline(start: Path | str, family: str = "ctsr", pairs: Pairs | None = None) -> CTSRPipeline:
    """What a stage starts from, in fp32.

    Args:
        start: "new" for a ctsr-mini 2 that has yet to be trained, "mini", a file that a stage or `ctsr convert` wrote,
            or the folder of an SD 2.1 base model.
        family: of a base model; files know theirs.
        pairs: whose task it is to learn, at their scale, whatever it did before; None leaves it as it is.
    """
    if start == NEW:
        pipeline = new_mini(family)
    elif is_base(start):
        logger.warning("The prompt is empty for every picture; OSEDiff and its relatives give each its own tags.")
        pipeline = load_base(Path(start), family)
    else:
        pipeline = load_pipeline(start, torch.float32)
        for part in (pipeline.unet, pipeline.vae):
            merge_lora(part)  # new adapters of the same names would take the place of kept ones
    if pairs is not None:
        pipeline.register_to_config(task=pairs.task, default_scale=pairs.scale)
        if pipeline.changes_light:
            pipeline.register_to_config(color_fix="none")
    return pipeline


class OneStep(nn.Module):
    """Pictures to endpoints, and latents to pictures.

    Attributes:
        vae, unet: of the pipeline, shared with it and not copied.
        prompt: baked prompt embeddings [1, L, D], or None for UNets without cross-attention.
        family: the method.
        scale: side of a result / side of a picture.
    """

    prompt: Tensor | None

    def __init__(self, pipeline: CTSRPipeline):
        super().__init__()
        self.vae: nn.Module = pipeline.vae
        self.unet: nn.Module = pipeline.unet
        embeddings = pipeline.prompt_embeddings
        self.register_buffer("prompt", None if embeddings is None else embeddings.embeds.clone(), persistent=False)
        self.family: Family = pipeline.family
        self.scale = pipeline.config["default_scale"]

    @property
    def scaling_factor(self) -> float:
        """s of z = s * E(x)."""
        return float(cast(Any, self.vae).config["scaling_factor"])

    def encode(self, x: Tensor, timestep: Timestep | None = None) -> Tensor:
        """z_L, scaled: [B, 3, H, W] in [-1, 1] -> [B, C, H/f, W/f]; `timestep` of the encoder, None for the plain."""
        return self.scaling_factor * forward.encode(self.vae, x, timestep)

    def predict(self, z: Tensor, timestep: Timestep, prompt: Tensor | None = None, accurately: bool = True) -> Tensor:
        """The UNet's output [B, groups * C, h, w] with the baked prompt, or another one [1 or B, L, D].

        Accurately means without autocast where bf16 would give z0 too large an error (`precision.is_accurate`): the
        UNet is in fp32 then, on a GPU with TF32.
        """
        embeds = self.prompt if prompt is None else prompt
        if embeds is not None:
            embeds = embeds.expand(z.shape[0], -1, -1)
        if not accurately or is_accurate(torch.bfloat16, self.family.gain):
            return forward.predict(self.unet, z, timestep, embeds)
        with torch.autocast(z.device.type, enabled=False):
            return forward.predict(self.unet, z, timestep, embeds)

    def x0(self, z: Tensor, timestep: Timestep, prompt: Tensor | None = None) -> Tensor:
        """The UNet's estimate of the clean latent behind z at `timestep`, fp32: its first output group."""
        o = self.predict(z, timestep, prompt)[:, : z.shape[1]]
        return predict_x0(z, o, *coefficients(self.family.parameterization, timestep))

    def told(self, batch: Mapping[str, Tensor]) -> Tensor | None:
        """Timestep [B] that says how crisp a batch's ground truth is; None if the model, or the batch, knows none."""
        knows = self.family.unet_timesteps is None and self.family.passes == 1
        return batch.get("timestep") if knows else None

    def ground_truth(self, batch: Mapping[str, Tensor]) -> Tensor:
        """What the realistic end is asked for, [B, 3, H, W]: the photograph, or as soft as the model is told."""
        return batch["sharp" if self.told(batch) is None else "soft"]

    def family_at(self, timestep: Tensor | None) -> Family:
        """The model's family, told `timestep` [B] where there is one instead of its own."""
        return self.family if timestep is None else replace(self.family, encoder_timesteps=(cast(Any, timestep),))

    def forward(self, lr: Tensor, timestep: Tensor | None = None) -> Endpoints:
        """LR [B, 3, h, w] in [-1, 1] -> endpoints, at the family's own timesteps or at `timestep` [B]."""
        x, family = enlarge(lr, self.scale), self.family_at(timestep)
        latents = [self.encode(x, step) for step in family.encoder_timesteps]
        inputs = family.unet_inputs(latents)
        return family.endpoints(inputs, [self.predict(each.sample, each.timestep) for each in inputs])

    def decode(self, z: Tensor) -> Tensor:
        """Scaled latents -> fp32 picture [B, 3, f * h, f * w], not clamped."""
        return forward.decode(self.vae, z / self.scaling_factor).float()
