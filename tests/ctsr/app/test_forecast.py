"""`ctsr plan`: sizes from headers, of folders and of frames, and an exit code for what cannot be done."""

import pytest
from PIL import Image
from typer.testing import CliRunner

from ctsr.app.cli import app
from ctsr.app.forecast import result_sizes
from ctsr.app.options import Options
from ctsr.app.sizes import Size

runner = CliRunner()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CTSR_CACHE", str(tmp_path / "cache"))
    (tmp_path / "in/deep").mkdir(parents=True)
    Image.new("RGB", (30, 20)).save("in/a.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save("in/deep/turned.jpg", exif=exif)
    (tmp_path / "in/bad.png").write_bytes(b"no picture")
    return tmp_path


def test_sizes_are_upright_and_bad_files_of_a_folder_are_left_to_the_run(folder):
    assert result_sizes([folder / "in"], None, Options()) == [(80, 120), (120, 80)]
    assert result_sizes([folder / "in/a.png"], "2x16x9", Options(size=Size(2))) == [(40, 60), (18, 32), (18, 32)]
    assert result_sizes([folder / "in/a.png"], None, Options(size=Size(size=(50, 70)))) == [(70, 50)]


def test_frames_of_an_animated_picture_count_one_by_one(folder):
    frames = [Image.new("RGB", (16, 9), (40 * number, 0, 0)) for number in range(3)]
    frames[0].save("in/moving.gif", save_all=True, append_images=frames[1:], duration=50)
    assert result_sizes([folder / "in/moving.gif"], None, Options(size=Size(2))) == [(18, 32)] * 3


def test_plan_prints_rows_and_leaves_nothing_but_speeds(folder):
    before = sorted(folder.rglob("*"))
    result = runner.invoke(app, ["plan", "in", "--precision", "fp32", "--device", "cpu"])
    assert result.exit_code == 0, result.output
    for word in ("results", "2 of 120x80 at most", "encode", "unet", "decode", "memory", "about", "can be done"):
        assert word in result.output
    new = set(folder.rglob("*")) - set(before)
    assert {path.name for path in new} == {"cache", "speed.json"}


def test_a_batch_that_memory_cannot_hold_gives_exit_code_1_at_once(folder):
    result = runner.invoke(app, ["plan", "--frames", "4000x2048x2048", "--at-once"])
    assert result.exit_code == 1
    assert "4000 results of up to 8192x8192" in result.output
    assert "at a time" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Nothing to plan"),
        (["--frames", "5x5"], "--frames takes a count"),
        (["--frames", "0x5x5"], "--frames takes a count"),
        (["--frames", "1x0x9"], "--frames takes a count"),
        (["gone.png"], "gone.png does not exist"),
        (["in/bad.png"], "bad.png is not a picture"),
        (["in", "--scale", "100000"], "scale"),
    ],
)
def test_what_cannot_be_planned_is_one_sentence(folder, arguments, message):
    result = runner.invoke(app, ["plan", *arguments])
    assert result.exit_code == 2
    assert message in result.output
