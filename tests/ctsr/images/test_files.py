"""Pictures in and out of files: what a still holds survives; what cannot be read or written gets one sentence."""

from __future__ import annotations

import io
import json
import logging
import os
import struct
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, TiffImagePlugin
from PIL.PngImagePlugin import putchunk

from ctsr.errors import CTSRError, ImageReadError, ImageWriteError
from ctsr.images.deep import write_tiff
from ctsr.images.formats import output_format, writable_suffixes
from ctsr.images.picture import Picture
from ctsr.images.read import read_picture
from ctsr.images.write import write_picture

STRESS = Path(__file__).parents[4] / "shared" / "data" / "stress"
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
GRAY = SRGB[:16] + b"GRAY" + SRGB[20:]  # its header is all that is looked at


def noise(channels: int, height: int = 5, width: int = 7, seed: int = 0) -> torch.Tensor:
    """[1, C, H, W] fp32 in [0, 1]."""
    return torch.rand(1, channels, height, width, generator=torch.Generator().manual_seed(seed))


def on_grid(values: torch.Tensor, white: int) -> torch.Tensor:
    """Round to what a file of that depth can hold."""
    return (values * white).round() / white


def insert_chunks(path: Path, *chunks: tuple[bytes, bytes]) -> None:
    """Put chunks into a PNG, behind IHDR."""
    data = path.read_bytes()
    with path.open("wb") as file:
        file.write(data[:33])
        for kind, content in chunks:
            putchunk(file, kind, content)
        file.write(data[33:])


def leftovers(folder: Path) -> list[str]:
    """Names in a folder."""
    return sorted(entry.name for entry in folder.iterdir())


# ------------------------------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("suffix", [".png", ".tif", ".tiff"])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("with_alpha", [False, True])
@pytest.mark.parametrize("grey", [False, True])
def test_exact_round_trip(tmp_path: Path, suffix: str, bits: int, with_alpha: bool, grey: bool) -> None:
    white = 2**bits - 1
    rgb = on_grid(noise(1).repeat(1, 3, 1, 1) if grey else noise(3), white)
    alpha = on_grid(0.1 + 0.9 * noise(1, seed=1), white) if with_alpha else None
    like = Picture(rgb, alpha, grey, 16 if bits == 16 else 8)
    path = tmp_path / f"out{suffix}"
    write_picture(path, rgb, like, alpha)
    again = read_picture(path)
    assert torch.equal(again.rgb, rgb)
    assert (again.alpha is None) if alpha is None else torch.equal(again.alpha, alpha)
    assert again.bits == bits
    assert again.grey == (grey and not (with_alpha and bits == 16))
    assert (again.height, again.width) == (5, 7)
    assert leftovers(tmp_path) == [path.name]


def test_values_are_rounded_and_clamped(tmp_path: Path) -> None:
    rgb = torch.tensor([-1.0, 100.6 / 255, 7.0]).view(1, 3, 1, 1)
    write_picture(tmp_path / "a.png", rgb, Picture(rgb))
    assert Image.open(tmp_path / "a.png").getpixel((0, 0)) == (0, 101, 255)


def test_half_precision_and_grey_by_luma(tmp_path: Path) -> None:
    rgb = torch.tensor([1.0, 0.0, 0.0], dtype=torch.bfloat16).view(1, 3, 1, 1)
    write_picture(tmp_path / "a.png", rgb, Picture(rgb, grey=True))
    with Image.open(tmp_path / "a.png") as image:
        assert (image.mode, image.getpixel((0, 0))) == ("L", 76)


def test_taller_than_a_band(tmp_path: Path) -> None:
    rgb = on_grid(noise(3, 600, 3), 255)
    write_picture(tmp_path / "a.png", rgb, Picture(rgb))
    assert torch.equal(read_picture(tmp_path / "a.png").rgb, rgb)


@pytest.mark.parametrize("suffix", [suffix for suffix in writable_suffixes() if suffix != ".gif"])
@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("bits", [8, 16])
def test_every_format_writes_and_reads(tmp_path: Path, suffix: str, grey: bool, bits: int) -> None:
    rgb = torch.full((1, 3, 20, 30), 0.25)
    alpha = torch.full((1, 1, 20, 30), 0.5)
    path = tmp_path / f"new/folder/out{suffix.upper()}"
    write_picture(path, rgb, Picture(rgb, alpha, grey, 16 if bits == 16 else 8, GRAY if grey else SRGB), alpha)
    again = read_picture(path)
    holds_alpha = suffix not in (".jpg", ".jpeg", ".bmp")
    assert (again.alpha is not None) == holds_alpha
    expected = 0.25 if holds_alpha else 0.25 * 0.5 + 0.5
    assert (again.rgb - expected).abs().max() < 0.02
    assert again.rgb.shape == rgb.shape
    assert leftovers(path.parent) == [path.name]


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_profile_is_carried(tmp_path: Path, bits: int, suffix: str) -> None:
    rgb = noise(3)
    write_picture(tmp_path / f"a{suffix}", rgb, Picture(rgb, None, False, 16 if bits == 16 else 8, SRGB))
    again = read_picture(tmp_path / f"a{suffix}")
    assert (again.icc_profile, again.bits) == (SRGB, bits)


def test_profile_that_cannot_be_carried_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rgb = noise(3)
    write_picture(tmp_path / "a.bmp", rgb, Picture(rgb, icc_profile=SRGB))
    assert "ICC profile" in caplog.text


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("channels", [1, 3])
def test_settings_are_a_text_chunk(tmp_path: Path, bits: int, channels: int) -> None:
    rgb = noise(3)
    settings = {"t": 0.3, "model": "mini ü", "tile": 0}
    like = Picture(rgb, grey=channels == 1, bits=16 if bits == 16 else 8, icc_profile=GRAY if channels == 1 else SRGB)
    write_picture(tmp_path / "a.png", rgb, like, settings=settings)
    with Image.open(tmp_path / "a.png") as image:
        image.load()
        assert json.loads(image.info["ctsr"]) == settings
        assert image.info["icc_profile"] == like.icc_profile


# ----------------------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("kind", [".jpg", ".png", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(tmp_path: Path, bits: int, kind: str, orientation: int) -> None:
    """The stored picture is the upright one put through the inverse of what EXIF asks for."""
    if kind == ".jpg" and bits == 16:
        pytest.skip("JPEG holds 8 bits")
    upright = torch.zeros(1, 3, 16, 24)
    upright[:, 0, :8], upright[:, 1, :, :8] = 1, 1  # red above, green on the left
    turned = {2: (3,), 3: (2, 3), 4: (2,)}.get(orientation, ())
    stored = upright.flip(turned)
    if orientation > 4:
        stored = upright.flip({5: (), 6: (3,), 7: (2, 3), 8: (2,)}[orientation]).transpose(2, 3)
    path = tmp_path / f"a{kind}"
    write_picture(path, stored, Picture(stored, bits=16 if bits == 16 else 8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    if kind == ".jpg":
        Image.open(path).save(path, exif=exif, quality=95, subsampling="4:4:4")
    elif kind == ".png":
        insert_chunks(path, (b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")))
    else:
        turn_tiff(path, orientation)
    again = read_picture(path)
    assert again.bits == bits
    assert (again.rgb - upright).abs().max() < 0.1


def turn_tiff(path: Path, orientation: int) -> None:
    """Write the orientation into a TIFF: a new directory before the same samples."""
    data = path.read_bytes()
    with Image.open(path) as image:
        assert isinstance(image, TiffImagePlugin.TiffImageFile)
        tags = image.tag_v2
    tags[0x0112] = orientation
    (place,), (size,) = tags[TiffImagePlugin.STRIPOFFSETS], tags[TiffImagePlugin.STRIPBYTECOUNTS]
    tags[TiffImagePlugin.STRIPOFFSETS] = 0  # Pillow adds where the directory ends
    file = io.BytesIO()
    tags.save(file)
    path.write_bytes(file.getvalue() + data[place : place + size])


def test_broken_exif_is_ignored(tmp_path: Path) -> None:
    Image.new("RGB", (8, 6)).save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")
    assert read_picture(tmp_path / "a.jpg").width == 8


@pytest.mark.parametrize(
    ("mode", "grey", "alpha", "bits"),
    [
        ("1", True, False, 8),
        ("L", True, False, 8),
        ("LA", True, True, 8),
        ("P", False, False, 8),
        ("RGB", False, False, 8),
        ("RGBA", False, True, 8),
        ("CMYK", False, False, 8),
        ("LAB", False, False, 8),
        ("I;16", True, False, 16),
        ("I", True, False, 16),
        ("F", True, False, 32),
    ],
)
def test_modes(tmp_path: Path, mode: str, grey: bool, alpha: bool, bits: int) -> None:
    white = {"I;16": 65535, "I": 65535, "F": 1.0, "CMYK": (0, 0, 0, 0)}.get(mode)
    white = (255, 128, 128) if mode == "LAB" else white
    image = Image.new(mode, (4, 3), white) if white is not None else Image.new(mode, (4, 3), "white")
    image.save(tmp_path / "a.tif")
    picture = read_picture(tmp_path / "a.tif")
    assert (picture.grey, picture.alpha is not None, picture.bits) == (grey, alpha, bits)
    assert picture.rgb.shape == (1, 3, 3, 4)
    assert picture.rgb.min() > 0.98
    assert picture.rgb.max() <= 1
    assert picture.rgb.dtype == torch.float32


def test_floats_outside_their_range_are_clipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    values = np.array([[-5, np.nan, 0.25, 1, 200, np.inf]], np.float32)
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert read_picture(tmp_path / "a.tif").rgb[0, 0, 0].tolist() == [0, 0, 0.25, 1, 1, 1]
    assert "a.tif: 66.7 % of its values lie outside 0 (black) to 1 (white)" in caplog.text


def test_dark_integers_stay_dark(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 200]], np.int32)).save(tmp_path / "a.tif")
    picture = read_picture(tmp_path / "a.tif")
    assert (picture.bits, picture.rgb.max()) == (16, np.float32(200) / np.float32(65535))


def test_one_bright_integer_does_not_darken_the_others(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Image.fromarray(np.array([[-7, 13107, 2**30]], np.int32)).save(tmp_path / "a.tif")
    assert read_picture(tmp_path / "a.tif").rgb[0, 0, 0] == pytest.approx([0, 0.2, 1])
    assert "66.7 % of its values lie outside 0 (black) to 65535 (white)" in caplog.text


def test_unsigned_integers_of_32_bits_have_the_largest_as_white(tmp_path: Path) -> None:
    with (tmp_path / "a.tif").open("wb") as file:
        write_tiff(file, np.array([[[0], [2**31], [2**32 - 1]]], np.uint32), None, {})
    picture = read_picture(tmp_path / "a.tif")
    assert picture.rgb[0, 0, 0] == pytest.approx([0, 0.5, 1], abs=1e-4)
    assert picture.bits == 16


def test_palette_with_transparency(tmp_path: Path) -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((0, 0), 0)
    image.save(tmp_path / "a.png", transparency=0)
    picture = read_picture(tmp_path / "a.png")
    assert picture.alpha is not None
    assert picture.alpha[0, 0, 0, 0] == 0
    assert picture.alpha.sum() == 15
    assert torch.equal(picture.rgb[0, :, 0, 0], torch.tensor([0.0, 0.0, 1.0]))  # the hidden red is gone


@pytest.mark.parametrize("grey", [False, True])
def test_transparent_colour_at_16_bits(tmp_path: Path, grey: bool) -> None:
    rgb = on_grid(noise(1).repeat(1, 3, 1, 1) if grey else noise(3), 65535)
    path = tmp_path / "a.png"
    write_picture(path, rgb, Picture(rgb, grey=grey, bits=16))
    key = [round(value * 65535) for value in rgb[0, :, 2, 3].tolist()]
    insert_chunks(path, (b"tRNS", struct.pack(">H", key[0]) if grey else struct.pack(">3H", *key)))
    picture = read_picture(path)
    assert (picture.bits, picture.grey) == (16, grey)
    assert picture.alpha is not None
    assert picture.alpha[0, 0, 2, 3] == 0
    assert picture.alpha.sum() == 34


def test_multiplied_tiff_becomes_straight(tmp_path: Path) -> None:
    """ExtraSamples 1: colours in the file are multiplied by alpha."""
    rgb, alpha = torch.full((1, 3, 3, 4), 0.5), torch.full((1, 1, 3, 4), 0.25)
    path = tmp_path / "a.tif"
    write_picture(path, rgb * alpha, Picture(rgb, alpha, bits=16), alpha)
    data = path.read_bytes()
    straight = struct.pack("<HHLHH", 338, 3, 1, 2, 0)
    assert data.count(straight) == 1
    path.write_bytes(data.replace(straight, struct.pack("<HHLHH", 338, 3, 1, 1, 0)))
    assert (read_picture(path).rgb - 0.5).abs().max() < 1e-3


def test_hidden_colours_do_not_bleed(tmp_path: Path) -> None:
    """A white disc on hidden garbage: enlarged apart and put over white, no other colour is seen."""
    y, x = np.mgrid[-32:32, -32:32]
    visible = (x**2 + y**2 < 400)[..., None]
    garbage = np.random.default_rng(0).integers(0, 255, (64, 64, 3))
    pixels = np.concatenate([np.where(visible, (255, 200, 100), garbage), visible * 255], axis=2).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    picture = read_picture(tmp_path / "a.png")
    assert picture.alpha is not None
    large = torch.nn.functional.interpolate(picture.rgb, scale_factor=4, mode="bicubic")
    expected = torch.tensor([255, 200, 100]).view(1, 3, 1, 1) / 255
    assert (large - expected).abs().max() < 1e-4
    assert torch.equal(picture.alpha, torch.from_numpy(visible[..., 0]).float()[None, None])


def test_spread_colours_are_those_nearby(tmp_path: Path) -> None:
    pixels = np.zeros((16, 64, 4), np.uint8)
    pixels[:, :8] = (255, 0, 0, 255)
    pixels[:, -8:] = (0, 0, 255, 255)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    rgb = read_picture(tmp_path / "a.png").rgb
    assert rgb[0, 0, :, 8:16].min() > 0.7
    assert rgb[0, 2, :, -16:-8].min() > 0.7


@pytest.mark.parametrize("value", [0, 255])
def test_one_alpha_everywhere(tmp_path: Path, value: int) -> None:
    """Opaque: the alpha stays, so that the output is RGBA too. Invisible: nothing to spread, colours stay."""
    Image.new("RGBA", (5, 1), (10, 20, 30, value)).save(tmp_path / "a.png")
    picture = read_picture(tmp_path / "a.png")
    assert picture.alpha is not None
    assert bool((picture.alpha == value / 255).all())
    assert torch.equal(picture.rgb[0, :, 0, 0] * 255, torch.tensor([10.0, 20.0, 30.0]))


def black_ink_only() -> bytes:
    """A CMYK profile (to Lab, one 8-bit table) in which cyan, magenta and yellow are invisible."""
    ramp = bytes(range(256))
    corners = b"".join(bytes([0 if ink & 1 else 255, 128, 128]) for ink in range(16))  # black is the last to vary
    identity = struct.pack(">9l", *(65536 * (i % 4 == 0) for i in range(9)))
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + identity + 4 * ramp + corners + 3 * ramp
    white = b"XYZ \0\0\0\0" + struct.pack(">3l", 63190, 65536, 54061)
    tags = struct.pack(">L4sLL4sLL", 2, b"A2B0", 156, len(table), b"wtpt", 156 + len(table), len(white))
    head = struct.pack(">4sL4s4s4s12s4s", b"lcms", 0x02400000, b"prtr", b"CMYK", b"Lab ", bytes(12), b"acsp")
    head = head.ljust(64, b"\0") + struct.pack(">3l", 63190, 65536, 54061)
    profile = head.ljust(124, b"\0") + tags + table + white
    return struct.pack(">L", 4 + len(profile)) + profile


@pytest.mark.parametrize("with_profile", [False, True])
def test_cmyk_goes_through_its_profile(tmp_path: Path, with_profile: bool) -> None:
    image = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    image.save(tmp_path / "a.jpg", icc_profile=black_ink_only() if with_profile else None)
    picture = read_picture(tmp_path / "a.jpg")
    expected = torch.tensor([1.0, 1.0, 1.0] if with_profile else [0.0, 1.0, 1.0])
    assert (picture.rgb[0, :, 8, 8] - expected).abs().max() < 0.02
    assert picture.icc_profile is None


@pytest.mark.parametrize(
    ("mode", "profile", "kept"),
    [
        ("RGB", SRGB, True),
        ("RGBA", SRGB, True),
        ("P", SRGB, True),
        ("L", GRAY, True),
        ("L", SRGB, False),
        ("RGB", GRAY, False),
        ("RGB", b"not a profile", False),
        ("CMYK", b"not a profile", False),
        ("CMYK", SRGB, False),
    ],
)
def test_profiles(tmp_path: Path, mode: str, profile: bytes, kept: bool, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    Image.new(mode, (4, 3)).save(path, icc_profile=profile)
    assert read_picture(path).icc_profile == (profile if kept else None)
    assert ("ICC profile" in caplog.text) == (not kept and mode != "CMYK")


@pytest.mark.parametrize(("name", "frames"), [("a.gif", 3), ("a.webp", 3), ("a.png", 3), ("a.tif", 3)])
def test_first_frame_of_an_animation(tmp_path: Path, name: str, frames: int, caplog: pytest.LogCaptureFixture) -> None:
    images = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    images[0].save(tmp_path / name, save_all=True, append_images=images[1:])
    with caplog.at_level(logging.WARNING):
        picture = read_picture(tmp_path / name)
    assert (picture.rgb[0, :, 8, 8] - torch.tensor([1.0, 0.0, 0.0])).abs().max() < 0.05
    assert name in caplog.text
    assert f"{frames} frames" in caplog.text


def test_without_opencv_16_bits_become_8_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rgb = noise(3)
    write_picture(tmp_path / "a.png", rgb, Picture(rgb, bits=16))
    monkeypatch.setitem(sys.modules, "cv2", None)
    picture = read_picture(tmp_path / "a.png")
    assert picture.bits == 8
    assert (picture.rgb - rgb).abs().max() < 1 / 255
    write_picture(tmp_path / "b.png", rgb, Picture(rgb, bits=16))
    assert Image.open(tmp_path / "b.png").mode == "RGB"
    assert caplog.text.count("opencv-python-headless") == 2


# ------------------------------------------------------------------------------------------------------- bad input


def bomb(path: Path) -> None:
    """A palette PNG that claims 65536 x 65535 pixels."""
    with path.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        putchunk(file, b"IHDR", struct.pack(">2I5B", 65536, 65535, 8, 3, 0, 0, 0))
        putchunk(file, b"PLTE", bytes(3))
        putchunk(file, b"IDAT", zlib.compress(bytes(10000)))
        putchunk(file, b"IEND", b"")


def cut(path: Path) -> None:
    """A file that stops in the middle of its pixels."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, {".jpg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".tif": "TIFF"}[path.suffix])
    path.write_bytes(buffer.getvalue()[: buffer.tell() // 2])


@pytest.mark.parametrize(
    ("name", "make", "says"),
    [
        ("bomb.png", bomb, "million pixels"),
        ("cut.png", cut, "cut off"),
        ("cut.jpg", cut, "cut off"),
        ("cut.tif", cut, "cut off"),
        ("cut.webp", cut, ""),
        ("text.png", lambda path: path.write_text("hello"), "not a picture"),
        ("empty.png", lambda path: path.touch(), "empty"),
        ("header.png", lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n\0\0"), ""),
        ("folder.png", lambda path: path.mkdir(), "folder"),
        ("missing.png", lambda path: None, "does not exist"),
    ],
)
def test_unreadable(tmp_path: Path, name: str, make: Callable[[Path], object], says: str) -> None:
    make(tmp_path / name)
    start = time.perf_counter()
    with pytest.raises(ImageReadError) as caught:
        read_picture(tmp_path / name)
    sentence = str(caught.value)
    assert name in sentence
    assert says in sentence
    assert "\n" not in sentence
    assert time.perf_counter() - start < 5


def test_cut_16_bit_picture_is_refused(tmp_path: Path) -> None:
    """OpenCV would give what there is; Pillow, which reads it first, does not."""
    rgb = noise(3, 64, 64)
    write_picture(tmp_path / "a.png", rgb, Picture(rgb, bits=16))
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(ImageReadError):
        read_picture(tmp_path / "a.png")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="permissions do not bind the superuser")
def test_no_permission(tmp_path: Path) -> None:
    Image.new("RGB", (4, 3)).save(tmp_path / "a.png")
    (tmp_path / "a.png").chmod(0)
    with pytest.raises(ImageReadError, match="permission"):
        read_picture(tmp_path / "a.png")


@pytest.mark.parametrize("name", ["a", "a.xyz", "a.pdf", ".png"])
def test_suffix_must_be_known(tmp_path: Path, name: str) -> None:
    rgb = noise(3)
    with pytest.raises(ImageWriteError, match=r"\.png, \.apng, \.jpg"):
        write_picture(tmp_path / name, rgb, Picture(rgb))
    assert leftovers(tmp_path) == []


def test_format_must_hold_the_size() -> None:
    assert output_format("a.WebP", 16383, 1).name == "WEBP"
    with pytest.raises(ImageWriteError, match="16383"):
        output_format("a.webp", 1, 16384)


def test_failures_leave_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rgb = noise(3)
    (tmp_path / "file").touch()
    with pytest.raises(ImageWriteError, match="was not written"):
        write_picture(tmp_path / "file" / "a.png", rgb, Picture(rgb))

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(ImageWriteError, match="No space left"):
        write_picture(tmp_path / "a.png", rgb, Picture(rgb))
    assert leftovers(tmp_path) == ["file"]


def test_failed_rename_keeps_the_old_file(tmp_path: Path) -> None:
    rgb = noise(3)
    (tmp_path / "a.png" / "inside").mkdir(parents=True)
    with pytest.raises(ImageWriteError):
        write_picture(tmp_path / "a.png", rgb, Picture(rgb))
    assert leftovers(tmp_path) == ["a.png"]


def test_shapes_are_checked(tmp_path: Path) -> None:
    rgb = noise(3)
    with pytest.raises(ValueError, match=r"\[1, 3, H, W\]"):
        write_picture(tmp_path / "a.png", rgb[0], Picture(rgb))
    with pytest.raises(ValueError, match="alpha"):
        write_picture(tmp_path / "a.png", rgb, Picture(rgb), alpha=noise(1, 2, 2))


def test_errors_share_a_base() -> None:
    assert issubclass(ImageReadError, CTSRError)
    assert issubclass(ImageWriteError, CTSRError)


# -------------------------------------------------------------------------------------------- the project's hard files


OUTCOMES: dict[str, tuple[int, int, bool, bool, int, bool] | str] = {
    # name: (width, height, alpha, grey, bits, profile kept), or what the error says
    "alpha_soft_photo.png": (512, 341, True, False, 8, False),
    "anim.gif": (80, 80, True, False, 8, False),
    "anim.webp": (370, 285, True, False, 8, False),
    "anim_97frames.webp": (13, 169, False, False, 8, False),
    "anim_apng.png": (100, 100, True, False, 8, False),
    "cmyk_noprofile.jpg": (500, 333, False, False, 8, False),
    "exif_orient4_flip.jpg": (600, 450, False, False, 8, True),
    "exif_orient6_landscape.jpg": (600, 450, False, False, 8, True),
    "exif_orient8_portrait.jpg": (450, 600, False, False, 8, True),
    "flat_gray_256.png": (256, 256, False, False, 8, False),
    "full_transparent.png": (300, 300, True, False, 8, False),
    "gray.jpg": (400, 267, False, True, 8, False),
    "gray16.png": (32, 32, False, True, 16, False),
    "gray16_alpha.png": (109, 96, True, True, 16, True),
    "gray1bit.png": (32, 32, False, True, 8, False),
    "huge_7680x4320.jpg": (7680, 4320, False, False, 8, True),
    "icc_adobe_rgb.jpg": (640, 360, False, False, 8, True),
    "icc_display_p3.jpg": (640, 360, False, False, 8, True),
    "image_in_alpha.png": (928, 169, True, False, 8, False),
    "lossy_alpha.webp": (300, 300, True, False, 8, False),
    "lowq_q10.jpg": (480, 320, False, False, 8, False),
    "naïve фото 写真 %20 #1.jpg": (200, 133, False, False, 8, False),
    "odd_127x83.png": (127, 83, False, False, 8, False),
    "odd_257x1.png": (257, 1, False, False, 8, False),
    "palette8.png": (32, 32, False, False, 8, False),
    "palette8_trns.png": (32, 32, True, False, 8, False),
    "photo.avif": (4096, 800, False, False, 8, False),
    "progressive_420.jpg": (401, 267, False, False, 8, False),
    "quant_palette_photo.png": (384, 256, False, False, 8, False),
    "rgb16.tiff": (157, 151, False, False, 16, False),
    "rgb16_photo.png": (384, 256, False, False, 16, False),
    "rgba16_interlaced.png": (32, 32, True, False, 16, False),
    "rgba32.bmp": (127, 64, True, False, 8, False),
    "rgba_2048x1536.png": (2048, 1536, True, False, 8, False),
    "strip_3000x17.jpg": (3000, 17, False, False, 8, False),
    "tiny_1x1.png": (1, 1, False, False, 8, False),
    "tiny_2x2.png": (2, 2, False, False, 8, False),
    "wrong_ext_png_as.jpg": (200, 133, False, False, 8, False),
    "ycck_adobe.jpg": (1318, 611, False, False, 8, False),
    "bomb_65536x65535.png": "million pixels",
    "corrupt_header.jpg": "damaged",
    "truncated.jpg": "cut off",
    "truncated.png": "cut off",
}


def test_table_is_complete() -> None:
    if not STRESS.is_dir():
        pytest.skip(f"no folder {STRESS}")
    assert set(leftovers(STRESS)) - {"manifest.csv"} == set(OUTCOMES)


@pytest.mark.parametrize("name", OUTCOMES)
def test_hard_file(name: str, tmp_path: Path) -> None:
    """Every file gives the exact outcome of the table, and what is read is written and read back alike."""
    if not (STRESS / name).is_file():
        pytest.skip(f"no file {STRESS / name}")
    expected = OUTCOMES[name]
    if isinstance(expected, str):
        with pytest.raises(ImageReadError, match=expected):
            read_picture(STRESS / name)
        return
    picture = read_picture(STRESS / name)
    alpha = picture.alpha
    outcome = (picture.width, picture.height, alpha is not None, picture.grey, picture.bits, bool(picture.icc_profile))
    assert outcome == expected
    if picture.width * picture.height > 10**6:
        return
    write_picture(tmp_path / "a.png", picture.rgb, picture, alpha)
    again = read_picture(tmp_path / "a.png")
    visible = 1 if alpha is None else alpha > 0
    assert torch.equal(again.rgb * visible, picture.rgb * visible)
    assert (again.alpha is None) if alpha is None else torch.equal(again.alpha, alpha)
