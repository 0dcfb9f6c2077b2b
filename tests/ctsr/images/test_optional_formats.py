"""RAW, HEIC and JPEG XL: read with their extra, refused in one message without it, and never by a thumbnail."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ctsr.errors import ImageReadError
from ctsr.images.optional_formats import OPTIONAL_SUFFIXES
from ctsr.images.read import read_picture, readable_suffixes

CASES = Path(__file__).parents[4] / "shared" / "data" / "cases"
needs_cases = pytest.mark.skipif(not CASES.is_dir(), reason=f"no folder {CASES}")


@needs_cases
@pytest.mark.parametrize("name", ["a.NEF", "a.dng", "a.cr2", "a.tif", "a"])
def test_thumbnail_of_a_raw_file_is_never_the_picture(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its suffix or, under another name, by what its first page says it is."""
    shutil.copy(CASES / "raw_like.NEF", tmp_path / name)
    monkeypatch.setitem(sys.modules, "rawpy", None)
    with pytest.raises(ImageReadError, match=r'camera\'s RAW file.*pip install "ctsr\[raw\]"'):
        read_picture(tmp_path / name)


@needs_cases
def test_raw_file_is_developed() -> None:
    pytest.importorskip("rawpy")
    picture = read_picture(CASES / "raw_like.NEF")
    assert (picture.width, picture.height, picture.bits) == (96, 72, 16)


@needs_cases
def test_cut_raw_file_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("rawpy")
    data = (CASES / "raw_like.NEF").read_bytes()
    (tmp_path / "a.nef").write_bytes(data[: len(data) // 2])
    with pytest.raises(ImageReadError, match=r"rawpy cannot develop this RAW file \(Input/output error\)"):
        read_picture(tmp_path / "a.nef")


def test_raw_file_that_cannot_be_developed_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("rawpy")
    Image.new("RGB", (8, 6)).save(tmp_path / "a.nef", "TIFF")
    with pytest.raises(ImageReadError, match="rawpy cannot develop"):
        read_picture(tmp_path / "a.nef")


@pytest.mark.parametrize(
    ("name", "head", "module", "extra"),
    [
        ("a.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "pillow_heif", "heif"),
        ("a.jpg", b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "pillow_heif", "heif"),
        ("a.jxl", b"\xff\x0a", "pillow_jxl", "jxl"),
        ("a.png", b"\0\0\0\x0cJXL \r\n\x87\n", "pillow_jxl", "jxl"),
        ("a.cr3", b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", "rawpy", "raw"),
        ("a.raf", b"FUJIFILMCCD-RAW ", "rawpy", "raw"),
    ],
)
def test_missing_library_is_named(
    tmp_path: Path, name: str, head: bytes, module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).write_bytes(head + bytes(100))
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImageReadError, match=rf'{name}.*pip install "ctsr\[{extra}\]"') as caught:
        read_picture(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("module", "suffix"), [("pillow_heif", ".heic"), ("pillow_jxl", ".jxl")])
def test_pictures_of_optional_formats_are_read(tmp_path: Path, module: str, suffix: str) -> None:
    library = pytest.importorskip(module)
    pixels = np.full((48, 64, 3), (200, 100, 50), np.uint8)
    if suffix == ".heic":
        library.from_pillow(Image.fromarray(pixels)).save(tmp_path / "a.heic", quality=95)
    else:
        Image.fromarray(pixels).save(tmp_path / "a.jxl")
    picture = read_picture(tmp_path / f"a{suffix}")
    assert (picture.width, picture.height) == (64, 48)
    assert picture.rgb[0, :, 20, 20] * 255 == pytest.approx([200, 100, 50], abs=4)


def test_folders_list_them_whether_installed_or_not() -> None:
    assert readable_suffixes() >= OPTIONAL_SUFFIXES
    assert {".nef", ".heic", ".jxl", ".png", ".jpg"} <= readable_suffixes()
    assert ".pdf" not in readable_suffixes()


def test_ten_bits_of_heif_are_kept(tmp_path: Path) -> None:
    """Every level of ten bits, black and white where they are."""
    pillow_heif = pytest.importorskip("pillow_heif")
    levels = np.arange(1024, dtype=np.uint16).reshape(32, 32)
    samples = np.repeat(levels[..., None] << 6, 3, axis=2)
    file = pillow_heif.from_bytes("RGB;16", (32, 32), samples.tobytes())
    file.save(tmp_path / "a.heic", quality=-1, chroma="444", matrix_coefficients=0)
    picture = read_picture(tmp_path / "a.heic")
    assert picture.bits == 16
    expected = torch.as_tensor(levels.astype(np.float32)) / 1023
    assert (picture.rgb - expected).abs().max() < 1.5 / 65535
    assert (picture.rgb.min(), picture.rgb.max()) == (0, 1)
