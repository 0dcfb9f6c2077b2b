"""Folders in diffusers' layout: fetched from the hub where a name is given, and which of their files hold the weights.

huggingface_hub is imported at the call: folders need none of it. Only what a pipeline reads is fetched, never code.
"""

import os
from collections.abc import Collection, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, TypedDict, cast

import torch

from ..errors import CheckpointError, first_line
from ..precision import accurate_dtype, choose_dtype

_STEM = "diffusion_pytorch_model"
_SPREADING = ("auto", "balanced", "balanced_low_0", "sequential")
"""Strategies of accelerate's, not devices."""

DTypeOption = torch.dtype | str | Mapping[str, torch.dtype] | None


class HubOptions(TypedDict, total=False):
    """What `huggingface_hub.snapshot_download` takes beside the name."""

    cache_dir: str | os.PathLike[str] | None
    force_download: bool
    local_files_only: bool
    revision: str | None
    token: str | bool | None


def _weight_files(variant: str | None, use_safetensors: bool) -> tuple[str, ...]:
    """Names in a component's folder, as patterns: one file, shards by the new and the old naming, and their index."""
    dotted, suffix = f".{variant}" if variant else "", ".safetensors" if use_safetensors else ".bin"
    return (
        f"{_STEM}{dotted}{suffix}",
        f"{_STEM}{dotted}-?????-of-?????{suffix}",
        f"{_STEM}-?????-of-?????{dotted}{suffix}",
        f"{_STEM}{suffix}.index{dotted}.json",
    )


def fetch(
    name: str, components: Collection[str], variant: str | None, use_safetensors: bool, options: HubOptions
) -> Path:
    """A folder with a pipeline's files of the hub's repository `name`, from the cache where they are there.

    Raises:
        CheckpointError: no such repository, or it cannot be reached.
    """
    library: Any = import_module("huggingface_hub")
    patterns = ["model_index.json"]
    patterns += [
        f"{component}/{file}" for component in components for file in _files_of(component, variant, use_safetensors)
    ]
    try:
        return Path(library.snapshot_download(name, allow_patterns=patterns, **options))
    except (OSError, ValueError) as error:
        message = f"{name} is no folder here, and the hub does not give it ({first_line(error)})"
        raise CheckpointError(f"{message}: check the name, the connection and your token.") from error


def _files_of(component: str, variant: str | None, use_safetensors: bool) -> tuple[str, ...]:
    """Names in a component's folder, as patterns: diffusers' weights, or what transformers reads of a text encoder."""
    if component == "tokenizer":
        return ("*.json", "merges.txt")
    if component != "text_encoder":
        return ("config.json", *_weight_files(variant, use_safetensors))
    dotted = f".{variant}" if variant else ""
    stem, suffix = ("model", ".safetensors") if use_safetensors else ("pytorch_model", ".bin")
    index = f"{stem}{suffix}.index{dotted}.json"
    return ("config.json", f"{stem}{dotted}{suffix}", f"{stem}{dotted}-*-of-*{suffix}", index)


def check_weights(folder: Path, components: Collection[str], variant: str | None, use_safetensors: bool) -> None:
    """Raises CheckpointError where a component's folder holds other weights than those that are asked for."""
    wanted = _weight_files(variant, use_safetensors)
    for component in components:
        own = folder / component
        others = sorted(file.name for file in own.glob(f"{_STEM}*") if file.suffix in (".safetensors", ".bin"))
        if others and not any(file for pattern in wanted for file in own.glob(pattern)):
            raise CheckpointError(
                f"{own} holds no {wanted[0]} but {', '.join(others[:3])}: set `variant` and `use_safetensors` to fit."
            )


def one_device(device_map: str | torch.device | Mapping[str, Any] | None) -> torch.device:
    """The device of a pipeline; the CPU for None.

    Raises:
        ValueError: a map or strategy that spreads the networks, or no name of a device.
    """
    if device_map is None:
        return torch.device("cpu")
    if not isinstance(device_map, (str, torch.device)) or device_map in _SPREADING:
        raise ValueError(
            f"device_map={device_map!r} would spread networks that run one after the other: name one device, such as "
            "'cuda', or call enable_model_cpu_offload() where they do not fit it together."
        )
    try:
        return torch.device(device_map)
    except RuntimeError as error:
        raise ValueError(f"device_map={device_map!r} is no device: name one, such as 'cuda' or 'cpu'.") from error


def dtype_of(
    component: str, dtype: DTypeOption, torch_dtype: DTypeOption, device: torch.device, gain: float = 1.0
) -> torch.dtype:
    """dtype of a component by either spelling: one for all, "auto", or by component with "default"; fp32 for None.

    `gain`: of the family, where "auto" shall heed how exact its UNet has to be.

    Raises:
        ValueError: both spellings at once, or something else than these.
    """
    if dtype is not None and torch_dtype is not None:
        raise ValueError("dtype and torch_dtype are two spellings of one argument: pass one of them.")
    asked: Any = torch_dtype if dtype is None else dtype
    if isinstance(asked, Mapping):
        by_component = cast("Mapping[str, Any]", asked)
        asked = by_component.get(component, by_component.get("default"))
    if asked == "auto":
        chosen = choose_dtype("auto", device)
        return chosen if component == "vae" else accurate_dtype(chosen, gain, device)
    if not (asked is None or isinstance(asked, torch.dtype)):
        raise ValueError(f"dtype must be a torch.dtype, 'auto', or a dict of them by component, not {asked!r}.")
    return asked or torch.float32
