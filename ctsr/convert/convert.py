"""Others' checkpoints as one file of ours: adapters and Stable Diffusion 2.1-base become a whole, a prompt baked in."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from ..checkpoints import formats
from ..checkpoints.formats import BASES, MODELS, PUBLISHED, Format, find, refusal, unknown
from ..checkpoints.inspect import Contents, read
from ..checkpoints.own import COMPONENTS
from ..errors import CheckpointError
from ..families import FAMILIES
from ..load import load_pipeline
from ..models.autoencoder_kl_time_aware import TimeAwareAutoencoderKL
from ..models.lora import add_pairs, check_pairs, fold_pairs, merge_lora
from ..models.lora_variant import LoraVariant
from ..models.prompt_embeddings import PromptEmbeddings
from ..pipeline import CTSRPipeline
from ..whole_file import sha256
from . import stable_diffusion
from .published import ALPHA, Adapters, Published, osediff_of, parsed, pisa_of, tadsr_of
from .stable_diffusion import Base

SUFFIX = ".safetensors"
ModelT = TypeVar("ModelT", bound=nn.Module)
Tell = Callable[[str, str], None]
"""Called with a name and a value as soon as they are known."""
PARSERS: Mapping[Format, Callable[[Mapping[str, Any]], Published]] = {
    formats.OSEDIFF: osediff_of,
    formats.TADSR: tadsr_of,
    formats.PISA: pisa_of,
}
OPENERS: Mapping[Format, Callable[[Contents], Base]] = {
    formats.SD_FOLDER: stable_diffusion.open_folder,
    formats.SD_FILE: stable_diffusion.open_single_file,
}


@dataclass(frozen=True)
class Options:
    """How a checkpoint is converted.

    Attributes:
        prompt: baked in as it is; None is what the method's own script gives for a picture without tags.
        dtype: of the tensors in the file.
        keep_lora: leave LoRA apart, as adapters of peft, instead of folding it in.
    """

    prompt: str | None = None
    dtype: torch.dtype = torch.float16
    keep_lora: bool = False


def convert(checkpoint: Path, base: Path | None, out: Path, options: Options, tell: Tell) -> None:
    """Writes `out`.

    Args:
        checkpoint: of OSEDiff, TADSR or PiSA-SR, or a file or folder of ours, which is written anew.
        base: Stable Diffusion 2.1-base, a folder in diffusers' layout or a single file; None for a checkpoint of ours.
        out: ends in .safetensors; replaced if it is there.
        options: see there.
        tell: what is found and made.

    Raises:
        CheckpointError: one of the two cannot be read, or they do not fit.
        ValueError: `out` has another suffix or is an input, or a base is missing or not needed.
        CTSRError: transformers or peft is missing, or there is no room.
    """
    if out.suffix != SUFFIX:
        raise ValueError(f"{out} must end in {SUFFIX}: name such a file with -o.")
    if out.resolve() in {path.resolve() for path in (checkpoint, base) if path is not None}:
        raise ValueError(f"{out} is an input: name another file with -o.")
    contents = read(checkpoint)
    if find(contents, MODELS) is None:
        pipeline = _convert_published(contents, base, options, tell)
    elif base is None and options.prompt is None:
        pipeline = load_pipeline(checkpoint, torch.float32)
    else:
        raise ValueError(f"{checkpoint} is complete: leave --base and --prompt out.")
    if not options.keep_lora:
        for network in (pipeline.unet, pipeline.vae):
            merge_lora(network)
    for name in COMPONENTS:
        if (component := cast("nn.Module | None", getattr(pipeline, name))) is not None:
            state = cast("dict[str, Tensor]", component.state_dict())
            tell(name, f"{sum(x.numel() for x in state.values()):,} parameters")
    for name, value in about_of(pipeline).items():
        tell(name, value)
    pipeline.save_single_file(out, options.dtype)
    tell("written", f"{out} ({out.stat().st_size / 1e6:.1f} MB)")


def about_of(pipeline: CTSRPipeline) -> dict[str, str]:
    """What a person should know of a checkpoint; empty for one that says nothing."""
    return dict(cast("Mapping[str, str] | None", pipeline.config["about"]) or {})


def _convert_published(contents: Contents, base: Path | None, options: Options, tell: Tell) -> CTSRPipeline:
    """The pipeline of a method's own checkpoint and its base; raises as `convert`."""
    what, checkpoint = open_published(contents)
    tell("format", what)
    for name, value in checkpoint.facts():
        tell(name, value)
    about = {"source": contents.path.name, "sha256": sha256(contents.path)}
    return assemble(checkpoint, open_base(contents.path, base), options, about)


def open_published(contents: Contents) -> tuple[str, Published]:
    """What it is and what is in it; raises CheckpointError for anything but a method's own checkpoint."""
    if (form := find(contents, PUBLISHED)) is not None:
        return form.what, parsed(contents, PARSERS[form])
    if (other := find(contents, BASES)) is not None:
        raise CheckpointError(f"{contents.path} is {other.what}: {other.remedy}.")
    raise unknown(contents) if contents.kind == "pickle" else refusal(contents)


def open_base(checkpoint: Path, path: Path | None) -> Base:
    """The base that adapters belong to; raises ValueError where there is none, CheckpointError for something else."""
    if path is None:
        raise ValueError(f"{checkpoint} holds adapters alone: name a Stable Diffusion 2.1-base with --base.")
    contents = read(path)
    if (form := find(contents, BASES)) is not None:
        return OPENERS[form](contents)
    other = find(contents, PUBLISHED) or find(contents, MODELS)
    what = f"is {other.what}" if other else "is not Stable Diffusion 2.x"
    raise CheckpointError(f"{path} {what}: name a folder or file of Stable Diffusion 2.1-base with --base.")


# ------------------------------------------------------------------------------------------------------------ assembly


def assemble(checkpoint: Published, base: Base, options: Options, about: Mapping[str, str]) -> CTSRPipeline:
    """The pipeline of a method, fp32.

    Args:
        checkpoint: what the method added.
        base: what it added that to.
        options: of these the prompt, and whether LoRA is kept apart.
        about: source and the like; base, prompt and licence are added.

    Raises:
        CheckpointError: the two do not fit.
        CTSRError: transformers or peft is missing.
    """
    method, family = checkpoint.method, FAMILIES[checkpoint.method.family]
    prompt = method.prompt if options.prompt is None else options.prompt
    embeds = base.encode(prompt)
    try:
        unet, variant = _make_unet(checkpoint, base.unet(), options.keep_lora)
        vae = _make_vae(checkpoint, base.vae(), options.keep_lora)
        if embeds.shape[-1] != (width := cast(Any, unet).config["cross_attention_dim"]):
            raise ValueError(f"its text encoder gives {embeds.shape[-1]} numbers a token, its UNet takes {width}")
    except ValueError as error:
        raise CheckpointError(f"{base.path} is not the base of this checkpoint: {error}; give another.") from error
    return CTSRPipeline(
        vae,
        unet,
        PromptEmbeddings.from_embeds(embeds),
        family=family.name,
        parameterization=family.parameterization,
        encoder_timesteps=[step for step in family.encoder_timesteps if step is not None] or None,
        color_fix=method.color_fix,
        unet_variant=variant,
        about={**about, "base": base.path.name, "prompt": prompt, "licence": method.licence},
    )


def _make_unet(
    checkpoint: Published, unet: UNet2DConditionModel, keep_lora: bool
) -> tuple[UNet2DConditionModel, LoraVariant | None]:
    """The base's UNet with what the method changed, and its second variant; raises ValueError where they do not fit."""
    _load_part(unet, {f"conv_in.{name}": x for name, x in checkpoint.conv_in.items()})
    variant = None
    if (second := checkpoint.variant) is not None:
        check_pairs(unet, second.merged)
        variant = LoraVariant.from_pairs("full", second.merged, second.scaling)
    return _with_lora(unet, checkpoint.unet, keep_lora), variant


def _make_vae(checkpoint: Published, vae: AutoencoderKL, keep_lora: bool) -> AutoencoderKL:
    """The base's autoencoder with what the method changed; raises ValueError where they do not fit."""
    if checkpoint.time_layers:
        vae = TimeAwareAutoencoderKL.from_autoencoder_kl(vae)
        names = {name for name in vae.state_dict() if ".time_" in name}
        if wrong := sorted(names ^ checkpoint.time_layers.keys()):
            raise ValueError(f"only one of them has {wrong[0]}")
        _load_part(vae, checkpoint.time_layers)
    return vae if checkpoint.vae is None else _with_lora(vae, checkpoint.vae, keep_lora)


def _load_part(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Some of a model's weights, in place; raises ValueError for another shape."""
    own = cast("dict[str, Tensor]", model.state_dict())
    for name, x in state.items():
        if own[name].shape != x.shape:
            raise ValueError(f"the checkpoint's {name} is of {list(x.shape)}, the base's of {list(own[name].shape)}")
        own[name].copy_(x)


def _with_lora(model: ModelT, lora: Adapters, keep: bool) -> ModelT:
    """`model` with the adapters folded in, or on it; raises ValueError where they do not fit."""
    if keep:
        add_pairs(model, lora.pairs, ALPHA)
    else:
        fold_pairs(model, lora.merged, lora.scaling)
    return model.requires_grad_(False)
