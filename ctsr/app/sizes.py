"""How large results are: by a scale, or as wide, high, long or detailed as is asked."""

import logging
import math
import re
from dataclasses import dataclass, fields
from pathlib import Path

from ..images.tensors import DEFAULT_SCALE, MAX_SIDE, check_size, rounded

logger = logging.getLogger(__name__)

MAX_MEGAPIXELS = MAX_SIDE**2 / 1e6
DISTORTION = 0.01
"""Change of the proportions that is said; rounding to whole pixels changes those of small pictures by less."""


@dataclass(frozen=True)
class Size:
    """One way to say how large results are; raises ValueError for two at once, and for what no picture can have.

    Attributes:
        scale: side of the result / side of the picture; 4 where nothing is given, see `or_scale`.
        size: width and height in pixels; one of them may be None and then follows from the other.
        fit: width and height of a box that the result touches and does not leave; proportions stay.
        long_side: pixels of the longer side.
        megapixels: millions of pixels.
    """

    scale: float | None = None
    size: tuple[int | None, int | None] | None = None
    fit: tuple[int, int] | None = None
    long_side: int | None = None
    megapixels: float | None = None

    def __post_init__(self) -> None:
        given = [f"--{item.name.replace('_', '-')}" for item in fields(self) if getattr(self, item.name) is not None]
        if len(given) > 1:
            raise ValueError(f"{given[0]} and {given[1]} exclude each other: give one of them.")
        if self.scale is not None and not 0 < self.scale <= MAX_SIDE:
            raise ValueError(f"The scale must be a positive number, such as 4, not {self.scale}.")
        if self.megapixels is not None and not 0 < self.megapixels <= MAX_MEGAPIXELS:
            raise ValueError(f"--megapixels must be a positive number, such as 8.3, not {self.megapixels}.")
        width, height = self.size or self.fit or (self.long_side, None)
        check_size(1 if height is None else height, 1 if width is None else width)

    def or_scale(self, scale: float) -> "Size":
        """Itself, or that scale where nothing is given."""
        return Size(scale) if self == Size() else self

    def of(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the result of a picture of that height and width; halves up, at least 1."""
        if self.size is not None and None not in self.size:
            return self.size[1] or 1, self.size[0] or 1
        scale = self._scale(height, width)
        wanted = self.size or (None, None)
        return wanted[1] or rounded(scale * height), wanted[0] or rounded(scale * width)

    def _scale(self, height: int, width: int) -> float:
        """Side of the result / side of the picture."""
        if self.size is not None:
            return self.size[0] / width if self.size[0] is not None else (self.size[1] or 1) / height
        if self.fit is not None:
            return min(self.fit[0] / width, self.fit[1] / height)
        if self.long_side is not None:
            return self.long_side / max(height, width)
        if self.megapixels is not None:
            return math.sqrt(self.megapixels * 1e6 / (height * width))
        return DEFAULT_SCALE if self.scale is None else self.scale

    def warn_of_distortion(self, path: Path, height: int, width: int) -> None:
        """Say in the log that a result will not have the proportions of its picture."""
        if self.size is None or None in self.size:
            return
        new_height, new_width = self.of(height, width)
        change = (new_width / width) / (new_height / height)
        if max(change, 1 / change) > 1 + DISTORTION and abs(new_width - width * new_height / height) > 1:
            how = f"{100 * abs(change - 1):.0f} % {'wider' if change > 1 else 'narrower'}"
            text = "%s: --size %dx%d makes the picture (%dx%d) %s; use --fit %dx%d to keep its proportions."
            logger.warning(text, path, new_width, new_height, width, height, how, new_width, new_height)

    def settings(self) -> dict[str, str | float]:
        """What was given, for the text of a result."""
        if self.size is not None:
            return {"size": _written(self.size)}
        if self.fit is not None:
            return {"fit": _written(self.fit)}
        if self.long_side is not None:
            return {"long_side": self.long_side}
        if self.megapixels is not None:
            return {"megapixels": self.megapixels}
        return {"scale": DEFAULT_SCALE if self.scale is None else self.scale}


def _written(size: tuple[int | None, int | None]) -> str:
    """As on the command line."""
    return "x".join("" if side is None else str(side) for side in size)


def parse_size(text: str) -> tuple[int | None, int | None]:
    """Width and height from "1920x1080", "1920x" or "x1080"; raises ValueError."""
    match = re.fullmatch(r"\s*(\d{1,9})?\s*[xX×]\s*(\d{1,9})?\s*", text)
    if match is None or match[1] is match[2] is None:
        raise ValueError(f"A size is written WIDTHxHEIGHT, WIDTHx or xHEIGHT, such as 1920x1080, not {text!r}.")
    return None if match[1] is None else int(match[1]), None if match[2] is None else int(match[2])


def parse_box(text: str) -> tuple[int, int]:
    """Width and height from "1920x1080"; raises ValueError."""
    width, height = parse_size(text)
    if not width or not height:
        raise ValueError(f"Give both width and height here, of 1 or more, such as 1920x1080, not {text!r}.")
    return width, height
