"""Animations and documents of several pages: every frame, its duration, how often it plays, and what it looks like."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ctsr.errors import ImageReadError, ImageWriteError
from ctsr.images.deep import write_tiff
from ctsr.images.formats import Encoding
from ctsr.images.frames import Frames, look_for_frames
from ctsr.images.picture import Picture
from ctsr.images.read import read_picture
from ctsr.images.settings import is_whole, read_settings
from ctsr.images.write import Frame, write_frames, write_picture

CASES = Path(__file__).parents[4] / "shared" / "data" / "cases"
DURATIONS = [40.0, 80.0, 120.0, 160.0]
ANIMATIONS = [".png", ".apng", ".webp", ".avif", ".gif"]


def smooth(seed: int, channels: int = 3) -> torch.Tensor:
    """[1, C, 24, 32] in [0, 1]."""
    low = torch.rand(1, channels, 3, 4, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(low, (24, 32), mode="bilinear")


def frames(alpha: bool = False) -> list[Frame]:
    """Four."""
    mask = (torch.arange(32) > 9).float().expand(1, 1, 24, 32) if alpha else None
    return [Frame(rgb := smooth(index), Picture(rgb, mask), mask, DURATIONS[index]) for index in range(4)]


def written(path: Path, plays: int = 0, alpha: bool = False, **options: Any) -> Frames:
    """The four frames in a file, as it is then found."""
    write_frames(path, frames(alpha), "animation", plays, {"ctsr": "test", "t": 0.5}, Encoding(**options))
    return look_for_frames(path)


@pytest.mark.parametrize("suffix", ANIMATIONS)
@pytest.mark.parametrize("plays", [0, 1, 3])
@pytest.mark.parametrize("alpha", [False, True])
def test_every_frame_and_its_time_survive(tmp_path: Path, suffix: str, plays: int, alpha: bool) -> None:
    found = written(tmp_path / f"a{suffix}", plays, alpha)
    assert (found.kind, len(found.indices)) == ("animation", 4)
    assert found.plays == (0 if suffix == ".avif" else plays)
    pictures, durations = zip(*found.read(), strict=True)
    assert list(durations) == DURATIONS
    tolerance = 0.01 if suffix.endswith("png") else 0.15
    for picture, frame in zip(pictures, frames(alpha), strict=True):
        seen = (picture.rgb - frame.rgb).abs() * (1 if frame.alpha is None else frame.alpha)
        assert seen.mean() < tolerance
        if alpha:
            assert torch.equal(picture.alpha, frame.alpha)
    assert read_settings(found.path)["t"] == 0.5
    assert is_whole(found.path)


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_without_loss_each_frame_is_exact(tmp_path: Path, suffix: str) -> None:
    found = written(tmp_path / f"a{suffix}", lossless=True)
    for (picture, _), frame in zip(found.read(), frames(), strict=True):
        assert torch.equal(picture.rgb, (frame.rgb * 255).round() / 255)
    assert [picture.lossless for picture, _ in found.read()] == [suffix == ".webp"] * 4


def test_pages_of_any_kind_are_exact(tmp_path: Path) -> None:
    """Grey of 8 bits, colour of 16 with alpha, grey of 16, floats; of several sizes; with metadata of their own."""
    kinds = [(1, 8, False), (3, 16, True), (1, 16, False), (1, 32, False)]
    pages = []
    for index, (channels, bits, alpha) in enumerate(kinds):
        white = 2.0**bits - 1 if bits < 32 else 2.0**20
        rgb = (smooth(index, channels).expand(1, 3, 24, 32) * white).round() / white
        rgb = rgb[..., : 24 - index, :]
        mask = torch.ones_like(rgb[:, :1]) if alpha else None
        pages.append(Frame(rgb, Picture(rgb, mask, channels == 1, bits), mask))
    write_frames(tmp_path / "a.tif", pages, "pages", settings={"ctsr": "test"})
    found = look_for_frames(tmp_path / "a.tif")
    assert (found.kind, list(found.indices)) == ("pages", [0, 1, 2, 3])
    for (picture, _), page in zip(found.read(), pages, strict=True):
        assert picture.bits == page.like.bits
        assert picture.grey == page.like.grey
        assert (picture.alpha is None) == (page.alpha is None)
        assert (picture.rgb - page.rgb).abs().max() < 2e-7  # of floats the luma of equal channels is not quite the same
    assert is_whole(tmp_path / "a.tif")
    whole = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(whole[:-1])
    assert not is_whole(tmp_path / "a.tif")


def test_other_programs_find_every_page(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    write_frames(tmp_path / "a.tif", frames(), "pages")
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        pages = [page.asarray() for page in file.pages]
    expected = [(frame.rgb[0] * 255).round().byte().permute(1, 2, 0).numpy() for frame in frames()]
    assert all(np.array_equal(page, other) for page, other in zip(pages, expected, strict=True))


def test_thumbnails_are_no_pages(tmp_path: Path) -> None:
    file = io.BytesIO()
    for seed in (0, 1):
        write_tiff(file, (smooth(seed)[0] * 255).byte().permute(1, 2, 0).numpy(), None, {"exif": {254: seed}})
    (tmp_path / "a.tif").write_bytes(file.getvalue())
    with Image.open(tmp_path / "a.tif") as image:
        assert image.n_frames == 2
    assert look_for_frames(tmp_path / "a.tif").kind == ""


def test_the_still_before_an_animation_is_no_frame(tmp_path: Path) -> None:
    images = [Image.new("RGB", (8, 6), (index, 0, 0)) for index in (9, 1, 2)]
    images[0].save(tmp_path / "a.png", save_all=True, append_images=images[1:], default_image=True, duration=[30, 70])
    read = list(look_for_frames(tmp_path / "a.png").read())
    assert [(round(255 * picture.rgb[0, 0, 0, 0].item()), time) for picture, time in read] == [(1, 30), (2, 70)]


def test_stills_are_stills(tmp_path: Path) -> None:
    for suffix in (".png", ".gif", ".tif", ".webp", ".jpg"):
        Image.new("RGB", (8, 6)).save(tmp_path / f"a{suffix}")
        assert look_for_frames(tmp_path / f"a{suffix}") == Frames(tmp_path / f"a{suffix}")
    (tmp_path / "b.png").write_bytes(b"no picture")
    for name in ("b.png", "missing.png"):
        assert look_for_frames(tmp_path / name).kind == ""


@pytest.mark.parametrize("suffix", [".jpg", ".bmp"])
def test_formats_for_one_picture_refuse_several(tmp_path: Path, suffix: str) -> None:
    for kind in ("animation", "pages"):
        with pytest.raises(ImageWriteError, match="cannot hold"):
            write_frames(tmp_path / f"a{suffix}", frames(), kind)
    assert list(tmp_path.iterdir()) == []


def test_a_cut_animation_is_refused(tmp_path: Path) -> None:
    data = (tmp_path / "a.webp", tmp_path / "a.png")
    written(data[1])
    data[1].write_bytes(data[1].read_bytes()[:-3000])
    with pytest.raises(ImageReadError):
        list(look_for_frames(data[1]).read())


@pytest.mark.skipif(not CASES.is_dir(), reason=f"no folder {CASES}")
@pytest.mark.parametrize("name", ["animated.gif", "animated_lossless.webp", "animated.apng"])
def test_cases(name: str) -> None:
    found = look_for_frames(CASES / name)
    assert [duration for _, duration in found.read()] == DURATIONS


# ------------------------------------------------------------------------------------------------ loss, quality, depth


def test_lossless_webp_stays_so_unless_a_quality_is_asked_for(tmp_path: Path) -> None:
    rgb = (smooth(0) * 255).round() / 255
    write_picture(tmp_path / "a.webp", rgb, Picture(rgb), encoding=Encoding(lossless=True))
    like = read_picture(tmp_path / "a.webp")
    assert like.lossless
    write_picture(tmp_path / "b.webp", rgb, like)
    again = read_picture(tmp_path / "b.webp")
    assert again.lossless
    assert torch.equal(again.rgb, rgb)
    write_picture(tmp_path / "c.webp", rgb, like, encoding=Encoding(quality=50))
    assert not read_picture(tmp_path / "c.webp").lossless
    write_picture(tmp_path / "d.webp", rgb, Picture(rgb))
    assert not read_picture(tmp_path / "d.webp").lossless


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".avif"])
def test_less_quality_is_less_data(tmp_path: Path, suffix: str) -> None:
    rgb = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    sizes = []
    for quality in (10, 60, None, 100):
        write_picture(tmp_path / f"a{suffix}", rgb, Picture(rgb), encoding=Encoding(quality=quality))
        sizes.append((tmp_path / f"a{suffix}").stat().st_size)
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize("suffix", [".webp", ".avif", ".jpg", ".bmp"])
def test_rounded_depth_is_said(tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture) -> None:
    rgb = smooth(0)
    write_picture(tmp_path / f"a{suffix}", rgb, Picture(rgb, bits=16))
    assert "holds 8 bits a channel, to which the 16 bits of the original are rounded" in caplog.text
    caplog.clear()
    write_picture(tmp_path / f"a{suffix}", rgb, Picture(rgb, bits=16), encoding=Encoding(bits=8))
    write_picture(tmp_path / f"a{suffix}", rgb, Picture(rgb))
    assert caplog.text == ""


def test_rounded_floats_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rgb = smooth(0)
    write_picture(tmp_path / "a.png", rgb, Picture(rgb, bits=32))
    assert "holds 16 bits a channel, to which the floating-point numbers of the original" in caplog.text


@pytest.mark.parametrize(("suffix", "bits"), [(".png", 16), (".tif", 16), (".tif", 32), (".png", 8)])
def test_depth_as_asked(tmp_path: Path, suffix: str, bits: Any) -> None:
    rgb = smooth(0)
    write_picture(tmp_path / f"a{suffix}", rgb, Picture(rgb), encoding=Encoding(bits=bits))
    again = read_picture(tmp_path / f"a{suffix}")
    assert again.bits == bits
    assert (again.rgb - rgb).abs().max() <= 0.51 / (2**bits - 1) + 1e-7


@pytest.mark.parametrize(
    ("suffix", "options", "says"),
    [
        (".webp", {"bits": 16}, "WEBP holds 8 bits a channel, not 16; use .png or .tif"),
        (".png", {"bits": 32}, "PNG holds 16 bits a channel, not 32; use .tif"),
        (".jpg", {"lossless": True}, "JPEG is never lossless"),
        (".avif", {"lossless": True}, "AVIF is never lossless"),
    ],
)
def test_what_a_format_cannot_do_is_refused(tmp_path: Path, suffix: str, options: Any, says: str) -> None:
    with pytest.raises(ImageWriteError, match=says):
        write_picture(tmp_path / f"a{suffix}", smooth(0), Picture(smooth(0)), encoding=Encoding(**options))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("options", [{"quality": 0}, {"quality": 101}, {"quality": 80, "lossless": True}])
def test_encodings_that_cannot_be(options: Any) -> None:
    with pytest.raises(ValueError, match="quality"):
        Encoding(**options)


@pytest.mark.parametrize("first", [1, 3])
def test_pages_of_floating_point_colour_are_read_behind_any_first_page(tmp_path: Path, first: int) -> None:
    """Pillow opens no floating-point colour: neither as the file's first page nor behind one that it opens."""
    kinds = [(first, 32), (3, 32), (3, 8)]
    pages = [
        Frame(rgb := smooth(k, channels).expand(1, 3, 24, 32), Picture(rgb, None, grey=channels == 1, bits=bits))
        for k, (channels, bits) in enumerate(kinds)
    ]
    write_frames(tmp_path / "pages.tif", pages, "pages")
    found = look_for_frames(tmp_path / "pages.tif")
    assert (found.kind, list(found.indices)) == ("pages", [0, 1, 2])
    for (picture, _), page in zip(found.read(), pages, strict=True):
        assert picture.bits == page.like.bits
        torch.testing.assert_close(picture.rgb, page.rgb, atol=1e-6 if picture.bits == 32 else 1 / 500, rtol=0)
