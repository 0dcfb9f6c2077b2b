"""Animations, documents of pages, formats and names through the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from ctsr import CTSRPipeline
from ctsr.app.cli import app
from ctsr.images.frames import look_for_frames
from ctsr.images.read import read_picture
from ctsr.images.settings import read_settings

Upscale = Callable[..., Result]


@pytest.fixture
def upscale(tiny_mini_file: Path) -> Upscale:
    """`ctsr upscale` with the tiny model, in fp32, at scale 2."""

    def run(*arguments: object) -> Result:
        line = ["upscale", *arguments, "--model", tiny_mini_file, "--precision", "fp32", "--scale", 2]
        result = CliRunner().invoke(app, [str(argument) for argument in line])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return run


def animate(path: Path, **options: object) -> Path:
    """Three frames of noise."""
    noise = np.random.default_rng(0).integers(0, 256, (3, 9, 12, 3), np.uint8)
    images = [Image.fromarray(pixels) for pixels in noise]
    path.parent.mkdir(exist_ok=True)
    images[0].save(path, save_all=True, append_images=images[1:], **options)
    return path


def still(path: Path) -> Path:
    """One of them."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)).save(path)
    return path


def tree(folder: Path) -> list[str]:
    """Files below a folder."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_each_frame_is_what_the_pipeline_gives(tmp_path: Path, upscale: Upscale, tiny_mini: CTSRPipeline) -> None:
    source = animate(tmp_path / "a.png", duration=[40, 80, 120], loop=2)
    result = upscale(source, "-o", tmp_path / "b.png", "--t", 0.25)
    assert (result.exit_code, result.stderr) == (0, f"{tmp_path / 'b.png'}: 3 frames of 24x18\n")
    found = look_for_frames(tmp_path / "b.png")
    assert found.plays == 2
    originals = [picture for picture, _ in look_for_frames(source).read()]
    for (picture, duration), original, expected in zip(found.read(), originals, (40, 80, 120), strict=True):
        assert duration == expected
        wanted = tiny_mini(original.rgb, t=0.25, scale=2, output_type="pt").images
        assert (picture.rgb - wanted).abs().max() <= 0.5 / 255 + 1e-6
    assert read_settings(tmp_path / "b.png")["t"] == 0.25
    assert "skipped" in upscale(source, "-o", tmp_path / "b.png", "--t", 0.25).stderr


def test_pages(tmp_path: Path, upscale: Upscale, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    animate(Path("a.tif"))
    assert upscale("a.tif").stderr == "a-ctsr.tif: 3 pages of 24x18\n"
    assert len(look_for_frames(Path("a-ctsr.tif")).indices) == 3


def test_several_into_a_format_for_one_is_refused(tmp_path: Path, upscale: Upscale) -> None:
    result = upscale(
        animate(tmp_path / "a.gif"), animate(tmp_path / "b.tif"), "-o", tmp_path / "out", "--format", "jpg"
    )
    assert result.exit_code == 1
    assert "out/a.jpg: .jpg cannot hold an animation; use one of .png, .apng, .webp" in result.stderr
    assert "out/b.jpg: .jpg cannot hold several pages; use one of .tif, .tiff." in result.stderr
    assert not (tmp_path / "out").exists()


def test_formats_in_a_folder(tmp_path: Path, upscale: Upscale) -> None:
    for name in ("a.gif", "b.apng", "c.webp", "d.tif"):
        animate(tmp_path / "in" / name)
    still(tmp_path / "in/e.gif")
    assert upscale(tmp_path / "in", "-o", tmp_path / "out").exit_code == 0
    assert tree(tmp_path / "out") == ["a.gif", "b.apng", "c.webp", "d.tif", "e.png"]
    for name in ("a.gif", "b.apng", "c.webp", "d.tif"):
        assert len(look_for_frames(tmp_path / "out" / name).indices) == 3


def test_one_format_and_a_suffix_for_all(tmp_path: Path, upscale: Upscale) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.png", "a.jpg", "b.bmp"):
        still(tmp_path / "in" / name)
    result = upscale(tmp_path / "in", "-o", tmp_path / "out", "--format", "webp", "--suffix=-x2", "--lossless")
    assert result.exit_code == 0, result.stderr
    assert tree(tmp_path / "out") == ["a-x2.jpg.webp", "a-x2.png.webp", "b-x2.webp"]
    assert all(read_picture(path).lossless for path in (tmp_path / "out").iterdir())


def test_suffix_and_format_without_output(tmp_path: Path, upscale: Upscale, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    still(Path("a.png"))
    assert upscale("a.png", "--suffix", "_big", "--format", "jpg", "--quality", 40).exit_code == 0
    assert tree(tmp_path) == ["a.png", "a_big.jpg"]


def test_depth(tmp_path: Path, upscale: Upscale) -> None:
    source = still(tmp_path / "a.png")
    assert upscale(source, "-o", tmp_path / "b.tif", "--bit-depth", 32).exit_code == 0
    assert read_picture(tmp_path / "b.tif").bits == 32


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("-o", "b.webp", "--bit-depth", "16"), "WEBP holds 8 bits a channel, not 16"),
        (("-o", "b.jpg", "--lossless"), "JPEG is never lossless"),
        (("-o", "b.png", "--quality", "80"), "--quality is for JPEG, WebP and AVIF"),
        (("-o", "b.webp", "--quality", "80", "--lossless"), "exclude each other"),
        (("-o", "b.webp", "--quality", "0"), "from 1 to 100"),
        (("-o", "b.png", "--format", "webp"), "is a whole name"),
        (("-o", "b.png", "--suffix", "-x4"), "is a whole name"),
        (("--suffix", "../x"), "part of a name"),
        (("--suffix", ""), "overwrite an input"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_read(
    tmp_path: Path, upscale: Upscale, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    still(Path("a.png"))
    result = upscale("a.png", *arguments)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert says in result.stderr
    assert tree(tmp_path) == ["a.png"]
