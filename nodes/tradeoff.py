"""TradeoffT: the dial."""

from __future__ import annotations

from collections.abc import Sequence

from comfy_api.latest import io
from torch import Tensor

from . import host
from .checks import check_mask, whole
from .inputs import Ends, dial_input, schema
from .latents import make_latent, turn_back
from .masks import dial_map, is_placeholder
from .progress import Work, working
from .values import HostEndpoints

LARGEST_FEATHER = 1024


class TradeoffT(io.ComfyNode):
    """The dial between realism and fidelity."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="TradeoffT",
            display_name="Tradeoff t, Realistic to Faithful (CTSR)",
            search_aliases=["realism", "fidelity", "faithful", "realistic", "dial", "t"],
            description="The dial between realism and fidelity, for the whole picture, or with another value inside a "
            "mask. Only this node and what follows it run again when t changes.",
            inputs=[
                Ends.Input("endpoints", tooltip="From One-Step SR UNet."),
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
                io.Latent.Output(display_name="latent", tooltip="For Tiled VAE Decode, or the host's VAE Decode nodes.")
            ],
        )

    @classmethod
    def execute(
        cls, endpoints: HostEndpoints, t: float, t_inside: float, feather: int, mask: Tensor | None = None
    ) -> io.NodeOutput:
        from ..ctsr.families import check_dial

        check_dial("t", t)
        check_dial("t_inside", t_inside)
        feather = whole("feather", feather, 0, LARGEST_FEATHER)
        origin, count = endpoints.origin, len(endpoints.ends.z0)
        with working(count) as work:
            warn_without_dial(endpoints, work)
            dials: Sequence[float | Tensor] = [float(t)]
            if mask is not None and not is_placeholder(mask):
                dials = masked(endpoints, mask, t, t_inside, feather).split(1)
            z = host.Batch(count)
            for i in range(count):
                dial = dials[i % len(dials)]  # one for all, or one a picture
                z.add(endpoints.row(i).latent_at(dial))
            return io.NodeOutput(make_latent(z.result(), origin))


def warn_without_dial(endpoints: HostEndpoints, work: Work) -> None:
    """Says on the node when t changes nothing."""
    if endpoints.ends.delta is None:
        name = endpoints.origin.model_id
        work.warn(f"{name} has no dial, or none at a timestep set by hand: t changes nothing.")


def masked(endpoints: HostEndpoints, mask: Tensor, t: float, t_inside: float, feather: int) -> Tensor:
    """A map of t [1 or B, 1, h, w] over the latents, from a mask that lies as the result will.

    Raises:
        ValueError: the mask does not belong to the picture.
    """
    origin, z0 = endpoints.origin, endpoints.ends.z0
    seen = origin.reference
    upright = turn_back(mask, origin.turn)
    check_mask(upright, len(z0), origin.size, None if seen is None else (seen.shape[-2], seen.shape[-1]))
    cells = (z0.shape[-2], z0.shape[-1])
    return dial_map(upright, t, t_inside, feather, origin.size, cells, endpoints.vae_scale_factor).to(z0.device)
