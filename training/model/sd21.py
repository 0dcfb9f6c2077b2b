"""Stable Diffusion 2.1-base as the starting point of training: its shapes, its folder as a pipeline of a family."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from ctsr import CTSRPipeline, PromptEmbeddings, TimeAwareAutoencoderKL, get_family
from ctsr.convert.prompts import encode_prompts
from ctsr.convert.stable_diffusion import check_epsilon, read
from ctsr.models.building import make_fast
from training.model.unet_channels import widen_conv_out

SD21_UNET: Mapping[str, Any] = MappingProxyType(
    {
        "sample_size": 64,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (320, 640, 1280, 1280),
        "layers_per_block": 2,
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),  # heads; diffusers' old name for them
        "use_linear_projection": True,
    }
)
"""Arguments of SD 2.1-base's `UNet2DConditionModel`; the rest are defaults. 865,910,724 parameters."""

SD21_VAE: Mapping[str, Any] = MappingProxyType(
    {
        "sample_size": 768,
        "latent_channels": 4,
        "block_out_channels": (128, 256, 512, 512),
        "layers_per_block": 2,
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "scaling_factor": 0.18215,
    }
)
"""Arguments of its `AutoencoderKL`, or of `TimeAwareAutoencoderKL`. 83,653,863 parameters, without the time layers."""

NEGATIVE_PROMPT = (
    "painting, oil painting, illustration, drawing, art, sketch, cartoon, CG Style, 3D render, unreal engine, "
    "blurring, dirty, messy, worst quality, low quality, frames, watermark, signature, jpeg artifacts, deformed, "
    "lowres, over-smooth"
)
"""OSEDiff's: the unconditional branch of guidance in its realism loss."""


def load_base(folder: Path, family: str, prompt: str = "", time_aware: bool = True) -> CTSRPipeline:
    """A Stable Diffusion 2.1-base folder as a pipeline of `family` that has yet to be trained, fp32.

    Args:
        folder: in diffusers' layout, with unet/, vae/, tokenizer/ and text_encoder/.
        family: one that starts from the plain UNet: ctsr (its outputs widened to three groups), osediff or tadsr.
        prompt: baked into the pipeline.
        time_aware: give the encoder time layers; until they are trained they change nothing.

    Raises:
        CheckpointError: the folder lacks a part, cannot be read or is not one of epsilon prediction.
        ValueError: a family that cannot start here.
    """
    known = get_family(family)
    if known.concat_latent or known.variants:
        raise ValueError(f"Family {family!r} does not start from the plain UNet of SD 2.1-base.")
    if not time_aware and known.encoder_timesteps != (None,):
        raise ValueError(f"Family {family!r} gives its encoder a timestep: leave time_aware on.")
    check_epsilon(folder)
    unet = read(UNet2DConditionModel, folder / "unet")
    vae = read(AutoencoderKL, folder / "vae")
    embeds = encode_prompts(folder, [prompt])
    if known.output_groups > 1:
        widen_conv_out(unet, known.output_groups)
    return CTSRPipeline(
        make_fast(TimeAwareAutoencoderKL.from_autoencoder_kl(vae) if time_aware else vae),
        make_fast(unet),
        PromptEmbeddings.from_embeds(embeds),
        family=family,
    )
