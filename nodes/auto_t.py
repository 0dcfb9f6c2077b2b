"""CTSRAutoT: t chosen for every place of a picture, and where it must be higher."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from comfy_api.latest import io
from torch import Tensor

from . import host
from .checks import split_image
from .inputs import Ends, schema
from .progress import Work, working
from .steps import bring_in, model_for
from .values import HostEndpoints

if TYPE_CHECKING:
    from ..ctsr.assess.auto_t import Choice


class CTSRAutoT(io.ComfyNode):
    """t for a picture, with the reasons."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CTSRAutoT",
            display_name="Auto t (CTSR)",
            search_aliases=["automatic t", "choose t", "realism fidelity"],
            description="Chooses t for every place of a picture from its contrast, noise, blur, JPEG squares and "
            "brightness, and says why. With endpoints and vae it also finds places that must be more faithful.",
            inputs=[
                io.Image.Input("image", tooltip="The picture to enlarge. Of a batch the mean t is given."),
                Ends.Input(
                    "endpoints",
                    optional=True,
                    tooltip="From One-Step SR UNet: then places are found whose realistic end departs from the "
                    "picture.",
                ),
                io.Vae.Input("vae", optional=True, tooltip="The VAE of Load CTSR; needed with endpoints."),
            ],
            outputs=[
                io.Float.Output(
                    display_name="t", tooltip="The mean, for t of Tradeoff t or Upscale & Restore; the map is better."
                ),
                io.String.Output(display_name="reasons", tooltip="Why, one line each."),
                io.Mask.Output(
                    display_name="t map",
                    tooltip="t at every place, for the t map of Upscale & Restore; or the mask of a Tradeoff t "
                    "with t 0, t_inside 1 and feather 0.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls, image: Tensor, endpoints: HostEndpoints | None = None, vae: host.CTSRVAE | None = None
    ) -> io.NodeOutput:
        rgb, _ = split_image(image)
        with working(len(rgb), ["decode"]) as work:
            choices = choose(rgb, endpoints, vae, work)
            t = round(sum(choice.t for choice in choices) / len(choices), 2)
            lines = [line for choice in choices for line in choice.reasons]
            work.result = "\n".join(lines if len(choices) == 1 else [f"t = {t:g}, the mean of {len(choices)} pictures"])
        return io.NodeOutput(t, "\n".join(lines), maps(choices, rgb))


def choose(rgb: Tensor, endpoints: HostEndpoints | None, vae: host.CTSRVAE | None, work: Work) -> list[Choice]:
    """A choice for each picture [B, 3, h, w]; raises ValueError for endpoints that are not theirs."""
    from ..ctsr.assess.auto_t import choose_t

    if endpoints is None:
        return [choose_t(picture.cpu()) for picture in rgb.split(1)]
    if vae is None:
        raise ValueError("endpoints need a VAE to be looked at: connect the VAE of Load CTSR too.")
    if len(endpoints.ends.z0) != len(rgb):
        count = len(endpoints.ends.z0)
        raise ValueError(
            f"endpoints are of {count} pictures, but image has {len(rgb)}: connect those they were made of."
        )
    model = model_for(vae, endpoints)
    bring_in(model, "decode", endpoints.origin.size, 0, work)
    return [
        model.pipeline.choose_t(picture.cpu(), endpoints.row(number).ends, endpoints.origin.size)
        for number, picture in enumerate(rgb.split(1))
    ]


def maps(choices: list[Choice], rgb: Tensor) -> Tensor:
    """MASK [B, h, w] of t over the pictures [B, 3, h, w]."""
    each = (torch.full((1, 1), choice.t) if choice.t_map is None else choice.t_map.cpu() for choice in choices)
    wide = [F.interpolate(t_map[None, None], size=rgb.shape[-2:], mode="bilinear") for t_map in each]
    return torch.cat(wide)[:, 0]
