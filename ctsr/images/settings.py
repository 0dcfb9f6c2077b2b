"""The settings that a result was made with, as JSON inside it; and whether a file is there to its end."""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from PIL import ExifTags, Image

from .exr import exr_is_whole, read_exr_settings
from .large import pixel_limit
from .metadata import SETTINGS_KEY, SETTINGS_TAG

Settings = Mapping[str, str | float | int | bool]
_ERRORS = (OSError, SyntaxError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, struct.error)


def as_text(settings: Settings) -> str:
    """JSON in ASCII, as EXIF wants it."""
    return json.dumps(dict(settings))


def read_settings(path: Path) -> dict[str, Any] | None:
    """The settings in a file that this library wrote; None for all others."""
    with contextlib.suppress(*_ERRORS):
        settings = json.loads(_text_in(path))
        if isinstance(settings, dict) and "ctsr" in settings:
            return cast("dict[str, Any]", settings)
    return None


def _text_in(path: Path) -> Any:
    """Where a format has the settings."""
    if path.suffix.lower() == ".exr":
        return read_exr_settings(path)
    with pixel_limit(None), Image.open(path) as image:
        if image.format == "PNG":
            return image.info.get(SETTINGS_KEY)
        if image.format == "GIF":
            return image.info.get("comment", b"").split(b"\n")[-1]
        return image.getexif()[SETTINGS_TAG]


def is_whole(path: Path) -> bool:
    """Whether a file that this library wrote is there to its end, as far as its format tells."""
    if path.suffix.lower() == ".exr":
        with contextlib.suppress(*_ERRORS):
            return exr_is_whole(path)
        return False
    with contextlib.suppress(*_ERRORS), pixel_limit(None), Image.open(path) as image:
        return _ENDS[image.format or ""](path)
    return False


# ------------------------------------------------------------------------------------------- ends of files, by format


def _tail(path: Path, length: int) -> bytes:
    """The last bytes of a file."""
    with path.open("rb") as file:
        file.seek(-length, 2)
        return file.read()


def _riff_is_whole(path: Path) -> bool:
    """Whether a WebP is as long as its header says."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<L", file.read(8)[4:])
    return path.stat().st_size >= 8 + length


def _boxes_are_whole(path: Path) -> bool:
    """Whether the boxes of an AVIF end where the file does."""
    end, size = 0, path.stat().st_size
    with path.open("rb") as file:
        while 0 <= end < size:
            file.seek(end)
            (length,) = struct.unpack(">L", file.read(4))
            if length < 8:  # to the end of the file, or of more than 4 GB
                return True
            end += length
    return end == size


def _strips_are_whole(path: Path) -> bool:
    """Whether the strips of each page of a TIFF lie within the file."""
    size = path.stat().st_size
    with Image.open(path) as image:
        for page in range(getattr(image, "n_frames", 1)):
            image.seek(page)
            tags: Any = cast(Any, image).tag_v2
            offsets, lengths = tags[ExifTags.Base.StripOffsets], tags[ExifTags.Base.StripByteCounts]
            if any(offset + length > size for offset, length in zip(offsets, lengths, strict=True)):
                return False
    return True


_ENDS: dict[str, Callable[[Path], bool]] = {
    "PNG": lambda path: _tail(path, 8)[:4] == b"IEND",
    "JPEG": lambda path: _tail(path, 2) == b"\xff\xd9",
    "GIF": lambda path: _tail(path, 1) == b";",
    "WEBP": _riff_is_whole,
    "AVIF": _boxes_are_whole,
    "TIFF": _strips_are_whole,
}
