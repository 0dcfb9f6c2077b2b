"""TiledVAEDecode: the picture of a latent, at exactly the size asked for, with its colours and alpha."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from comfy_api.latest import io
from torch import Tensor

from . import host
from .checks import check_choice, whole
from .inputs import COLOR_FIXES, LARGEST_TILE, color_fix_input, schema, tile_input
from .latents import receive, turn
from .progress import Work, working
from .room import check_batch
from .values import HostEndpoints, Origin

if TYPE_CHECKING:
    from ..ctsr.images.color_fix import ColorFix


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
        tile = whole("tile", tile, 0, LARGEST_TILE)
        check_choice("color_fix", color_fix, COLOR_FIXES)
        with working(len(latent["samples"]), ["decode"]) as work:
            samples, origin = receive(model, latent, work)
            check_batch(len(samples), origin.size)
            images = host.Batch(len(samples))
            for i in range(len(samples)):
                images.add(decode(model, samples[i : i + 1], origin.row(i), tile, color_fix, work, i))
            work.result = describe(images.result())
            return io.NodeOutput(images.result())


def model_of(vae: Any) -> host.HostModel:
    """The model that a VAE belongs to; raises ValueError for a VAE that is not one of ours."""
    if not isinstance(vae, host.CTSRVAE):
        raise ValueError("vae is not a CTSR checkpoint's: connect the VAE of Load CTSR, or use the host's VAE Decode.")
    return vae.model


def model_for(vae: Any, endpoints: HostEndpoints) -> host.HostModel:
    """The model of a VAE for `endpoints`; raises ValueError as `model_of`, or for those of another checkpoint."""
    model, maker = model_of(vae), endpoints.origin.model_id
    if maker != model.model_id:
        raise ValueError(
            f"endpoints were made by {maker}, but vae belongs to {model.model_id}: connect both to the same Load CTSR."
        )
    return model


def decode(
    model: host.HostModel, samples: Tensor, origin: Origin, tile: int, color_fix: str, work: Work, number: int = 0
) -> Tensor:
    """IMAGE [1, H, W, 3 or 4] of unscaled latents [1, C, h, w], of picture `number` in the work."""
    from ..ctsr.images.tensors import resize
    from ..ctsr.runtime.offload import check_tile

    check_tile(tile, None)
    size, reference = origin.size, origin.reference
    if reference is None and color_fix != "none":
        work.warn("Without the picture that Time-Aware Encode saw, colours are left as they are decoded.")
    fix = cast("ColorFix", "none" if reference is None else color_fix)
    work.memory = max(work.memory, host.load(model, "decode", *size, tile))
    picture = model.pipeline.decode_unscaled(
        samples.float(), size, reference, fix, tile=tile, callback=work.picture(number)
    )
    if origin.alpha is not None:
        picture = torch.cat([picture, resize(origin.alpha, *size).clamp_(0, 1).to(picture)], dim=1)
    return turn(picture, origin.turn).movedim(1, -1)


def describe(images: Tensor) -> str:
    """Size and number of an IMAGE [B, H, W, C] in words."""
    count, height, width = images.shape[:3]
    return f"{width}x{height}" + (f" · {count} pictures" if count > 1 else "")
