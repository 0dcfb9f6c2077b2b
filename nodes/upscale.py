"""CTSRUpscale: everything in one node."""

from __future__ import annotations

from comfy_api.latest import io
from torch import Tensor

from . import host
from .checks import check_choice, check_mask, check_number, split_image
from .inputs import (
    COLOR_FIXES,
    MOST_STEADY,
    color_fix_input,
    dial_input,
    even_input,
    hdr_input,
    model_input,
    scale_input,
    schema,
    steady_input,
    target_inputs,
    tile_input,
)
from .masks import is_placeholder
from .progress import Work, working
from .room import check_batch
from .steady import Steadier
from .steps import decode, describe, encode, restore, tile_side
from .target import Target
from .tradeoff import masked, warn_without_dial

STAGES = ["encode", "unet", "decode"]


class CTSRUpscale(io.ComfyNode):
    """Picture in, larger picture out."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CTSRUpscale",
            display_name="Upscale & Restore (CTSR Super Resolution)",
            essentials_category="Image Tools",
            search_aliases=[
                "super resolution",
                "restore",
                "enlarge",
                "faithful",
                "realistic",
                "enhance",
                "upscaler",
                "diffusion upscale",
            ],
            description="Enlarges pictures in one step, with a dial between realism and fidelity. Tiles, colours and "
            "precision are chosen for you; the other CTSR nodes show them all.",
            inputs=[
                io.Image.Input("image", tooltip="The pictures to enlarge: a batch is done one by one. Alpha is kept."),
                dial_input(),
                scale_input(),
                model_input(optional=True),
                *target_inputs(),
                tile_input(came_later=True),
                color_fix_input(came_later=True),
                even_input(),
                steady_input(0.0),
                hdr_input(),
                io.Mask.Input(
                    "t_map",
                    optional=True,
                    tooltip="t at every place, as Auto t gives it: 0 realistic, 1 faithful. With it, t is not used.",
                ),
            ],
            outputs=[io.Image.Output(display_name="image", tooltip="Exactly of the size asked for.")],
        )

    @classmethod
    def execute(
        cls,
        image: Tensor,
        t: float,
        scale: float,
        model: host.HostModel | None = None,
        target: str = "scale",
        width: int = 0,
        height: int = 0,
        side: int = 2048,
        megapixels: float = 4.0,
        most_megapixels: float = 0.0,
        tile: int = 0,
        color_fix: str = "wavelet",
        even_sides: str = "batches",
        steady: float = 0.0,
        hdr: str = "refuse",
        t_map: Tensor | None = None,
    ) -> io.NodeOutput:
        rgb, alpha = split_image(image, hdr)
        model = model or host.built_in()
        goal = Target(target, model.scale(scale), width, height, side, megapixels, most_megapixels, even_sides)
        size = goal.size(rgb.shape[-2], rgb.shape[-1], len(rgb))
        check_batch(len(rgb), size)
        if t_map is not None and is_placeholder(t_map):
            t_map = None
        if t_map is not None:
            check_mask(t_map, len(rgb), size, (rgb.shape[-2], rgb.shape[-1]), "t_map")
            t_map = t_map.reshape(-1, *t_map.shape[-2:])
        upscaler = Upscaler(model, size, t, tile, color_fix, steady)
        images = host.Batch(len(rgb))
        with working(len(rgb), STAGES) as work:
            for i in range(len(rgb)):
                its_alpha = None if alpha is None else alpha[i : i + 1]
                its_map = None if t_map is None else t_map[i % len(t_map)]
                images.add(upscaler(rgb[i : i + 1], its_alpha, work, i, its_map))
            work.result = describe(images.result())
        return io.NodeOutput(images.result())


class Upscaler:
    """The steps of the other nodes, picture by picture.

    Args:
        model: whose networks are used.
        size: height and width of the results.
        t, tile, color_fix, steady: as the node has them.

    Raises:
        ValueError: a value out of range.
    """

    def __init__(
        self, model: host.HostModel, size: tuple[int, int], t: float, tile: int, color_fix: str, steady: float
    ):
        from ..ctsr.families import check_dial

        check_dial("t", t)
        check_choice("color_fix", color_fix, COLOR_FIXES)
        check_number("steady", steady, 0, MOST_STEADY)
        self.model, self.size, self.t, self.color_fix = model, size, t, color_fix
        self.tile = tile_side(tile)
        self.steadier = Steadier(steady, size, model.pipeline.vae_scale_factor)

    def __call__(
        self, rgb: Tensor, alpha: Tensor | None, work: Work, number: int, t_map: Tensor | None = None
    ) -> Tensor:
        """IMAGE [1, H, W, 3 or 4] of one picture [1, 3, h, w] in [0, 1], number `number` of the work.

        `t_map` is t at every place, [h, w] in [0, 1], instead of one t for all of it.
        """
        samples, origin = encode(self.model, rgb, alpha, self.size, None, 0, self.tile, work, number)
        ends = restore(self.model, samples, origin, self.tile, work, number)
        warn_without_dial(ends, work)
        dial = self.t if t_map is None else masked(ends, t_map, 0.0, 1.0, 0)
        z, seen = self.steadier(ends.row(0).latent_at(dial), rgb.float())
        del samples, ends  # a gigabyte at 8K
        origin = origin.seeing(seen)
        return decode(self.model, z, origin, self.tile, self.color_fix, work, number)
