"""Peak resident memory, each size in a process of its own.

python -m benchmarks.memory table                    the mini: peak for results of 2K, 4K and 8K
python -m benchmarks.memory table --shape sd-narrow  an SD-shaped pipeline an eighth as wide, in 2 GiB (for 16)
python -m benchmarks.memory table --stages           numbers alive a pixel in each network, untiled
python -m benchmarks.memory table --stages --shape sd21 --side 512
python -m benchmarks.memory part decode 1080 1920 --shape sd21     one network over one picture, tiled as it must be
"""

import resource
import subprocess
import sys
import time
from collections.abc import Callable
from enum import Enum
from typing import Annotated, Any

import torch
import typer
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from ctsr import CTSRPipeline, PromptEmbeddings, TimeAwareAutoencoderKL
from ctsr.models.building import make_fast
from ctsr.models.forward import latent_channels
from ctsr.tiling import memory, networks
from ctsr.tiling.network import Network
from training.model.sd21 import SD21_UNET, SD21_VAE

SIZES = {"2K": (270, 480), "4K": (540, 960), "8K": (1080, 1920)}  # of the input, a quarter of the result
NARROW = 8
"""sd-narrow's widths are those of SD 2.1 divided by this."""
NARROW_MEMORY = 2 * 2**30
app = typer.Typer()


class Part(Enum):
    """Which network of the three."""

    encode = "encode"
    unet = "unet"
    decode = "decode"


class Shape(str, Enum):
    """Which networks."""

    mini = "mini"
    sd21 = "sd21"
    narrow = "sd-narrow"


ShapeOption = Annotated[Shape, typer.Option(help="sd21 and sd-narrow have random weights")]


def peak() -> float:
    """Largest resident size of this process so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def narrow(shape: Any) -> dict[str, Any]:
    """Arguments of a network `NARROW` times narrower."""
    widths = tuple(width // NARROW for width in shape["block_out_channels"])
    return {**shape, "block_out_channels": widths, "norm_num_groups": 8}


def build(shape: Shape, precision: str) -> CTSRPipeline:
    """A pipeline of that shape; fp32 unless the precision is auto."""
    if shape is Shape.mini:
        return CTSRPipeline.mini(torch.float32 if precision == "fp32" else "auto")
    unet, vae = dict(SD21_UNET), dict(SD21_VAE)
    if shape is Shape.narrow:
        unet, vae = narrow(unet), narrow(vae)
    prompt = PromptEmbeddings.from_embeds(torch.zeros(1, 77, unet["cross_attention_dim"]))
    modules = make_fast(TimeAwareAutoencoderKL(**vae).eval()), make_fast(UNet2DConditionModel(**unet).eval())
    return CTSRPipeline(*modules, prompt, family="osediff")


@app.command()
def picture(height: int, width: int, precision: str = "auto", shape: ShapeOption = Shape.mini) -> None:
    """One picture through `__call__`; prints the peak and what the picture's own buffers come to."""
    pipeline = build(shape, precision)
    if shape is Shape.narrow:
        memory.total_memory = lambda device: NARROW_MEMORY
    loaded = peak()
    pipeline(torch.rand(1, 3, height, width), t=0.5, output_type="pil")
    buffer = 16 * height * width * 3 * 4 / 2**20
    print(f"result {4 * width}x{4 * height}: peak {peak():.0f} MiB, before {loaded:.0f}, one fp32 picture {buffer:.0f}")


@app.command()
def part(name: Part, height: int, width: int, precision: str = "auto", shape: ShapeOption = Shape.mini) -> None:
    """One network of a picture's three, in the tiles that `__call__` would take; prints the peak and the time."""
    pipeline = build(shape, precision)
    channels = latent_channels(pipeline.vae)
    size = 4 * height, 4 * width
    multiple, factor = pipeline.pad_multiple, pipeline.vae_scale_factor
    latents = torch.randn(1, channels, *(-(-side // multiple) * multiple // factor for side in size))
    runs: dict[Part, Callable[[], object]] = {
        Part.encode: lambda: pipeline.encode(torch.rand(1, 3, height, width), *size),
        Part.unet: lambda: pipeline.endpoints([latents]),
        Part.decode: lambda: pipeline.decode(latents, size),
    }
    loaded, start = peak(), time.perf_counter()
    runs[name]()
    minutes = (time.perf_counter() - start) / 60
    print(
        f"{name.value} of {4 * width}x{4 * height}: peak {peak():.0f} MiB, before {loaded:.0f}, {minutes:.1f} minutes"
    )


@app.command()
def stage(name: str, side: int = 2048, shape: ShapeOption = Shape.mini) -> None:
    """One network untiled; prints the numbers alive a pixel beyond input and output."""
    pipeline = build(shape, "auto")
    channels = latent_channels(pipeline.vae)
    latents = torch.zeros(1, channels, side // 8, side // 8, dtype=pipeline.vae.dtype)
    picture = torch.zeros(1, 3, side, side, dtype=pipeline.vae.dtype)
    embeds = None if pipeline.prompt_embeddings is None else pipeline.prompt_embeddings(1)
    inputs: dict[str, tuple[Network, Tensor]] = {
        "encode": (networks.encoder(pipeline.vae, 999), picture),
        "unet": (networks.unet(pipeline.unet, pipeline.vae_scale_factor, 999, embeds), latents),
        "decode": (networks.decoder(pipeline.vae), latents),
    }
    network, x = inputs[name]
    run: Callable[[Tensor], Tensor] = torch.no_grad()(network.call)
    run(x[..., : x.shape[-2] // 8, : x.shape[-1] // 8].contiguous())
    before = peak()
    out = run(x)
    working = (peak() - before) * 2**20 - out.numel() * out.element_size()
    alive, predicted = working / side**2 / out.element_size(), network.bytes_per_pixel / out.element_size()
    print(f"{name}: {alive:.0f} numbers a pixel, predicted {predicted:.0f}")


@app.command()
def table(
    stages: Annotated[bool, typer.Option(help="per network instead of per picture")] = False,
    shape: ShapeOption = Shape.mini,
    side: Annotated[int, typer.Option(help="pixels, of the picture for --stages")] = 2048,
) -> None:
    """Runs the others in fresh processes."""
    runs = [["stage", s, "--side", str(side)] for s in ("encode", "unet", "decode")]
    if not stages:
        runs = [["picture", str(h), str(w)] for h, w in SIZES.values()]
    for arguments in runs:
        command = [sys.executable, "-m", "benchmarks.memory", *arguments, "--shape", shape.value]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    app()
