"""Tiny models with seeded weights: a mini and an SD-shaped pipeline that run in milliseconds."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from ctsr import (
    CTSRPipeline,
    PromptEmbeddings,
    TimeAwareAutoencoderKL,
    TimeAwareAutoencoderMini,
    TimeConditionedUNetMini,
)
from ctsr.assess.perceptual import ALEX_KERNELS, ALEX_WIDTHS
from ctsr.assess.vgg import STAGES, VGG_FILE
from tests.checkpoints import TINY_UNET, TINY_VAE, save_folder

PROMPT_LENGTH = 77  # tokens


@pytest.fixture(autouse=True)
def _one_seed_for_every_test() -> None:
    """What a test draws without a generator of its own is the same in every run and every order."""
    torch.manual_seed(0)


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


def byte_characters() -> list[str]:
    """CLIP's printable stand-ins for the 256 bytes, in the order of its vocabulary ("!" is the first)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(others))]


def vocabulary() -> dict[str, int]:
    """Bytes, bytes that end a word, one merge, and the two special tokens last, as in CLIP's own."""
    characters = byte_characters()
    words = [*characters, *(character + "</w>" for character in characters), "ca", "cat</w>"]
    return {word: index for index, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}


def write_tokenizer(tokenizer: Path, vocab: dict[str, int]) -> None:
    """A CLIP tokenizer in the files' true formats."""
    tokenizer.mkdir()
    (tokenizer / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    (tokenizer / "merges.txt").write_text("#version: 0.2\nc a\nca t</w>\n", encoding="utf-8")
    marks = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    kept = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    special = {name: {"content": content, **kept} for name, content in marks.items()}
    (tokenizer / "special_tokens_map.json").write_text(json.dumps({**special, "pad_token": "!"}), encoding="utf-8")
    config = {name: {"__type": "AddedToken", **token} for name, token in special.items()}
    config |= {"add_prefix_space": False, "do_lower_case": True, "errors": "replace", "model_max_length": PROMPT_LENGTH}
    config |= {"pad_token": "<|endoftext|>", "tokenizer_class": "CLIPTokenizer"}
    (tokenizer / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


@pytest.fixture(scope="session")
def text_encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tokenizer/ and text_encoder/ of a tiny Stable Diffusion folder; do not change it."""
    transformers = pytest.importorskip("transformers")
    folder, vocab = tmp_path_factory.mktemp("text-encoder"), vocabulary()
    write_tokenizer(folder / "tokenizer", vocab)
    shape = transformers.CLIPTextConfig(
        vocab_size=len(vocab),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=PROMPT_LENGTH,
        bos_token_id=vocab["<|startoftext|>"],
        eos_token_id=vocab["<|endoftext|>"],
        pad_token_id=0,
    )
    torch.manual_seed(0)
    transformers.CLIPTextModel(shape).save_pretrained(folder / "text_encoder")
    return folder


@pytest.fixture(scope="session")
def sd21() -> tuple[UNet2DConditionModel, AutoencoderKL]:
    """UNet and autoencoder of Stable Diffusion 2.x's shape, tiny; do not change them."""
    unet, vae = UNet2DConditionModel(**TINY_UNET), AutoencoderKL(**TINY_VAE)
    return seeded(unet, 11), seeded(vae, 12)


@pytest.fixture(scope="session")
def sd21_folder(
    sd21: tuple[UNet2DConditionModel, AutoencoderKL],
    text_encoder_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """These two as a Stable Diffusion folder with a tiny text encoder; do not change it."""
    return save_folder(tmp_path_factory.mktemp("sd21") / "stable-diffusion-2-1-base", *sd21, text_encoder_folder)


@pytest.fixture(scope="session")
def perceptual_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of random weights in the layout that LPIPS and DISTS read."""
    out, rng = tmp_path_factory.mktemp("vgg"), np.random.default_rng(0)
    widths = [3, *(width for width, count in STAGES for _ in range(count))]
    convs = {}
    for number, (a, b) in enumerate(pairwise(widths)):
        convs[f"conv{number}.weight"] = (rng.standard_normal((b, a, 3, 3)) * (2 / (9 * a)) ** 0.5).astype(np.float16)
        convs[f"conv{number}.bias"] = np.zeros(b, np.float16)
    np.savez(out / VGG_FILE, **convs)
    alex = {}
    for number, ((a, b), (size, *_)) in enumerate(zip(pairwise(ALEX_WIDTHS), ALEX_KERNELS, strict=True)):
        alex[f"conv{number}.weight"] = (rng.standard_normal((b, a, size, size)) / (size * a**0.5)).astype(np.float16)
        alex[f"conv{number}.bias"] = np.zeros(b, np.float16)
    np.savez(out / "alexnet_imagenet_features.npz", **alex)
    np.savez(
        out / "lpips_alex_lin.npz", **{f"lin{k}": rng.random(width) / width for k, width in enumerate(ALEX_WIDTHS[1:])}
    )
    np.savez(out / "lpips_vgg_lin.npz", **{f"lin{k}": rng.random(width) / width for k, (width, _) in enumerate(STAGES)})
    count = 3 + sum(width for width, _ in STAGES)
    np.savez(out / "dists_alpha_beta.npz", alpha=rng.random((1, count, 1, 1)), beta=rng.random((1, count, 1, 1)))
    return out
