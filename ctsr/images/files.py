"""Pictures in and out of files: what a still holds (colour, alpha, depth, greyness, ICC profile) survives the way.

Pillow reads and writes everything it can. It reduces 16-bit colour to 8 bits, so 16-bit RGB and RGBA come in through
OpenCV, which is imported when such a file appears; where it is missing, 8 bits are used and a warning says so. 16-bit
colour goes out through OpenCV (PNG), or as plain samples behind Pillow's TIFF directory, which holds the ICC profile.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import io
import json
import logging
import os
import struct
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image, ImageCms
from PIL.PngImagePlugin import PngImageFile, PngInfo, putchunk
from PIL.TiffImagePlugin import ImageFileDirectory_v2, TiffImageFile

from ..errors import ImageReadError, ImageWriteError, OutputFolderError
from ..whole_file import check_writable, whole_file

logger = logging.getLogger(__name__)
_cms: Any = ImageCms  # half of its types are unknown to pyright

Samples = npt.NDArray[Any]
"""Pixels as they lie in a file: [H, W, C], uint8, uint16 or float32; C is 1 (grey), 2 (grey, alpha), 3 or 4 (RGBA)."""

SETTINGS_KEY = "ctsr"
"""Keyword of the PNG text chunk that holds the settings of a picture as JSON."""

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
_ENCODE_ERRORS = (OSError, ValueError, RuntimeError, MemoryError, struct.error)
_FOLDER_ERRORS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.ENOENT,
    errno.EIO,
}
_PROFILE_ERRORS = (OSError, TypeError, ValueError, ImportError, ImageCms.PyCMSError)

_STILLS_OF_SEVERAL_PARTS = ("MPO", "PSD")  # a depth map or a gain map, layers: the first part is the picture
_ROWS = 256  # rows turned into samples at a time, so that no full-size fp32 copy of a picture is made
_LUMA = (0.299, 0.587, 0.114)  # BT.601, as Pillow's conversion to "L"


@dataclass(frozen=True)
class Picture:
    """A still as tensors on the CPU, upright, with what is needed to write one like it.

    rgb: [1, 3, H, W] fp32 in [0, 1], straight (not multiplied by alpha), encoded as in the file; grey is repeated.
    alpha: [1, 1, H, W] fp32 in [0, 1], all ones for an opaque file with an alpha channel, None for one without.
    grey: the file holds grey. bits: depth of the file, 8 or 16. icc_profile: fits rgb (or grey), None means sRGB.
    """

    rgb: torch.Tensor
    alpha: torch.Tensor | None = None
    grey: bool = False
    bits: Literal[8, 16] = 8
    icc_profile: bytes | None = None

    @property
    def height(self) -> int:
        """Rows of pixels."""
        return self.rgb.shape[-2]

    @property
    def width(self) -> int:
        """Pixels in a row."""
        return self.rgb.shape[-1]


# ---------------------------------------------------------------------------------------------------------- reading


def read_picture(path: str | os.PathLike[str]) -> Picture:
    """Read any still that Pillow reads; of an animation the first frame, with a warning in the log.

    EXIF rotation is applied. Palettes become RGB; CMYK and LAB become sRGB (by the file's own profile if there is
    one). A profile that fits RGB or grey is kept unchanged, others are dropped with a warning. Where alpha is zero the
    colours are replaced by the visible ones around, so that nothing hidden bleeds into the edge later.

    Raises ImageReadError if the file is missing, not a picture, damaged, cut off, or of more pixels than Pillow allows
    (twice `PIL.Image.MAX_IMAGE_PIXELS`).
    """
    path = Path(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata, of size (twice the size that it warns of is an error)
            with Image.open(path) as image:
                return _decode(image, path)
    except _DECODE_ERRORS as error:
        raise ImageReadError(_read_failure(path, error)) from error


def _read_failure(path: Path, error: Exception) -> str:
    """One sentence for a person: which file, what is wrong, what to do."""
    if isinstance(error, FileNotFoundError):
        return f"{path} does not exist; check the name."
    if path.is_dir():
        return f"{path} is a folder; name a picture in it."
    if isinstance(error, PermissionError):
        return f"{path} may not be read; ask its owner for permission or copy it to where you have it."
    if isinstance(error, Image.DecompressionBombError):
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        return f"{path} claims more than {limit} million pixels and was not decoded; crop or shrink it first."
    if isinstance(error, MemoryError):
        return f"{path} does not fit into memory; crop it, shrink it or use a machine with more."
    if path.is_file() and path.stat().st_size == 0:
        return f"{path} is empty; fetch it again from its source."
    if isinstance(error, Image.UnidentifiedImageError):
        return f"{path} is not a picture that Pillow can read; convert it to PNG, JPEG, WebP or TIFF first."
    return f"{path} is damaged or cut off ({error or type(error).__name__}); fetch it again from its source."


def _decode(image: Image.Image, path: Path) -> Picture:
    """Everything `read_picture` does once the file is open."""
    _warn_of_frames(image, path)
    image.load()
    samples = _read_deep(image, path)
    if samples is None:
        samples = _read_plain(image)
    samples = _upright(samples, _orientation(image))
    planes = _to_planes(samples)
    grey, opaque = samples.shape[2] < 3, samples.shape[2] in (1, 3)
    rgb = planes[:, :1].repeat(1, 3, 1, 1) if grey else planes[:, :3]
    alpha = None if opaque else planes[:, -1:]
    return Picture(
        rgb=rgb if alpha is None else _spread_visible(rgb, alpha),
        alpha=alpha,
        grey=grey,
        bits=8 if samples.dtype == np.uint8 else 16,
        icc_profile=_fitting_profile(image, grey, path),
    )


def _warn_of_frames(image: Image.Image, path: Path) -> None:
    """Say in the log that only the first of several frames or pages is read."""
    frames = int(getattr(image, "n_frames", 1))
    if frames > 1 and image.format not in _STILLS_OF_SEVERAL_PARTS:
        logger.warning("%s has %d frames; only the first one is read.", path, frames)


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


def _to_planes(samples: Samples) -> torch.Tensor:
    """[H, W, C] samples to [1, C, H, W] fp32 in [0, 1]."""
    height, width, channels = samples.shape
    white = np.iinfo(samples.dtype).max if samples.dtype.kind == "u" else 1
    planes = np.empty((1, channels, height, width), np.float32)
    for channel in range(channels):
        np.divide(samples[..., channel], white, out=planes[0, channel], dtype=np.float32)
    return torch.as_tensor(planes)


def _read_plain(image: Image.Image) -> Samples:
    """Samples of a loaded image by Pillow: uint8; uint16 for 16-bit grey; fp32 in [0, 1] for integers and floats."""
    transparent = image.has_transparency_data
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        grey = _deep_grey(np.asarray(image))[..., None]
        return _with_key(grey, image) if transparent else grey
    if image.mode in ("CMYK", "LAB"):
        return np.asarray(_to_srgb(image))
    mode = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    mode += "A" if transparent else ""
    samples = np.asarray(image if image.mode == mode else image.convert(mode))
    return samples[..., None] if samples.ndim == 2 else samples


def _deep_grey(values: Samples) -> Samples:
    """[H, W] integers up to 65535 to uint16; others, which have no stated range, to fp32 in [0, 1].

    White is then the first of 1, 255 and 65535 that holds the brightest pixel, or that pixel.
    """
    if values.dtype.kind in "iu" and values.max() <= 65535:
        return values.clip(min=0).astype(np.uint16)
    values = np.nan_to_num(values.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0).clip(min=0)
    brightest = float(values.max())
    return values / next((white for white in (1.0, 255.0, 65535.0) if brightest <= white), brightest)


def _with_key(samples: Samples, image: Image.Image) -> Samples:
    """Append the alpha that a PNG's transparent colour (tRNS, given at the depth of the file) stands for."""
    key = np.asarray(image.info["transparency"])
    alpha = (samples != key).any(axis=2, keepdims=True) * np.iinfo(samples.dtype).max
    return np.concatenate([samples, alpha.astype(samples.dtype)], axis=2)


def _to_srgb(image: Image.Image) -> Image.Image:
    """CMYK or LAB to sRGB; by the embedded profile, by LAB's definition, or by Pillow's plain rule for CMYK."""
    profile = image.info.get("icc_profile")
    srgb = _cms.createProfile("sRGB")
    if image.mode == "LAB":
        transform = _cms.buildTransform(_cms.createProfile("LAB"), srgb, "LAB", "RGB")
        return transform.apply(image)
    if profile is not None and _colour_space(profile) == "CMYK":
        with contextlib.suppress(*_PROFILE_ERRORS):
            transform = _cms.buildTransform(io.BytesIO(profile), srgb, "CMYK", "RGB")
            return transform.apply(image)
    return image.convert("RGB")


def _colour_space(profile: bytes) -> str:
    """What the profile's header says: "RGB", "GRAY", "CMYK", ...; "broken" if it cannot be opened."""
    try:
        return _cms.ImageCmsProfile(io.BytesIO(profile)).profile.xcolor_space.strip()
    except _PROFILE_ERRORS:
        return "broken"


def _fitting_profile(image: Image.Image, grey: bool, path: Path) -> bytes | None:
    """The embedded profile if it describes the samples as they were read, else None."""
    profile = image.info.get("icc_profile")
    if not profile or image.mode in ("CMYK", "LAB"):  # none, or used up by the conversion
        return None
    space = _colour_space(profile)
    if space == ("GRAY" if grey else "RGB"):
        return profile
    logger.warning("%s: its ICC profile (%s) does not fit the picture and is dropped; sRGB is assumed.", path, space)
    return None


def _spread_visible(rgb: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """Replace colours where alpha is zero by the visible ones around; [1, 3, H, W] and [1, 1, H, W] to [1, 3, H, W]."""
    visible = alpha > 0
    if bool(visible.all()) or not bool(visible.any()):
        return rgb
    return torch.where(visible, rgb, _spread(rgb * alpha, alpha))


def _spread(colour: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Push-pull fill: straight colours from weighted ones, those without weight from the same picture at half size."""
    straight = colour / weight.clamp_min(1e-30)
    known = weight > 0
    if bool(known.all()):
        return straight
    half = _spread(F.avg_pool2d(colour, 2, ceil_mode=True), F.avg_pool2d(weight, 2, ceil_mode=True))
    return torch.where(known, straight, F.interpolate(half, size=colour.shape[-2:], mode="bilinear"))


# ----------------------------------------------------------------------------------------------------- 16-bit colour


def _opencv_works() -> bool:
    """Whether OpenCV can be imported; if not, the log says what is lost and how to get it."""
    try:
        importlib.import_module("cv2")
    except ImportError as error:
        logger.warning("16-bit colour becomes 8-bit: install opencv-python-headless to keep it (%s).", error)
        return False
    return True


def _deep_mode(image: Image.Image, path: Path) -> str | None:
    """Mode of a file of 16 bits a channel that Pillow has reduced to 8: "LA", "RGB" or "RGBA"; None for all others."""
    if isinstance(image, PngImageFile):
        with path.open("rb") as file:
            depth, colour = file.read(26)[24:]  # of the IHDR chunk, which is always the first
        return {2: "RGB", 4: "LA", 6: "RGBA"}.get(colour) if depth == 16 else None
    if isinstance(image, TiffImageFile) and image.mode.startswith("RGB"):
        return image.mode if set(image.tag_v2.get(ExifTags.Base.BitsPerSample, (8,))) == {16} else None
    return None


def _read_deep(image: Image.Image, path: Path) -> Samples | None:
    """uint16 samples of a loaded image that Pillow has reduced; None for all others, and where OpenCV cannot help."""
    mode = _deep_mode(image, path)
    if mode is None or not _opencv_works():
        return None
    pixels = _opencv_pixels(path)
    if pixels is None or pixels.dtype != np.uint16 or pixels.ndim != 3 or pixels.shape[:2] != image.size[::-1]:
        logger.warning("%s: OpenCV cannot read this kind of 16-bit file; it is read at 8 bits.", path)
        return None
    if mode == "LA":
        return pixels[..., [0, 3]]
    if image.has_transparency_data and pixels.shape[2] == 3:
        return _with_key(pixels[..., ::-1], image)
    samples = pixels[..., [2, 1, 0, 3] if image.has_transparency_data else [2, 1, 0]]
    return _straight(samples) if _is_multiplied(image) else samples


def _opencv_pixels(path: Path) -> Samples | None:
    """The file as OpenCV decodes it, [H, W] or [H, W, C] in the order BGRA; None if it cannot."""
    import cv2

    try:
        return cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return None


def _is_multiplied(image: Image.Image) -> bool:
    """Whether a TIFF says that its colours are multiplied by its alpha (ExtraSamples is 1, "associated")."""
    return isinstance(image, TiffImageFile) and image.tag_v2.get(ExifTags.Base.ExtraSamples) in (1, (1,))


def _straight(samples: Samples) -> Samples:
    """Divide colours by alpha: uint16 [H, W, 4] to the same."""
    alpha = samples[..., 3:].astype(np.float32)
    colours = samples[..., :3] * (65535 / np.maximum(alpha, 1))
    return np.concatenate([colours.round().clip(0, 65535).astype(np.uint16), samples[..., 3:]], axis=2)


def _write_deep_png(file: IO[bytes], samples: Samples, chunks: PngInfo) -> None:
    """uint16 [H, W, 3 or 4] as PNG by OpenCV, with the chunks right behind IHDR (33 bytes from the start)."""
    import cv2

    order = [2, 1, 0, 3][: samples.shape[2]]
    try:
        done, encoded = cv2.imencode(".png", samples[..., order])
    except cv2.error as error:
        raise ValueError(str(error)) from error
    if not done:
        raise ValueError("OpenCV cannot encode it")
    data = encoded.data
    file.write(data[:33])
    for kind, content, *_ in chunks.chunks:
        putchunk(file, kind, content)
    file.write(data[33:])


def _write_deep_tiff(file: IO[bytes], samples: Samples, profile: bytes | None) -> None:
    """uint16 [H, W, 3 or 4] as plain little-endian TIFF: Pillow's directory, then the samples in one strip."""
    height, width, channels = samples.shape
    directory = ImageFileDirectory_v2(b"II*\0\0\0\0\0")
    tags = ExifTags.Base
    directory[tags.ImageWidth] = width
    directory[tags.ImageLength] = height
    directory[tags.BitsPerSample] = (16,) * channels
    directory[tags.Compression] = 1  # none
    directory[tags.PhotometricInterpretation] = 2  # RGB
    directory[tags.StripOffsets] = 0  # Pillow adds where the directory ends
    directory[tags.SamplesPerPixel] = channels
    directory[tags.RowsPerStrip] = height
    directory[tags.StripByteCounts] = samples.nbytes
    directory[tags.PlanarConfiguration] = 1  # pixel by pixel
    if channels == 4:
        directory[tags.ExtraSamples] = 2  # straight alpha
    if profile is not None:
        directory.tagtype[tags.InterColorProfile] = 7  # undefined bytes
        directory[tags.InterColorProfile] = profile
    directory.save(file)
    file.write(samples.astype("<u2", copy=False).data)


# ---------------------------------------------------------------------------------------------------------- writing


@dataclass(frozen=True)
class _Format:
    """What a file format can hold, and Pillow's options for writing it."""

    name: str
    alpha: bool = True
    grey: bool = True
    icc: bool = True
    bits: Literal[8, 16] = 8
    max_side: int = 2**31 - 1
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])


_PNG = _Format("PNG", bits=16)
_JPEG = _Format("JPEG", alpha=False, max_side=65500, options={"quality": 95, "subsampling": "4:4:4"})
_TIFF = _Format("TIFF", bits=16, options={"compression": "tiff_adobe_deflate"})
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
    settings: Mapping[str, str | float | int] | None = None,
) -> None:
    """Write a picture in the manner of `like`; the suffix of `path` decides the format, missing folders are made.

    rgb: [1, 3, H, W], alpha: [1, 1, H, W] or None; any float dtype and device; clamped to [0, 1] and rounded.
    Grey (BT.601 luma), 16 bits and the ICC profile follow `like` where the format can; where alpha cannot be held it is
    laid over white, with a warning. 16-bit grey with alpha has no writer and becomes 16-bit RGBA of equal channels.
    settings: JSON in a text chunk named "ctsr", PNG only.

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
        _encode(encoded, samples, form, profile, _settings_chunk(settings))
    except _ENCODE_ERRORS as error:
        reason = error or type(error).__name__
        raise ImageWriteError(f"{path} was not written: {form.name} cannot hold it ({reason}).") from error
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as partial:
            partial.write_bytes(encoded.getbuffer())
    except OSError as error:
        raise _write_failure(path, error) from error


def check_target(path: str | os.PathLike[str]) -> None:
    """Find out before the work whether a file can be written at `path`; leaves nothing behind.

    Raises OutputFolderError if its folder is full, read-only, not allowed or gone, ImageWriteError if the name cannot
    be used.
    """
    try:
        check_writable(Path(path))
    except OSError as error:
        raise _write_failure(Path(path), error) from error


def _write_failure(path: Path, error: OSError) -> ImageWriteError:
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
    """Clamp, round and interleave, a band of rows at a time: [1, C, H, W] to uint8 or uint16 [H, W, C]."""
    deep = like.bits == 16 and form.bits == 16
    grey = like.grey and form.grey and not (deep and alpha is not None)
    if deep and not grey and form.name == "PNG":
        deep = _opencv_works()
    dtype = np.uint16 if deep else np.uint8
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
        samples[rows] = (band * np.iinfo(dtype).max).round().permute(1, 2, 0).numpy()
    return samples


def _writable_profile(like: Picture, channels: int, form: _Format, path: Path) -> bytes | None:
    """The profile of `like` if the format holds one and it fits what is written, else None with a warning."""
    if like.icc_profile is None or (form.icc and like.grey == (channels < 3)):
        return like.icc_profile
    logger.warning("%s cannot carry the ICC profile of the original; its colours may look different.", path)
    return None


def _settings_chunk(settings: Mapping[str, str | float | int] | None) -> PngInfo:
    """The settings as a PNG text chunk; an empty collection of chunks without settings."""
    chunks = PngInfo()
    if settings is not None:
        chunks.add_text(SETTINGS_KEY, json.dumps(dict(settings)))
    return chunks


def _encode(file: IO[bytes], samples: Samples, form: _Format, profile: bytes | None, chunks: PngInfo) -> None:
    """Write samples [H, W, C] to an open file; the chunks go into PNG only."""
    if samples.dtype == np.uint16 and samples.shape[2] > 1:
        if form.name == "TIFF":
            _write_deep_tiff(file, samples, profile)
            return
        if profile is not None:
            chunks.add(b"iCCP", b"ICC Profile\0\0" + zlib.compress(profile))
        _write_deep_png(file, samples, chunks)
        return
    options = dict(form.options)
    if profile is not None:
        options["icc_profile"] = profile
    if form.name == "PNG":
        options["pnginfo"] = chunks
    image = Image.fromarray(samples[..., 0] if samples.shape[2] == 1 else samples)
    image.save(file, format=form.name, **options)
