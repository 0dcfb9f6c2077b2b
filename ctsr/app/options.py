"""What the command line is asked for: the settings of a run, and how values of t are written."""

from dataclasses import dataclass
from typing import Literal

from ..families import check_dial
from ..images.color_fix import ColorFix
from ..images.formats import FOLLOW, Encoding
from ..runtime.offload import check_tile
from .sizes import Size

OWN_SCALE = Size()
"""Nothing is said: the checkpoint's own scale."""


@dataclass(frozen=True)
class Options:
    """What is wanted of every picture; raises ValueError for what no picture can have.

    Attributes:
        t: the dial, 0 = most realistic, 1 = most faithful; "auto" chooses it for every place.
        size: how large results are.
        tile: pixels of the result, 0 for automatic.
        color_fix: None is the checkpoint's own.
        strip_metadata: leave out EXIF, XMP, IPTC, resolution, comment and text of the original.
        encoding: how results are put into files.
    """

    t: float | Literal["auto"] = 0.5
    size: Size = OWN_SCALE
    tile: int = 0
    color_fix: ColorFix | None = None
    strip_metadata: bool = False
    encoding: Encoding = FOLLOW

    def __post_init__(self) -> None:
        if self.t != "auto":
            check_dial("t", self.t)
        check_tile(self.tile, None)


def parse_t(text: str) -> float | Literal["auto"]:
    """A number, or "auto"; raises ValueError."""
    if text.strip().lower() == "auto":
        return "auto"
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"--t takes a number from 0 to 1, or auto, not {text!r}.") from None


def parse_dials(text: str) -> list[float]:
    """The numbers in "0,0.5,1" in their order, each once; raises ValueError."""
    try:
        dials = [float(part) for part in text.split(",") if part.strip()]
        check_dial("t", dials)
    except ValueError:
        dials = []
    if not dials:
        raise ValueError(f"--t takes numbers from 0 to 1 with commas between, such as 0,0.5,1, not {text!r}.")
    return list(dict.fromkeys(dials))
