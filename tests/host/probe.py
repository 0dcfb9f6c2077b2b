# pyright: reportMissingImports=false
"""Nodes that only tests use, copied into the host's custom_nodes; this file runs in the host's interpreter.

They put values where the host's own checks would stop them, read tensors that travel between nodes, run `CTSRPipeline`
beside the nodes, and make memory run out.
"""

import functools
import gc
import importlib
import itertools
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import comfy.model_patcher
import folder_paths
import numpy as np
import psutil
import torch
from aiohttp import web
from PIL import Image
from server import PromptServer


def pack(module: str) -> Any:
    """A module of the pack under test, by its name within the checkout."""
    known = importlib.import_module("nodes").NODE_CLASS_MAPPINGS
    return importlib.import_module(f"{known['LoadCTSR'].__module__.rsplit('.', 2)[0]}.{module}")


@PromptServer.instance.routes.get("/probe")
async def state(_request: web.Request) -> web.Response:
    """Modules that are imported, bytes that are resident, models of ours that are alive."""
    gc.collect()
    name = "HostModel"
    return web.json_response(
        {
            "modules": sorted(sys.modules),
            "resident": psutil.Process().memory_info().rss,
            "models": sum(type(x).__name__ == name and hasattr(x, "model_id") for x in gc.get_objects()),
        }
    )


at_rest = threading.Event()
"""Set while no network waits for a cancel."""
at_rest.set()


@PromptServer.instance.routes.get("/probe/waiting")
async def waits(_request: web.Request) -> web.Response:
    """Whether a network of `ProbeWait` waits for a cancel."""
    return web.json_response(not at_rest.is_set())


class AnyType(str):
    """A type that the host lets connect to every other."""

    def __ne__(self, _other: object) -> bool:
        return False


ANY = AnyType("*")
TEXT, WHOLE, REAL = ("STRING", {}), ("INT", {"max": 2**62}), ("FLOAT", {})
CANCEL_SECONDS = 60
"""After which a network that waits for a cancel gives up."""


class ProbeValue:
    """Any value, over a link: JSON, and NaN."""

    RETURN_TYPES, FUNCTION, CATEGORY = (ANY,), "run", "probe"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802  # the host's name
        return {"required": {"text": TEXT}}

    def run(self, text: str) -> tuple[Any]:
        return (json.loads(text),)


class ProbeArray:
    """A .npy file of the input folder as a tensor (IMAGE or MASK), and as a LATENT."""

    RETURN_TYPES, FUNCTION, CATEGORY = (ANY, "LATENT"), "run", "probe"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"file": TEXT}}

    def run(self, file: str) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        tensor = torch.from_numpy(np.load(Path(folder_paths.get_input_directory()) / file))
        return tensor, {"samples": tensor}


class ProbeSave:
    """Writes a tensor, or the samples of a LATENT, to a .npy file of the output folder."""

    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = (), "run", "probe", True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"value": (ANY, {}), "file": TEXT}}

    def run(self, value: Any, file: str) -> dict[str, Any]:
        tensor = value["samples"] if isinstance(value, dict) else value
        np.save(Path(folder_paths.get_output_directory()) / file, tensor.numpy())
        return {"ui": {"dtype": [str(tensor.dtype)]}}


class ProbeSize:
    """Takes a tensor and does nothing with it: an end for a prompt."""

    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = (), "run", "probe", True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"value": (ANY, {})}}

    def run(self, value: torch.Tensor) -> dict[str, Any]:
        return {"ui": {"shape": list(value.shape)}}


class ProbePipeline:
    """The library's own picture of a file, fp32 on the CPU, as an IMAGE."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("IMAGE",), "run", "probe"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"model": TEXT, "file": TEXT, "t": REAL, "scale": REAL}}

    def run(self, model: str, file: str, t: float, scale: float) -> tuple[torch.Tensor]:
        pipeline = pack("ctsr.load").load_pipeline(model, torch.float32)
        picture = Image.open(Path(folder_paths.get_input_directory()) / file)
        return (pipeline(picture, t=t, scale=scale, output_type="pt").images.movedim(1, -1),)


class ProbeLimit:
    """Makes a model's networks run out of memory above `pixels` of the result."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("CTSR_MODEL",), "run", "probe"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"model": ("CTSR_MODEL", {}), "pixels": WHOLE}}

    def run(self, model: Any, pixels: int) -> tuple[Any]:
        vae, unet = model.pipeline.vae, model.pipeline.unet
        vae.encode = limited(vae.encode, pixels)
        vae.decode = limited(vae.decode, pixels // 64)
        unet.forward = limited(unet.forward, pixels // 64)
        return (model,)


class ProbeWait:
    """Makes a network of a model wait for a cancel in its calls from number `calls` on."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("CTSR_MODEL",), "run", "probe"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"model": ("CTSR_MODEL", {}), "stage": TEXT, "calls": WHOLE}}

    def run(self, model: Any, stage: str, calls: int) -> tuple[Any]:
        network = model.pipeline.unet if stage == "unet" else model.pipeline.vae
        name = "forward" if stage == "unet" else stage
        setattr(network, name, waiting(getattr(network, name), calls))
        return (model,)


def waiting(call: Callable[..., Any], calls: int) -> Callable[..., Any]:
    """`call`, which after so many calls goes on only when the user has cancelled."""
    done = itertools.count()

    @functools.wraps(call)
    def run(*args: Any, **options: Any) -> Any:
        if next(done) >= calls:
            deadline = time.monotonic() + CANCEL_SECONDS
            at_rest.clear()
            while not mm.processing_interrupted() and time.monotonic() < deadline:
                time.sleep(0.01)
            at_rest.set()
        return call(*args, **options)

    return run


def limited(call: Callable[..., Any], cells: int) -> Callable[..., Any]:
    """`call`, short of memory."""

    @functools.wraps(call)
    def run(x: torch.Tensor, *args: Any, **options: Any) -> Any:
        if x.shape[-2] * x.shape[-1] > cells:
            raise torch.OutOfMemoryError("simulated: out of memory")
        return call(x, *args, **options)

    return run


class ProbeEviction:
    """Our models and another one on a device that holds one network at a time; see `evict`."""

    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = (), "run", "probe", True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"checkpoint": TEXT, "image": ("IMAGE", {})}}

    def run(self, checkpoint: str, image: torch.Tensor) -> dict[str, Any]:
        return {"ui": {"steps": evict(checkpoint, image)}}


class ProbeRoom:
    """Memory that runs out at large tiles on a device where another model lies idle; see `make_room`."""

    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = (), "run", "probe", True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"checkpoint": TEXT, "image": ("IMAGE", {})}}

    def run(self, checkpoint: str, image: torch.Tensor) -> dict[str, Any]:
        return {"ui": {"steps": make_room(checkpoint, image)}}


NODE_CLASS_MAPPINGS = {
    node.__name__: node
    for node in (
        ProbeValue,
        ProbeArray,
        ProbeSave,
        ProbeSize,
        ProbePipeline,
        ProbeLimit,
        ProbeWait,
        ProbeEviction,
        ProbeRoom,
    )
}

# --- a device of limited memory -----------------------------------------------------------------------------------

DEVICE = torch.device("cpu", 0)
"""Computes as the CPU does, but is not torch.device("cpu"): the host evicts from it as from a GPU."""


@contextmanager
def device_of(size: float) -> Iterator[None]:
    """The host believes in a device that holds `size` bytes of models beside the room it keeps for their work.

    Simulated are the device and its free memory; what is loaded, evicted and moved back is the host's own doing.
    """
    total = mm.minimum_inference_memory() + size
    true_device, true_free = mm.get_torch_device, mm.get_free_memory

    def free(device: torch.device | None = None, torch_free_too: bool = False) -> Any:
        left = total - sum(x.model_loaded_memory() for x in mm.current_loaded_models if x.device == DEVICE)
        value = left if device in (None, DEVICE) else true_free(device)
        return (value, value) if torch_free_too else value

    mm.get_torch_device, mm.get_free_memory = lambda: DEVICE, free
    try:
        yield
    finally:
        mm.free_memory(1e30, DEVICE)
        mm.get_torch_device, mm.get_free_memory = true_device, true_free


def other_model(size: int) -> Any:
    """A patcher of the host's own kind with `size` bytes of weights."""
    weights = torch.nn.Sequential(torch.nn.Linear(size // 4, 1, bias=False))  # newer hosts take no bare layer
    return comfy.model_patcher.ModelPatcher(weights, DEVICE, torch.device("cpu"))


def loaded() -> dict[str, str]:
    """What lies on the device, and where each model itself believes to be."""
    here = [x.model.model for x in mm.current_loaded_models if x.device == DEVICE and x.model_loaded_memory()]
    return {type(model).__name__: str(model.device) for model in here}


def evict(checkpoint: str, image: torch.Tensor) -> list[Any]:
    """Another model, ours, the other, ours again: what was loaded after each, and whether results stayed the same."""
    host, upscale = pack("nodes.host"), importlib.import_module("nodes").NODE_CLASS_MAPPINGS["CTSRUpscale"].execute
    with device_of(0):
        ours = host.open_model(checkpoint, "fp32", "auto")
        size = max(ours.unet.model_size(), ours.autoencoder.model_size())
    with device_of(1.2 * size):
        other = other_model(size)
        x = torch.ones(1, size // 4)
        pictures: list[torch.Tensor] = []
        values: list[float] = []
        steps: list[Any] = []
        for _ in range(2):
            mm.load_models_gpu([other])
            values.append(float(other.model(x)))
            steps.append(loaded())
            pictures.append(upscale(image, 0.5, 2.0, ours).result[0])
            steps.append(loaded())
        same = [torch.equal(pictures[0], pictures[1]), values[0] == values[1]]
        return [*steps, {"picture": same[0], "other": same[1], "offload": str(other.model.device)}]


def make_room(checkpoint: str, image: torch.Tensor) -> list[Any]:
    """Room for both, and a UNet that runs out of memory once: what was loaded before and after."""
    host, upscale = pack("nodes.host"), importlib.import_module("nodes").NODE_CLASS_MAPPINGS["CTSRUpscale"].execute
    with device_of(1e9):
        ours, other = host.open_model(checkpoint, "fp32", "auto"), other_model(1000)
        mm.load_models_gpu([other])
        upscale(image, 0.5, 2.0, ours)
        steps = [loaded()]
        ours.pipeline.unet.forward = limited(ours.pipeline.unet.forward, 64 * 64 - 1)
        host.load(ours, "unet", 512, 512, 0)
        ours.pipeline.endpoints([torch.zeros(1, 4, 64, 64)])
        return [*steps, loaded()]
