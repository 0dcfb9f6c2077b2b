"""Stable Diffusion 2.1-base as others' folders and files have it: its networks, and prompts through its text encoder.

A folder is in diffusers' layout. A single file has the names of the original repository; diffusers' own converters give
them diffusers' names, and the shapes of the tensors tell the networks' sizes. Nothing is fetched from anywhere.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors import SafetensorError
from torch import Tensor

from ..checkpoints.formats import SD_TEXT, SD_UNET, SD_VAE
from ..checkpoints.inspect import Contents
from ..errors import CheckpointError, CTSRError, first_line
from ..models.building import filled
from .prompts import encode_prompts

ModelT = TypeVar("ModelT", AutoencoderKL, UNet2DConditionModel)
Shapes = Mapping[str, tuple[int, ...]]

_HEAD_CHANNELS = 64
"""Of every attention head of SD 2.x, in the UNet and in the text encoder."""
_SCALING_FACTOR = 0.18215
UNREADABLE = (OSError, ValueError, TypeError, KeyError, IndexError, RuntimeError, SafetensorError)


@dataclass(frozen=True)
class Base:
    """Stable Diffusion 2.1-base, read part by part when asked for; each function raises CheckpointError.

    Attributes:
        path: folder or file.
        unet: fp32.
        vae: fp32.
        encode: a prompt -> [1, 77, 1024] fp32; raises CTSRError where transformers is not installed.
    """

    path: Path
    unet: Callable[[], UNet2DConditionModel]
    vae: Callable[[], AutoencoderKL]
    encode: Callable[[str], Tensor]


# -------------------------------------------------------------------------------------------------------------- folder


def open_folder(contents: Contents) -> Base:
    """Raises CheckpointError for the sibling that predicts v, whose files look alike otherwise."""
    path = contents.path
    check_epsilon(path)
    return Base(
        path,
        partial(read, UNet2DConditionModel, path / "unet"),
        partial(read, AutoencoderKL, path / "vae"),
        lambda prompt: encode_prompts(path, [prompt]),
    )


def check_epsilon(folder: Path) -> None:
    """Raises CheckpointError for SD 2.1's 768-pixel sibling, or a damaged scheduler."""
    config = folder / "scheduler" / "scheduler_config.json"
    if not config.is_file():
        return
    try:
        kind = json.loads(config.read_text(encoding="utf-8")).get("prediction_type", "epsilon")
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{config} cannot be read ({first_line(error)}); fetch it again.") from error
    if kind != "epsilon":
        raise CheckpointError(f"{folder} is of {kind}: give Stable Diffusion 2.1-base, which predicts the noise.")


def read(cls: type[ModelT], folder: Path) -> ModelT:
    """A model that diffusers saved, fp32; its files of half precision where there are no others."""
    weights = [file.name for file in folder.glob("diffusion_pytorch_model*")]
    options = {"variant": "fp16"} if weights and all(".fp16." in name for name in weights) else {}
    try:
        model, keys = cast(Any, cls).from_pretrained(
            folder, low_cpu_mem_usage=False, output_loading_info=True, local_files_only=True, **options
        )
    except UNREADABLE as error:
        raise CheckpointError(f"{folder} cannot be loaded ({first_line(error)}); fetch it again.") from error
    if keys["missing_keys"]:  # diffusers leaves these at random
        raise CheckpointError(f"{folder} cannot be loaded ({keys['missing_keys'][0]} is missing); fetch it again.")
    return model.float()


# --------------------------------------------------------------------------------------------------------- single file


def open_single_file(contents: Contents) -> Base:
    """Networks are read when they are asked for."""

    def guarded(load: Callable[[Contents], Any]) -> Any:
        try:
            return load(contents)
        except UNREADABLE as error:
            what = f"{contents.path} looks like Stable Diffusion 2.x but cannot be loaded"
            raise CheckpointError(f"{what} ({first_line(error)}); fetch it again.") from error

    return Base(
        contents.path,
        lambda: guarded(_load_unet),
        lambda: guarded(_load_vae),
        lambda prompt: guarded(lambda contents: _encode_plain(contents, prompt)),
    )


def _load_unet(contents: Contents) -> UNet2DConditionModel:
    """The UNet of a single file, fp32."""
    convert = import_module("diffusers.loaders.single_file_utils").convert_ldm_unet_checkpoint
    state = contents.tensors(SD_UNET)
    config = _unet_config(shapes_of(state, SD_UNET))
    return filled(UNet2DConditionModel, config, convert(state, config))


def _load_vae(contents: Contents) -> AutoencoderKL:
    """The autoencoder of a single file, fp32."""
    convert = import_module("diffusers.loaders.single_file_utils").convert_ldm_vae_checkpoint
    state = contents.tensors(SD_VAE)
    config = _vae_config(shapes_of(state, SD_VAE))
    return filled(AutoencoderKL, config, convert(state, config))


def shapes_of(state: Mapping[str, Tensor], prefix: str) -> Shapes:
    """Shapes of the tensors by their names without the prefix."""
    return {key.removeprefix(prefix): tuple(x.shape) for key, x in state.items()}


def count(shapes: Shapes, prefix: str) -> int:
    """How many numbers follow `prefix` in the names."""
    return len({key.removeprefix(prefix).split(".")[0] for key in shapes if key.startswith(prefix)})


def _unet_config(shapes: Shapes) -> dict[str, Any]:
    """Arguments of diffusers' UNet: levels of equally many resnets, each level but the last ended by a step down."""
    blocks = range(1, count(shapes, "input_blocks."))
    ends = [i for i in blocks if f"input_blocks.{i}.0.op.weight" in shapes]
    levels = len(ends) + 1
    layers = (len(blocks) - len(ends)) // levels
    last = [(layers + 1) * level + layers for level in range(levels)]  # the last resnet of each level
    widths = tuple(shapes[f"input_blocks.{i}.0.out_layers.3.weight"][0] for i in last)
    attends = [f"input_blocks.{i}.1.norm.weight" in shapes for i in last]
    middle = "middle_block.1.transformer_blocks.0.attn2.to_k.weight"
    return {
        "in_channels": shapes["input_blocks.0.0.weight"][1],
        "out_channels": shapes["out.2.weight"][0],
        "block_out_channels": widths,
        "layers_per_block": layers,
        "down_block_types": tuple("CrossAttnDownBlock2D" if has else "DownBlock2D" for has in attends),
        "up_block_types": tuple("CrossAttnUpBlock2D" if has else "UpBlock2D" for has in reversed(attends)),
        "cross_attention_dim": shapes[middle][1],
        "attention_head_dim": tuple(heads(width) for width in widths),  # diffusers' old name for their number
        "use_linear_projection": len(shapes["middle_block.1.proj_in.weight"]) == 2,
    }


def _vae_config(shapes: Shapes) -> dict[str, Any]:
    """Arguments of diffusers' AutoencoderKL."""
    levels, layers = count(shapes, "encoder.down."), count(shapes, "encoder.down.0.block.")
    return {
        "latent_channels": shapes["post_quant_conv.weight"][0],
        "block_out_channels": tuple(
            shapes[f"encoder.down.{level}.block.{layers - 1}.conv2.weight"][0] for level in range(levels)
        ),
        "layers_per_block": layers,
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "scaling_factor": _SCALING_FACTOR,
    }


def heads(width: int) -> int:
    """Number of attention heads of a layer."""
    return max(1, width // _HEAD_CHANNELS)


@torch.no_grad()
def _encode_plain(contents: Contents, prompt: str) -> Tensor:
    """As `prompts.encode_prompts`, by the OpenCLIP text encoder of a single file, which brings no tokenizer.

    Args:
        contents: of the single file.
        prompt: empty, or punctuation but "!" with spaces between, whose tokens need no vocabulary.

    Raises:
        CTSRError: transformers is not installed.
        CheckpointError: a prompt with words.
    """
    convert = import_module("diffusers.loaders.single_file_utils").convert_open_clip_checkpoint
    state = contents.tensors(SD_TEXT)
    shapes = shapes_of(state, SD_TEXT)
    (vocabulary, width), (length, _) = shapes["token_embedding.weight"], shapes["positional_embedding"]
    tokens = _plain_tokens(contents.path, prompt, vocabulary, length)
    try:
        transformers: Any = import_module("transformers")
    except ImportError as error:
        raise CTSRError("Encoding a prompt needs transformers: pip install 'ctsr[sd]'.") from error
    last = count(shapes, "transformer.resblocks.") - 1  # SD 2.x takes what comes out before the last layer
    config = transformers.CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=shapes["transformer.resblocks.0.mlp.c_fc.weight"][0],
        num_hidden_layers=last,
        num_attention_heads=heads(width),
        max_position_embeddings=length,
        hidden_act="gelu",
    )
    encoder = transformers.CLIPTextModel(config)
    used = {key: x for key, x in state.items() if f".resblocks.{last}." not in key}
    converted = cast("dict[str, Tensor]", convert(encoder, used, prefix=SD_TEXT))
    if not hasattr(encoder, "text_model"):  # from transformers 5.6
        converted = {key.removeprefix("text_model."): x for key, x in converted.items()}
    wrong = encoder.load_state_dict(converted, strict=False)
    if missing := [key for key in wrong.missing_keys if "position_ids" not in key]:
        raise KeyError(f"{missing[0]} is missing")
    return encoder.float().eval()(torch.tensor([tokens])).last_hidden_state


def _plain_tokens(path: Path, prompt: str, vocabulary: int, length: int) -> list[int]:
    """CLIP's tokens of a prompt without words: its vocabulary begins with the printable bytes, alone, then all bytes
    that end a word, and ends with the two marks; "!", the first, pads SD 2.x's prompts."""
    words = prompt.split()
    if not all(len(word) == 1 and "!" < word <= "~" and not word.isalnum() for word in words):
        raise CheckpointError(f"{path} brings no tokenizer: leave the prompt empty, or give a folder as the base.")
    tokens = [vocabulary - 2, *(256 + ord(word) - ord("!") for word in words), vocabulary - 1][:length]
    return tokens + [0] * (length - len(tokens))
