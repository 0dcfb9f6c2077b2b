"""Metadata from each format into each: kept where there is a place for it, named in a warning where there is none."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import ExifTags, Image, PngImagePlugin
from PIL.PngImagePlugin import PngInfo

from ctsr.images.metadata import Metadata
from ctsr.images.picture import Picture
from ctsr.images.read import read_picture
from ctsr.images.write import write_picture

CASES = Path(__file__).parents[4] / "shared" / "data" / "cases"
needs_cases = pytest.mark.skipif(not CASES.is_dir(), reason=f"no folder {CASES}")
FORMATS = [".jpg", ".png", ".webp", ".tif", ".avif"]
TAG, IFD = ExifTags.Base, ExifTags.IFD
IPTC = bytes.fromhex("1c026e0007") + b"Example"  # record 2, data set 110: credit


def enlarged(picture: Picture) -> torch.Tensor:
    """Twice the size."""
    return torch.nn.functional.interpolate(picture.rgb, scale_factor=2)


def convert(source: Path, target: Path) -> Metadata:
    """The metadata of a file after it was enlarged into another."""
    picture = read_picture(source)
    write_picture(target, enlarged(picture), picture, settings={"t": 0.5} if target.suffix == ".png" else None)
    return read_picture(target).metadata


def comment_of(metadata: Metadata) -> str:
    """Wherever the format has put it."""
    return metadata.comment or metadata.text.get("Comment") or metadata.exif.get(TAG.ImageDescription, "")


@needs_cases
@pytest.mark.parametrize("suffix", FORMATS)
def test_camera_place_and_resolution_survive(tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture) -> None:
    source = CASES / "exif_gps_xmp_300dpi.jpg"
    before, after = read_picture(source).metadata, convert(source, tmp_path / f"a{suffix}")
    for tag in (TAG.Make, TAG.Model, TAG.DateTime, TAG.Artist, TAG.Copyright):
        assert after.exif[tag] == before.exif[tag]
    inner = after.exif[IFD.Exif]
    assert (inner[TAG.DateTimeOriginal], float(inner[TAG.ExposureTime])) == ("2024:05:06 07:08:09", 0.01)
    assert (inner[TAG.ExifImageWidth], inner[TAG.ExifImageHeight]) == (192, 144)
    assert after.exif[IFD.GPSInfo] == {1: "N", 2: (1.0, 2.0, 3.0), 3: "E", 4: (4.0, 5.0, 6.0)}
    assert after.xmp == before.xmp
    assert after.dpi == (300, 300)
    assert comment_of(after) == "an example comment"
    assert caplog.text == ""


@needs_cases
@pytest.mark.parametrize("name", ["comfyui_text.png", "a1111_text.png", "text_of_megabytes_compressed.png"])
def test_text_survives_in_png(tmp_path: Path, name: str) -> None:
    before, after = read_picture(CASES / name).metadata, convert(CASES / name, tmp_path / "a.png")
    assert set(before.text) <= {"prompt", "workflow", "parameters"}
    assert after.text == before.text
    with Image.open(tmp_path / "a.png") as image:  # by a program with Pillow's own limits
        image.load()
        assert image.info["ctsr"] == '{"t": 0.5}'


@needs_cases
@pytest.mark.parametrize("suffix", [suffix for suffix in FORMATS if suffix != ".png"])
def test_prompts_go_where_their_programs_look_for_them(tmp_path: Path, suffix: str) -> None:
    text = read_picture(CASES / "comfyui_text.png").metadata.text
    exif = convert(CASES / "comfyui_text.png", tmp_path / f"a{suffix}").exif
    assert exif[TAG.Make] == f"prompt:{text['prompt']}"
    assert exif[TAG.ImageDescription] == f"workflow:{text['workflow']}"
    text = read_picture(CASES / "a1111_text.png").metadata.text
    exif = convert(CASES / "a1111_text.png", tmp_path / f"b{suffix}").exif
    assert exif[IFD.Exif][TAG.UserComment] == b"ASCII\0\0\0" + text["parameters"].encode()


@needs_cases
def test_text_too_long_for_a_jpeg_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    after = convert(CASES / "text_of_megabytes_compressed.png", tmp_path / "a.jpg")
    assert after.exif == {}
    assert "JPEG cannot hold the text 'workflow' of more than 64 KB" in caplog.text


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("suffix", FORMATS)
def test_what_a_picture_says_is_kept_or_named(
    tmp_path: Path, suffix: str, bits: int, caplog: pytest.LogCaptureFixture
) -> None:
    rgb = torch.full((1, 3, 8, 8), 0.5)
    metadata = Metadata(
        exif={TAG.Make: "ExampleCam", TAG.Orientation: 1, IFD.Exif: {TAG.MakerNote: b"note", TAG.ISOSpeedRatings: 100}},
        xmp=b"<x:xmpmeta/>",
        iptc=IPTC,
        dpi=(240, 240),
        comment="ein Gruß",
        text={"Title": "none"},
    )
    path = tmp_path / f"a{suffix}"
    write_picture(path, rgb, Picture(rgb, bits=16 if bits == 16 else 8, metadata=metadata))
    after = read_picture(path).metadata
    assert (after.xmp, after.dpi) == (metadata.xmp, metadata.dpi)
    assert after.exif[TAG.Make] == "ExampleCam"
    assert after.exif[IFD.Exif] == metadata.exif[IFD.Exif]
    assert after.iptc == (IPTC if suffix in (".jpg", ".png", ".tif") else b"")
    assert ("IPTC" in caplog.text) == (suffix in (".webp", ".avif"))
    assert ("the text 'Title'" in caplog.text) == (suffix != ".png")
    if suffix in (".jpg", ".png"):
        assert comment_of(after) == "ein Gruß"


def test_bmp_holds_only_the_resolution(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rgb = torch.full((1, 3, 8, 8), 0.5)
    metadata = Metadata(exif={TAG.Make: "A"}, xmp=b"<x/>", iptc=IPTC, comment="b", text={"c": "d"}, dpi=(300, 300))
    write_picture(tmp_path / "a.bmp", rgb, Picture(rgb, metadata=metadata))
    assert "BMP cannot hold EXIF, XMP, IPTC, the comment, text of the original" in caplog.text


def test_orientation_is_reset_everywhere(tmp_path: Path) -> None:
    """In EXIF and in XMP, which Pillow looks at too: the result would else be turned twice."""
    exif = Image.Exif()
    exif[TAG.Orientation] = 6
    xmp = (
        b'<rdf:Description tiff:Orientation="6" exif:PixelXDimension="8"><exif:PixelYDimension>4</exif:PixelYDimension>'
    )
    Image.new("RGB", (8, 4)).save(tmp_path / "a.jpg", exif=exif, xmp=xmp)
    picture = read_picture(tmp_path / "a.jpg")
    assert (picture.width, picture.height) == (4, 8)
    for suffix in FORMATS:
        after = convert(tmp_path / "a.jpg", tmp_path / f"b{suffix}")
        again = read_picture(tmp_path / f"b{suffix}")
        assert (again.width, again.height) == (8, 16)
        assert b'Orientation="1" exif:PixelXDimension="8"><exif:PixelYDimension>16<' in after.xmp
        assert after.exif.get(TAG.Orientation, 1) == 1


def test_thumbnail_is_dropped(tmp_path: Path) -> None:
    """As cameras write it: a second directory of the EXIF, with a small JPEG."""
    small = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(small, "JPEG")
    exif = Image.Exif()
    exif[TAG.Make] = "ExampleCam"
    body = bytearray(exif.tobytes()[6:])
    end = len(body)
    count = int.from_bytes(body[8:10], "big")
    body[10 + 12 * count : 14 + 12 * count] = end.to_bytes(4, "big")
    for tag, value in ((513, end + 30), (514, small.tell())):
        body += b"" if tag == 514 else (2).to_bytes(2, "big")
        body += tag.to_bytes(2, "big") + b"\0\4\0\0\0\1" + value.to_bytes(4, "big")
    body += bytes(4) + small.getvalue()
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", exif=b"Exif\0\0" + bytes(body))
    with Image.open(tmp_path / "a.jpg") as image:
        assert image.getexif().get_ifd(IFD.IFD1)[514] == small.tell()
    convert(tmp_path / "a.jpg", tmp_path / "b.jpg")
    with Image.open(tmp_path / "b.jpg") as image:
        assert image.getexif()[TAG.Make] == "ExampleCam"
        assert image.getexif().get_ifd(IFD.IFD1) == {}


def test_exif_too_long_for_a_jpeg_loses_the_maker_note_first(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rgb = torch.full((1, 3, 8, 8), 0.5)
    exif: dict[int, Any] = {TAG.Make: "A", IFD.Exif: {TAG.MakerNote: bytes(70000), TAG.ISOSpeedRatings: 100}}
    write_picture(tmp_path / "a.jpg", rgb, Picture(rgb, metadata=Metadata(exif=exif)))
    assert read_picture(tmp_path / "a.jpg").metadata.exif == {TAG.Make: "A", IFD.Exif: {TAG.ISOSpeedRatings: 100}}
    assert "JPEG cannot hold the camera's maker note" in caplog.text


@needs_cases
def test_metadata_is_left_out_on_request() -> None:
    source = CASES / "exif_gps_xmp_300dpi.jpg"
    assert read_picture(source, keep_metadata=False).metadata == Metadata()
    assert torch.equal(read_picture(source, keep_metadata=False).rgb, read_picture(source).rgb)


def test_broken_tags_are_left_out(tmp_path: Path) -> None:
    Image.new("RGB", (8, 6)).save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f", xmp=b"<x/>")
    assert convert(tmp_path / "a.jpg", tmp_path / "b.jpg").xmp == b"<x/>"


def test_text_limits_of_pillow_are_restored(tmp_path: Path) -> None:
    before = PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY
    text = PngInfo()
    text.add_text("long", "x" * 3_000_000, zip=True)
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png", pnginfo=text)
    assert len(read_picture(tmp_path / "a.png").metadata.text["long"]) == 3_000_000
    assert before == (PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY)
