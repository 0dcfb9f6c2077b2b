"""Floating-point TIFF: 1.0 is white whatever the picture holds; floats in, floats out."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ctsr.errors import ImageReadError
from ctsr.images.deep import write_tiff
from ctsr.images.metadata import Metadata
from ctsr.images.picture import Picture
from ctsr.images.read import read_picture
from ctsr.images.write import write_picture

CASES = Path(__file__).parents[4] / "shared" / "data" / "cases"
needs_cases = pytest.mark.skipif(not CASES.is_dir(), reason=f"no folder {CASES}")


def noise(channels: int) -> torch.Tensor:
    """[1, C, 5, 7] fp32 in [0, 1]."""
    return torch.rand(1, channels, 5, 7, generator=torch.Generator().manual_seed(0))


@needs_cases
def test_one_float_above_white_does_not_darken_the_picture(caplog: pytest.LogCaptureFixture) -> None:
    picture = read_picture(CASES / "float_grey_one_pixel_1.02.tif")
    with Image.open(CASES / "float_grey_one_pixel_1.02.tif") as image:
        assert torch.equal(picture.rgb[0, 0], torch.from_numpy(np.array(image).clip(0, 1)))
    assert picture.rgb.mean() > 0.2
    assert "lie outside 0 (black) to 1 (white)" in caplog.text
    assert (picture.bits, picture.grey) == (32, True)


@needs_cases
def test_float_colour_is_read_and_written_as_such(tmp_path: Path) -> None:
    picture = read_picture(CASES / "float_rgb.tif")
    assert picture.rgb.shape == (1, 3, 72, 96)
    assert (picture.bits, picture.grey, picture.alpha) == (32, False, None)
    assert picture.rgb.min() == pytest.approx(0.043137256)
    assert picture.rgb.max() == pytest.approx(0.9764706)
    write_picture(tmp_path / "a.tif", picture.rgb, picture)
    assert torch.equal(read_picture(tmp_path / "a.tif").rgb, picture.rgb)
    write_picture(tmp_path / "a.png", picture.rgb, picture)
    again = read_picture(tmp_path / "a.png")
    assert again.bits == 16
    assert (again.rgb - picture.rgb).abs().max() < 1 / 65535


@pytest.mark.parametrize(("grey", "with_alpha"), [(True, False), (False, False), (False, True)])
def test_float_tiff_is_exact(tmp_path: Path, grey: bool, with_alpha: bool) -> None:
    rgb, alpha = (noise(1).repeat(1, 3, 1, 1) if grey else noise(3)), (0.1 + 0.9 * noise(1) if with_alpha else None)
    write_picture(tmp_path / "a.tif", rgb, Picture(rgb, alpha, grey, 32), alpha)
    again = read_picture(tmp_path / "a.tif")
    assert torch.allclose(again.rgb, rgb, rtol=0, atol=1e-6)
    assert (again.alpha is None) if alpha is None else torch.equal(again.alpha, alpha)
    assert (again.bits, again.grey) == (32, grey)


def test_order_of_colours_in_a_float_tiff(tmp_path: Path) -> None:
    write_samples(tmp_path / "a.tif", np.array([[[1.5, 0.5, -1]]], np.float32))
    assert read_picture(tmp_path / "a.tif").rgb[0, :, 0, 0].tolist() == [1, 0.5, 0]


def test_doubles_are_read(tmp_path: Path) -> None:
    write_samples(tmp_path / "a.tif", np.array([[[0.1, 0.2, 0.3]]], np.float64))
    assert read_picture(tmp_path / "a.tif").rgb[0, :, 0, 0] == pytest.approx([0.1, 0.2, 0.3])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_float_tiff_is_turned_as_others_are(tmp_path: Path, orientation: int) -> None:
    samples = np.random.default_rng(0).random((5, 7, 3), np.float32)
    write_samples(tmp_path / "a.tif", samples, orientation)
    write_samples(tmp_path / "b.tif", (samples * 255).round().astype(np.uint8), orientation)
    floats, bytes_ = read_picture(tmp_path / "a.tif").rgb, read_picture(tmp_path / "b.tif").rgb
    assert floats.shape == bytes_.shape
    assert (floats - bytes_).abs().max() < 1 / 255


def write_samples(path: Path, samples: np.ndarray, orientation: int = 1) -> None:
    """A TIFF of any numbers."""
    with path.open("wb") as file:
        write_tiff(file, samples, None, {"exif": {0x0112: orientation}})


@pytest.mark.parametrize("kind", [np.float16, np.int32, np.uint32])
def test_colour_of_other_numbers_is_refused_in_one_message(tmp_path: Path, kind: type) -> None:
    write_samples(tmp_path / "a.tif", np.ones((4, 4, 3), kind))
    with pytest.raises(ImageReadError, match=r"a\.tif: a TIFF of 3 x \d\d bits.* convert it to 16 bits"):
        read_picture(tmp_path / "a.tif")


@pytest.mark.parametrize("part", [0.5, 0.9, 0.999])
def test_cut_float_tiff_is_refused(tmp_path: Path, part: float) -> None:
    write_samples(tmp_path / "a.tif", np.random.default_rng(0).random((64, 64, 3), np.float32))
    data = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(data[: int(len(data) * part)])
    with pytest.raises(ImageReadError, match="cut off"):
        read_picture(tmp_path / "a.tif")


def test_float_colour_without_opencv_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_samples(tmp_path / "a.tif", np.ones((4, 4, 3), np.float32))
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ImageReadError, match="pip install opencv-python-headless"):
        read_picture(tmp_path / "a.tif")


@pytest.mark.parametrize("kind", [np.uint16, np.float32])
def test_channels_that_lie_apart_are_never_misread(tmp_path: Path, kind: type) -> None:
    """Pillow and OpenCV take the planes one after the other for pixels."""
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(tmp_path / "a.tif", np.ones((3, 5, 7), kind), photometric="rgb", planarconfig="separate")
    with pytest.raises(ImageReadError, match=r"a\.tif: a .*TIFF"):
        read_picture(tmp_path / "a.tif")


def test_metadata_of_a_float_tiff_survives(tmp_path: Path) -> None:
    rgb = noise(3)
    metadata = Metadata(exif={0x010F: "ExampleCam"}, dpi=(300, 300), xmp=b"<x/>")
    write_picture(tmp_path / "a.tif", rgb, Picture(rgb, bits=32, metadata=metadata))
    again = read_picture(tmp_path / "a.tif").metadata
    assert (again.exif[0x010F], again.dpi, again.xmp) == ("ExampleCam", (300, 300), b"<x/>")
