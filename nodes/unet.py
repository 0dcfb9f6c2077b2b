"""OneStepSRUNet: one pass of the UNet gives both ends of the dial."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from . import host
from .inputs import Ends, model_input, schema, tile_input
from .latents import receive
from .progress import working
from .steps import restore, tile_side


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
        tile = tile_side(tile)
        with working(len(latent["samples"]), ["unet"]) as work:
            samples, origin = receive(model, latent, work, model.pipeline.pad_multiple)
            return io.NodeOutput(restore(model, samples, origin, tile, work))
