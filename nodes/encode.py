"""TimeAwareEncode: a picture, enlarged, as the latent that the one-step UNet takes."""

from __future__ import annotations

from comfy_api.latest import io
from torch import Tensor

from . import host
from .checks import split_image, whole
from .inputs import even_input, hdr_input, model_input, scale_input, schema, tile_input
from .latents import make_latent
from .progress import working
from .room import check_graph
from .steps import encode, tile_side
from .target import LARGEST_SIDE, Target

DEFAULT_TIMESTEP = -1
LAST_TIMESTEP = 999
LARGEST_SEED = 0xFFFFFFFFFFFFFFFF


class TimeAwareEncode(io.ComfyNode):
    """A picture, enlarged, as a latent."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        side = f"in pixels, up to {LARGEST_SIDE}; 0 follows the other side, or the scale where both are 0."
        return schema(
            node_id="TimeAwareEncode",
            display_name="Time-Aware Encode (CTSR)",
            search_aliases=["super resolution", "time-aware encode", "enlarge", "vae encode"],
            description="Enlarges pictures and encodes them with the checkpoint's time-aware encoder.",
            inputs=[
                model_input(),
                io.Image.Input("image", tooltip="The pictures to enlarge: a batch is done one by one. Alpha is kept."),
                scale_input(),
                io.Int.Input("width", default=0, min=0, max=LARGEST_SIDE, tooltip=f"Width of the result {side}"),
                io.Int.Input("height", default=0, min=0, max=LARGEST_SIDE, tooltip=f"Height of the result {side}"),
                io.Int.Input(
                    "timestep",
                    default=DEFAULT_TIMESTEP,
                    min=DEFAULT_TIMESTEP,
                    max=LAST_TIMESTEP,
                    tooltip="Diffusion timestep of the encoder, 0 to 999; -1 is the checkpoint's own. A higher one "
                    "asks for a more realistic start, where the checkpoint was trained for it.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=LARGEST_SEED,
                    control_after_generate=False,
                    tooltip="Of the start noise, for checkpoints that have one (OFTSR); others ignore it.",
                ),
                tile_input(),
                even_input(),
                hdr_input(),
            ],
            outputs=[io.Latent.Output(display_name="latent", tooltip="For One-Step SR UNet.")],
        )

    @classmethod
    def execute(
        cls,
        model: host.HostModel,
        image: Tensor,
        scale: float,
        width: int,
        height: int,
        timestep: int,
        seed: int,
        tile: int,
        even_sides: str = "batches",
        hdr: str = "refuse",
    ) -> io.NodeOutput:
        timestep = whole("timestep", timestep, DEFAULT_TIMESTEP, LAST_TIMESTEP)
        seed = whole("seed", seed, 0, LARGEST_SEED)
        tile = tile_side(tile)
        rgb, alpha = split_image(image, hdr)
        by = "width and height" if width or height else "scale"
        target = Target(by, model.scale(scale), width, height, even_sides=even_sides)
        size = target.size(rgb.shape[-2], rgb.shape[-1], len(rgb))
        own = None if timestep == DEFAULT_TIMESTEP else timestep
        check_graph(model, len(rgb), size)
        with working(len(rgb), ["encode"]) as work:
            samples, origin = encode(model, rgb, alpha, size, own, seed, tile, work)
            work.result = f"for {size[1]}x{size[0]}"
            return io.NodeOutput(make_latent(samples, origin))
