"""Inputs that several nodes share, and the types of our own."""

from comfy_api.latest import io

Model = io.Custom("CTSR_MODEL")
Ends = io.Custom("CTSR_ENDPOINTS")

COLOR_FIXES = ["none", "wavelet", "adain"]
LARGEST_TILE = 8192
LARGEST_SIDE = 65536
SMALLEST_SCALE = 0.1
LARGEST_SCALE = 16.0
ENDS_OF_T = "0 = most realistic (invents fine detail), 1 = most faithful (keeps to the picture)."


def model_input(optional: bool = False) -> io.Input:
    """A CTSR_MODEL."""
    default = " Without it the built-in ctsr-mini is used." if optional else ""
    return Model.Input("model", optional=optional, tooltip=f"A checkpoint, from LoadCTSR.{default}")


def dial_input(name: str = "t", default: float = 0.5, where: str = "") -> io.Input:
    """The dial as a slider."""
    return io.Float.Input(
        name,
        default=default,
        min=0.0,
        max=1.0,
        step=0.01,
        display_mode=io.NumberDisplay.slider,
        tooltip=f"The dial{where}, from 0 to 1. {ENDS_OF_T}",
    )


def scale_input() -> io.Input:
    """Side of the result / side of the picture."""
    return io.Float.Input(
        "scale",
        default=4.0,
        min=SMALLEST_SCALE,
        max=LARGEST_SCALE,
        step=0.1,
        tooltip="Side of the result / side of the picture, from 0.1 to 16. The checkpoints are trained for 4.",
    )


def tile_input() -> io.Input:
    """Side of a tile."""
    return io.Int.Input(
        "tile",
        default=0,
        min=0,
        max=LARGEST_TILE,
        step=128,
        tooltip="Side of a tile in pixels of the result: 0 (automatic: untiled where the picture fits into memory), or "
        f"128 to {LARGEST_TILE}. Smaller tiles take less memory and more time.",
    )


def color_fix_input() -> io.Input:
    """Which colour fix."""
    return io.Combo.Input(
        "color_fix",
        options=COLOR_FIXES,
        default="wavelet",
        tooltip="Takes colours from the small picture: wavelet takes its low frequencies, adain the mean and contrast "
        "of each channel, none leaves them as they are decoded.",
    )
