"""Samples that Pillow reduces to 8 bits or cannot open: 16-bit colour and floating-point TIFF.

They come in through OpenCV, which is imported when such a file appears, and go out through OpenCV (PNG), or as strips
under Pillow's TIFF directory: OpenCV and tifffile write neither EXIF nor GPS.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import logging
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from PIL import ExifTags, Image, TiffTags
from PIL.PngImagePlugin import PngImageFile, PngInfo, putchunk
from PIL.TiffImagePlugin import ImageFileDirectory_v2, TiffImageFile

from ..errors import ImageReadError
from .metadata import TIFF_IPTC, TIFF_XMP, Metadata, metadata_of
from .picture import Samples

logger = logging.getLogger(__name__)

_TAG = ExifTags.Base
_LOG_ERRORS = 2  # OpenCV's LOG_LEVEL_ERROR
_STRIP_BYTES = 2**18  # before compression
_OPENCV_READS = {(3, 32), (3, 64), (1, 8), (1, 16)}  # SampleFormat and bits of a sample, of pages that it reads rightly


def opencv_works() -> bool:
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
        if depth == 16 and getattr(image, "n_frames", 1) > 1:
            logger.warning("%s: frames of 16 bits are read at 8 bits.", path)
            return None
        return {2: "RGB", 4: "LA", 6: "RGBA"}.get(colour) if depth == 16 else None
    if isinstance(image, TiffImageFile) and image.mode.startswith("RGB"):
        return image.mode if set(image.tag_v2.get(_TAG.BitsPerSample, (8,))) == {16} else None
    return None


def read_deep(image: Image.Image, path: Path) -> Samples | None:
    """uint16 samples of a loaded image that Pillow has reduced; None for all others, and where OpenCV cannot help.

    Raises ImageReadError for a TIFF with a plane for each channel, which both Pillow and OpenCV misread.
    """
    mode = _deep_mode(image, path)
    if mode is not None and isinstance(image, TiffImageFile) and image.tag_v2.get(_TAG.PlanarConfiguration, 1) != 1:
        raise ImageReadError(f"{path}: a 16-bit TIFF whose channels lie apart is not read; save it pixel by pixel.")
    if mode is None or not opencv_works():
        return None
    pixels = _opencv_pixels(path, image.tell())
    if pixels is None or pixels.dtype != np.uint16 or pixels.ndim != 3 or pixels.shape[:2] != image.size[::-1]:
        logger.warning("%s: OpenCV cannot read this kind of 16-bit file; it is read at 8 bits.", path)
        return None
    if mode == "LA":
        return pixels[..., [0, 3]]
    if image.has_transparency_data and pixels.shape[2] == 3:
        return with_key(pixels[..., ::-1], image)
    samples = pixels[..., [2, 1, 0, 3] if image.has_transparency_data else [2, 1, 0]]
    multiplied = isinstance(image, TiffImageFile) and image.tag_v2.get(_TAG.ExtraSamples) in (1, (1,))  # "associated"
    return straight(samples) if multiplied else samples


def _opencv_pixels(path: Path, page: int = 0) -> Samples | None:
    """A page of a file as OpenCV decodes it, [H, W] or [H, W, C] in the order BGRA; None if it cannot."""
    import cv2

    log: Any = getattr(cv2.utils, "logging", cv2)  # where OpenCV 5 has what 4 has at its top
    data, logged = np.fromfile(path, np.uint8), log.getLogLevel()
    log.setLogLevel(_LOG_ERRORS)  # it warns of tags that it does not know
    try:
        if page == 0:
            return cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
        _, pages = cv2.imdecodemulti(data, cv2.IMREAD_UNCHANGED, range=(page, page + 1))
        return pages[0] if pages else None
    except cv2.error:
        return None
    finally:
        log.setLogLevel(logged)


def straight(samples: Samples) -> Samples:
    """Divide colours by alpha: uint8, uint16 or float32 [H, W, 4] to the same."""
    alpha = samples[..., 3:].astype(np.float32)
    if samples.dtype.kind == "f":
        return np.concatenate([samples[..., :3] / np.maximum(alpha, 1e-6), alpha], axis=2)
    white = np.iinfo(samples.dtype).max
    colours = samples[..., :3] * (white / np.maximum(alpha, 1))
    return np.concatenate([colours.round().clip(0, white).astype(samples.dtype), samples[..., 3:]], axis=2)


class TiffPage(NamedTuple):
    """Where the directory of a page begins, and its NewSubfileType."""

    offset: int
    kind: int


def tiff_pages(path: Path) -> list[TiffPage]:
    """The pages of a TIFF, in order; none of other files."""
    pages = dict[int, TiffPage]()
    with path.open("rb") as file, contextlib.suppress(SyntaxError, OSError, struct.error):
        directory = ImageFileDirectory_v2(file.read(8))
        while (offset := directory.next) and offset not in pages:
            file.seek(offset)
            directory.load(file)
            pages[offset] = TiffPage(offset, int(directory.get(_TAG.NewSubfileType, 0)))
    return list(pages.values())


def read_tiff(path: Path, page: int = 0) -> tuple[Samples, bytes | None, Metadata] | None:
    """Samples, ICC profile and metadata of a page of a TIFF that Pillow cannot open; None for all other files.

    That is one of floating-point colour, or one of 8 or 16 bits behind such a page. The samples are float32, uint8 or
    uint16 [H, W, 1, 3 or 4] as the file has them. Raises ImageReadError for a TIFF of a kind that
    OpenCV cannot read rightly, or where it is missing.
    """
    pages, tags = tiff_pages(path), Image.Exif()
    if page >= len(pages):
        return None
    with path.open("rb") as file:
        tags.endian = "<" if file.read(2) == b"II" else ">"
        tags.load_from_fp(file, pages[page].offset)
        metadata = metadata_of(tags, {}, {})
        profile, extra = tags.get(_TAG.InterColorProfile), tags.get(_TAG.ExtraSamples)
        bits, kinds = _numbers(tags.get(_TAG.BitsPerSample, 1)), _numbers(tags.get(_TAG.SampleFormat, 1))
        together = len(bits) == 1 or tags.get(_TAG.PlanarConfiguration, 1) == 1
        is_plain = tags.get(_TAG.PhotometricInterpretation) in (1, 2)
    what = f"{path}: a TIFF of {len(bits)} x {bits[0]} bits{' (floating-point)' * (kinds[0] == 3)}"
    if (kinds[0], bits[0]) not in _OPENCV_READS or not together or not is_plain:
        raise ImageReadError(f"{what} of a layout that is not read; convert it to 16 bits, or to float32 RGB.")
    try:
        importlib.import_module("cv2")
    except ImportError as error:
        raise ImageReadError(f"{what} needs OpenCV: pip install opencv-python-headless ({error}).") from error
    pixels = _opencv_pixels(path, page)
    if pixels is None or pixels.dtype.kind != "uuf"[kinds[0] - 1]:
        raise ImageReadError(f"{what} is damaged, cut off or compressed in a way that OpenCV does not read.")
    pixels = (pixels.astype(np.float32) if kinds[0] == 3 else pixels).reshape(*pixels.shape[:2], -1)
    samples = pixels[..., [2, 1, 0, 3][: pixels.shape[2]]] if pixels.shape[2] >= 3 else pixels[..., :1]
    kind_of_alpha = _numbers(extra)[0] if extra is not None else 0
    if samples.shape[2] == 4:
        samples = {1: straight(samples), 2: samples}.get(kind_of_alpha, samples[..., :3])
    return samples, profile, metadata


def _numbers(value: Any) -> tuple[int, ...]:
    """The value of a tag that is one number or several."""
    return tuple(np.atleast_1d(value).tolist())


def with_key(samples: Samples, image: Image.Image) -> Samples:
    """Append the alpha that a PNG's transparent colour (tRNS, given at the depth of the file) stands for."""
    key = np.asarray(image.info["transparency"])
    alpha = (samples != key).any(axis=2, keepdims=True) * np.iinfo(samples.dtype).max
    return np.concatenate([samples, alpha.astype(samples.dtype)], axis=2)


def write_deep_png(file: IO[bytes], samples: Samples, profile: bytes | None, options: Mapping[str, Any]) -> None:
    """uint16 [H, W, 3 or 4] as PNG by OpenCV, with further chunks right after IHDR (33 bytes from the start).

    Of the save options "pnginfo", "exif" and "dpi" are taken.
    """
    import cv2

    chunks = PngInfo()
    if profile is not None:
        chunks.add(b"iCCP", b"ICC Profile\0\0" + zlib.compress(profile))
    if dpi := options.get("dpi"):
        chunks.add(b"pHYs", struct.pack(">LLB", *(round(per_inch / 0.0254) for per_inch in dpi), 1))
    if exif := options.get("exif"):
        chunks.add(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    chunks.chunks += options["pnginfo"].chunks

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


def write_tiff(file: IO[bytes], samples: Samples, profile: bytes | None, options: Mapping[str, Any]) -> None:
    """uint8, uint16 or float32 [H, W, C] as little-endian TIFF: Pillow's directory, then compressed strips.

    Where the file is not empty it becomes one page more. Of the save options "exif", "dpi", "xmp" and "iptc" are taken.
    """
    height, width, channels = samples.shape
    rows = max(1, _STRIP_BYTES // samples[0].nbytes)
    little = samples.astype(samples.dtype.newbyteorder("<"), copy=False)
    strips = [zlib.compress(little[top : top + rows].tobytes()) for top in range(0, height, rows)]
    sizes = [len(strip) for strip in strips]
    directory = ImageFileDirectory_v2(b"II*\0\0\0\0\0")
    for tag, value in options.get("exif", {}).items():
        directory[tag] = value
    directory[_TAG.ImageWidth] = width
    directory[_TAG.ImageLength] = height
    directory[_TAG.BitsPerSample] = (8 * samples.itemsize,) * channels
    directory[_TAG.SampleFormat] = (3 if samples.dtype.kind == "f" else 1,) * channels
    directory[_TAG.Compression] = 8  # deflate
    directory[_TAG.PhotometricInterpretation] = 1 if channels < 3 else 2  # grey, RGB
    directory.tagtype[_TAG.StripOffsets] = directory.tagtype[_TAG.StripByteCounts] = TiffTags.LONG
    directory[_TAG.StripOffsets] = tuple(itertools.accumulate(sizes[:-1], initial=0))  # Pillow adds the directory's end
    directory[_TAG.SamplesPerPixel] = channels
    directory[_TAG.RowsPerStrip] = rows
    directory[_TAG.StripByteCounts] = tuple(sizes)
    directory[_TAG.PlanarConfiguration] = 1  # pixel by pixel
    if channels in (2, 4):
        directory[_TAG.ExtraSamples] = 2  # straight alpha
    if dpi := options.get("dpi"):
        directory[_TAG.XResolution], directory[_TAG.YResolution] = dpi
        directory[_TAG.ResolutionUnit] = 2  # inch
    blocks = {_TAG.InterColorProfile: profile, TIFF_XMP: options.get("xmp"), TIFF_IPTC: options.get("iptc")}
    for tag, block in blocks.items():
        if block:
            directory.tagtype[tag] = TiffTags.BYTE if tag == TIFF_XMP else TiffTags.UNDEFINED
            directory[tag] = block
    _link_page(file)
    directory.save(file)
    for strip in strips:
        file.write(strip)


def _link_page(file: IO[bytes]) -> None:
    """Let the last directory of a TIFF of ours name the place where the file ends as that of the next."""
    end = file.seek(0, 2) + file.tell() % 2
    if end == 0:
        return
    file.write(bytes(end - file.tell()))
    place = 4
    while True:
        file.seek(place)
        (directory,) = struct.unpack("<L", file.read(4))
        if directory == 0:
            break
        file.seek(directory)
        (entries,) = struct.unpack("<H", file.read(2))
        place = directory + 2 + 12 * entries
    file.seek(place)
    file.write(struct.pack("<L", end))
    file.seek(end)
