"""`ctsr info`: what a model is, how it would run here, and the memory and tiles that a picture would take."""

from collections.abc import Iterator
from typing import get_args

import torch

from ..checkpoints.own import COMPONENTS
from ..convert.convert import about_of
from ..images.tensors import check_size
from ..pipeline import CTSRPipeline
from ..precision import DTYPES, ERRORS, Precision
from ..runtime.memory import BUFFER_BYTES
from ..tiling.memory import total_memory
from ..tiling.network import Stage
from .lazy_pipeline import LazyPipeline
from .options import Options


def model_rows(model: LazyPipeline, precision: Precision) -> Iterator[tuple[str, str]]:
    """What a model is and how it would run."""
    pipe = model.pipeline
    family = pipe.family
    yield "model", model.name
    yield "weights", f"{model.path} ({sum(file.stat().st_size for file in model.files) / 1e6:.1f} MB)"
    dial = "a dial" if family.has_dial else "no dial: t changes nothing"
    yield "family", f"{family.name} ({family.passes} UNet pass{'es' * (family.passes > 1)}, {dial})"
    yield "task", f"{pipe.config['task']}, by default at scale {pipe.config['default_scale']:g}"
    yield "parameterization", family.parameterization
    yield "encoder timesteps", ", ".join("none" if step is None else str(step) for step in family.encoder_timesteps)
    yield "colour fix", str(pipe.config["color_fix"])
    yield from about_of(pipe).items()
    for name in COMPONENTS:
        if (component := getattr(pipe, name)) is not None:
            count = sum(parameter.numel() for parameter in component.parameters())
            yield name, f"{type(component).__name__}, {count / 1e6:.3f} M parameters"
    yield "device", _device_name(model.device)
    yield "precision", _precision_reason(model, precision)
    yield "attention", attention(pipe)


def _device_name(device: torch.device) -> str:
    """The device and what it has."""
    memory = f"{total_memory(device) / 2**30:.1f} GiB"
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)}, {memory})"
    return f"{device} ({torch.get_num_threads()} threads, {memory})" if device.type == "cpu" else f"{device} ({memory})"


def _precision_reason(model: LazyPipeline, precision: Precision) -> str:
    """The precision taken and why."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    taken = names[model.dtype]
    if precision != "auto":
        return f"{taken} (as asked)"
    processor = "this processor" if model.device.type == "cpu" else "this GPU"
    reason = f"{taken} (auto: {processor} has {'' if taken == 'bf16' else 'no '}bf16 in hardware)"
    if (unet := names[model.pipeline.unet.dtype]) != taken:
        gain = model.pipeline.family.gain
        reason += f", the UNet {unet}: its errors grow {gain:.1f}-fold, in {taken} to {gain * ERRORS[model.dtype]:.2f}"
    return reason


def attention(pipe: CTSRPipeline) -> str:
    """What computes attention in the loaded networks: none, xformers, sdpa or plain torch."""
    processors = {
        type(processor).__name__
        for network in (pipe.vae, pipe.unet)
        for module in network.modules()
        if (processor := getattr(module, "processor", None)) is not None
    }
    if not processors:
        return "none (these networks have no attention)"
    kinds = {"xformers" if "XFormers" in x else "sdpa" if "2_0" in x else "plain" for x in processors}
    return ", ".join(sorted(kinds))


def memory_rows(model: LazyPipeline, options: Options, size: tuple[int, int]) -> Iterator[tuple[str, str]]:
    """Predicted memory and tiles for a picture of height and width `size`."""
    pipe = model.pipeline
    height, width = options.size.of(*size)
    check_size(height, width)
    yield "input", f"{size[1]}x{size[0]}"
    yield "output", f"{width}x{height}"
    for stage in get_args(Stage):
        planned = pipe.plan_stage(stage, height, width, options.tile, model.device)
        yield f"{stage} memory", f"{planned.work / 2**20:.0f} MiB, {planned.how}"
    yield "picture buffers", f"{height * width * BUFFER_BYTES / 2**20:.0f} MiB at the peak, whatever the tiles"
