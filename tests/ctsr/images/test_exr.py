"""OpenEXR: linear light in the file, sRGB in memory; what is refused, and what a missing library says."""

import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ctsr.errors import ImageReadError, ImageWriteError
from ctsr.images.exr import encoded, linear
from ctsr.images.formats import Encoding, output_format
from ctsr.images.picture import Picture
from ctsr.images.read import read_picture
from ctsr.images.settings import is_whole, read_settings
from ctsr.images.write import write_picture


@pytest.fixture
def library() -> Any:
    return pytest.importorskip("OpenEXR")


def save(library: Any, path: Path, **channels: np.ndarray) -> Path:
    library.File({"type": library.scanlineimage, "compression": library.ZIP_COMPRESSION}, channels).write(str(path))
    return path


def test_srgb_is_undone_and_has_its_known_values() -> None:
    light = np.linspace(-0.1, 3, 200, dtype=np.float32)
    np.testing.assert_allclose(linear(encoded(light)), light, atol=1e-6)
    np.testing.assert_allclose(encoded(np.array([0.0, 0.2140411, 1.0])), [0.0, 0.5, 1.0], atol=1e-6)


def test_linear_light_is_read_as_srgb_and_highlights_are_clipped_aloud(
    library: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pixels = np.full((6, 5, 3), 0.2140411, np.float32)
    pixels[0, 0] = 4.0
    with caplog.at_level(logging.WARNING):
        picture = read_picture(save(library, tmp_path / "a.exr", RGB=pixels))
    assert (picture.bits, picture.grey, picture.alpha) == (32, False, None)
    assert picture.rgb[0, 1, 3, 3] == pytest.approx(0.5, abs=1e-6)
    assert picture.rgb[0, 1, 0, 0] == 1
    assert "lie outside 0 (black) to 1 (white)" in caplog.text


def test_alpha_is_straight_in_memory_and_multiplied_in_the_file(library: Any, tmp_path: Path) -> None:
    rgb, alpha = torch.rand(1, 3, 9, 7), torch.rand(1, 1, 9, 7) * 0.9 + 0.1
    write_picture(tmp_path / "a.exr", rgb, Picture(rgb, bits=32), alpha, {"ctsr": "1", "t": 0.5})
    with library.File(str(tmp_path / "a.exr")) as file:
        stored = file.channels()["RGBA"].pixels
    np.testing.assert_allclose(stored[..., 0], linear(rgb[0, 0].numpy()) * alpha[0, 0].numpy(), atol=1e-6)
    again = read_picture(tmp_path / "a.exr")
    torch.testing.assert_close(again.rgb, rgb, atol=1e-5, rtol=0)
    torch.testing.assert_close(again.alpha, alpha, atol=1e-6, rtol=0)
    assert read_settings(tmp_path / "a.exr") == {"ctsr": "1", "t": 0.5}
    assert is_whole(tmp_path / "a.exr")


@pytest.mark.parametrize(("bits", "asked", "dtype"), [(8, None, "float16"), (16, None, "float32"), (32, 16, "float16")])
def test_depth_follows_the_original_or_what_is_asked(
    library: Any, tmp_path: Path, bits: Any, asked: Any, dtype: str
) -> None:
    rgb = torch.rand(1, 3, 4, 4)
    write_picture(tmp_path / "a.exr", rgb, Picture(rgb, bits=bits, grey=True), encoding=Encoding(bits=asked))
    with library.File(str(tmp_path / "a.exr")) as file:
        assert {name: str(channel.pixels.dtype) for name, channel in file.channels().items()} == {"Y": dtype}
    assert read_picture(tmp_path / "a.exr").grey


def test_files_that_cannot_be_read_are_refused_in_one_sentence(library: Any, tmp_path: Path) -> None:
    depth = save(library, tmp_path / "depth.exr", Z=np.ones((4, 4), np.float32))
    with pytest.raises(ImageReadError, match="no floating-point RGB or Y"):
        read_picture(depth)
    cut = save(library, tmp_path / "cut.exr", RGB=np.random.default_rng(0).random((64, 64, 3), np.float32))
    cut.write_bytes(cut.read_bytes()[:5000])
    with pytest.raises(ImageReadError, match="damaged or cut off"):
        read_picture(cut)
    assert not is_whole(cut)
    with pytest.raises(ImageWriteError, match="16 or 32 bits, not of 8"):
        output_format("a.exr", encoding=Encoding(bits=8))


def test_without_the_library_both_directions_name_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "a.exr").write_bytes(b"\x76\x2f\x31\x01" + bytes(60))
    monkeypatch.setitem(sys.modules, "OpenEXR", None)
    with pytest.raises(ImageReadError, match=r"is OpenEXR, which needs one more library: .*ctsr\[exr\]"):
        read_picture(tmp_path / "a.exr")
    monkeypatch.setattr("ctsr.images.formats.exr_works", lambda: False)
    with pytest.raises(ImageWriteError, match=r"ctsr\[exr\]"):
        output_format("a.exr")
