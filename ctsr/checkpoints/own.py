"""Reads and writes a whole pipeline as one safetensors file, and reads a folder that `save_pretrained` wrote.

The file holds the tensors of every component, and the configuration in its metadata.
"""

import json
import logging
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar, cast

import safetensors
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import Tensor, nn

from ..errors import CheckpointError, CTSRError, first_line
from ..models.autoencoder_kl_time_aware import TimeAwareAutoencoderKL
from ..models.autoencoder_mini import TimeAwareAutoencoderMini
from ..models.autoencoder_mini2 import TimeAwareAutoencoderMini2
from ..models.building import make_fast, unfilled
from ..models.lora import add_lora, describe_lora
from ..models.lora_variant import LoraVariant
from ..models.prompt_embeddings import PromptEmbeddings
from ..models.unet_mini import TimeConditionedUNetMini
from ..models.unet_mini2 import TimeConditionedUNetMini2
from ..whole_file import whole_file
from .formats import SINGLE_FILE, SINGLE_FILE_FORMAT, refusal
from .inspect import INDEX, Contents, library, look

logger = logging.getLogger(__name__)

_WEIGHTS = Path(__file__).parents[1] / "weights"
MINI_WEIGHTS = _WEIGHTS / "ctsr-mini.safetensors"
LOWLIGHT_WEIGHTS = _WEIGHTS / "ctsr-lowlight.safetensors"
_CLASSES: Mapping[str, type[ModelMixin]] = {
    cls.__name__: cls
    for cls in (
        AutoencoderKL,
        LoraVariant,
        PromptEmbeddings,
        TimeAwareAutoencoderKL,
        TimeAwareAutoencoderMini,
        TimeAwareAutoencoderMini2,
        TimeConditionedUNetMini,
        TimeConditionedUNetMini2,
        UNet2DConditionModel,
    )
}
"""Imported here, also because diffusers finds the classes of a saved pipeline only in modules that are loaded."""
COMPONENTS = ("vae", "unet", "unet_variant", "prompt_embeddings")
TEXT_ENCODER = "text_encoder"
TEXT_PARTS = (TEXT_ENCODER, "tokenizer")
_TEXT_CLASSES = ("CLIPTextModel", "CLIPTokenizer", "CLIPTokenizerFast")
"""Of transformers, which a folder may name for `TEXT_PARTS`."""
SETTINGS = (
    "family",
    "parameterization",
    "encoder_timesteps",
    "dial_timesteps",
    "color_fix",
    "about",
    "time_aware_unet",
    "task",
    "default_scale",
)
# What building and filling a model raises when its configuration or weights do not fit.
_BROKEN = (AttributeError, KeyError, TypeError, ValueError, RuntimeError, safetensors.SafetensorError)

PipelineT = TypeVar("PipelineT", bound=DiffusionPipeline)


def save_single_file(pipeline: DiffusionPipeline, path: Path, dtype: torch.dtype | None) -> None:
    """Writes `path` under a temporary name in the same folder, then renames it.

    Args:
        pipeline: of any family; components of the classes in `_CLASSES`.
        path: ends in .safetensors; its folder is made if it is missing.
        dtype: of the floating tensors in the file; None keeps their own.

    Raises:
        ValueError: a component of another class, or adapters that a file cannot keep; the message says what to do.
        CTSRError: no room.
    """
    tensors: dict[str, Tensor] = {}
    components: dict[str, dict[str, Any]] = {}
    if getattr(pipeline, TEXT_ENCODER) is not None:
        logger.warning("The text encoder is left out of %s: a single file holds none; save_pretrained keeps it.", path)
    for name in COMPONENTS:
        model = cast("ModelMixin | None", getattr(pipeline, name))
        if model is None:
            continue
        components[name] = describe(model)
        for key, tensor in model.state_dict().items():
            tensors[f"{name}.{key}"] = tensor.to("cpu", dtype if tensor.is_floating_point() else None).contiguous()
    settings = {key: cast(Any, pipeline).config[key] for key in SETTINGS}
    config = json.dumps({"components": components, "settings": settings}, sort_keys=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"format": SINGLE_FILE_FORMAT, "config": config, "checksum": checksum(config, tensors)}
    try:
        with whole_file(path) as partial:
            library.torch.save_file(tensors, partial, metadata=metadata)
    except safetensors.SafetensorError as error:
        message = f"{path} cannot be written ({first_line(error)}): make room, or name another folder."
        raise CTSRError(message) from error


def checksum(config: str, tensors: Mapping[str, Tensor]) -> str:
    """Of a file's configuration and tensors [any shape], CRC-32; a flipped bit would else be a slightly wrong model."""

    def line(item: tuple[str, Tensor]) -> str:
        key, x = item
        numbers: Any = x.reshape(-1).view(torch.uint8).numpy()
        return f"{key} {x.dtype} {list(x.shape)} {zlib.crc32(numbers)}"

    with ThreadPoolExecutor() as pool:
        lines = pool.map(line, sorted(tensors.items()))
    return f"{zlib.crc32('|'.join([config, *lines]).encode()):08x}"


def describe(model: ModelMixin) -> dict[str, Any]:
    """What `build` needs besides the tensors: class, config and, where the model carries adapters, `lora`.

    Raises:
        ValueError: a class that cannot be loaded back, or adapters that a file cannot keep.
    """
    name = type(model).__name__
    if _CLASSES.get(name) is not type(model):
        raise ValueError(f"A file cannot keep a {name}: use one of {', '.join(_CLASSES)}, or save_pretrained.")
    spec: dict[str, Any] = {"class": name, "config": arguments_of(model)}
    if (lora := describe_lora(model)) is not None:
        spec["lora"] = lora
    return spec


def arguments_of(model: ModelMixin) -> dict[str, Any]:
    """What the model was built with, without diffusers' own bookkeeping."""
    return {key: value for key, value in dict(cast(Any, model).config).items() if not key.startswith("_")}


def load_single_file(cls: type[PipelineT], path: Path) -> PipelineT:
    """The pipeline that `save_single_file` wrote, fp32, on the CPU.

    Args:
        cls: pipeline class to build.
        path: the file.

    Raises:
        CheckpointError: missing, a git-lfs pointer, truncated, of another format, with tensors that do not fit, or with
            LoRA adapters where peft is not installed.
    """
    contents = look(path)
    if not SINGLE_FILE.detect(contents):
        raise refusal(contents)
    config, tensors = _read_single_file(contents)
    try:
        models = {
            name: build(spec, {k.removeprefix(f"{name}."): x for k, x in tensors.items() if k.startswith(f"{name}.")})
            for name, spec in config["components"].items()
        }
        return cls(**models, **config["settings"])
    except ImportError as error:
        message = f"{path} keeps LoRA adapters, which need peft ({first_line(error)}): pip install 'ctsr[sd]'."
        raise CheckpointError(message) from error
    except _BROKEN as error:
        message = f"{path} does not hold the model it describes ({first_line(error)}); fetch it again."
        raise CheckpointError(message) from error


def move(model: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """By `nn.Module.to`: diffusers' own remarks that some layers should have stayed in fp32, and lists none."""
    nn.Module.to(model.eval(), device=device, dtype=dtype)


def build(spec: Mapping[str, Any], state: Mapping[str, Tensor]) -> ModelMixin:
    """A model as `describe` says, of one of `_CLASSES`, with exactly these weights, fp32."""
    model = unfilled(_CLASSES[spec["class"]], **spec["config"])
    if "lora" in spec:
        add_lora(model, spec["lora"]["adapters"], spec["lora"]["rank"], spec["lora"]["alpha"])
    model.load_state_dict(state, strict=True)
    return make_fast(model)


def _read_single_file(contents: Contents) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and tensors of our own file; raises CheckpointError for a damaged one."""
    path, tensors = contents.path, contents.tensors()
    text, stored = contents.metadata.get("config", ""), contents.metadata.get("checksum")
    if stored is not None and stored != checksum(text, tensors):  # the first files have none
        raise CheckpointError(
            f"{path} is damaged, or its weights were changed after ctsr wrote it (its checksum does not fit): fetch it "
            "again, or save changed weights with save_single_file."
        )
    try:
        return json.loads(text), tensors
    except ValueError as error:
        raise CheckpointError(f"{path} holds a damaged configuration ({first_line(error)}); fetch it again.") from error


def stored_settings(path: Path) -> Mapping[str, Any]:
    """Settings of a file or folder of ours without loading it; none of what cannot be read, which loading will name."""
    try:
        if path.is_dir():
            return cast("Mapping[str, Any]", json.loads((path / INDEX).read_text(encoding="utf-8")))
        return json.loads(look(path).metadata["config"])["settings"]
    except (OSError, CheckpointError, KeyError, ValueError):
        return {}


def load_folder(
    cls: type[PipelineT],
    path: Path,
    variant: str | None = None,
    use_safetensors: bool = True,
    given: Mapping[str, Any] = MappingProxyType({}),
) -> PipelineT:
    """The pipeline of a folder that `save_pretrained` wrote, fp32, on the CPU.

    Built from its components, not by diffusers' own resolution of module paths, which fails where this package goes by
    another name, as inside a host that loads it from a folder.

    Raises:
        CheckpointError: no model_index.json, a component of no class of `_CLASSES`, or damaged files.
    """
    index = path / INDEX
    if not index.is_file():
        raise CheckpointError(f"{path} is a folder without {INDEX}; give one that save_pretrained wrote.")
    try:
        entries = json.loads(index.read_text(encoding="utf-8"))
        parts: dict[str, Any] = {key: entries[key] for key in SETTINGS if key in entries} | dict(given)
        for name in COMPONENTS:
            if name not in given and has(entries, name):
                parts[name] = _load_component(path / name, entries[name][1], variant, use_safetensors)
        for name in TEXT_PARTS:
            if name not in given and has(entries, name):
                parts[name] = _load_text_part(path / name, entries[name][1], variant, use_safetensors)
        return cls(**parts)
    except (OSError, *_BROKEN) as error:
        raise CheckpointError(f"{path} cannot be loaded ({first_line(error)}); fetch it again.") from error


def has(entries: Mapping[str, Any], name: str) -> bool:
    """Whether model_index.json names a component, rather than [null, null]."""
    return name in entries and entries[name][1] is not None


def _load_component(path: Path, class_name: str, variant: str | None, use_safetensors: bool) -> ModelMixin:
    """A component's folder, fp32; raises CheckpointError if it is missing, or of a class that is not in `_CLASSES`."""
    if not path.is_dir():  # diffusers would take it for a name on its hub
        raise CheckpointError(f"{path} is missing; fetch the whole folder again.")
    if class_name not in _CLASSES:
        raise CheckpointError(f"{path} is a {class_name}, which cannot be loaded: use one of {', '.join(_CLASSES)}.")
    model: Any = _CLASSES[class_name]
    # In fp32: newer releases of diffusers warn of `torch_dtype`, older ones know no other name.
    options: dict[str, Any] = {"variant": variant, "use_safetensors": use_safetensors}
    return make_fast(cast(ModelMixin, model.from_pretrained(path, low_cpu_mem_usage=False, **options)))


def _load_text_part(path: Path, class_name: str, variant: str | None, use_safetensors: bool) -> Any:
    """Text encoder, fp32, or tokenizer of a folder.

    Raises:
        CheckpointError: it is missing or of another kind, or transformers is not installed.
    """
    if not path.is_dir():  # transformers would take it for a name on its hub
        raise CheckpointError(f"{path} is missing; fetch the whole folder again, or pass text_encoder=None.")
    if class_name not in _TEXT_CLASSES:
        raise CheckpointError(
            f"{path} is a {class_name}, which cannot be loaded: use one of {', '.join(_TEXT_CLASSES)}."
        )
    try:
        cls: Any = getattr(import_module("transformers"), class_name)
    except ImportError as error:
        raise CheckpointError(
            f"{path} needs transformers: pip install 'ctsr[sd]', or pass text_encoder=None and tokenizer=None."
        ) from error
    if path.name != TEXT_ENCODER:
        return cls.from_pretrained(path)
    return make_fast(cls.from_pretrained(path, variant=variant, use_safetensors=use_safetensors).float())
