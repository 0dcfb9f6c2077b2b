"""What a picture file says besides its pixels: read from one format, corrected for the result, written to another.

EXIF goes into every format but BMP. Where a format has no place of its own, a comment and the text of a PNG go into
EXIF: the parameters of AUTOMATIC1111's web UI and the graph of ComfyUI under the tags in which these look for them.
"""

from __future__ import annotations

import contextlib
import copy
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo
from PIL.TiffImagePlugin import ImageFileDirectory_v2

SETTINGS_KEY = "ctsr"
"""Keyword of the PNG text chunk that holds the settings of a picture as JSON."""

SETTINGS_TAG = ExifTags.Base.ProcessingSoftware
"""Where they are in formats that have EXIF: "name and version of the software used to post-process the picture"."""
_SETTINGS_START = '{"ctsr":'

TIFF_XMP, TIFF_IPTC = 700, 33723
_BASE, _IFD = ExifTags.Base, ExifTags.IFD
_RAW_EXIF, _RAW_IPTC = "Raw profile type exif", "Raw profile type iptc"  # as ImageMagick and ExifTool put it into PNG
_XMP_KEY = "XML:com.adobe.xmp"
_IPTC_RESOURCE = 0x0404
_PILLOW_TEXT = 2**18  # characters, each of at most four bytes
_JPEG_SEGMENT = 65533  # bytes at most
_JPEG_XMP = _JPEG_SEGMENT - 29
_JPEG_IPTC = _JPEG_SEGMENT - 28
_ERRORS = (OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, struct.error)

# Tags of a TIFF directory that describe how its own pixels lie in the file, or are kept apart from EXIF.
_STRUCTURE = frozenset(
    (
        *(254, 255, 258, 259, *range(262, 267), 273, *range(277, 282), 284, *range(288, 294), 297, 301),
        *(*range(317, 326), 330, *range(332, 348), *range(512, 522), *range(529, 533), 32995, 32997, 32998),
        *(33421, 33422, 33550, TIFF_IPTC, 33922, 34264, 34377, 34675, 34735, 34736, 34737, 37724, 42112, 42113),
        *(*range(50706, 52000), TIFF_XMP),
    )
)
_SIZE = (_BASE.ImageWidth, _BASE.ImageLength)

# Where EXIF has a place for a PNG's text: tag, and what stands before it there.
_TEXT_IN_EXIF = {
    "parameters": (_BASE.UserComment, ""),  # AUTOMATIC1111
    "prompt": (_BASE.Make, "prompt:"),  # ComfyUI
    "workflow": (_BASE.ImageDescription, "workflow:"),  # ComfyUI
    "Description": (_BASE.ImageDescription, ""),
    "Author": (_BASE.Artist, ""),
    "Copyright": (_BASE.Copyright, ""),
    "Software": (_BASE.Software, ""),
    "Comment": (_BASE.UserComment, ""),
}


@dataclass(frozen=True)
class Metadata:
    """What a file says besides its pixels and colour profile; orientation is already applied and 1.

    Attributes:
        exif: values by tag, those of the Exif and GPS directories as dictionaries of their own; no thumbnail.
        endian: "<" or ">", the byte order in which a maker note was written.
        xmp, iptc: as they are in the file.
        dpi: pixels an inch, across and down.
        comment: of a JPEG or GIF.
        text: of a PNG, by keyword.
    """

    exif: Mapping[int, Any] = field(default_factory=dict[int, Any])
    endian: str | None = None
    xmp: bytes = b""
    iptc: bytes = b""
    dpi: tuple[float, float] | None = None
    comment: str = ""
    text: Mapping[str, str] = field(default_factory=dict[str, str])


# ---------------------------------------------------------------------------------------------------------- reading


def read_metadata(image: Image.Image) -> Metadata:
    """Everything that Pillow finds in a loaded image; parts that are broken are left out."""
    info: dict[Any, Any] = image.info
    exif = Image.Exif()
    with contextlib.suppress(*_ERRORS):
        exif = image.getexif()
    return metadata_of(exif, info, {str(key): str(value) for key, value in getattr(image, "text", {}).items()})


def metadata_of(exif: Image.Exif, info: Mapping[Any, Any], text: Mapping[str, str]) -> Metadata:
    """From EXIF (of a TIFF: its first directory), Pillow's `info` and the text chunks of a PNG."""
    xmp, iptc = info.get("xmp", b""), b""
    with contextlib.suppress(*_ERRORS):
        xmp = xmp or exif.get(TIFF_XMP, b"")
    with contextlib.suppress(*_ERRORS):
        iptc = _read_iptc(exif, info, text)
    comment = info.get("comment", b"")
    values = _read_exif(exif)
    return Metadata(
        exif=values,
        endian=exif.endian,
        xmp=xmp.encode() if isinstance(xmp, str) else bytes(xmp),
        iptc=iptc,
        dpi=_read_dpi(info.get("dpi"), values),
        comment=_read_comment(comment),
        text={key: value for key, value in text.items() if key not in (SETTINGS_KEY, _XMP_KEY, _RAW_EXIF, _RAW_IPTC)},
    )


def _read_comment(comment: Any) -> str:
    """Of a JPEG or GIF, without the settings of a result."""
    text = comment.decode("utf-8", "replace").rstrip("\0") if isinstance(comment, bytes) else str(comment)
    lines = text.split("\n")
    return "\n".join(lines[:-1] if lines[-1].startswith(_SETTINGS_START) else lines)


def _read_exif(exif: Image.Exif) -> dict[int, Any]:
    """The tags that describe the picture and can be written again; those of a TIFF's own layout are left out."""
    is_tiff = _BASE.BitsPerSample in exif or _BASE.StripOffsets in exif
    values = dict(_writable_tags({tag: exif[tag] for tag in exif if tag not in (_IFD.Exif, _IFD.GPSInfo)}, None))
    values = {tag: value for tag, value in values.items() if tag not in _STRUCTURE and not (is_tiff and tag in _SIZE)}
    if str(values.get(SETTINGS_TAG, "")).startswith(_SETTINGS_START):
        del values[SETTINGS_TAG]
    if str(values.get(_BASE.ImageDescription, "")).startswith('{"shape": ['):
        del values[_BASE.ImageDescription]  # tifffile's note on the size of the array
    if _BASE.Orientation in values:
        values[_BASE.Orientation] = 1
    for group in (_IFD.Exif, _IFD.GPSInfo):
        with contextlib.suppress(*_ERRORS):
            inner = {tag: value for tag, value in exif.get_ifd(group).items() if tag != _IFD.Interop}
            if writable := dict(_writable_tags(inner, group)):
                values[group] = writable
    return values


def _writable_tags(values: Mapping[int, Any], group: int | None) -> Iterator[tuple[int, Any]]:
    """Those that Pillow can write: a broken one would else spoil all."""
    for tag, value in values.items():
        with contextlib.suppress(*_ERRORS):
            directory = ImageFileDirectory_v2(group=group)
            directory[tag] = value
            directory.tobytes()
            yield tag, value


def _read_dpi(dpi: Any, exif: Mapping[int, Any]) -> tuple[float, float] | None:
    """As the format has it, or EXIF; None for what is no number of pixels an inch."""
    per_inch = {2: 1.0, 3: 2.54}.get(exif.get(_BASE.ResolutionUnit, 2))
    if dpi is None and per_inch is not None and {_BASE.XResolution, _BASE.YResolution} <= exif.keys():
        with contextlib.suppress(*_ERRORS):
            dpi = [float(exif[tag]) * per_inch for tag in (_BASE.XResolution, _BASE.YResolution)]
    with contextlib.suppress(*_ERRORS):
        across, down = (round(float(value), 2) for value in dpi or ())  # PNG counts by the metre
        return (across, down) if 1 < across < 65536 and 1 < down < 65536 else None
    return None


def _read_iptc(exif: Image.Exif, info: Mapping[Any, Any], text: Mapping[str, str]) -> bytes:
    """The IPTC block of a JPEG, TIFF or PNG."""
    resources: dict[int, Any] = info.get("photoshop", {})
    if _IPTC_RESOURCE in resources:
        return bytes(resources[_IPTC_RESOURCE])
    if _RAW_IPTC in text:
        block = bytes.fromhex("".join(text[_RAW_IPTC].split("\n")[3:]))
        if not block.startswith(b"8BIM"):
            return block
        name = 2 + block[6] // 2 * 2  # its length byte and itself, padded to an even number
        (size,) = struct.unpack_from(">L", block, 6 + name)
        return block[10 + name : 10 + name + size]
    numbers: Any = exif.get(TIFF_IPTC, b"")  # some write it as numbers of 32 bits
    return numbers if isinstance(numbers, bytes) else struct.pack(f"{exif.endian}{len(numbers)}L", *numbers)


# ---------------------------------------------------------------------------------------------------------- writing


@dataclass
class Writable:
    """Metadata as Pillow's save options for one format, with the names of what that format cannot hold."""

    options: dict[str, Any] = field(default_factory=dict[str, Any])
    lost: list[str] = field(default_factory=list[str])


def for_format(metadata: Metadata, name: str, height: int, width: int, settings: str = "") -> Writable:
    """Save options for a result of height x width pixels in the format `name`, as Pillow spells it.

    The settings go into the text of a PNG, the comment of a GIF, OpenEXR's header, else into EXIF; BMP has none.
    TIFF and 16-bit PNG are not written by Pillow: there "exif", "dpi", "xmp" and "iptc" mean the same.
    """
    if name in ("BMP", "EXR"):
        parts = {"EXIF": metadata.exif, "XMP": metadata.xmp, "IPTC": metadata.iptc, "the comment": metadata.comment}
        lost = [part for part, value in {**parts, "text": metadata.text}.items() if value]
        if name == "EXR":
            lost += ["the resolution"] if metadata.dpi else []
            return Writable({SETTINGS_KEY: settings} if settings else {}, lost)
        return Writable({} if metadata.dpi is None else {"dpi": metadata.dpi}, lost)
    if name == "GIF":
        return _for_gif(metadata, settings)
    out = Writable()
    values = _sized(metadata.exif, height, width)
    xmp, comment, text = _sized_xmp(metadata.xmp, height, width), metadata.comment, dict(metadata.text)
    if name == "PNG":
        if comment:
            text.setdefault("Comment", comment)
        out.options["pnginfo"] = _png_text(text | ({SETTINGS_KEY: settings} if settings else {}), xmp, metadata.iptc)
    else:
        if settings:
            values[SETTINGS_TAG] = settings
        if name == "JPEG":
            comment = comment or text.pop("Comment", "")
        elif comment:
            text.setdefault("Comment", comment)
        _put_text_into_exif(values, text, name, out)
        _put_blocks(xmp, metadata.iptc, name, out)
    if name == "JPEG" and comment:
        out.options["comment"] = comment.encode()[:_JPEG_SEGMENT]
    if metadata.dpi is not None and name in ("WEBP", "AVIF"):
        values |= {_BASE.XResolution: metadata.dpi[0], _BASE.YResolution: metadata.dpi[1], _BASE.ResolutionUnit: 2}
    elif metadata.dpi is not None:
        out.options["dpi"] = metadata.dpi
    if values:
        _put_exif(values, metadata.endian, name, out)
    return out


def _for_gif(metadata: Metadata, settings: str) -> Writable:
    """A comment, and the settings in a last line of it; a GIF holds nothing else."""
    comment = metadata.comment or metadata.text.get("Comment", "")
    parts = {"EXIF": metadata.exif, "XMP": metadata.xmp, "IPTC": metadata.iptc, "the resolution": metadata.dpi}
    lost = [part for part, value in {**parts, "text": set(metadata.text) - {"Comment"}}.items() if value]
    lines = "\n".join(line for line in (comment, settings) if line)
    return Writable({"comment": lines.encode()} if lines else {}, lost)


def _sized(exif: Mapping[int, Any], height: int, width: int) -> dict[int, Any]:
    """A copy in which the sizes, where they are given, are those of the result."""
    values = dict(copy.deepcopy(exif))
    inner: dict[int, Any] = values.get(_IFD.Exif, {})
    for group, tags in ((values, _SIZE), (inner, (_BASE.ExifImageWidth, _BASE.ExifImageHeight))):
        group.update({tag: side for tag, side in zip(tags, (width, height), strict=True) if tag in group})
    return values


def _sized_xmp(xmp: bytes, height: int, width: int) -> bytes:
    """XMP with the orientation 1 and the sizes of the result, where it says so."""
    values = {"tiff:Orientation": 1, "tiff:ImageWidth": width, "tiff:ImageLength": height}
    values |= {"exif:PixelXDimension": width, "exif:PixelYDimension": height}
    for name, value in values.items():
        xmp = re.sub(rb"(%b(?:\s*=\s*[\"']|>)\s*)\d+" % name.encode(), rb"\g<1>%d" % value, xmp)
    return xmp


def _png_text(text: Mapping[str, str], xmp: bytes, iptc: bytes) -> PngInfo:
    """Text chunks; long ones are compressed, but for those that Pillow would then refuse by default."""
    chunks = PngInfo()
    for key, value in text.items():
        chunks.add_text(key, value, zip=4096 < len(value) < _PILLOW_TEXT)
    if xmp:
        chunks.add_itxt(_XMP_KEY, xmp)
    if iptc:
        block = _photoshop(iptc)
        lines = "\n".join(block.hex()[start : start + 72] for start in range(0, 2 * len(block), 72))
        chunks.add_text(_RAW_IPTC, f"\niptc\n{len(block):8d}\n{lines}\n", zip=True)
    return chunks


def _photoshop(iptc: bytes) -> bytes:
    """IPTC as the one resource of a Photoshop block."""
    return b"8BIM" + struct.pack(">HHL", _IPTC_RESOURCE, 0, len(iptc)) + iptc + b"\0" * (len(iptc) % 2)


def _put_blocks(xmp: bytes, iptc: bytes, name: str, out: Writable) -> None:
    """XMP and IPTC, as far as the format has a place of that length for them."""
    if xmp and name == "JPEG" and len(xmp) > _JPEG_XMP:
        out.lost.append("XMP of more than 64 KB")
    elif xmp:
        out.options["xmp"] = xmp
    if iptc and name == "TIFF":
        out.options["iptc"] = iptc
    elif iptc and name == "JPEG" and len(iptc) <= _JPEG_IPTC:
        segment = b"Photoshop 3.0\0" + _photoshop(iptc)
        out.options["extra"] = b"\xff\xed" + struct.pack(">H", 2 + len(segment)) + segment
    elif iptc:
        out.lost.append("IPTC")


def _put_text_into_exif(values: dict[int, Any], text: Mapping[str, str], name: str, out: Writable) -> None:
    """Text where EXIF has a free place for it; a JPEG holds 64 KB of EXIF."""
    inner = values.setdefault(_IFD.Exif, {})
    for key, value in text.items():
        tag, prefix = _TEXT_IN_EXIF.get(key, (None, ""))
        if key == "Comment" and _BASE.ImageDescription not in values:
            tag = _BASE.ImageDescription
        group = inner if tag == _BASE.UserComment else values
        if tag is None or tag in group:
            out.lost.append(f"the text {key!r}")
            continue
        group[tag] = f"{prefix}{value}".encode()
        if tag == _BASE.UserComment:  # as EXIF wants it, and AUTOMATIC1111's web UI reads it
            code, encoding = ("ASCII\0\0\0", "ascii") if value.isascii() else ("UNICODE\0", "utf-16-be")
            group[tag] = code.encode() + value.encode(encoding)
        if name == "JPEG" and len(_as_exif(values, None).tobytes()) > _JPEG_SEGMENT:
            del group[tag]
            out.lost.append(f"the text {key!r} of more than 64 KB")
    if not inner:
        del values[_IFD.Exif]


def _put_exif(values: dict[int, Any], endian: str | None, name: str, out: Writable) -> None:
    """EXIF, in a JPEG without the maker note if only so it is short enough."""
    exif = _as_exif(values, endian)
    if name == "JPEG" and len(exif.tobytes()) > _JPEG_SEGMENT and _IFD.Exif in values:
        values[_IFD.Exif].pop(_BASE.MakerNote, None)
        exif = _as_exif(values, endian)
        out.lost.append("the camera's maker note")
    if name == "JPEG" and len(exif.tobytes()) > _JPEG_SEGMENT:
        out.lost.append("EXIF of more than 64 KB")
        exif = _as_exif({tag: values[tag] for tag in (SETTINGS_TAG,) if tag in values}, endian)
    if len(exif):
        out.options["exif"] = exif


def _as_exif(values: Mapping[int, Any], endian: str | None) -> Image.Exif:
    """Pillow's object of it."""
    exif = Image.Exif()
    exif.endian = endian
    for tag, value in values.items():
        exif[tag] = value
    return exif
