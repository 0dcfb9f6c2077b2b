"""How large the picture of a file is and how many frames it has, from its header where that says it."""

import contextlib
from dataclasses import dataclass
from pathlib import Path

from PIL import ExifTags, Image

from ..errors import CTSRError
from .frames import look_for_frames
from .optional_formats import is_raw_under_another_name, optional_format
from .read import read_picture, reading

SIDEWAYS = (5, 6, 7, 8)
"""EXIF orientations that exchange height and width."""


@dataclass(frozen=True)
class Header:
    """Height and width of a file's pictures as they are seen, and their number."""

    height: int
    width: int
    frames: int = 1


def read_header(path: Path) -> Header:
    """The size of a file's pictures; decodes only what must be (RAW, HEIC).

    Raises:
        ImageReadError: it cannot be read.
    """
    with reading(path):
        is_plain = optional_format(path) is None
    with contextlib.suppress(CTSRError), reading(path), Image.open(path) as image:
        if is_plain and not is_raw_under_another_name(image):
            turned = image.format != "TIFF" and image.getexif().get(ExifTags.Base.Orientation) in SIDEWAYS
            width, height = image.size[::-1] if turned else image.size
            return Header(height, width, len(look_for_frames(path).indices))
    picture = read_picture(path, keep_metadata=False)
    return Header(picture.height, picture.width)
