"""One safetensors file that holds a whole pipeline: tensors of every component, configuration in the metadata."""

import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import safetensors
import safetensors.torch  # pyright: ignore[reportUnusedImport]  # used through `library`
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from .errors import CheckpointError
from .lora import add_lora, describe_lora
from .models.autoencoder_kl_time_aware import TimeAwareAutoencoderKL
from .models.autoencoder_mini import TimeAwareAutoencoderMini
from .models.prompt_embeddings import PromptEmbeddings
from .models.unet_mini import TimeConditionedUNetMini
from .pipeline_ctsr import CTSRPipeline
from .precision import choose_dtype

MINI_WEIGHTS = Path(__file__).parent / "weights" / "ctsr-mini.safetensors"
FORMAT = "ctsr-1"
CLASSES: Mapping[str, type[ModelMixin]] = {
    cls.__name__: cls
    for cls in (
        AutoencoderKL,
        PromptEmbeddings,
        TimeAwareAutoencoderKL,
        TimeAwareAutoencoderMini,
        TimeConditionedUNetMini,
        UNet2DConditionModel,
    )
}
COMPONENTS = ("vae", "unet", "prompt_embeddings")
SETTINGS = ("family", "parameterization", "encoder_timesteps", "color_fix")
library: Any = safetensors  # half of its types are unknown to pyright
CPU = torch.device("cpu")
# What building and filling a model raises when its configuration or weights do not fit.
BROKEN = (AttributeError, KeyError, TypeError, ValueError, RuntimeError, safetensors.SafetensorError)
LFS_POINTER = b"version https://git-lfs"

PipelineT = TypeVar("PipelineT", bound=CTSRPipeline)
DType = torch.dtype | Literal["auto"]


def save_single_file(pipeline: CTSRPipeline, path: Path, dtype: torch.dtype) -> None:
    """Writes `path` under a temporary name in the same folder, then renames it.

    Args:
        pipeline: of any family; components of the classes in `CLASSES`.
        path: ends in .safetensors; its folder is made if it is missing.
        dtype: of the floating tensors in the file.

    Raises:
        ValueError: a component of another class, or adapters that a file cannot keep; the message says what to do.
    """
    tensors: dict[str, Tensor] = {}
    components: dict[str, dict[str, Any]] = {}
    for name in COMPONENTS:
        model = cast("ModelMixin | None", getattr(pipeline, name))
        if model is None:
            continue
        components[name] = describe(model)
        for key, tensor in model.state_dict().items():
            tensors[f"{name}.{key}"] = tensor.to("cpu", dtype if tensor.is_floating_point() else None).contiguous()
    settings = {key: pipeline.config[key] for key in SETTINGS}
    config = json.dumps({"components": components, "settings": settings}, sort_keys=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        partial.touch()
        mode = partial.stat().st_mode  # as any new file here; newer releases of safetensors write for the owner alone
        library.torch.save_file(tensors, partial, metadata={"format": FORMAT, "config": config})
        partial.chmod(mode)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def describe(model: ModelMixin) -> dict[str, Any]:
    """What `build` needs besides the tensors: class, config and, where the model carries adapters, `lora`.

    Raises:
        ValueError: a class that cannot be loaded back, or adapters that a file cannot keep.
    """
    name = type(model).__name__
    if CLASSES.get(name) is not type(model):
        raise ValueError(f"A file cannot keep a {name}: use one of {', '.join(CLASSES)}, or save_pretrained.")
    spec: dict[str, Any] = {"class": name, "config": arguments_of(model)}
    if (lora := describe_lora(model)) is not None:
        spec["lora"] = lora
    return spec


def arguments_of(model: ModelMixin) -> dict[str, Any]:
    """What the model was built with, without diffusers' own bookkeeping."""
    return {key: value for key, value in dict(cast(Any, model).config).items() if not key.startswith("_")}


def load_single_file(
    cls: type[PipelineT], path: Path, torch_dtype: DType = "auto", device: torch.device = CPU
) -> PipelineT:
    """The pipeline that `save_single_file` wrote, on `device`, channels-last.

    Args:
        cls: pipeline class to build.
        path: the file.
        torch_dtype: "auto" is bf16 where the device has it in hardware, else fp32.
        device: where it will run.

    Raises:
        CheckpointError: missing, a git-lfs pointer, truncated, of another format, with tensors that do not fit, or with
            LoRA adapters where peft is not installed.
    """
    config, tensors = read_single_file(path)
    dtype = choose_dtype("auto", device) if torch_dtype == "auto" else torch_dtype
    try:
        models = {
            name: build(spec, {k: tensors[f"{name}.{k}"] for k in keys_of(tensors, name)})
            for name, spec in config["components"].items()
        }
        pipeline = cls(**models, **config["settings"])
    except ImportError as error:
        message = f"{path} keeps LoRA adapters, which need peft ({first_line(error)}): pip install 'ctsr[sd]'."
        raise CheckpointError(message) from error
    except BROKEN as error:
        message = f"{path} does not hold the model it describes ({first_line(error)}); fetch it again."
        raise CheckpointError(message) from error
    for model in models.values():
        move(model, device, dtype)
    return pipeline


def move(model: ModelMixin, device: torch.device, dtype: torch.dtype) -> None:
    """By `nn.Module.to`: diffusers' own remarks that some layers should have stayed in fp32, and lists none."""
    nn.Module.to(model.eval(), device=device, dtype=dtype)


def keys_of(tensors: Mapping[str, Tensor], component: str) -> list[str]:
    """Names of a component's tensors, without its prefix."""
    prefix = component + "."
    return [key.removeprefix(prefix) for key in tensors if key.startswith(prefix)]


def build(spec: Mapping[str, Any], state: Mapping[str, Tensor]) -> ModelMixin:
    """A model as `describe` says, of one of `CLASSES`, with exactly these weights, fp32."""
    model = CLASSES[spec["class"]](**spec["config"])
    if "lora" in spec:
        add_lora(model, spec["lora"]["adapters"], spec["lora"]["rank"], spec["lora"]["alpha"])
    model.load_state_dict(state, strict=True)
    return model


def read_single_file(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and tensors of a file; raises CheckpointError with what it looks like and what to do."""
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file; give a .safetensors file that ctsr wrote, a folder, or 'mini'.")
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise CheckpointError(f"{path} is a git-lfs pointer, not the weights; run `git lfs pull` to fetch them.")
    try:
        with library.safe_open(path, framework="pt") as file:
            metadata = cast("dict[str, str]", file.metadata() or {})
            tensors = cast("dict[str, Tensor]", {key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        message = f"{path} is truncated or not a safetensors file ({first_line(error)}); fetch it again."
        raise CheckpointError(message) from error
    if metadata.get("format") != FORMAT or "config" not in metadata:
        raise CheckpointError(f"{path} is a safetensors file that ctsr did not write: its metadata lacks {FORMAT!r}.")
    try:
        return json.loads(metadata["config"]), tensors
    except ValueError as error:
        raise CheckpointError(f"{path} holds a damaged configuration ({first_line(error)}); fetch it again.") from error


def first_line(error: Exception) -> str:
    """The beginning of an error's text."""
    return str(error).strip().split("\n")[0][:200] or type(error).__name__


def load_pipeline(model: str | Path, torch_dtype: DType = "auto", device: torch.device = CPU) -> CTSRPipeline:
    """`mini`, one of our single files, or a folder that `save_pretrained` wrote.

    Raises:
        CheckpointError: nothing loadable there; the message says what to do.
    """
    if str(model) == "mini":
        return CTSRPipeline.mini(torch_dtype, device)
    path = Path(model)
    if not path.is_dir():
        return load_single_file(CTSRPipeline, path, torch_dtype, device)
    dtype = choose_dtype("auto", device) if torch_dtype == "auto" else torch_dtype
    pipeline = load_folder(CTSRPipeline, path)
    for name in COMPONENTS:
        if (component := getattr(pipeline, name)) is not None:
            move(component, device, dtype)
    return pipeline


def load_folder(cls: type[PipelineT], path: Path) -> PipelineT:
    """The pipeline of a folder that `save_pretrained` wrote, fp32, on the CPU.

    Built from its components, not by diffusers' own resolution of module paths, which fails where this package goes by
    another name, as inside a host that loads it from a folder.

    Raises:
        CheckpointError: no model_index.json, a component of no class of `CLASSES`, or damaged files.
    """
    index = path / "model_index.json"
    if not index.is_file():
        raise CheckpointError(f"{path} is a folder without model_index.json; give one that save_pretrained wrote.")
    try:
        entries = json.loads(index.read_text(encoding="utf-8"))
        models = {name: load_component(path / name, entries[name][1]) for name in COMPONENTS if has(entries, name)}
        return cls(**models, **{key: entries[key] for key in SETTINGS if key in entries})
    except (OSError, *BROKEN) as error:
        raise CheckpointError(f"{path} cannot be loaded ({first_line(error)}); fetch it again.") from error


def has(entries: Mapping[str, Any], name: str) -> bool:
    """Whether model_index.json names a component, rather than [null, null]."""
    return name in entries and entries[name][1] is not None


def load_component(path: Path, class_name: str) -> ModelMixin:
    """A component's folder, fp32; raises KeyError for a class that is not one of `CLASSES`."""
    model: Any = CLASSES[class_name]
    # In fp32: newer releases of diffusers warn of `torch_dtype`, older ones know no other name.
    return cast(ModelMixin, model.from_pretrained(path, low_cpu_mem_usage=False))
