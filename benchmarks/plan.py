"""Predicted against measured memory and time of a run, each size in a process of its own.

python -m benchmarks.plan table                ctsr-mini over six sizes
python -m benchmarks.plan table --shape sd21      networks of Stable Diffusion's size with random weights

Time is the processor's on one thread, so that others on the machine do not count.
"""

import subprocess
import sys
import time
from typing import Annotated

import psutil
import torch
import typer

from benchmarks.memory import Shape, build, peak
from ctsr.runtime import planning, speed

SIZES = {
    Shape.mini: [(64, 64), (128, 128), (270, 480), (384, 512), (540, 960), (1080, 1920)],
    Shape.sd21: [(32, 32), (48, 48), (64, 64), (64, 96), (96, 96), (128, 128)],
}
"""Height and width of the input; the result has four times as many a side."""
app = typer.Typer()


@app.command()
def one(height: int, width: int, shape: Shape = Shape.mini) -> None:
    """One picture: memory of the process at its peak and the processor's time, predicted and measured."""
    torch.set_num_threads(1)
    pipe = build(shape, "auto")
    pipe(torch.rand(1, 3, 32, 32), t=0.5, output_type="pt")
    each = [pipe.network("encode"), pipe.network("unet"), pipe.network("decode")]
    rates = {network.stage: speed.measure(network, time.process_time) for network in each}
    planning.speeds = lambda each: rates
    plan = pipe.plan([(4 * height, 4 * width)], keep=False)
    seconds = plan.seconds or 0
    before, start = psutil.Process().memory_info().rss / 2**20, time.process_time()
    pipe(torch.rand(1, 3, height, width), t=0.5, output_type="pt")
    took, most = time.process_time() - start, peak()
    predicted = before + plan.machine.need / 2**20
    print(
        f"{4 * width}x{4 * height}: peak {most:.0f} MiB, predicted {predicted:.0f} ({predicted / most - 1:+.0%}); "
        f"{took:.1f} s, predicted {seconds:.1f} ({seconds / took - 1:+.0%})",
        flush=True,
    )


@app.command()
def table(shape: Annotated[Shape, typer.Option(help="sd21 has random weights")] = Shape.mini) -> None:
    """Six sizes."""
    for height, width in SIZES[shape]:
        command = [sys.executable, "-m", "benchmarks.plan", "one", str(height), str(width), "--shape", shape.value]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    app()
