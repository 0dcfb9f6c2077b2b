"""CTSRSweep: the same picture at several t."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from . import host
from .checks import check_choice, whole
from .inputs import COLOR_FIXES, Ends, color_fix_input, schema, tile_input
from .progress import working
from .room import check_batch
from .steps import decode, describe, model_for, tile_side
from .values import HostEndpoints

MOST = 21


class CTSRSweep(io.ComfyNode):
    """The same picture at several t."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CTSRSweep",
            display_name="CTSR Sweep",
            search_aliases=["compare t", "realism fidelity", "grid", "xy plot"],
            description="Decodes the same endpoints at several values of t, from 0 (most realistic) to 1 (most "
            "faithful), to find the one you like.",
            inputs=[
                io.Vae.Input("vae", tooltip="The VAE of Load CTSR."),
                Ends.Input("endpoints", tooltip="From One-Step SR UNet."),
                io.Int.Input(
                    "count",
                    default=5,
                    min=2,
                    max=MOST,
                    tooltip=f"How many values of t, evenly from 0 to 1: 2 to {MOST}.",
                ),
                tile_input(),
                color_fix_input(),
            ],
            outputs=[
                io.Image.Output(display_name="images", tooltip="One picture for each t, from 0 to 1."),
                io.Image.Output(display_name="strip", tooltip="The middles of these pictures, labelled with their t."),
            ],
        )

    @classmethod
    def execute(
        cls, vae: host.CTSRVAE, endpoints: HostEndpoints, count: int, tile: int, color_fix: str
    ) -> io.NodeOutput:
        count, tile = whole("count", count, 2, MOST), tile_side(tile)
        check_choice("color_fix", color_fix, COLOR_FIXES)
        model, origin = model_for(vae, endpoints), endpoints.origin
        dials = [round(i / (count - 1), 2) for i in range(count)]
        pictures = len(endpoints.ends.z0)
        check_batch(pictures * count, origin.size)
        images, strips = host.Batch(pictures * count), host.Batch(pictures)
        with working(pictures * count, ["decode"]) as work:
            for i in range(pictures):  # every picture's values of t together
                row = endpoints.row(i)
                for number, t in enumerate(dials, i * count):
                    z = row.latent_at(t)
                    images.add(decode(model, z, row.origin, tile, color_fix, work, number))
                done = images.so_far()[i * count :]
                strips.add(strip(list(done.split(1)), dials))
            work.result = describe(images.result())
            return io.NodeOutput(images.result(), strips.result())


def strip(images: list[torch.Tensor], dials: list[float]) -> torch.Tensor:
    """The middles of pictures [1, H, W, 3 or 4] side by side with labels, IMAGE [1, h, w, 3]."""
    from ..ctsr.images.strip import dial_name, panel, panel_side

    side = panel_side(len(images))
    panels: list[torch.Tensor] = []
    for image, t in zip(images, dials, strict=True):
        planes = image.movedim(-1, 1)
        alpha = planes[:, 3:] if planes.shape[1] == 4 else None
        panels.append(panel(planes[:, :3], alpha, f"t = {dial_name(t)}", side))
    return torch.cat(panels, dim=3).movedim(1, -1)
