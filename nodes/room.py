"""Whether a whole batch fits into memory, told before the first picture is done."""

from __future__ import annotations

from . import host

CHANNELS = 4
"""Of a result in memory at most: RGB and alpha."""
LATENTS_IN_A_GRAPH = 4
"""Latents a picture that the host keeps while a graph of single nodes runs: encoded, z0, delta, blended; and kappa."""


def check_batch(count: int, size: tuple[int, int], kept: float = 0) -> None:
    """Raises ValueError for results that memory cannot hold beside one picture at work.

    Args:
        count: of results.
        size: height and width of each.
        kept: further bytes a picture that stay in memory with it.
    """
    from ..ctsr.runtime.memory import BUFFER_BYTES, BUFFER_SHARE, check_room
    from ..ctsr.tiling.memory import total_memory

    check_room(*size, host.intermediate_device())
    if count == 1:
        return

    height, width = size
    pixels = height * width
    have = BUFFER_SHARE * total_memory(host.intermediate_device())
    one = pixels * CHANNELS * host.intermediate_dtype().itemsize + kept
    fitting = int((have - pixels * BUFFER_BYTES) // one)
    if count > fitting:
        fewer = f"give at most {fitting} at a time, or a smaller size" if fitting > 0 else "give a smaller size"
        single = " (Upscale & Restore keeps less than single nodes do)" if kept else ""
        raise ValueError(
            f"{count} results of {width}x{height} would take {count * one / 2**30:.1f} GiB of memory, and no more than "
            f"{have / 2**30:.1f} can be used here: {fewer}{single}."
        )


def check_graph(model: host.HostModel, count: int, size: tuple[int, int]) -> None:
    """As `check_batch`, with all that a graph of single nodes keeps of `count` pictures until it ends."""
    cells = size[0] * size[1] / model.pipeline.vae_scale_factor**2
    has_kappa = model.pipeline.unet.config["out_channels"] == 3 * model.latent_channels
    latent = host.intermediate_dtype().itemsize * cells * model.latent_channels
    check_batch(count, size, (LATENTS_IN_A_GRAPH + has_kappa) * latent)
