"""Animations and documents of several pages, a frame at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from ..errors import ImageReadError
from .deep import tiff_pages
from .metadata import Metadata
from .optional_formats import is_raw_under_another_name, optional_format
from .picture import Picture
from .read import STILLS_OF_SEVERAL_PARTS, count_frames, decode, read_tiff_page, reading

Kind = Literal["animation", "pages", ""]
_ANIMATIONS = frozenset({"AVIF", "FLI", "GIF", "PNG", "WEBP"})
_WITHOUT_LOOP = frozenset({"AVIF", "FLI"})  # played for ever
_REDUCED_OR_MASK = 1 | 4  # of NewSubfileType: not a page, but another form of one


@dataclass(frozen=True)
class Frames:
    """What a file holds several of.

    Attributes:
        path: the file.
        kind: "animation", "pages", or "" for a still.
        indices: as Pillow counts them; of a still the first alone.
        plays: how often an animation is played; 0 is for ever.
    """

    path: Path
    kind: Kind = ""
    indices: Sequence[int] = (0,)
    plays: int = 0

    def read(self, keep_metadata: bool = True) -> Generator[tuple[Picture, float], None, None]:
        """Each picture as `read_picture` gives stills, and the milliseconds for which it is shown.

        Raises:
            ImageReadError: a frame is damaged or cut off; or the file is gone.
        """
        with contextlib.ExitStack() as stack:
            image: Image.Image | None = None
            with reading(self.path), contextlib.suppress(Image.UnidentifiedImageError):
                image = stack.enter_context(Image.open(self.path))
            for index in self.indices:
                with reading(self.path):
                    picture = _read_one(image, self.path, index)
                if not keep_metadata:
                    picture = replace(picture, metadata=Metadata())
                yield picture, 0.0 if image is None else float(image.info.get("duration", 0))


def look_for_frames(path: Path) -> Frames:
    """What a file holds; a still where it cannot be read, which `read_picture` then says."""
    still = Frames(path)
    with contextlib.suppress(ImageReadError), reading(path):
        if optional_format(path) is not None:
            return still
        try:
            image = Image.open(path)
        except Image.UnidentifiedImageError:  # as of floating-point colour, which OpenCV reads
            return _pages(path)
        with image:
            count = count_frames(image, path)
            if count == 1 or image.format in STILLS_OF_SEVERAL_PARTS or is_raw_under_another_name(image):
                return still
            if image.format not in _ANIMATIONS:
                return _pages(path) if image.format == "TIFF" else Frames(path, "pages", range(count))
            first = 1 if image.info.get("default_image") else 0  # of a PNG, for programs that show no animations
            return Frames(path, "animation", range(first, count), _plays(image))
    return still


def _pages(path: Path) -> Frames:
    """The pages of a TIFF that are not the thumbnail or the mask of another; a still where there is but one."""
    pages = [index for index, page in enumerate(tiff_pages(path)) if not page.kind & _REDUCED_OR_MASK]
    return Frames(path, "pages", pages) if len(pages) > 1 else Frames(path)


def _read_one(image: Image.Image | None, path: Path, index: int) -> Picture:
    """A frame by Pillow, or a page of a TIFF where it opens neither the file nor this page."""
    try:
        if image is None:
            raise Image.UnidentifiedImageError(path)
        image.seek(index)
        return decode(image, path)
    except (SyntaxError, Image.UnidentifiedImageError):
        if (page := read_tiff_page(path, index)) is None:
            raise
        return page


def _plays(image: Image.Image) -> int:
    """How often an animation is played: a GIF counts what comes after the first time."""
    loop: Any = image.info.get("loop")
    if image.format == "GIF":
        return 1 if loop is None else loop + 1 if loop else 0
    return 0 if image.format in _WITHOUT_LOOP else int(loop or 0)
