"""What the command line is asked for: the settings of a run, and how a size and values of t are written."""

import re
from dataclasses import dataclass
from typing import Literal

from ..families import check_dial
from ..images.color_fix import ColorFix
from ..images.formats import FOLLOW, Encoding
from ..images.picture import Picture
from ..images.tensors import MAX_SIDE, check_size, output_size
from ..runtime.offload import check_tile


@dataclass(frozen=True)
class Options:
    """What is wanted of every picture; raises ValueError for what no picture can have.

    Attributes:
        t: the dial, 0 = most realistic, 1 = most faithful; "auto" chooses it for each picture.
        scale: side of the result / side of the picture.
        size: width and height of the result in pixels instead of `scale`.
        tile: pixels of the result, 0 for automatic.
        color_fix: None is the checkpoint's own.
        strip_metadata: leave out EXIF, XMP, IPTC, resolution, comment and text of the original.
        encoding: how results are put into files.
    """

    t: float | Literal["auto"] = 0.5
    scale: float = 4.0
    size: tuple[int, int] | None = None
    tile: int = 0
    color_fix: ColorFix | None = None
    strip_metadata: bool = False
    encoding: Encoding = FOLLOW

    def __post_init__(self) -> None:
        if self.t != "auto":
            check_dial("t", self.t)
        if not 0 < self.scale <= MAX_SIDE:
            raise ValueError(f"The scale must be a positive number, such as 4, not {self.scale}.")
        if self.size is not None:
            check_size(self.size[1], self.size[0])
        check_tile(self.tile, None)

    def output_size(self, picture: Picture) -> tuple[int, int]:
        """Height and width of a picture's result."""
        width, height = self.size or (None, None)
        return output_size(picture.rgb, self.scale, height, width)


def parse_size(text: str) -> tuple[int, int]:
    """Width and height from "1920x1080"; raises ValueError."""
    match = re.fullmatch(r"\s*(\d{1,9})\s*[xX×]\s*(\d{1,9})\s*", text)
    if match is None:
        raise ValueError(f"A size is written WIDTHxHEIGHT, such as 1920x1080, not {text!r}.")
    width, height = int(match[1]), int(match[2])
    check_size(height, width)
    return width, height


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
