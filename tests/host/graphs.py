"""Prompts in the host's API format, with names for ids."""

import json
import secrets
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from PIL import Image

from ctsr import CTSRPipeline
from tests.comfyui import PICTURES, ComfyServer, PromptRefusedError, Run

TINY = "tiny.safetensors"
TINY_SD = "tiny-sd.safetensors"
MINI = "ctsr-mini (built-in)"
SMALL = "small.png"
"""A crop of 40x28 pixels of a photograph."""

Prompt = dict[str, dict[str, Any]]
Array = NDArray[np.float32]


def fill(server: ComfyServer, mini: CTSRPipeline, sd: CTSRPipeline) -> None:
    """Puts the checkpoints and pictures of these tests where the host looks for them."""
    models, pictures = server.base / "models" / "ctsr", server.base / "input"
    mini.save_single_file(models / TINY, dtype=torch.float32)
    sd.save_single_file(models / TINY_SD, dtype=torch.float32)
    with Image.open(PICTURES / "hippo.png") as hippo:
        hippo.crop((100, 60, 140, 88)).save(pictures / SMALL)
        hippo.crop((100, 60, 137, 89)).save(pictures / "odd.png")
        hippo.crop((100, 60, 101, 61)).save(pictures / "pixel.png")


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    """A node; a link is [id, number of the output]."""
    return {"class_type": class_type, "inputs": inputs}


def five(
    image: str = SMALL,
    checkpoint: str = TINY,
    *,
    t: float = 0.5,
    scale: float = 4.0,
    tile: int = 0,
    color_fix: str = "wavelet",
) -> Prompt:
    """The graph of five nodes, from a file to a file: load, picture, encode, unet, dial, decode, save."""
    return {
        "load": node("LoadCTSR", checkpoint=checkpoint, precision="fp32", attention="auto"),
        "picture": node("LoadImage", image=image),
        "encode": node(
            "TimeAwareEncode",
            model=["load", 0],
            image=["picture", 0],
            scale=scale,
            width=0,
            height=0,
            timestep=-1,
            seed=0,
            tile=tile,
        ),
        "unet": node("OneStepSRUNet", model=["load", 0], latent=["encode", 0], tile=tile),
        "dial": node("TradeoffT", endpoints=["unet", 0], t=t, t_inside=1.0, feather=32),
        "decode": node("TiledVAEDecode", vae=["load", 1], latent=["dial", 0], tile=tile, color_fix=color_fix),
        "save": node("SaveImage", images=["decode", 0], filename_prefix="five"),
    }


def one(image: str = SMALL, checkpoint: str | None = TINY, *, t: float = 0.5, scale: float = 4.0) -> Prompt:
    """The beginner's node, from a file to a file: load (if there is a checkpoint), picture, upscale, save."""
    prompt = {
        "picture": node("LoadImage", image=image),
        "upscale": node("CTSRUpscale", image=["picture", 0], t=t, scale=scale),
        "save": node("SaveImage", images=["upscale", 0], filename_prefix="one"),
    }
    if checkpoint is not None:
        prompt["load"] = node("LoadCTSR", checkpoint=checkpoint, precision="fp32", attention="auto")
        prompt["upscale"]["inputs"]["model"] = ["load", 0]
    return prompt


def fresh(prompt: Prompt) -> Prompt:
    """The same, with nothing but the checkpoint and the file kept from earlier prompts."""
    prompt["encode"]["inputs"]["seed"] = secrets.randbits(62)  # this family has no noise: only the cache sees it
    return prompt


def mixed(number: int) -> Prompt:
    """One of many prompts in a row: three models, several t, the graph and the beginner's node taking turns."""
    checkpoint = (TINY, TINY_SD, MINI)[number % 3]
    if number % 2:
        return fresh(five(checkpoint=checkpoint, t=number % 5 / 4))
    return one(checkpoint=checkpoint, t=number % 7 / 6)


def linked(prompt: Prompt, name: str, value: Any) -> Prompt:
    """The same, with an input ("dial.t") that arrives over a link, which the host does not check."""
    target, key = name.split(".")
    prompt["value"] = node("ProbeValue", text=json.dumps(value))
    prompt[target]["inputs"][key] = ["value", 0]
    return prompt


def put(server: ComfyServer, array: Array) -> dict[str, Any]:
    """A node that gives an array: output 0 as IMAGE or MASK, output 1 as LATENT."""
    name = f"{secrets.token_hex(6)}.npy"
    np.save(server.base / "input" / name, array)
    return node("ProbeArray", file=name)


def saved(server: ComfyServer, prompt: Prompt, *sources: list[Any]) -> list[Array]:
    """Tensors that travel over links of a prompt, which must succeed."""
    names = [f"{secrets.token_hex(6)}.npy" for _ in sources]
    taps = {f"tap {name}": node("ProbeSave", value=s, file=name) for name, s in zip(names, sources, strict=True)}
    succeed(server, {key: value for key, value in prompt.items() if key != "save"} | taps)
    return [np.load(server.base / "output" / name) for name in names]


def succeed(server: ComfyServer, prompt: Prompt) -> Run:
    """Runs a prompt that must not fail."""
    run = server.run(prompt)
    assert run.ending == "execution_success", run.error
    return run


def free(server: ComfyServer) -> None:
    """Asks the host for its memory back, and waits until it is: it frees between prompts."""
    server.post("/free", {"unload_models": True, "free_memory": True})
    succeed(server, fresh(five()))


def throttles(server: ComfyServer) -> bool:
    """Whether the host passes on ten steps of a progress bar a second at most, as newer ones do."""
    return "PROGRESS_THROTTLE" in (server.host.path / "comfy" / "utils.py").read_text(encoding="utf-8")


def picture_of(server: ComfyServer, run: Run) -> Path:
    """The file that a prompt saved."""
    return server.output(run.outputs["save"]["images"][0])


def refusal(server: ComfyServer, prompt: Prompt) -> str:
    """What a prompt that must fail says, and that the next good one works."""
    try:
        run = server.run(prompt)
    except PromptRefusedError as error:
        message = "; ".join(e["details"] for node in error.errors.values() for e in node["errors"])
    else:
        assert run.ending == "execution_error"
        message = run.error
    succeed(server, fresh(five()))
    return message


def peak(server: ComfyServer, prompt: Prompt) -> int:
    """Bytes by which the host's memory rose at most while a prompt ran."""
    assert server.process is not None
    status = Path(f"/proc/{server.process.pid}")
    (status / "clear_refs").write_text("5")  # forgets the highest so far
    before = psutil.Process(server.process.pid).memory_info().rss
    succeed(server, prompt)
    high = next(line for line in (status / "status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(high.split()[1]) * 1024 - before
