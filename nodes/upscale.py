"""CTSRUpscale: everything in one node."""

from __future__ import annotations

from comfy_api.latest import io
from torch import Tensor

from . import host
from .checks import split_image
from .decode import decode, describe
from .encode import encode, target_size
from .inputs import dial_input, model_input, scale_input
from .plan import check_batch
from .progress import Work, working
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
        check_batch(len(rgb), size)
        model = model or host.built_in()
        images = host.Batch(len(rgb))
        with working(len(rgb), STAGES) as work:
            for i in range(len(rgb)):
                its_alpha = None if alpha is None else alpha[i : i + 1]
                images.add(upscale(model, rgb[i : i + 1], its_alpha, size, t, work, i))
            work.result = describe(images.result())
            return io.NodeOutput(images.result())


def upscale(
    model: host.HostModel,
    rgb: Tensor,
    alpha: Tensor | None,
    size: tuple[int, int],
    t: float,
    work: Work,
    number: int,
) -> Tensor:
    """IMAGE [1, H, W, 3 or 4] of one picture [1, 3, h, w]: the steps of the other nodes."""
    from ..ctsr.families import blend

    samples, origin = encode(model, rgb, alpha, size, None, 0, 0, work, number)
    ends = restore(model, samples, origin, 0, work, number)
    z = blend(ends.ends, t) / ends.scaling_factor
    del samples, ends  # a gigabyte at 8K
    return decode(model, z, origin, 0, model.pipeline.config["color_fix"], work, number)
