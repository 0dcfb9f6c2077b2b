"""CTSRUpscale: everything in one node."""

from __future__ import annotations

import torch
from comfy_api.latest import io
from torch import Tensor

from . import host
from .checks import split_image
from .decode import decode
from .encode import encode, target_size
from .inputs import dial_input, model_input, scale_input
from .unet import restore

STAGES = ["encode", "unet", "decode"]


class CTSRUpscale(io.ComfyNode):
    """Picture in, larger picture out."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CTSRUpscale",
            display_name="CTSR Upscale",
            category="CTSR",
            description="Enlarges pictures in one step, with a dial between realism and fidelity. Tiles, colours and "
            "precision are chosen for you; the other CTSR nodes show them all.",
            inputs=[
                io.Image.Input("image", tooltip="The pictures to enlarge: a batch is done one by one. Alpha is kept."),
                dial_input(),
                scale_input(),
                model_input(optional=True),
            ],
            outputs=[io.Image.Output(display_name="image", tooltip="Exactly scale × the input.")],
        )

    @classmethod
    def execute(cls, image: Tensor, t: float, scale: float, model: host.HostModel | None = None) -> io.NodeOutput:
        from ..ctsr.families import check_dial

        check_dial("t", t)
        rgb, alpha = split_image(image)
        size = target_size(rgb, scale, 0, 0)
        model = model or host.built_in()
        bar = host.Bar(len(rgb), STAGES)
        alphas = [None] * len(rgb) if alpha is None else alpha.split(1)
        pictures = [
            upscale(model, picture, its_alpha, size, t, bar, i)
            for i, (picture, its_alpha) in enumerate(zip(rgb.split(1), alphas, strict=True))
        ]
        return io.NodeOutput(torch.cat(pictures))


def upscale(
    model: host.HostModel,
    rgb: Tensor,
    alpha: Tensor | None,
    size: tuple[int, int],
    t: float,
    bar: host.Bar,
    number: int,
) -> Tensor:
    """IMAGE [1, H, W, 3 or 4] of one picture [1, 3, h, w]: the steps of the other nodes."""
    from ..ctsr.families import blend

    samples, origin = encode(model, rgb, alpha, size, None, 0, 0, bar, number)
    ends = restore(model, samples, origin, 0, bar, number)
    z = blend(ends.ends, t) / ends.scaling_factor
    return decode(model, z, origin, 0, model.pipeline.config["color_fix"], bar, number)
