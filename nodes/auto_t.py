"""CTSRAutoT: t chosen for a picture."""

from __future__ import annotations

from comfy_api.latest import io
from torch import Tensor

from .checks import split_image
from .inputs import schema
from .progress import working


class CTSRAutoT(io.ComfyNode):
    """t for a picture, with the reasons."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CTSRAutoT",
            display_name="Auto t (CTSR)",
            search_aliases=["automatic t", "choose t", "realism fidelity"],
            description="Chooses t for a picture from its noise, blur, JPEG squares and texture, and says why.",
            inputs=[io.Image.Input("image", tooltip="The picture to enlarge. Of a batch the mean t is given.")],
            outputs=[
                io.Float.Output(display_name="t", tooltip="For t of TradeoffT or CTSRUpscale."),
                io.String.Output(display_name="reasons", tooltip="Why, one line each."),
            ],
        )

    @classmethod
    def execute(cls, image: Tensor) -> io.NodeOutput:
        from ..ctsr.assess.auto_t import choose_t

        rgb, _ = split_image(image)
        with working(len(rgb)) as work:
            choices = [choose_t(picture.cpu()) for picture in rgb.split(1)]
            t = round(sum(choice.t for choice in choices) / len(choices), 2)
            lines = [line for choice in choices for line in choice.reasons]
            work.result = "\n".join(lines if len(choices) == 1 else [f"t = {t:g}, the mean of {len(choices)} pictures"])
        return io.NodeOutput(t, "\n".join(lines))
