"""Peak resident memory of the mini, each size in a process of its own.

python benchmarks/memory.py table            peak for results of 2K, 4K and 8K
python benchmarks/memory.py table --stages   numbers alive a pixel in each network, untiled (for `networks.memory`)
"""

import resource
import subprocess
import sys
from collections.abc import Callable
from typing import Annotated

import torch
import typer
from torch import Tensor

from ctsr import CTSRPipeline, networks

SIZES = {"2K": (270, 480), "4K": (540, 960), "8K": (1080, 1920)}  # of the input, a quarter of the result
app = typer.Typer()


def peak() -> float:
    """Largest resident size of this process so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@app.command()
def picture(height: int, width: int, precision: str = "auto") -> None:
    """One picture through `__call__`; prints the peak and what the picture's own buffers come to."""
    dtype = torch.float32 if precision == "fp32" else "auto"
    pipeline = CTSRPipeline.mini(dtype)
    loaded = peak()
    pipeline(torch.rand(1, 3, height, width), t=0.5, output_type="pil")
    buffer = 16 * height * width * 3 * 4 / 2**20
    print(f"result {4 * width}x{4 * height}: peak {peak():.0f} MiB, before {loaded:.0f}, one fp32 picture {buffer:.0f}")


@app.command()
def stage(name: str, side: int = 2048) -> None:
    """One network untiled; prints the numbers alive a pixel beyond input and output."""
    pipeline = CTSRPipeline.mini()
    channels = pipeline.vae.config["latent_channels"]
    latents = torch.zeros(1, channels, side // 8, side // 8, dtype=pipeline.vae.dtype)
    picture = torch.zeros(1, 3, side, side, dtype=pipeline.vae.dtype)
    inputs: dict[str, tuple[networks.Network, Tensor]] = {
        "encode": (networks.encoder(pipeline.vae, 999), picture),
        "unet": (networks.unet(pipeline.unet, 999, None), latents),
        "decode": (networks.decoder(pipeline.vae), latents),
    }
    network, x = inputs[name]
    run: Callable[[Tensor], Tensor] = torch.no_grad()(network.call)
    run(x[..., : x.shape[-2] // 8, : x.shape[-1] // 8].contiguous())
    before = peak()
    out = run(x)
    working = (peak() - before) * 2**20 - out.numel() * out.element_size()
    print(f"{name}: {working / side**2 / out.element_size():.0f} numbers a pixel")


@app.command()
def table(stages: Annotated[bool, typer.Option(help="per network instead of per picture")] = False) -> None:
    """Runs the others in fresh processes."""
    runs = [["stage", s] for s in ("encode", "unet", "decode")]
    if not stages:
        runs = [["picture", str(h), str(w)] for h, w in SIZES.values()]
    for arguments in runs:
        subprocess.run([sys.executable, __file__, *arguments], check=True)


if __name__ == "__main__":
    app()
