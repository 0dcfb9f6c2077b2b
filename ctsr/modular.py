"""The pipeline as blocks of Modular Diffusers: encode, endpoints, blend, decode.

    from diffusers import ModularPipeline
    pipe = ModularPipeline.from_pretrained(folder, trust_remote_code=True)  # of `ctsr hub-folder`
    pipe.load_components()
    pipe(image=picture, t=0.3, output="images")[0].save("large.png")

Each block runs one step of `CTSRPipeline` on every picture; a state that `endpoints` has filled serves any further t.
Needs diffusers 0.37 or newer.
"""

from typing import Any

import torch

try:
    from diffusers.modular_pipelines import modular_pipeline, modular_pipeline_utils
except ImportError as error:
    raise ImportError("Modular Diffusers needs a newer release: pip install -U 'diffusers>=0.37'.") from error

from .arguments import check_dials, check_inputs
from .checkpoints import own
from .images.color_fix import check_color_fix
from .images.inputs import as_tensors, profiles_of
from .images.tensors import as_output, as_pil
from .pipeline import CTSRPipeline
from .runtime.noise import noise_sources

# Their classes have no types.
Blocks: Any = modular_pipeline.ModularPipelineBlocks
Sequential: Any = modular_pipeline.SequentialPipelineBlocks
Component: Any = modular_pipeline_utils.ComponentSpec
Config: Any = modular_pipeline_utils.ConfigSpec
Input: Any = modular_pipeline_utils.InputParam
Output: Any = modular_pipeline_utils.OutputParam

SETTINGS = tuple(name for name in own.SETTINGS if name != "about")
"""Of `CTSRPipeline`, as configuration of the modular pipeline."""
DEFAULTS = {"family": "ctsr", "color_fix": "wavelet", "time_aware_unet": False}
TILING = (
    Input("tile", default=0, description="side of a tile in pixels of the result; 0 chooses"),
    Input("tile_overlap", description="pixels that tiles share"),
    Input("callback", description="called as callback(stage, done, total) after every tile"),
)
TIMESTEP = Input("timestep", description="of the encoder instead of the checkpoint's own")


def pipeline_of(components: Any) -> CTSRPipeline:
    """The pipeline of a modular pipeline's networks and settings, made anew when one of them has changed."""
    parts: dict[str, Any] = {name: getattr(components, name, None) for name in own.COMPONENTS}
    settings = {name: components.config.get(name, DEFAULTS.get(name)) for name in SETTINGS}
    known: CTSRPipeline | None = getattr(components, "_ctsr_pipeline", None)
    if (
        known is None
        or any(getattr(known, name) is not part for name, part in parts.items())
        or any(known.config[name] != value for name, value in settings.items())
    ):
        known = components._ctsr_pipeline = CTSRPipeline(**parts, **settings)
    return known


def tiling_of(state: Any) -> dict[str, Any]:
    """`tile`, `tile_overlap` and `callback` of a block's state."""
    return {"tile": state.tile or 0, "tile_overlap": state.tile_overlap, "callback": state.callback}


class CTSRStep(Blocks):
    """A block over all pictures; subclasses say what goes in and out, and what is done."""

    model_name = "ctsr"

    @property
    def expected_components(self) -> list[Any]:
        """The networks; `prompt_embeddings` and `unet_variant` are for some families alone."""
        return [Component(name) for name in own.COMPONENTS]

    @property
    def expected_configs(self) -> list[Any]:
        """The checkpoint's constants."""
        return [Config(name, DEFAULTS.get(name)) for name in SETTINGS]

    def run(self, pipe: CTSRPipeline, state: Any) -> None:
        """Reads inputs from `state` and sets outputs there."""
        raise NotImplementedError

    @torch.no_grad()
    def __call__(self, components: Any, state: Any) -> tuple[Any, Any]:
        """As diffusers calls every block."""
        block_state = self.get_block_state(state)
        self.run(pipeline_of(components), block_state)
        self.set_block_state(state, block_state)
        return components, state


class EncodeStep(CTSRStep):
    """Enlarge and encode."""

    description = "Enlarges pictures bicubically and encodes them with the time-aware encoder."
    inputs = (
        Input("image", required=True, description="pictures of any kind that CTSRPipeline takes"),
        Input("scale", float, description="side of the result by that of the picture, by default the checkpoint's own"),
        Input("height", int, description="of the result in pixels, instead of scale"),
        Input("width", int, description="of the result in pixels, instead of scale"),
        TIMESTEP,
        *TILING,
    )
    intermediate_outputs = (
        Output("encoded", list, "an `Encoded` for each picture"),
        Output("icc_profiles", list, "of each picture its ICC profile, or None"),
    )

    def run(self, pipe: CTSRPipeline, state: Any) -> None:
        """image -> encoded."""
        pictures = [batch[i : i + 1] for batch in as_tensors(state.image) for i in range(len(batch))]
        size = (state.scale, state.height, state.width)
        more = (state.timestep, state.tile or 0, state.tile_overlap, None, "pil")
        sizes = check_inputs(pictures, *size, *more, pipe.default_scale)
        state.icc_profiles = profiles_of(state.image)
        state.encoded = [
            pipe.encode(picture, *size, state.timestep, **tiling_of(state))
            for picture, size in zip(pictures, sizes, strict=True)
        ]


class EndpointsStep(CTSRStep):
    """Run the UNet."""

    description = "Runs the one-step UNet: both ends of t, and the curvature between them, for every picture."
    inputs = (
        Input("encoded", list, required=True, description="of the encode block"),
        TIMESTEP,
        Input("prompt_embeds", torch.Tensor, description="[1, tokens, dim] instead of the baked ones"),
        Input("generator", description="for families that start from noise"),
        *TILING,
    )
    intermediate_outputs = (Output("endpoints", list, "`Endpoints` for each picture"),)

    def run(self, pipe: CTSRPipeline, state: Any) -> None:
        """encoded -> endpoints; every picture starts from the generator's present state."""
        sources = noise_sources(state.generator, len(state.encoded), 1)
        state.endpoints = [
            pipe.endpoints(encoded.latents, state.timestep, state.prompt_embeds, source, **tiling_of(state))
            for encoded, (source,) in zip(state.encoded, sources, strict=True)
        ]


class BlendStep(CTSRStep):
    """Choose t."""

    description = "Blends both ends at t: 0 is most realistic, 1 most faithful; or by a map of t."
    inputs = (
        Input("endpoints", list, required=True, description="of the endpoints block"),
        Input("encoded", list, required=True, description="of the encode block"),
        Input(
            "t",
            description="from 0 (most realistic) to 1 (most faithful), one or one a picture, or auto; 0.5 by default",
        ),
        Input("t_map", description="a map of t instead, see CTSRPipeline"),
    )
    intermediate_outputs = (Output("latents", list, "scaled latents [1, C, h, w] for each picture"),)

    def run(self, pipe: CTSRPipeline, state: Any) -> None:
        """endpoints -> latents."""
        dials = check_dials(state.t, state.t_map, len(state.endpoints))
        blended: list[torch.Tensor] = []
        for ends, encoded, dial in zip(state.endpoints, state.encoded, dials, strict=True):
            if dial is None:  # t="auto"
                choice = pipe.choose_t(encoded.reference, ends, encoded.size)
                dial = choice.t if choice.t_map is None else choice.t_map
            if isinstance(dial, torch.Tensor):
                dial = pipe.map_over(dial, ends, encoded.size)
            blended.append(pipe.blend(ends, dial))
        state.latents = blended


class DecodeStep(CTSRStep):
    """Decode, crop, fix colours."""

    description = "Decodes the latents, crops them to the exact size, and takes colours from the original."
    inputs = (
        Input("latents", list, required=True, description="of the blend block"),
        Input("encoded", list, required=True, description="of the encode block"),
        Input("icc_profiles", list, description="of the encode block"),
        Input("color_fix", str, description="none, wavelet, adain or lab; the checkpoint's own by default"),
        Input("output_type", str, default="pil", description="pil, pt or np"),
        *TILING,
    )
    intermediate_outputs = (Output("images", description="as output_type says"),)

    def run(self, pipe: CTSRPipeline, state: Any) -> None:
        """latents -> images."""
        fix = pipe.config["color_fix"] if state.color_fix is None else state.color_fix
        check_color_fix(fix)
        pictures = [
            pipe.decode(z, encoded.size, encoded.reference, fix, **tiling_of(state))
            for z, encoded in zip(state.latents, state.encoded, strict=True)
        ]
        kind = state.output_type or "pil"
        profiles = state.icc_profiles or [None] * len(pictures)
        if kind == "pil":
            state.images = [as_pil(one, profile) for one, profile in zip(pictures, profiles, strict=True)]
        else:
            state.images = as_output(pictures, kind)


class CTSRBlocks(Sequential):
    """All four steps."""

    model_name = "ctsr"
    block_classes = (EncodeStep, EndpointsStep, BlendStep, DecodeStep)
    block_names = ("encode", "endpoints", "blend", "decode")
    description = "One-step, time-aware super-resolution with t from realism (0) to fidelity (1)."
