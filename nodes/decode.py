"""TiledVAEDecode: the picture of a latent, at exactly the size asked for, with its colours and alpha."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from . import host
from .checks import check_choice
from .inputs import COLOR_FIXES, color_fix_input, schema, tile_input
from .latents import receive
from .progress import working
from .room import check_batch
from .steps import decode_each, model_of, tile_side


class TiledVAEDecode(io.ComfyNode):
    """The picture of a latent."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="TiledVAEDecode",
            display_name="Tiled VAE Decode (CTSR)",
            search_aliases=["vae decode tiled", "seamless tiles", "color fix"],
            description="Decodes a latent in tiles that leave no seams, crops it to exactly the size asked for and "
            "fixes its colours.",
            inputs=[
                io.Vae.Input("vae", tooltip="The VAE of Load CTSR."),
                io.Latent.Input("latent", tooltip="From Tradeoff t."),
                tile_input(),
                color_fix_input(),
            ],
            outputs=[io.Image.Output(display_name="image", tooltip="Exactly scale × the input.")],
        )

    @classmethod
    def execute(cls, vae: host.CTSRVAE, latent: dict[str, Any], tile: int, color_fix: str) -> io.NodeOutput:
        model = model_of(vae)
        tile = tile_side(tile)
        check_choice("color_fix", color_fix, COLOR_FIXES)
        with working(len(latent["samples"]), ["decode"]) as work:
            samples, origin = receive(model, latent, work)
            check_batch(len(samples), origin.size)
            rows = ((z, origin.row(i)) for i, z in enumerate(samples.split(1)))
            return io.NodeOutput(decode_each(model, rows, len(samples), tile, color_fix, work))
