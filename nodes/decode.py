"""TiledVAEDecode: the picture of a latent, at exactly the size asked for, with its colours and alpha."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, cast

import torch
from comfy_api.latest import io
from torch import Tensor

from . import host
from .checks import check_choice, check_samples, whole
from .inputs import COLOR_FIXES, LARGEST_TILE, color_fix_input, tile_input
from .values import Origin, origin_of

if TYPE_CHECKING:
    from ..ctsr.images.color_fix import ColorFix

logger = logging.getLogger(__name__)


class TiledVAEDecode(io.ComfyNode):
    """The picture of a latent."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TiledVAEDecode",
            display_name="Tiled VAE Decode (CTSR)",
            category="CTSR",
            description="Decodes a latent in tiles that leave no seams, crops it to exactly the size asked for and "
            "fixes its colours.",
            inputs=[
                io.Vae.Input("vae", tooltip="The VAE of LoadCTSR."),
                io.Latent.Input("latent", tooltip="From TradeoffT."),
                tile_input(),
                color_fix_input(),
            ],
            outputs=[io.Image.Output(display_name="image", tooltip="Exactly scale × the input.")],
        )

    @classmethod
    def execute(cls, vae: host.CTSRVAE, latent: dict[str, Any], tile: int, color_fix: str) -> io.NodeOutput:
        model = model_of(vae)
        tile = whole("tile", tile, 0, LARGEST_TILE)
        samples: Tensor = latent["samples"]
        check_samples(samples, model.latent_channels)
        origin = origin_of(latent, model.model_id, model.pipeline.pad_multiple, model.pipeline.vae_scale_factor)
        return io.NodeOutput(decode(model, samples, origin, tile, color_fix, host.Bar(len(samples), ["decode"])))


def model_of(vae: Any) -> host.HostModel:
    """The model that a VAE belongs to; raises ValueError for a VAE that is not one of ours."""
    if not isinstance(vae, host.CTSRVAE):
        raise ValueError("vae is not a CTSR checkpoint's: connect the VAE of LoadCTSR, or use the host's VAE Decode.")
    return vae.model


def decode(
    model: host.HostModel, samples: Tensor, origin: Origin, tile: int, color_fix: str, bar: host.Bar, first: int = 0
) -> Tensor:
    """IMAGE [B, H, W, 3 or 4] of unscaled latents [B, C, h, w], whose first is number `first` on the progress bar."""
    from ..ctsr.images.tensors import resize
    from ..ctsr.runtime.offload import check_tile

    check_choice("color_fix", color_fix, COLOR_FIXES)
    check_tile(tile, None)
    pipe, size, reference = model.pipeline, origin.size, origin.reference
    if reference is None and color_fix != "none":
        logger.warning("Without the picture that TimeAwareEncode saw, colours are left as they are decoded.")
    fix = cast("ColorFix", "none" if reference is None else color_fix)
    host.load(model, "decode", *size, tile)
    pictures = [
        pipe.decode_unscaled(
            samples[i : i + 1],
            size,
            None if reference is None else reference[i : i + 1],
            fix,
            tile,
            callback=bar.picture(first + i),
        )
        for i in range(len(samples))
    ]
    image = host.intermediate(torch.cat(pictures) if len(pictures) > 1 else pictures[0])
    if origin.alpha is not None:
        image = torch.cat([image, resize(origin.alpha, *size).clamp_(0, 1).to(image)], dim=1)
    return image.movedim(1, -1)
