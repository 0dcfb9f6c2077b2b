"""Tiny models with seeded weights: a mini and an SD-shaped pipeline that run in milliseconds."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from ctsr import (
    CTSRPipeline,
    PromptEmbeddings,
    TimeAwareAutoencoderKL,
    TimeAwareAutoencoderMini,
    TimeConditionedUNetMini,
)


def seeded(model: nn.Module, seed: int) -> nn.Module:
    """`model` with every weight drawn anew, also those that start at zero, so that no path is dead."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                std = parameter[0].numel() ** -0.5
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
            else:
                start = (parameter == 1).float()  # a norm's scale; all others are biases
                parameter.copy_(start + torch.randn(parameter.shape, generator=generator) * 0.05)
    return model.eval()


def build_mini(seed: int = 0) -> CTSRPipeline:
    """Mini-shaped, of family `ctsr`: one encode at tau = 999, residual prediction, fp32."""
    vae = TimeAwareAutoencoderMini(
        latent_channels=4, block_out_channels=(8, 8, 8), layers_per_block=(1, 1, 1), time_embed_dim=16
    )
    unet = TimeConditionedUNetMini(
        in_channels=4,
        out_channels=12,
        block_out_channels=(8, 8),
        layers_per_block=(1, 1),
        kernel_size=3,
        time_embed_dim=16,
    )
    return CTSRPipeline(
        seeded(vae, seed), seeded(unet, seed + 1), family="ctsr", parameterization="residual", encoder_timesteps=[999]
    )


def build_sd(family: str = "ctsr") -> CTSRPipeline:
    """SD-shaped: autoencoder of factor 8 with GroupNorm and attention, stock UNet with a baked prompt, fp32."""
    vae = TimeAwareAutoencoderKL(
        block_out_channels=(32, 32, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=8,
    )
    unet = UNet2DConditionModel(
        in_channels=4,
        out_channels=12 if family == "ctsr" else 4,
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=8,
        cross_attention_dim=16,
    )
    embeds: Tensor = torch.randn(1, 4, 16, generator=torch.Generator().manual_seed(4))
    steps = [500] if family == "ctsr" else None
    prompt = PromptEmbeddings.from_embeds(embeds)
    return CTSRPipeline(seeded(vae, 2), seeded(unet, 3), prompt, family=family, encoder_timesteps=steps)


@pytest.fixture(scope="session")
def make_mini() -> Callable[..., CTSRPipeline]:
    """For tests that change the pipeline."""
    return build_mini


@pytest.fixture(scope="session")
def make_sd() -> Callable[..., CTSRPipeline]:
    """For tests that change the pipeline."""
    return build_sd


@pytest.fixture(scope="session")
def tiny_mini() -> CTSRPipeline:
    """Shared by all tests: do not change it."""
    return build_mini()


@pytest.fixture(scope="session")
def tiny_sd() -> CTSRPipeline:
    """Shared by all tests: do not change it."""
    return build_sd()


@pytest.fixture(scope="session")
def tiny_mini_file(tiny_mini: CTSRPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny mini as one safetensors file, fp32."""
    path = tmp_path_factory.mktemp("weights") / "tiny-mini.safetensors"
    tiny_mini.save_single_file(path, dtype=torch.float32)
    return path
