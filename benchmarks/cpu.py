"""Time of the mini against a GAN peer on this CPU, 128x128 -> 512x512, both in one run.

    python benchmarks/cpu.py LR_DIR --peer MODEL.param [--threads 2] [--repeat 5]        (pip install ncnn for the peer)

For every picture the two take turns, so that a busy machine slows both. Prints medians over pictures and repeats.
"""

import importlib
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from PIL import Image

from ctsr import CTSRPipeline

Timings = dict[str, list[float]]


def timed(timings: Timings, name: str, run: Callable[[], Any]) -> Any:
    """Runs, and notes the seconds under `name`."""
    start = time.perf_counter()
    result = run()
    timings[name].append(time.perf_counter() - start)
    return result


def load_peer(param: Path, threads: int) -> Callable[[NDArray[np.float32]], Any]:
    """An ncnn x4 network as a function of [3, h, w] in [0, 1]."""
    ncnn: Any = importlib.import_module("ncnn")  # only the peer needs it

    net = ncnn.Net()
    net.opt.use_vulkan_compute = False
    net.opt.num_threads = threads
    net.load_param(str(param))
    net.load_model(str(param.with_suffix(".bin")))

    def run(x: NDArray[np.float32]) -> Any:
        extractor = net.create_extractor()
        extractor.input("data", ncnn.Mat(x).clone())
        return np.array(extractor.extract("output")[1])

    return run


def main(
    lr: Path,
    peer: Annotated[Path | None, typer.Option(help="ncnn .param file of the peer")] = None,
    threads: int = 2,
    repeat: int = 5,
    pictures: int = 10,
) -> None:
    """Times the mini, by steps, and the peer."""
    torch.set_num_threads(threads)
    pipeline = CTSRPipeline.mini("auto")
    run_peer = load_peer(peer, threads) if peer else None
    timings: Timings = defaultdict(list)
    paths = sorted(p for p in lr.iterdir() if p.suffix.lower() in {".png", ".jpg"})[:pictures]
    for turn in range(repeat + 1):
        if turn == 1:
            timings.clear()  # the first turn warms up
        for path in paths:
            x = np.ascontiguousarray(np.asarray(Image.open(path).convert("RGB"), np.float32).transpose(2, 0, 1))
            x /= 255
            if run_peer is not None:
                timed(timings, "peer", lambda x=x: run_peer(x))
            picture = torch.from_numpy(x)[None]
            size = 4 * x.shape[1], 4 * x.shape[2]
            timed(timings, "mini, all", lambda p=picture: pipeline(p, t=0.5, output_type="pt"))
            encoded = timed(timings, "mini encode", lambda p=picture, s=size: pipeline.encode(p, *s))
            ends = timed(timings, "mini unet", lambda e=encoded: pipeline.endpoints(e.latents))
            z = pipeline.blend(ends, 0.5)
            timed(timings, "mini decode", lambda z=z, s=size: pipeline.decode(z, s))
    print(f"{len(paths)} pictures, {repeat} repeats, {threads} threads, {pipeline.unet.dtype}")
    for name, values in timings.items():
        print(f"{name:12s} {statistics.median(values):.3f} s")
    if run_peer is not None:
        ratio = statistics.median(timings["mini, all"]) / statistics.median(timings["peer"])
        print(f"mini / peer  {ratio:.2f}")


if __name__ == "__main__":
    typer.run(main)
