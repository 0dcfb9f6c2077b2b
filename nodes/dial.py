"""CTSRDial: the dial on a picture, which changes while t is dragged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import finalize

import torch.nn.functional as F
from comfy_api.latest import io, ui
from torch import Tensor

from . import host
from .checks import check_choice
from .inputs import COLOR_FIXES, Ends, color_fix_input, dial_input, schema, tile_input
from .progress import Work, working
from .room import check_batch
from .steps import decode, decode_each, model_for, tile_side
from .tradeoff import masked
from .values import HostEndpoints

FEATHER = 16
"""Pixels over which what is painted goes into the rest."""
SHOWN_SIDE = 2048
"""Pixels of the longer side of what the page shows."""


@dataclass
class Shown:
    """What the page lays over each other: files of the first picture's ends and input, and what they were made with."""

    made_with: tuple[object, ...]
    files: dict[str, Any]


SHOWN: dict[int, Shown] = {}
"""By the endpoints' id, as long as the host keeps these: both ends are decoded once."""


class CTSRDial(io.ComfyNode):
    """The dial on a picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CTSRDial",
            display_name="Live Dial (CTSR)",
            search_aliases=["live t", "realism fidelity", "preview", "paint t"],
            has_intermediate_output=True,
            description="The dial on a picture: drag t and see it change at once, paint where it shall be faithful. "
            "After the first run no further one is needed to look; the next run gives the picture that was chosen.",
            inputs=[
                io.Vae.Input("vae", tooltip="The VAE of Load CTSR."),
                Ends.Input("endpoints", tooltip="From One-Step SR UNet."),
                dial_input(),
                io.String.Input(
                    "painted",
                    default="",
                    tooltip="Where t is 1, as the page paints it; empty: nowhere.",
                ),
                tile_input(),
                color_fix_input(),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The picture at the chosen t."),
                io.Float.Output(display_name="t", tooltip="The chosen t, for other nodes."),
            ],
        )

    @classmethod
    def execute(
        cls, vae: host.CTSRVAE, endpoints: HostEndpoints, t: float, painted: str, tile: int, color_fix: str
    ) -> io.NodeOutput:
        from ..ctsr.families import check_dial

        check_dial("t", t)
        check_choice("color_fix", color_fix, COLOR_FIXES)
        model, tile = model_for(vae, endpoints), tile_side(tile)
        count = len(endpoints.ends.z0)
        check_batch(count, endpoints.origin.size)
        dials = painted_dials(endpoints, t, painted)
        rows = map(endpoints.row, range(count))
        latents = ((row.latent_at(dials[i % len(dials)]), row.origin) for i, row in enumerate(rows))
        with working(count + 2, ["decode"]) as work:
            images = decode_each(model, latents, count, tile, color_fix, work)
            files = shown(cls, model, endpoints, tile, color_fix, work, count)
        told = {**files, "exact": save(cls, images[:1]), "t": t, "painted": painted}
        return io.NodeOutput(images, float(t), ui={"ctsr_dial": [told]})


def painted_dials(endpoints: HostEndpoints, t: float, painted: str) -> list[float | Tensor]:
    """t, or a map of it where something was painted; raises ValueError for what is no painting."""
    from ..ctsr.images.painted import read_painted

    if not painted:
        return [float(t)]
    mask = F.interpolate(read_painted(painted)[None, None], size=endpoints.origin.size, mode="bilinear")[:, 0]
    return list(masked(endpoints, mask, t, 1.0, FEATHER).split(1))


def shown(
    cls: Any, model: host.HostModel, endpoints: HostEndpoints, tile: int, color_fix: str, work: Work, done: int
) -> dict[str, Any]:
    """Files of both ends and the input of the first picture."""
    z0, made_with = endpoints.ends.z0, (model.model_id, tile, color_fix)
    known = SHOWN.get(id(z0))
    if known is not None and known.made_with == made_with:
        return known.files
    row, files = endpoints.row(0), dict[str, Any]()
    for number, (name, t) in enumerate((("realistic", 0.0), ("faithful", 1.0)), done):
        z = row.latent_at(t)
        files[name] = save(cls, decode(model, z, row.origin, tile, color_fix, work, number))
    if row.origin.reference is not None and not row.origin.turn:
        files["input"] = save(cls, row.origin.reference.movedim(1, -1))
    if known is None:
        finalize(z0, SHOWN.pop, id(z0), None)
    SHOWN[id(z0)] = Shown(made_with, files)
    return files


def save(cls: Any, image: Tensor) -> Any:
    """An IMAGE [1, H, W, C] as a temporary file of the host, no larger than the page shows."""
    planes = image[..., :3].movedim(-1, 1).float()
    scale = SHOWN_SIDE / max(planes.shape[-2:])
    if scale < 1:
        planes = F.interpolate(planes, scale_factor=scale, mode="bilinear", antialias=True)
    rounded = planes[0].movedim(0, -1).clamp(0, 1).mul(255).round().add(0.25).div(255).cpu()  # the host truncates
    return ui.ImageSaveHelper.save_images([rounded], "ctsr_dial", io.FolderType.temp, cls, compress_level=1)[0]
