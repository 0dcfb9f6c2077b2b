"""Inputs that several nodes share, and the types of our own."""

import inspect
from typing import Any

from comfy_api.latest import io

from .checks import HDR
from .target import (
    EVEN,
    LARGEST_MEGAPIXELS,
    LARGEST_SCALE,
    LARGEST_SIDE,
    SMALLEST_SCALE,
    TARGETS,
)

Model = io.Custom("CTSR_MODEL")
Ends = io.Custom("CTSR_ENDPOINTS")

COLOR_FIXES = ["none", "wavelet", "adain", "lab"]
CATEGORY = "image/upscaling/CTSR"
LARGEST_TILE = 8192
MOST_STEADY = 0.95
ENDS_OF_T = "0 = most realistic (invents fine detail), 1 = most faithful (keeps to the picture)."


def schema(**fields: Any) -> io.Schema:
    """A node's schema, with those fields that the host knows."""
    known = inspect.signature(io.Schema).parameters
    return io.Schema(**{name: value for name, value in {"category": CATEGORY, **fields}.items() if name in known})


def model_input(optional: bool = False) -> io.Input:
    """A CTSR_MODEL."""
    default = " Without it the built-in ctsr-mini is used." if optional else ""
    return Model.Input("model", optional=optional, tooltip=f"A checkpoint, from Load CTSR.{default}")


def dial_input(name: str = "t", default: float = 0.5, where: str = "") -> io.Input:
    """The dial as a slider, to which a whole number may be connected too."""
    slider = io.Float.Input(
        name,
        default=default,
        min=0.0,
        max=1.0,
        step=0.01,
        display_mode=io.NumberDisplay.slider,
        tooltip=f"The dial{where}, from 0 to 1. {ENDS_OF_T}",
    )
    return io.MultiType.Input(slider, [io.Int])


def scale_input(default: float = 4.0) -> io.Input:
    """Side of the result / side of the picture."""
    return io.Float.Input(
        "scale",
        default=default,
        min=0.0,
        max=LARGEST_SCALE,
        step=0.1,
        tooltip=f"Side of the result / side of the picture, from {SMALLEST_SCALE} to {LARGEST_SCALE:g}; 0 is what the "
        "checkpoint is trained for: 4 for ctsr-mini, 1 for ctsr-lowlight.",
    )


def tile_input(came_later: bool = False) -> io.Input:
    """Side of a tile."""
    return io.Int.Input(
        "tile",
        **(later(io.Int) if came_later else {}),
        default=0,
        min=0,
        max=LARGEST_TILE,
        step=128,
        tooltip="Side of a tile in pixels of the result: 0 (automatic: untiled where the picture fits into memory), or "
        f"128 to {LARGEST_TILE}. Small tiles take less memory and more time, as their borders are computed again: "
        "a picture of 1.1 s took 7.4 s in tiles of 128.",
    )


def color_fix_input(came_later: bool = False) -> io.Input:
    """Which colour fix."""
    return io.Combo.Input(
        "color_fix",
        **(later(io.Combo) if came_later else {}),
        options=COLOR_FIXES,
        default="wavelet",
        tooltip="Takes colours from the small picture: wavelet takes its low frequencies, adain the mean and contrast "
        "of each channel, lab the low frequencies of hue alone, none leaves them as they are decoded.",
    )


def later(kind: Any) -> dict[str, bool]:
    """Of an input that came after the first release: prompts without it stay good, and hosts that can fold it away."""
    folds = "advanced" in inspect.signature(kind.Input.__init__).parameters
    return {"optional": True, **({"advanced": True} if folds else {})}


def target_inputs() -> list[io.Input]:
    """Other targets than the scale, in the order of `Target`."""
    follows = "0 follows the other side."
    return [
        io.Combo.Input(
            "target",
            options=TARGETS,
            default="scale",
            tooltip="What says how large the result is: scale, or one of the values below.",
            **later(io.Combo),
        ),
        *(
            io.Int.Input(
                name,
                default=0,
                min=0,
                max=LARGEST_SIDE,
                tooltip=f"Target width and height: {name} in pixels. {follows}",
                **later(io.Int),
            )
            for name in ("width", "height")
        ),
        io.Int.Input(
            "side",
            default=2048,
            min=1,
            max=LARGEST_SIDE,
            tooltip="Target longest or shortest side: its pixels.",
            **later(io.Int),
        ),
        io.Float.Input(
            "megapixels",
            default=4.0,
            min=0.01,
            max=LARGEST_MEGAPIXELS,
            step=0.1,
            tooltip="Target megapixels: millions of pixels, with the picture's proportions.",
            **later(io.Float),
        ),
        io.Float.Input(
            "most_megapixels",
            default=0.0,
            min=0.0,
            max=LARGEST_MEGAPIXELS,
            step=0.1,
            tooltip="The result is made smaller until it has no more megapixels than this; 0 is no limit.",
            **later(io.Float),
        ),
    ]


def hdr_input() -> io.Input:
    """What becomes of values far beyond 1."""
    return io.Combo.Input(
        "hdr",
        options=HDR,
        default="refuse",
        tooltip="Values far beyond 1, as EXR files have: refuse stops with a message, clamp cuts them off, tone-map "
        "draws highlights above 0.8 together and keeps their hue.",
        **later(io.Combo),
    )


def even_input() -> io.Input:
    """When sides become even."""
    return io.Combo.Input(
        "even_sides",
        options=EVEN,
        default="batches",
        tooltip="Video encoders refuse odd sides: batches makes both sides of several frames even, by a pixel at most; "
        "a single picture keeps exactly its size.",
        **later(io.Combo),
    )


def steady_input(default: float) -> io.Input:
    """How much of the frames before stays in still places."""
    return io.Float.Input(
        "steady",
        default=default,
        min=0.0,
        max=MOST_STEADY,
        step=0.05,
        tooltip="Keeps still parts of a video still: share of the frames before, 0 to 0.95, where nothing moves. 0 "
        "takes every frame by itself; 0.7 leaves 0.6 of the flicker. Only for frames in their order.",
        **later(io.Float),
    )
