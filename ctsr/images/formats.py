"""What each file format can hold, and how a result is put into it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from ..errors import ImageWriteError
from .exr import exr_works
from .picture import Bits


@dataclass(frozen=True)
class Format:
    """What a file format can hold.

    Attributes:
        name: as Pillow spells it.
        alpha, grey, icc: whether it has them.
        bits: of a channel, at most.
        max_side: in pixels.
        frames: "animation", "pages" or, where it holds one picture, "".
        quality: where it loses something, from 1 to 100; None where it never does.
        lossless: whether it can be without loss.
        options: Pillow's, where it loses something.
    """

    name: str
    alpha: bool = True
    grey: bool = True
    icc: bool = True
    bits: Bits = 8
    max_side: int = 2**31 - 1
    frames: Literal["animation", "pages", ""] = ""
    quality: int | None = None
    lossless: bool = True
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])


_FULL_COLOUR = {"subsampling": "4:4:4"}
_PNG = Format("PNG", bits=16, frames="animation")
_JPEG = Format("JPEG", alpha=False, max_side=65500, quality=95, lossless=False, options=_FULL_COLOUR)
_TIFF = Format("TIFF", bits=32, frames="pages")
FORMATS = {
    ".png": _PNG,
    ".apng": _PNG,
    ".jpg": _JPEG,
    ".jpeg": _JPEG,
    ".webp": Format("WEBP", grey=False, max_side=16383, frames="animation", quality=95),
    ".tif": _TIFF,
    ".tiff": _TIFF,
    ".bmp": Format("BMP", alpha=False, icc=False),
    ".avif": Format(
        "AVIF", grey=False, max_side=65536, frames="animation", quality=90, lossless=False, options=_FULL_COLOUR
    ),
    ".exr": Format("EXR", icc=False, bits=32),
    ".gif": Format("GIF", grey=False, icc=False, max_side=65535, frames="animation", lossless=False),
}


@dataclass(frozen=True)
class Encoding:
    """How results are put into files; what is None follows the picture and the format.

    Attributes:
        quality: from 1 to 100, of JPEG, WebP and AVIF.
        lossless: WebP without loss; by default as its original.
        bits: of a channel: 8, 16 (PNG, TIFF) or 32 (TIFF, floating-point).
    """

    quality: int | None = None
    lossless: bool = False
    bits: Bits | None = None

    def __post_init__(self) -> None:
        if self.quality is not None and not 1 <= self.quality <= 100:
            raise ValueError(f"The quality must be a number from 1 to 100, not {self.quality}.")
        if self.quality is not None and self.lossless:
            raise ValueError("--quality and --lossless exclude each other: give one of them.")

    def check(self, path: Path, form: Format, animated: bool = False) -> None:
        """Raises ImageWriteError for what a format cannot do."""
        most = 8 if animated else form.bits
        if self.bits is not None and self.bits > most:
            what = "an animation" if animated else form.name
            deep = ".tif" if self.bits > 16 else ".png or .tif"
            remedy = "leave --bit-depth out" if animated else f"use {deep}"
            raise ImageWriteError(f"{path}: {what} holds {most} bits a channel, not {self.bits}; {remedy}.")
        if self.bits == 8 and form.name == "EXR":
            raise ImageWriteError(f"{path}: OpenEXR holds floating-point numbers of 16 or 32 bits, not of 8.")
        if self.lossless and not form.lossless:
            raise ImageWriteError(f"{path}: {form.name} is never lossless; use .png, .tif or .webp.")


FOLLOW = Encoding()
"""As the picture and the format have it."""


def writable_suffixes() -> tuple[str, ...]:
    """Suffixes that can be written with this Pillow, lower case with the dot: ".png", ".jpg", ..."""
    Image.init()
    names = {*Image.SAVE, *(["EXR"] if exr_works() else [])}
    return tuple(suffix for suffix, form in FORMATS.items() if form.name in names)


def output_format(
    path: str | os.PathLike[str],
    height: int = 1,
    width: int = 1,
    encoding: Encoding | None = None,
    frames: Literal["animation", "pages", ""] = "",
) -> Format:
    """The format that the suffix of an output decides; call it before the work, to fail early.

    Raises ImageWriteError if the suffix is missing or unknown, or if its format cannot hold height by width pixels, a
    number of frames or pages, or what `encoding` asks for.
    """
    path, possible = Path(path), writable_suffixes()
    suffix = path.suffix.lower()
    if suffix == ".exr" and suffix not in possible:
        raise ImageWriteError(f'{path}: .exr needs one more library: pip install "ctsr[exr]", or use .tif.')
    if suffix not in possible:
        raise ImageWriteError(f"{path}: the suffix decides the format; use one of {', '.join(possible)}.")
    form = FORMATS[suffix]
    if max(height, width) > form.max_side:
        size = f"{form.max_side} pixels a side, not {width}x{height}"
        raise ImageWriteError(f"{path}: {suffix} holds at most {size}; use .png.")
    if frames and frames != form.frames:
        fitting = ", ".join(suffix for suffix in possible if FORMATS[suffix].frames == frames)
        what = "an animation" if frames == "animation" else "several pages"
        raise ImageWriteError(f"{path}: {suffix} cannot hold {what}; use one of {fitting}.")
    if encoding is not None:
        encoding.check(path, form, frames == "animation")
    return form
