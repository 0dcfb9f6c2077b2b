"""OneStepSRUNet: one pass of the UNet gives both ends of the dial."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from comfy_api.latest import io
from torch import Tensor

from . import host
from .checks import check_samples, whole
from .inputs import LARGEST_TILE, Ends, model_input, tile_input
from .values import HostEndpoints, Origin, origin_of

if TYPE_CHECKING:
    from ..ctsr.families import Endpoints


class OneStepSRUNet(io.ComfyNode):
    """One pass of the UNet gives both ends of the dial."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OneStepSRUNet",
            display_name="One-Step SR UNet (CTSR)",
            category="CTSR",
            description="Restores the latent in one step, and gives both ends of the dial: moving it later costs no "
            "further pass.",
            inputs=[
                model_input(),
                io.Latent.Input("latent", tooltip="From TimeAwareEncode with the same model."),
                tile_input(),
            ],
            outputs=[Ends.Output(display_name="endpoints", tooltip="For TradeoffT and CTSRSweep.")],
        )

    @classmethod
    def execute(cls, model: host.HostModel, latent: dict[str, Any], tile: int) -> io.NodeOutput:
        tile = whole("tile", tile, 0, LARGEST_TILE)
        samples: Tensor = latent["samples"]
        check_samples(samples, model.latent_channels, model.pipeline.pad_multiple // model.pipeline.vae_scale_factor)
        origin = origin_of(latent, model.model_id, model.pipeline.pad_multiple, model.pipeline.vae_scale_factor)
        return io.NodeOutput(restore(model, samples, origin, tile, host.Bar(len(samples), ["unet"])))


def restore(
    model: host.HostModel, samples: Tensor, origin: Origin, tile: int, bar: host.Bar, first: int = 0
) -> HostEndpoints:
    """Endpoints of unscaled latents [B, C, h, w], whose first is number `first` on the progress bar.

    Raises:
        ValueError: the checkpoint takes two encodes and the latent brings one.
    """
    from ..ctsr.runtime.offload import check_tile

    check_tile(tile, None)
    pipe = model.pipeline
    encodes = [samples] if origin.second is None else [samples, origin.second]
    needed = len(pipe.family.encoder_timesteps) if origin.timestep is None else 1
    if len(encodes) != needed:
        raise ValueError(
            f"{model.model_id} takes {needed} encodes of a picture, but latent brings {len(encodes)}: connect "
            "TimeAwareEncode directly."
        )
    height, width = (side * pipe.vae_scale_factor for side in samples.shape[-2:])
    host.load(model, "unet", height, width, tile)
    parts: list[Endpoints] = []
    for i in range(len(samples)):
        latents = [z[i : i + 1] * pipe.scaling_factor for z in encodes]
        noise = torch.Generator().manual_seed(origin.seed)
        ends = pipe.endpoints(latents, origin.timestep, generator=noise, tile=tile, callback=bar.picture(first + i))
        parts.append(ends)
    return HostEndpoints(stack(parts), pipe.scaling_factor, pipe.vae_scale_factor, origin)


def stack(parts: list[Endpoints]) -> Endpoints:
    """Endpoints of one picture each as those of a batch, on the intermediate device."""
    from ..ctsr.families import Endpoints

    def joined(tensors: list[Tensor | None]) -> Tensor | None:
        given = [x for x in tensors if x is not None]
        return host.intermediate(torch.cat(given)) if given else None

    return Endpoints(
        host.intermediate(torch.cat([part.z0 for part in parts])),
        joined([part.delta for part in parts]),
        joined([part.kappa for part in parts]),
    )
