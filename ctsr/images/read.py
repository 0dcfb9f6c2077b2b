"""Pictures out of files: colour, alpha, depth, greyness, ICC profile and metadata of a still survive."""

from __future__ import annotations

import contextlib
import logging
import os
import struct
import warnings
import zlib
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, PngImagePlugin
from PIL.TiffImagePlugin import TiffImageFile

from ..errors import ImageReadError
from .deep import read_deep, read_tiff, tiff_pages, with_key
from .exr import read_exr
from .hidden_colours import spread_visible
from .icc import WITHOUT_RGB, fitting_profile, to_srgb
from .large import most_pixels, pixel_limit
from .lossless import is_lossless_webp
from .metadata import Metadata, read_metadata
from .optional_formats import (
    EXR,
    OPTIONAL_SUFFIXES,
    RAW,
    develop,
    is_raw_under_another_name,
    open_optional,
    optional_format,
    read_deep_heif,
)
from .picture import Bits, Picture, Samples

logger = logging.getLogger(__name__)

# What Pillow's plug-ins raise on files that are damaged, cut off or made to do harm.
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
STILLS_OF_SEVERAL_PARTS = ("MPO", "PSD")  # a depth map or a gain map, layers: the first part is the picture
_WITHOUT_STILLS = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})  # known by name, but not decoded
_MAX_TEXT = 2**28  # bytes of compressed text that a PNG may hold; Pillow's own limit is 1 MB a chunk


def read_picture(path: str | os.PathLike[str], keep_metadata: bool = True) -> Picture:
    """Read any still that Pillow reads; of an animation the first frame, with a warning in the log.

    EXIF rotation is applied. Palettes become RGB; CMYK and LAB become sRGB (by the file's own profile if there is
    one). A profile that fits RGB or grey is kept unchanged, others are dropped with a warning. Where alpha is zero the
    colours are replaced by the visible ones around, so that nothing hidden bleeds into the edge later. EXIF, XMP, IPTC,
    resolution, comment and text are left out unless `keep_metadata`; the ICC profile is part of the picture.

    RAW, HEIC, JPEG XL and OpenEXR need an extra each. In floating-point files 0 is black and 1 white; what is outside
    is clipped, with a warning. Of OpenEXR the light is linear, and comes as sRGB.

    Raises ImageReadError if the file is missing, not a picture, damaged, cut off, or of more pixels than Pillow allows
    (twice `PIL.Image.MAX_IMAGE_PIXELS`).
    """
    picture = _read(Path(path))
    return picture if keep_metadata else replace(picture, metadata=Metadata())


def _read(path: Path) -> Picture:
    """As `read_picture`, by what reads this kind of file."""
    with reading(path):
        kind = optional_format(path)
        if kind is RAW:
            return _read_raw(path)
        if kind is EXR:
            return _picture(read_exr(path), None, Metadata(), path)
        try:
            with Image.open(path) if kind is None else open_optional(path, kind) as image:
                if is_raw_under_another_name(image):
                    return _read_raw(path)
                if image.format not in STILLS_OF_SEVERAL_PARTS:
                    _warn_of_more(path, count_frames(image, path))
                return decode(image, path)
        except Image.UnidentifiedImageError:
            if (picture := read_tiff_page(path, 0)) is None:
                raise
            _warn_of_more(path, len(tiff_pages(path)))
            return picture


def read_tiff_page(path: Path, page: int) -> Picture | None:
    """A page of a TIFF that Pillow cannot open; None for all other files."""
    if (found := read_tiff(path, page)) is None:
        return None
    samples, profile, metadata = found
    return _picture(samples, fitting_profile(profile, samples.shape[2] < 3, path), metadata, path)


@contextlib.contextmanager
def reading(path: Path) -> Generator[None, None, None]:
    """Let Pillow read what it can without a word; what it cannot read becomes an ImageReadError of one sentence."""
    try:
        with warnings.catch_warnings(), _room_for_text(), pixel_limit(most_pixels()):
            warnings.simplefilter("ignore")  # of odd metadata, of size (twice the size that it warns of is an error)
            yield
    except _DECODE_ERRORS as error:
        raise ImageReadError(_read_failure(path, error)) from error


def readable_suffixes() -> frozenset[str]:
    """Suffixes of the stills that can be read, some of them only with an extra; lower case with the dot."""
    known = Image.registered_extensions().items()
    by_pillow = frozenset(suffix for suffix, form in known if form in Image.OPEN and form not in _WITHOUT_STILLS)
    return by_pillow | OPTIONAL_SUFFIXES


@contextlib.contextmanager
def _room_for_text() -> Generator[None, None, None]:
    """Let PNGs hold megabytes of text, as those of long workflows do."""
    before = PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY
    PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = _MAX_TEXT
    try:
        yield
    finally:
        PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY = before


def _read_failure(path: Path, error: Exception) -> str:
    """One sentence for a person: which file, what is wrong, what to do."""
    if isinstance(error, FileNotFoundError):
        return f"{path} does not exist; check the name."
    if path.is_dir():
        return f"{path} is a folder; name a picture in it."
    if isinstance(error, PermissionError):
        return f"{path} may not be read; ask its owner for permission or copy it to where you have it."
    if isinstance(error, Image.DecompressionBombError):
        limit = most_pixels() // 10**6
        return f"{path} claims more than {limit} million pixels, the most here, and was not decoded; shrink it first."
    if isinstance(error, MemoryError):
        return f"{path} does not fit into memory; crop it, shrink it or use a machine with more."
    if path.is_file() and path.stat().st_size == 0:
        return f"{path} is empty; fetch it again from its source."
    if isinstance(error, Image.UnidentifiedImageError):
        return f"{path} is not a picture that Pillow can read; convert it to PNG, JPEG, WebP or TIFF first."
    return f"{path} is damaged or cut off ({error or type(error).__name__}); fetch it again from its source."


def count_frames(image: Image.Image, path: Path) -> int:
    """How many pictures an open file holds; Pillow fails to count pages of a TIFF that it cannot open."""
    return len(tiff_pages(path)) if image.format == "TIFF" else int(getattr(image, "n_frames", 1))


def _warn_of_more(path: Path, frames: int) -> None:
    """Say in the log how many pictures there are where there is more than the one that is read."""
    if frames > 1:
        logger.warning("%s has %d frames; only the first one is read.", path, frames)


def decode(image: Image.Image, path: Path) -> Picture:
    """The present frame or page of an open file that Pillow reads; raises what Pillow raises."""
    image.load()
    samples = read_deep_heif(image, path) if image.format == "HEIF" else read_deep(image, path)
    if samples is None:
        samples = _read_plain(image, path)
    samples = _upright(samples, _orientation(image))
    converted = image.mode in WITHOUT_RGB  # the profile is used up
    profile = None if converted else fitting_profile(image.info.get("icc_profile"), samples.shape[2] < 3, path)
    picture = _picture(samples, profile, read_metadata(image), path)
    return replace(picture, lossless=image.format == "WEBP" and is_lossless_webp(path))


def _read_raw(path: Path) -> Picture:
    """A developed RAW file, with what its EXIF says where Pillow can read that."""
    samples, metadata = develop(path), Metadata()
    with contextlib.suppress(*_DECODE_ERRORS), Image.open(path) as image:
        metadata = read_metadata(image)
    return _picture(samples, None, metadata, path)


def _picture(samples: Samples, profile: bytes | None, metadata: Metadata, path: Path) -> Picture:
    """Upright samples of any kind as a picture."""
    planes = _to_planes(samples, path)
    grey, opaque = samples.shape[2] < 3, samples.shape[2] in (1, 3)
    rgb = planes[:, :1].repeat(1, 3, 1, 1) if grey else planes[:, :3]
    alpha = None if opaque else planes[:, -1:]
    bits: dict[str, Bits] = {"uint8": 8, "uint16": 16, "float32": 32}
    return Picture(
        rgb=rgb if alpha is None else spread_visible(rgb, alpha),
        alpha=alpha,
        grey=grey,
        bits=bits[samples.dtype.name],
        icc_profile=profile,
        metadata=metadata,
    )


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1..8 that is left to apply (Pillow and OpenCV have turned a TIFF already); 1 if EXIF is bad."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except _DECODE_ERRORS:
        return 1


def _upright(samples: Samples, orientation: int) -> Samples:
    """Apply an EXIF orientation: [H, W, C] to a view of [H, W, C], or of [W, H, C] for 5..8."""
    if orientation in (5, 6, 7, 8):
        samples = samples.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        samples = samples[::-1]
    if orientation in (2, 3, 6, 7):
        samples = samples[:, ::-1]
    return samples


def _to_planes(samples: Samples, path: Path) -> torch.Tensor:
    """[H, W, C] samples to [1, C, H, W] fp32 in [0, 1]; of floats 1 is white, and a warning says how many are not."""
    height, width, channels = samples.shape
    planes = np.empty((1, channels, height, width), np.float32)
    if samples.dtype.kind == "f":
        planes[0] = samples.transpose(2, 0, 1)
        _warn_of_clipping(float(np.mean(~((planes >= 0) & (planes <= 1)))), "0 (black) to 1 (white)", path)
        return torch.as_tensor(np.nan_to_num(planes, copy=False, nan=0.0).clip(0, 1, out=planes))
    white = np.iinfo(samples.dtype).max
    for channel in range(channels):
        np.divide(samples[..., channel], white, out=planes[0, channel], dtype=np.float32)
    return torch.as_tensor(planes)


def _warn_of_clipping(share: float, scale: str, path: Path) -> None:
    """Say in the log how many values lie outside their range, if any do."""
    if share > 0:
        logger.warning("%s: %.3g %% of its values lie outside %s and are clipped.", path, 100 * share, scale)


def _read_plain(image: Image.Image, path: Path) -> Samples:
    """Samples of a loaded image by Pillow: uint8; uint16 for grey integers of more bits; float32 for floats."""
    transparent = image.has_transparency_data
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        grey = _deep_grey(image, path)[..., None]
        return with_key(grey, image) if transparent else grey
    if image.mode in WITHOUT_RGB:
        return np.asarray(to_srgb(image))
    mode = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    mode += "A" if transparent else ""
    samples = np.asarray(image if image.mode == mode else image.convert(mode))
    return samples[..., None] if samples.ndim == 2 else samples


def _deep_grey(image: Image.Image, path: Path) -> Samples:
    """[H, W] of numbers of more than 8 bits: floats as they are, integers as uint16.

    What is white follows from the kind of file, never from its pixels: 65535 in Pillow's signed integers, the largest
    number in a TIFF of unsigned ones.
    """
    values: Samples = np.asarray(image)
    if values.dtype.kind == "f":
        return values
    tags = image.tag_v2 if isinstance(image, TiffImageFile) else {ExifTags.Base.SampleFormat: 0}
    if image.mode == "I" and tags.get(ExifTags.Base.SampleFormat, 1) in (1, (1,)):
        return (values.view(np.uint32) >> 16).astype(np.uint16)
    _warn_of_clipping(float(np.mean((values < 0) | (values > 65535))), "0 (black) to 65535 (white)", path)
    return values.clip(0, 65535).astype(np.uint16)
