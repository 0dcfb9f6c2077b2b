"""OneStepSRUNet: one pass of the UNet gives both ends of the dial."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from . import host
from .checks import whole
from .inputs import LARGEST_TILE, Ends, model_input, schema, tile_input
from .latents import receive
from .progress import Work, working
from .values import HostEndpoints, Origin


class OneStepSRUNet(io.ComfyNode):
    """One pass of the UNet gives both ends of the dial."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="OneStepSRUNet",
            display_name="One-Step SR UNet (CTSR)",
            search_aliases=["super resolution", "restore", "one-step diffusion", "sampler"],
            description="Restores the latent in one step, and gives both ends of the dial: moving it later costs no "
            "further pass.",
            inputs=[
                model_input(),
                io.Latent.Input("latent", tooltip="From Time-Aware Encode with the same model."),
                tile_input(),
            ],
            outputs=[Ends.Output(display_name="endpoints", tooltip="For Tradeoff t and CTSR Sweep.")],
        )

    @classmethod
    def execute(cls, model: host.HostModel, latent: dict[str, Any], tile: int) -> io.NodeOutput:
        tile = whole("tile", tile, 0, LARGEST_TILE)
        with working(len(latent["samples"]), ["unet"]) as work:
            samples, origin = receive(model, latent, work, model.pipeline.pad_multiple)
            return io.NodeOutput(restore(model, samples, origin, tile, work))


def restore(
    model: host.HostModel, samples: Tensor, origin: Origin, tile: int, work: Work, first: int = 0
) -> HostEndpoints:
    """Endpoints of unscaled latents [B, C, h, w], whose first is number `first` in the work.

    Raises:
        ValueError: the checkpoint takes two encodes and the latent brings one.
    """
    from ..ctsr.families import Endpoints
    from ..ctsr.runtime.offload import check_tile

    check_tile(tile, None)
    pipe = model.pipeline
    encodes = [samples] if origin.second is None else [samples, origin.second]
    needed = len(pipe.family.encoder_timesteps) if origin.timestep is None else 1
    if len(encodes) != needed:
        raise ValueError(
            f"{model.model_id} takes {needed} encodes of a picture, but latent brings {len(encodes)}: connect "
            "Time-Aware Encode directly."
        )
    height, width = (side * pipe.vae_scale_factor for side in samples.shape[-2:])
    work.memory = max(work.memory, host.load(model, "unet", height, width, tile))
    parts: dict[str, host.Batch] = {}
    for i in range(len(samples)):
        latents = [z[i : i + 1].float() * pipe.scaling_factor for z in encodes]
        noise = torch.Generator().manual_seed(origin.seed)
        ends = pipe.endpoints(latents, origin.timestep, generator=noise, tile=tile, callback=work.picture(first + i))
        for name, value in (("z0", ends.z0), ("delta", ends.delta), ("kappa", ends.kappa)):
            if value is not None:
                parts.setdefault(name, host.Batch(len(samples), torch.float32)).add(value)
    batches = {name: batch.result() for name, batch in parts.items()}
    return HostEndpoints(Endpoints(**batches), pipe.scaling_factor, pipe.vae_scale_factor, origin)
