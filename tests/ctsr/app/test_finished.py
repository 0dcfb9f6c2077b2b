"""What a second run does with what is there: the same is skipped, the rest is left alone or, if asked for, replaced."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from ctsr import CTSRPipeline
from ctsr.app.cli import app
from ctsr.images.settings import read_settings

Upscale = Callable[..., Result]
SUFFIXES = [".png", ".jpg", ".webp", ".tif", ".avif"]


@pytest.fixture
def upscale(tmp_path: Path, tiny_mini_file: Path) -> Upscale:
    """`ctsr upscale in -o out` with the tiny model."""

    def run(*arguments: object, output: str = "out") -> Result:
        line = ["upscale", tmp_path / "in", "-o", tmp_path / output, "--scale", 2, *arguments]
        if "--model" not in arguments:
            line += ["--model", tiny_mini_file]
        result = CliRunner().invoke(app, [str(argument) for argument in line])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return run


def noise(path: Path, seed: int = 0) -> Path:
    """A picture of 12 x 9."""
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (9, 12, 3), np.uint8)).save(path)
    return path


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_same_run_again_does_nothing(tmp_path: Path, upscale: Upscale, suffix: str) -> None:
    noise(tmp_path / f"in/a{suffix}")
    assert upscale().exit_code == 0
    made = (tmp_path / f"out/a{suffix}").stat().st_mtime_ns
    again = upscale()
    assert (again.exit_code, "finished already: skipped" in again.stderr) == (0, True)
    assert (tmp_path / f"out/a{suffix}").stat().st_mtime_ns == made


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--t", "0.25"), "(t 0.5, not 0.25)"),
        (("--scale", "3"), "(scale 2.0, not 3.0)"),
        (("--color-fix", "none"), "(color_fix wavelet, not none)"),
        (("--strip-metadata",), "(strip_metadata as by default, not True)"),
    ],
)
def test_another_setting_is_not_finished(
    tmp_path: Path, upscale: Upscale, suffix: str, arguments: tuple[str, ...], says: str
) -> None:
    target = tmp_path / f"out/a{suffix}"
    noise(tmp_path / f"in/a{suffix}")
    upscale()
    before = target.read_bytes()
    result = upscale(*arguments)
    assert result.exit_code == 1
    assert says in result.stderr
    assert "replace with --overwrite" in result.stderr
    assert target.read_bytes() == before
    assert upscale(*arguments, "--overwrite").exit_code == 0
    assert target.read_bytes() != before
    assert upscale(*arguments).exit_code == 0


def test_another_model_of_the_same_name_is_not_finished(
    tmp_path: Path, upscale: Upscale, make_mini: Callable[..., CTSRPipeline]
) -> None:
    noise(tmp_path / "in/a.png")
    model = tmp_path / "model.safetensors"
    make_mini(0).save_single_file(model)
    assert upscale("--model", model).exit_code == 0
    assert "skipped" in upscale("--model", model).stderr
    make_mini(7).save_single_file(model)
    result = upscale("--model", model)
    assert result.exit_code == 1
    assert "made otherwise (with other weights)" in result.stderr


def test_another_picture_of_the_same_name_is_not_finished(tmp_path: Path, upscale: Upscale) -> None:
    noise(tmp_path / "in/a.png")
    upscale()
    noise(tmp_path / "in/a.png", seed=1)
    result = upscale()
    assert (result.exit_code, "(of another picture)" in result.stderr) == (1, True)


def test_a_file_that_tells_nothing_is_left_alone(tmp_path: Path, upscale: Upscale) -> None:
    noise(tmp_path / "in/a.png")
    noise(tmp_path / "in/b.bmp")
    (tmp_path / "out").mkdir()
    shutil.copyfile(tmp_path / "in/a.png", tmp_path / "out/a.png")
    first, again = upscale(), upscale()
    assert first.stderr.splitlines()[0] == "1 done, 0 skipped, 1 left as they were, 0 failed"
    assert again.stderr.splitlines()[0] == "0 done, 0 skipped, 2 left as they were, 0 failed"
    assert "does not say what it was made with (and 1 more likewise)" in again.stderr
    assert (tmp_path / "out/a.png").read_bytes() == (tmp_path / "in/a.png").read_bytes()


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_a_cut_result_is_made_again(tmp_path: Path, upscale: Upscale, suffix: str, share: float) -> None:
    """However it was cut: by another program, or a disk that lies."""
    target = tmp_path / f"out/a{suffix}"
    noise(tmp_path / f"in/a{suffix}")
    upscale()
    whole = target.read_bytes()
    target.write_bytes(whole[: int(share * len(whole))])
    told = share == 0 or read_settings(target) is not None
    result = upscale()
    assert (result.exit_code, target.read_bytes() == whole) == ((0, True) if told else (1, False)), result.stderr


def test_overwrite_does_each_once_however_many_runs(tmp_path: Path, upscale: Upscale) -> None:
    """What was made after a run began is not made again by it."""
    source = noise(tmp_path / "in/a.png")
    upscale()
    target = tmp_path / "out/a.png"
    os.utime(target, ns=(2**62, 2**62))
    assert "skipped" in upscale("--overwrite").stderr
    os.utime(target, ns=(0, 0))
    assert "24x18" in upscale("--overwrite").stderr
    assert read_settings(target)["t"] == 0.5
    assert source.exists()


def test_the_settings_of_a_source_do_not_pass_for_those_of_its_result(tmp_path: Path, upscale: Upscale) -> None:
    noise(tmp_path / "in/a.jpg")
    upscale("--t", 0.25)
    shutil.rmtree(tmp_path / "in")
    shutil.move(tmp_path / "out", tmp_path / "in")
    upscale()
    assert read_settings(tmp_path / "out/a.jpg")["t"] == 0.5
