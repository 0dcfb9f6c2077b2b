"""Videos in a real ComfyUI on its CPU: time and memory of many frames, how soon a cancel stops them, what still is.

    python -m benchmarks.comfyui_video frames [--count 500]
    python -m benchmarks.comfyui_video boil

With the built-in mini. A clip of 960x540 becomes 1920x1080; its frames are a camera's that moves over a photograph.
"""

import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
import typer
from PIL import Image

from benchmarks.comfyui import comfy, resident
from tests.comfyui import PICTURES, ROOT, ComfyServer, Run
from tests.host.graphs import Prompt, node, one, put, saved, succeed

SIZE = (960, 540)
VIDEO = ROOT / "tests" / "browser" / "video.py"
NOISE = 0.03
"""Standard deviation of a camera's noise, of 1."""
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def pan(server: ComfyServer, name: str, count: int) -> None:
    """A clip in the input folder, made by the host's Python, which can encode video."""
    numbers = map(str, (*SIZE, count))
    command = [str(server.host.python), str(VIDEO), "pan", str(server.base / "input" / name), *numbers]
    subprocess.run([*command, str(PICTURES / "mural.jpg")], check=True, capture_output=True)


def of_video(name: str, **inputs: Any) -> Prompt:
    """From a video file to a video file of twice its sides."""
    return {
        "video": node("LoadVideo", file=name),
        "upscale": node("CTSRUpscaleVideo", video=["video", 0], t=1.0, scale=2.0, **inputs),
        "save": node("SaveVideo", video=["upscale", 0], filename_prefix="video", format="auto", codec="auto"),
    }


def of_picture(t: float) -> Prompt:
    """A frame's size, as a picture."""
    return one("frame.png", None, t=t, scale=2.0)


def node_seconds(server: ComfyServer, prompt: Prompt) -> float:
    """From the start of the node `upscale` to that of the next."""
    times: dict[str, float] = {}
    with server.events() as events:
        run = Run(server.submit(prompt, events.client))
        for event in events.of(run.prompt_id):
            run.events.append(event)
            if event["type"] == "executing" and event["data"]["node"]:
                times[event["data"]["node"]] = time.perf_counter()
    assert run.ending == "execution_success", run.error
    (seconds,) = [after - before for (name, before), (_, after) in pairwise(times.items()) if name == "upscale"]
    return seconds


@contextmanager
def sampled(server: ComfyServer, seconds: float = 1.0) -> Iterator[list[float]]:
    """MiB of the host's process, again and again."""
    found: list[float] = []
    stop = threading.Event()

    def sample() -> None:
        while not stop.wait(seconds):
            found.append(resident(server))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield found
    finally:
        stop.set()
        thread.join()


def seconds_to_cancel(server: ComfyServer, prompt: Prompt) -> float:
    """From the cancel, some frames after the start, to the end of the prompt."""
    asked = 0.0
    with server.events() as events:
        run = Run(server.submit(prompt, events.client))
        for event in events.of(run.prompt_id):
            run.events.append(event)
            if not asked and len(run.data("progress")) > 20:
                asked = time.perf_counter()
                server.interrupt()
    assert run.ending == "execution_interrupted"
    return time.perf_counter() - asked


@app.command()
def frames(count: int = 500, pictures: int = 7, cancels: int = 5) -> None:
    """Seconds a frame against a single picture, memory over time, and the longest wait after a cancel."""
    with comfy() as server:
        pan(server, "warm.mp4", 3)
        pan(server, "clip.mp4", count)
        with Image.open(PICTURES / "mural.jpg") as picture:
            picture.resize(SIZE, Image.Resampling.LANCZOS).save(server.base / "input" / "frame.png")
        succeed(server, of_picture(0.5))
        succeed(server, of_video("warm.mp4"))
        single = statistics.median(node_seconds(server, of_picture(0.5 + i / 1000)) for i in range(1, pictures + 1))
        with sampled(server) as memory:
            whole = node_seconds(server, of_video("clip.mp4"))
        waits = [seconds_to_cancel(server, of_video("clip.mp4", crf=18 + i)) for i in range(cancels)]
    print(f"a picture of {SIZE[0]}x{SIZE[1]} x2: {single:.3f} s (median of {pictures})")
    print(f"{count} frames: {whole:.0f} s, {whole / count:.3f} s a frame, {whole / count / single:.2f} of a picture")
    tenths = [statistics.mean(part) for part in np.array_split(memory, 10)]
    print(f"MiB resident, mean of each tenth: {', '.join(f'{x:.0f}' for x in tenths)}; most {max(memory):.0f}")
    print(f"seconds from a cancel to the end: {', '.join(f'{x:.2f}' for x in waits)}")


@app.command()
def boil(count: int = 24, skip: int = 8) -> None:
    """Standard deviation over time of a still scene seen by a noisy camera, at t = 0, by the node's `steady`."""
    with Image.open(PICTURES / "hippo.png") as picture:
        scene = np.asarray(picture.convert("RGB"), np.float32) / 255
    noise = np.random.default_rng(0).normal(0, NOISE, (count, *scene.shape)).astype(np.float32)
    clip = np.clip(scene + noise, 0, 1).astype(np.float32)
    with comfy(with_probe=True) as server:
        for steady in (0.0, 0.0, 0.5, 0.7, 0.8, 0.9):  # the first loads the model
            prompt = one(checkpoint=None, t=0.0)
            prompt["picture"] = put(server, clip)
            prompt["upscale"]["inputs"]["steady"] = steady
            start = time.perf_counter()
            (large,) = saved(server, prompt, ["upscale", 0])
            seconds = (time.perf_counter() - start) / count
            print(f"steady {steady:g}: std {large[skip:].std(axis=0).mean():.4f}, {seconds:.3f} s a frame", flush=True)


if __name__ == "__main__":
    app()
