"""TradeoffT: the dial."""

from __future__ import annotations

import logging

from comfy_api.latest import io
from torch import Tensor

from .checks import check_mask, whole
from .inputs import Ends, dial_input
from .masks import dial_map, is_placeholder
from .values import HostEndpoints, make_latent

logger = logging.getLogger(__name__)

LARGEST_FEATHER = 1024


class TradeoffT(io.ComfyNode):
    """The dial between realism and fidelity."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TradeoffT",
            display_name="Tradeoff t (CTSR)",
            category="CTSR",
            description="The dial between realism and fidelity, for the whole picture, or with another value inside a "
            "mask. Only this node and what follows it run again when t changes.",
            inputs=[
                Ends.Input("endpoints", tooltip="From OneStepSRUNet."),
                dial_input(),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where t_inside holds instead of t, of any size with the picture's proportions.",
                ),
                dial_input("t_inside", 1.0, " inside the mask"),
                io.Int.Input(
                    "feather",
                    default=32,
                    min=0,
                    max=LARGEST_FEATHER,
                    tooltip=f"Width in pixels of the result over which t goes into t_inside, 0 to {LARGEST_FEATHER}.",
                ),
            ],
            outputs=[
                io.Latent.Output(display_name="latent", tooltip="For TiledVAEDecode, or the host's VAEDecode nodes.")
            ],
        )

    @classmethod
    def execute(
        cls, endpoints: HostEndpoints, t: float, t_inside: float, feather: int, mask: Tensor | None = None
    ) -> io.NodeOutput:
        from ..ctsr.families import blend, check_dial

        check_dial("t", t)
        check_dial("t_inside", t_inside)
        feather = whole("feather", feather, 0, LARGEST_FEATHER)
        ends, origin = endpoints.ends, endpoints.origin
        if ends.delta is None:
            logger.warning("%s has no dial, or none at a timestep set by hand: t changes nothing.", origin.model_id)
        dial: float | Tensor = t
        if mask is not None and not is_placeholder(mask):
            seen = origin.reference
            picture = None if seen is None else (seen.shape[-2], seen.shape[-1])
            check_mask(mask, len(ends.z0), origin.size, picture)
            cells = (ends.z0.shape[-2], ends.z0.shape[-1])
            factor = endpoints.vae_scale_factor
            dial = dial_map(mask, t, t_inside, feather, origin.size, cells, factor).to(ends.z0.device)
        return io.NodeOutput(make_latent(blend(ends, dial) / endpoints.scaling_factor, origin))
