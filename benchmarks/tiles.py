"""Stable Diffusion's autoencoder, SD 2.1's shapes and random weights: every way of tiling against the untiled result.

    python -m benchmarks.tiles                 the decoder, for 1024x1024 in tiles of 512
    python -m benchmarks.tiles --encoder       the encoder
    python -m benchmarks.tiles --tiny          an eighth of the widths, to see that it runs

The input is half flat and half textured, with an offset: what makes tiles that normalise by themselves differ most. On
the scale of a picture: errors in 1/255; border: gradient energy across tile borders over that elsewhere, relative to
the same of the untiled result.
"""

import time
from dataclasses import replace
from typing import Annotated

import torch
import typer
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor

from benchmarks.memory import narrow
from ctsr.models.building import make_fast
from ctsr.tiling import networks
from ctsr.tiling.sd_vae import schedule
from tests.tiled import run_tiled
from training.model.sd21 import SD21_VAE

CPU = torch.device("cpu")
STANDARD_DEVIATION = 64
"""Of a picture, in 1/255; random networks have any."""


def flat_and_textured(channels: int, side: int) -> Tensor:
    """[1, channels, side, side], its left half nearly flat."""
    torch.manual_seed(1)
    x = torch.randn(1, channels, side, side)
    x[..., : side // 2] *= 0.05
    return x + torch.linspace(0.4, -0.4, channels)[:, None, None]


def border_energy(y: Tensor, whole: Tensor, pitch: int) -> float:
    """Gradient energy at columns that are multiples of `pitch` over that of the others, relative to `whole`'s."""

    def ratio(image: Tensor) -> Tensor:
        energy = image.diff(dim=-1).square().mean((0, 1, 2))
        border = torch.arange(1, image.shape[-1]) % pitch == 0
        return energy[border].mean() / energy[~border].mean()

    return float(ratio(y) / ratio(whole))


def show(name: str, y: Tensor, whole: Tensor, pitch: int, seconds: float) -> None:
    """One line of the table."""
    error = (y - whole) * (STANDARD_DEVIATION / whole.std())
    figures = error.abs().mean(), error.abs().max(), error.mean((0, 2, 3)).abs().max()
    border = border_energy(y, whole, pitch)
    print(f"{name:30s}" + "".join(f"{float(x):>10.3f}" for x in figures) + f"{border:>10.4f}{seconds:>10.1f} s")


@torch.no_grad()
def main(
    encoder: Annotated[bool, typer.Option(help="in place of the decoder")] = False,
    side: Annotated[int, typer.Option(help="pixels of the picture")] = 1024,
    tile: Annotated[int, typer.Option(help="pixels of a tile")] = 512,
    tiny: Annotated[bool, typer.Option(help="an eighth of the widths")] = False,
) -> None:
    """Prints a line for every way."""
    torch.manual_seed(0)
    vae = make_fast(AutoencoderKL(**(narrow(SD21_VAE) if tiny else dict(SD21_VAE))).eval())
    network = networks.encoder(vae, None) if encoder else networks.decoder(vae)
    x = flat_and_textured(3, side) if encoder else flat_and_textured(4, side // 8)
    cells, pitch = tile // 8, tile // 8 * network.write_scale
    start = time.perf_counter()
    whole = network.call(x)
    print(f"untiled: {time.perf_counter() - start:.1f} s; errors: mean, largest, mean of a channel; border; time")
    finest = max(network.levels, key=lambda level: level.scale)
    layers = 4 * schedule.layers_values(finest, (side // 8) ** 2)
    naive = replace(network, levels=(), run_levels=None, halo=None)
    for name, way, overlap, memory in (
        ("layers", network, 0, layers),
        ("tiles, no memory for layers", network, 0, 0),
        ("naive: blended tiles", naive, cells // 4, 0),
    ):
        start = time.perf_counter()
        y = run_tiled(way, x, cells, overlap, None, memory)
        show(name, y, whole, pitch, time.perf_counter() - start)


if __name__ == "__main__":
    typer.run(main)
