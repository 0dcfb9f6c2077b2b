"""Pictures into files: in the manner of the one they were made from, whole or not at all."""

from __future__ import annotations

import errno
import io
import logging
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image

from ..errors import ImageWriteError, OutputFolderError
from ..whole_file import check_writable, whole_file
from .deep import opencv_works, write_deep_png, write_tiff
from .metadata import for_format
from .picture import Bits, Picture, Samples
from .settings import Settings, as_text

logger = logging.getLogger(__name__)

_ENCODE_ERRORS = (OSError, ValueError, RuntimeError, MemoryError, struct.error)
_FOLDER_ERRORS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.ENOENT,
    errno.EIO,
}
_ROWS = 256  # rows turned into samples at a time, so that no full-size fp32 copy of a picture is made
_LUMA = (0.299, 0.587, 0.114)  # BT.601, as Pillow's conversion to "L"


@dataclass(frozen=True)
class _Format:
    """What a file format can hold, and Pillow's options for writing it."""

    name: str
    alpha: bool = True
    grey: bool = True
    icc: bool = True
    bits: Bits = 8
    max_side: int = 2**31 - 1
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])


_PNG = _Format("PNG", bits=16)
_JPEG = _Format("JPEG", alpha=False, max_side=65500, options={"quality": 95, "subsampling": "4:4:4"})
_TIFF = _Format("TIFF", bits=32)
_FORMATS = {
    ".png": _PNG,
    ".jpg": _JPEG,
    ".jpeg": _JPEG,
    ".webp": _Format("WEBP", grey=False, max_side=16383, options={"quality": 95}),
    ".tif": _TIFF,
    ".tiff": _TIFF,
    ".bmp": _Format("BMP", alpha=False, icc=False),
    ".avif": _Format("AVIF", grey=False, max_side=65536, options={"quality": 90, "subsampling": "4:4:4"}),
}


def writable_suffixes() -> tuple[str, ...]:
    """Suffixes that `write_picture` takes with this Pillow, lower case with the dot: ".png", ".jpg", ..."""
    Image.init()
    return tuple(suffix for suffix, form in _FORMATS.items() if form.name in Image.SAVE)


def output_suffix(path: str | os.PathLike[str], height: int = 1, width: int = 1) -> str:
    """The lower-case suffix that decides the format of an output; call it before the work, to fail early.

    Raises ImageWriteError if the suffix is missing or unknown, or if its format cannot hold height by width pixels.
    """
    suffix = Path(path).suffix.lower()
    possible = writable_suffixes()
    if suffix not in possible:
        raise ImageWriteError(f"{path}: the suffix decides the format; use one of {', '.join(possible)}.")
    limit = _FORMATS[suffix].max_side
    if max(height, width) > limit:
        raise ImageWriteError(f"{path}: {suffix} holds at most {limit} pixels a side, not {width}x{height}; use .png.")
    return suffix


def write_picture(
    path: str | os.PathLike[str],
    rgb: torch.Tensor,
    like: Picture,
    alpha: torch.Tensor | None = None,
    settings: Settings | None = None,
) -> None:
    """Write a picture in the manner of `like`; the suffix of `path` decides the format, missing folders are made.

    rgb: [1, 3, H, W], alpha: [1, 1, H, W] or None; any float dtype and device; clamped to [0, 1] and rounded.
    Grey (BT.601 luma), depth, the ICC profile and metadata follow `like` where the format can; where alpha cannot be
    held it is laid over white, with a warning. 16-bit grey with alpha has no writer and becomes 16-bit RGBA of equal
    channels.
    settings: JSON in a text chunk named "ctsr" of a PNG, in the EXIF tag ProcessingSoftware of others; BMP has neither.

    The file appears whole under its name or not at all. Raises ImageWriteError if it cannot be written (see also
    `output_suffix`), OutputFolderError where no other could be either, ValueError for tensors of other shapes.
    """
    path = Path(path)
    _check_shapes(rgb, alpha)
    form = _FORMATS[output_suffix(path, *rgb.shape[-2:])]
    if alpha is not None and not form.alpha:
        logger.warning("%s: %s has no alpha: the picture is laid over white; use .png to keep it.", path, form.name)
        rgb = rgb.clamp(0, 1).sub_(1).mul_(alpha.to(rgb).clamp(0, 1)).add_(1)
        alpha = None
    samples = _to_samples(rgb, alpha, like, form)
    profile = _writable_profile(like, samples.shape[2], form, path)
    encoded = io.BytesIO()  # Pillow's encoders overlook that a full disk takes only a part of what they write
    try:
        _encode(encoded, samples, form, profile, _metadata_options(like, form, samples.shape[:2], settings, path))
    except _ENCODE_ERRORS as error:
        reason = error or type(error).__name__
        raise ImageWriteError(f"{path} was not written: {form.name} cannot hold it ({reason}).") from error
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as partial:
            partial.write_bytes(encoded.getbuffer())
    except OSError as error:
        raise write_failure(path, error) from error


def check_target(path: str | os.PathLike[str]) -> None:
    """Find out before the work whether a file can be written at `path`; leaves nothing behind.

    Raises OutputFolderError if its folder is full, read-only, not allowed or gone, ImageWriteError if the name cannot
    be used.
    """
    try:
        check_writable(Path(path))
    except OSError as error:
        raise write_failure(Path(path), error) from error


def write_failure(path: Path, error: OSError) -> ImageWriteError:
    """What a person is told of a file that could not be written."""
    reason = error.strerror or str(error) or type(error).__name__
    kind = OutputFolderError if error.errno in _FOLDER_ERRORS else ImageWriteError
    return kind(f"{path} was not written ({reason}); check the folder, its permissions and its free space.")


def _check_shapes(rgb: torch.Tensor, alpha: torch.Tensor | None) -> None:
    """Raise ValueError for anything but [1, 3, H, W] and [1, 1, H, W]."""
    if rgb.ndim != 4 or rgb.shape[:2] != (1, 3) or rgb.numel() == 0:
        raise ValueError(f"rgb must be [1, 3, H, W], not {list(rgb.shape)}; write one picture at a time.")
    if alpha is not None and alpha.shape != (1, 1, *rgb.shape[-2:]):
        raise ValueError(f"alpha must be [1, 1, {rgb.shape[-2]}, {rgb.shape[-1]}], not {list(alpha.shape)}.")


def _to_samples(rgb: torch.Tensor, alpha: torch.Tensor | None, like: Picture, form: _Format) -> Samples:
    """Clamp, round and interleave, a band of rows at a time: [1, C, H, W] to [H, W, C] as the file holds it."""
    bits = min(like.bits, form.bits)
    grey = like.grey and form.grey and (bits == 8 or alpha is None)
    if bits == 16 and not grey and form.name == "PNG" and not opencv_works():
        bits = 8
    dtype = {8: np.uint8, 16: np.uint16, 32: np.float32}[bits]
    colours = 1 if grey else 3
    height, width = rgb.shape[-2:]
    samples = np.empty((height, width, colours + (alpha is not None)), dtype)
    luma = torch.tensor(_LUMA).view(3, 1, 1)
    for top in range(0, height, _ROWS):
        rows = slice(top, top + _ROWS)
        band = rgb[0, :, rows].detach().to("cpu", torch.float32).clamp(0, 1)
        if like.grey:
            band = (band * luma).sum(0, keepdim=True).expand(colours, -1, -1)
        if alpha is not None:
            band = torch.cat([band, alpha[0, :, rows].detach().to("cpu", torch.float32).clamp(0, 1)])
        band = band if bits == 32 else (band * (2**bits - 1)).round()
        samples[rows] = band.permute(1, 2, 0).numpy()
    return samples


def _writable_profile(like: Picture, channels: int, form: _Format, path: Path) -> bytes | None:
    """The profile of `like` if the format holds one and it fits what is written, else None with a warning."""
    if like.icc_profile is None or (form.icc and like.grey == (channels < 3)):
        return like.icc_profile
    logger.warning("%s cannot carry the ICC profile of the original; its colours may look different.", path)
    return None


def _encode(
    file: IO[bytes],
    samples: Samples,
    form: _Format,
    profile: bytes | None,
    options: dict[str, Any],
) -> None:
    """Write samples [H, W, C] to an open file with the save options of its metadata."""
    if form.name == "TIFF":
        write_tiff(file, samples, profile, options)
        return
    if samples.dtype == np.uint16 and samples.shape[2] > 1:
        write_deep_png(file, samples, profile, options)
        return
    if profile is not None:
        options["icc_profile"] = profile
    image = Image.fromarray(samples[..., 0] if samples.shape[2] == 1 else samples)
    image.save(file, format=form.name, **form.options, **options)


def _metadata_options(
    like: Picture, form: _Format, size: tuple[int, int], settings: Settings | None, path: Path
) -> dict[str, Any]:
    """Save options for metadata and settings; a warning says what the format cannot hold."""
    metadata = for_format(like.metadata, form.name, *size, "" if settings is None else as_text(settings))
    if metadata.lost:
        logger.warning("%s: %s cannot hold %s of the original.", path, form.name, ", ".join(metadata.lost))
    return metadata.options
