"""A pipeline of the same classes and connections with tiny random weights, for others' tests."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import nn

from ..checkpoints.own import SETTINGS, arguments_of
from ..models.lora_variant import LoraVariant
from ..models.prompt_embeddings import PromptEmbeddings
from ..pipeline import CTSRPipeline

WIDTH = 32
TINY: Mapping[str, int] = {
    "block_out_channels": WIDTH,
    "layers_per_block": 1,
    "time_embed_dim": 16,
    "width": WIDTH,
    "norm_num_groups": 8,
    "attention_head_dim": 8,
    "cross_attention_dim": 16,
}
"""What arguments of any of the networks become; tuples keep their length."""
TOKENS = 4
RANK = 2


def tiny_pipeline(pipeline: CTSRPipeline) -> CTSRPipeline:
    """As `pipeline` in classes, family and numbers of levels and latent channels, with seeded random weights, fp32."""
    parts: dict[str, Any] = {}
    with cast(Any, torch.random).fork_rng(devices=[]):
        cast(Any, torch).manual_seed(0)
        parts["vae"], unet = shrunk(pipeline.vae), shrunk(pipeline.unet)
        parts["unet"] = unet
        if pipeline.prompt_embeddings is not None:
            embeds = torch.randn(1, TOKENS, arguments_of(unet)["cross_attention_dim"])
            parts["prompt_embeddings"] = PromptEmbeddings.from_embeds(embeds)
        if pipeline.unet_variant is not None:
            given: dict[str, Any] = arguments_of(pipeline.unet_variant)
            shapes = {name: list(unet.get_parameter(f"{name}.weight").shape) for name in given["shapes"]}
            parts["unet_variant"] = LoraVariant(given["variant"], RANK, given["scaling"], shapes)
        for part in parts.values():
            randomise(part)
    return CTSRPipeline(**parts, **{name: pipeline.config[name] for name in SETTINGS if name != "about"})


def shrunk(model: nn.Module) -> Any:
    """The same class with narrow layers, one for each where there were several."""
    given = {name: smaller(value, TINY[name]) if name in TINY else value for name, value in known(model).items()}
    return cast(Any, type(model))(**given).eval()


def known(model: nn.Module) -> dict[str, Any]:
    """Arguments that are set."""
    return {name: value for name, value in arguments_of(cast(Any, model)).items() if value is not None}


def smaller(value: Any, tiny: int) -> Any:
    """`tiny`, as often as the value has numbers."""
    return (tiny,) * len(cast("Sequence[Any]", value)) if isinstance(value, (list, tuple)) else tiny


@torch.no_grad()
def randomise(model: nn.Module) -> None:
    """Weights of a size that keeps activations near 1, also those that start at zero; the rest stays as it is built."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.copy_(torch.randn(parameter.shape) * parameter[0].numel() ** -0.5)
