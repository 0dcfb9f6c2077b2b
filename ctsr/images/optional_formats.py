"""Formats that need another library: RAW, HEIC, JPEG XL and OpenEXR. Where it is missing, one message names the extra.

A RAW file is never left to Pillow, which takes its embedded thumbnail for the photograph.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from ..errors import ImageReadError
from .picture import Samples


@dataclass(frozen=True)
class OptionalFormat:
    """A kind of file, its suffixes, and what reads it: `module`, which the extra `extra` of this library installs."""

    name: str
    extra: str
    module: str
    suffixes: frozenset[str]

    def load(self, path: Path) -> Any:
        """The module; raises ImageReadError that says how to get it."""
        try:
            return importlib.import_module(self.module)
        except ImportError as error:
            needs = f'{path} is {self.name}, which needs one more library: pip install "ctsr[{self.extra}]"'
            raise ImageReadError(f"{needs}, or convert it to TIFF or PNG first ({error}).") from error


_CAMERAS = (
    "3fr ari arw bay cap cr2 cr3 crw dcr dng erf fff gpr iiq k25 kdc mef mos mrw nef nrw orf pef ptx raf raw rw2 rwl "
    "sr2 srf srw x3f"
)
RAW = OptionalFormat(
    "a camera's RAW file",
    "raw",
    "rawpy",
    frozenset(f".{suffix}" for suffix in _CAMERAS.split()),
)
HEIF = OptionalFormat("HEIC/HEIF", "heif", "pillow_heif", frozenset([".heic", ".heif", ".hif"]))
JXL = OptionalFormat("JPEG XL", "jxl", "pillow_jxl", frozenset([".jxl"]))
EXR = OptionalFormat("OpenEXR", "exr", "OpenEXR", frozenset([".exr"]))

OPTIONAL_SUFFIXES = RAW.suffixes | HEIF.suffixes | JXL.suffixes | EXR.suffixes
_HEIF_BRANDS = frozenset([b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"])
_DNG_VERSION, _NEW_SUBFILE_TYPE, _REDUCED = 50706, 254, 1


def optional_format(path: Path) -> OptionalFormat | None:
    """Which of these a file is, by its first bytes, else by its suffix; None for all others. May raise OSError."""
    with path.open("rb") as file:
        head = file.read(64)
    if (head[8:10] == b"CR" and head[:2] in (b"II", b"MM")) or head.startswith((b"FUJIFILMCCD-RAW", b"IIRO", b"IIRS")):
        return RAW
    if head.startswith(b"\x76\x2f\x31\x01"):
        return EXR
    if head.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")):
        return JXL
    if head[4:8] == b"ftyp":
        brands = {head[start : start + 4] for start in range(8, min(len(head), int.from_bytes(head[:4], "big")), 4)}
        if b"crx " in brands:
            return RAW
        if brands & _HEIF_BRANDS:
            return HEIF
    return RAW if path.suffix.lower() in RAW.suffixes else None


def is_raw_under_another_name(image: Image.Image) -> bool:
    """Whether a TIFF is a RAW file: it says that it is DNG, or that its first page is a reduced picture."""
    if not isinstance(image, TiffImageFile):
        return False
    return _DNG_VERSION in image.tag_v2 or bool(int(image.tag_v2.get(_NEW_SUBFILE_TYPE, 0)) & _REDUCED)


def open_optional(path: Path, kind: OptionalFormat) -> Image.Image:
    """A HEIF or JPEG XL file, open; raises ImageReadError where the library is missing."""
    module = kind.load(path)
    return module.HeifImageFile(path) if kind is HEIF else Image.open(path)  # importing pillow_jxl registers it


def read_deep_heif(image: Image.Image, path: Path) -> Samples | None:
    """uint16 [H, W, 3 or 4] of a HEIF file of 10 or 12 bits, of which Pillow's image has 8; None for all others."""
    depth = int(image.info.get("bit_depth", 8))
    if image.format != "HEIF" or depth <= 8:
        return None
    numbers: Samples = np.asarray(HEIF.load(path).open_heif(path, convert_hdr_to_8bit=False))
    levels: Samples = numbers >> (16 - depth)  # pillow_heif has shifted them up
    return (levels * (65535 / (2**depth - 1))).round().astype(np.uint16)


def develop(path: Path) -> Samples:
    """A RAW file developed as its camera would, in sRGB and upright: uint16 [H, W, 3]."""
    rawpy = RAW.load(path)
    try:
        with rawpy.imread(str(path)) as raw:
            return raw.postprocess(use_camera_wb=True, output_bps=16)
    except rawpy.LibRawError as error:
        reason = error.args[0].decode() if isinstance(error.args[0], bytes) else error
        raise ImageReadError(f"{path}: rawpy cannot develop this RAW file ({reason}); convert it to TIFF.") from error
