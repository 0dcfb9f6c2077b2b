"""Pictures into files: in the manner of the one they were made from, whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import struct
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from ..errors import ImageWriteError, OutputFolderError
from ..whole_file import check_writable, whole_file
from .deep import opencv_works, write_deep_png, write_tiff
from .exr import write_exr
from .formats import FOLLOW, Encoding, Format, output_format
from .metadata import SETTINGS_KEY, for_format
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
_DTYPES = {8: np.uint8, 16: np.uint16, 32: np.float32}


@dataclass(frozen=True)
class Frame:
    """A result and what it is of.

    Attributes:
        rgb: [1, 3, H, W], any float dtype and device; clamped to [0, 1] and rounded.
        like: its original, whose manner it takes.
        alpha: [1, 1, H, W] or None.
        duration: milliseconds for which it is shown, in an animation.
    """

    rgb: torch.Tensor
    like: Picture
    alpha: torch.Tensor | None = None
    duration: float = 0


def write_picture(
    path: str | os.PathLike[str],
    rgb: torch.Tensor,
    like: Picture,
    alpha: torch.Tensor | None = None,
    settings: Settings | None = None,
    encoding: Encoding = FOLLOW,
) -> None:
    """Write a picture in the manner of `like`; the suffix of `path` decides the format, missing folders are made.

    rgb: [1, 3, H, W], alpha: [1, 1, H, W] or None; any float dtype and device; clamped to [0, 1] and rounded.
    Grey (BT.601 luma), depth, the ICC profile and metadata follow `like` where the format can; where alpha cannot be
    held it is laid over white, with a warning. 16-bit grey with alpha has no writer and becomes 16-bit RGBA of equal
    channels.
    settings: JSON in a text chunk named "ctsr" of a PNG, in the EXIF tag ProcessingSoftware of others; BMP has neither.

    The file appears whole under its name or not at all. Raises ImageWriteError if it cannot be written (see also
    `output_format`), OutputFolderError where no other could be either, ValueError for tensors of other shapes.
    """
    path, frame = Path(path), Frame(rgb, like, alpha)
    if rgb.ndim != 4 or rgb.shape[:2] != (1, 3) or rgb.numel() == 0:
        raise ValueError(f"rgb must be [1, 3, H, W], not {list(rgb.shape)}; write one picture at a time.")
    if alpha is not None and alpha.shape != (1, 1, *rgb.shape[-2:]):
        raise ValueError(f"alpha must be [1, 1, {rgb.shape[-2]}, {rgb.shape[-1]}], not {list(alpha.shape)}.")
    form, encoded = output_format(path, rgb.shape[-2], rgb.shape[-1], encoding), io.BytesIO()
    _write_still(encoded, frame, form, encoding, settings, path)
    _store(encoded, path)


def write_frames(
    path: Path,
    frames: Iterable[Frame],
    kind: Literal["animation", "pages"],
    plays: int = 0,
    settings: Settings | None = None,
    encoding: Encoding = FOLLOW,
) -> None:
    """Write an animation, or a TIFF of several pages; as `write_picture`, which see for what is kept and raised.

    Args:
        path: its suffix decides the format.
        frames: taken one by one; each becomes samples of 8 bits (of a TIFF: a finished page) before the next is asked.
        plays: how often an animation is played; 0 is for ever.
        settings, encoding: as for a still.
    """
    form, encoded = output_format(path, encoding=encoding, frames=kind), io.BytesIO()
    if kind == "pages":
        for frame in frames:
            _write_still(encoded, frame, form, encoding, settings, path)
    else:
        _write_animation(encoded, frames, plays, form, encoding, settings, path)
    _store(encoded, path)


@contextlib.contextmanager
def _encoding(path: Path, form: Format) -> Generator[None, None, None]:
    """What a format cannot hold becomes an ImageWriteError."""
    try:
        yield
    except _ENCODE_ERRORS as error:
        reason = error or type(error).__name__
        raise ImageWriteError(f"{path} was not written: {form.name} cannot hold it ({reason}).") from error


def _store(encoded: io.BytesIO, path: Path) -> None:
    """What was encoded in memory, since Pillow's encoders overlook that a full disk takes only a part, into a file."""
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
    if error.errno == errno.ENAMETOOLONG:
        return ImageWriteError(f"{path} was not written: its name is too long; give a shorter one with -o.")
    reason = error.strerror or str(error) or type(error).__name__
    kind = OutputFolderError if error.errno in _FOLDER_ERRORS else ImageWriteError
    return kind(f"{path} was not written ({reason}); check the folder, its permissions and its free space.")


# ---------------------------------------------------------------------------------------------------------- samples


def _to_samples(frame: Frame, form: Format, bits: Bits, path: Path) -> Samples:
    """Clamp, round and interleave, a band of rows at a time: [1, C, H, W] to [H, W, C] as the file holds it."""
    rgb, alpha, grey = frame.rgb, frame.alpha, frame.like.grey
    if alpha is not None and not form.alpha:
        logger.warning("%s: %s has no alpha: the picture is laid over white; use .png to keep it.", path, form.name)
        rgb = rgb.clamp(0, 1).sub_(1).mul_(alpha.to(rgb).clamp(0, 1)).add_(1)
        alpha = None
    colours = 1 if grey and form.grey and (bits == 8 or alpha is None) else 3
    height, width = rgb.shape[-2:]
    samples = np.empty((height, width, colours + (alpha is not None)), _DTYPES[bits])
    luma = torch.tensor(_LUMA).view(3, 1, 1)
    for top in range(0, height, _ROWS):
        rows = slice(top, top + _ROWS)
        band = rgb[0, :, rows].detach().to("cpu", torch.float32).clamp(0, 1)
        if grey:
            band = (band * luma).sum(0, keepdim=True).expand(colours, -1, -1)
        if alpha is not None:
            band = torch.cat([band, alpha[0, :, rows].detach().to("cpu", torch.float32).clamp(0, 1)])
        band = band if bits == 32 else (band * (2**bits - 1)).round()
        samples[rows] = band.permute(1, 2, 0).numpy()
    return samples


def _bits(frame: Frame, form: Format, encoding: Encoding, path: Path) -> Bits:
    """The depth of a channel: as asked, or of the original as far as the format goes, with a warning where it ends."""
    bits = encoding.bits or (frame.like.bits if frame.like.bits <= form.bits else form.bits)
    is_grey = frame.like.grey and frame.alpha is None
    if bits == 16 and form.name == "PNG" and not is_grey and not opencv_works():
        return 8
    if form.name == "GIF":
        logger.warning("%s: GIF holds 256 colours; use .webp or .png to keep all.", path)
    if encoding.bits is None and bits < frame.like.bits:
        keep, depth = (".tif", "floating-point numbers") if bits == 16 else (".png or .tif", f"{frame.like.bits} bits")
        text = "%s: %s holds %d bits a channel, to which the %s of the original are rounded; use %s to keep them."
        logger.warning(text, path, form.name, bits, depth, keep)
    return bits


def _writable_profile(like: Picture, channels: int, form: Format, path: Path) -> bytes | None:
    """The profile of `like` if the format holds one and it fits what is written, else None with a warning."""
    if like.icc_profile is None or (form.icc and like.grey == (channels < 3)):
        return like.icc_profile
    logger.warning("%s cannot carry the ICC profile of the original; its colours may look different.", path)
    return None


# --------------------------------------------------------------------------------------------------------- encoding


def _write_still(
    file: io.BytesIO, frame: Frame, form: Format, encoding: Encoding, settings: Settings | None, path: Path
) -> None:
    """One picture into an open file; into a TIFF that has some already as a further page."""
    bits = _bits(frame, form, encoding, path)
    samples = _to_samples(frame, form, 32 if form.name == "EXR" else bits, path)
    profile = _writable_profile(frame.like, samples.shape[2], form, path)
    options = _metadata_options(frame.like, form, samples.shape[:2], settings, path)
    with _encoding(path, form):
        if form.name == "EXR":
            half = encoding.bits == 16 or (encoding.bits is None and bits == 8)
            write_exr(file, samples, half, options.get(SETTINGS_KEY, ""))
        elif form.name == "TIFF":
            write_tiff(file, samples, profile, options)
        elif samples.dtype == np.uint16 and samples.shape[2] > 1:
            write_deep_png(file, samples, profile, options)
        else:
            if profile is not None:
                options["icc_profile"] = profile
            _image(samples).save(file, format=form.name, **options, **_loss_options(frame.like, form, encoding))


def _write_animation(
    file: io.BytesIO,
    frames: Iterable[Frame],
    plays: int,
    form: Format,
    encoding: Encoding,
    settings: Settings | None,
    path: Path,
) -> None:
    """Frames of one size into an open file, by Pillow, which makes of equal ones in a row one that lasts longer."""
    images: list[Image.Image] = []
    durations: list[float] = []
    like: Picture | None = None
    for frame in frames:
        if like is None:
            like = frame.like
            _bits(frame, form, encoding, path)
        in_colour = replace(frame, like=replace(frame.like, grey=False))
        images.append(_image(_to_samples(in_colour, form, 8, path)))
        durations.append(frame.duration)
    if like is None:
        raise ValueError(f"{path}: there are no frames to write.")
    if len({image.mode for image in images}) > 1:
        images = [image.convert("RGBA") for image in images]
    options = _metadata_options(like, form, (images[0].height, images[0].width), settings, path)
    if (profile := _writable_profile(like, 3, form, path)) is not None:
        options["icc_profile"] = profile
    options |= _loss_options(like, form, encoding) | _timing_options(durations, plays, form)
    with _encoding(path, form):
        images[0].save(file, format=form.name, save_all=True, append_images=images[1:], **options)
    if form.name == "WEBP" and any(image.getextrema()[3:] not in ((), ((255, 255),)) for image in images):
        flags = file.getbuffer()[20:21]  # of the first chunk, VP8X: libwebp cuts transparent borders off, and alpha's
        flags[0] |= 0x10


def _image(samples: Samples) -> Image.Image:
    """Samples [H, W, C] as Pillow's."""
    return Image.fromarray(samples[..., 0] if samples.shape[2] == 1 else samples)


def _loss_options(like: Picture, form: Format, encoding: Encoding) -> dict[str, Any]:
    """Pillow's save options for a format that may lose something."""
    if form.quality is None:
        return {}
    if form.lossless and (encoding.lossless or (like.lossless and encoding.quality is None)):
        return {"lossless": True, "exact": True}
    return {"quality": encoding.quality or form.quality, **form.options}


def _timing_options(durations: Sequence[float], plays: int, form: Format) -> dict[str, Any]:
    """Pillow's save options for how long each frame is shown, in milliseconds, and how often all are."""
    if form.name == "PNG":
        return {"duration": list(durations), "loop": plays}
    whole = [round(duration) for duration in durations]
    if form.name == "GIF":  # counts what comes after the first time
        return {"duration": whole} | ({} if plays == 1 else {"loop": max(0, plays - 1)})
    return {"duration": whole} | ({"loop": plays} if form.name == "WEBP" else {})


def _metadata_options(
    like: Picture, form: Format, size: tuple[int, int], settings: Settings | None, path: Path
) -> dict[str, Any]:
    """Save options for metadata and settings; a warning says what the format cannot hold."""
    metadata = for_format(like.metadata, form.name, *size, "" if settings is None else as_text(settings))
    if metadata.lost:
        logger.warning("%s: %s cannot hold %s of the original.", path, form.name, ", ".join(metadata.lost))
    return metadata.options
