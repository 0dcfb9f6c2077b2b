"""Several processes, devices by name, standard input and output, and plans that write nothing."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from ctsr.app import devices, parallel
from ctsr.app.cli import app
from ctsr.app.devices import parse_devices
from ctsr.app.finished import Recipe
from ctsr.app.jobs import Job
from ctsr.app.lazy_pipeline import LazyPipeline
from ctsr.app.options import Options
from ctsr.app.sizes import Size

ROOT = Path(__file__).parents[3]
Run = Callable[..., Result]


@pytest.fixture
def run(tiny_mini_file: Path) -> Run:
    """`ctsr upscale` with the tiny model, in fp32, at scale 2."""
    model = ("--model", tiny_mini_file, "--precision", "fp32", "--scale", 2)

    def command(*arguments: object, stdin: bytes = b"") -> Result:
        line = ["upscale", *arguments, *model]
        result = CliRunner().invoke(app, [str(argument) for argument in line], input=stdin)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return command


def noise(path: Path, count: int = 1) -> Path:
    """A picture of 12 x 9, or a folder of several."""
    for index in range(count):
        target = path if count == 1 else path / f"{index}.png"
        target.parent.mkdir(exist_ok=True)
        Image.fromarray(np.random.default_rng(index).integers(0, 256, (9, 12, 3), np.uint8)).save(target)
    return path


# --------------------------------------------------------------------------------------------------------- processes


def test_two_processes_give_what_one_gives(tmp_path: Path, run: Run) -> None:
    """The same files, the same words, and the warnings and errors of the processes."""
    noise(tmp_path / "in", 4)
    (tmp_path / "in/bad.png").write_bytes(b"nothing")
    Image.fromarray(np.full((9, 12), 1000, np.uint16)).save(tmp_path / "in/deep.png")
    arguments = (tmp_path / "in", "--format", "webp", "--lossless")
    one = run(*arguments, "-o", tmp_path / "one")
    two = run(*arguments, "-o", tmp_path / "two", "--jobs", 2)
    assert one.exit_code == two.exit_code == 1
    assert sorted(two.stderr.replace("/two/", "/one/").splitlines()) == sorted(one.stderr.splitlines())
    assert "5 done, 0 skipped, 1 failed" in two.stderr
    assert "rounded" in two.stderr
    results = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two")]
    assert results[0] == results[1]
    again = run(*arguments, "-o", tmp_path / "two", "--jobs", 2)
    assert "0 done, 5 skipped, 1 failed" in again.stderr


def test_processes_tell_how_far_they_are(tmp_path: Path, tiny_mini_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of pictures too, tile by tile, and never more than is being done."""
    monkeypatch.setattr(parallel, "REFRESH", 0.002)
    noise(tmp_path / "in", 2)
    jobs = [Job(path, tmp_path / f"{path.stem}.webp") for path in sorted((tmp_path / "in").iterdir())]
    cpu, told = torch.device("cpu"), list[float]()
    model = LazyPipeline(str(tiny_mini_file), "fp32", cpu)
    recipe = Recipe(model, Options(size=Size(scale=40.0), tile=128))
    outcomes = list(parallel.run_parallel(jobs, recipe, [cpu, cpu], told.append))
    assert [outcome.state for outcome in outcomes] == ["done", "done"]
    assert len({pictures for pictures in told if 0 < pictures < 2}) > 5
    assert all(0 <= pictures <= 2 for pictures in told)


def test_a_model_that_cannot_be_loaded_ends_them_all(tmp_path: Path) -> None:
    noise(tmp_path / "in", 4)
    (tmp_path / "bad.safetensors").write_bytes(b"nonsense")
    line = ["upscale", tmp_path / "in", "-o", tmp_path / "out", "--model", tmp_path / "bad.safetensors", "--jobs", 2]
    result = CliRunner().invoke(app, [str(argument) for argument in line])
    assert result.exit_code == 2
    assert "bad.safetensors is truncated" in result.stderr
    assert not (tmp_path / "out").exists()


def is_alive(group: int) -> bool:
    """Whether a process of a group is left, after some seconds."""
    for _ in range(100):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.skipif(os.name == "nt", reason="no such signal")
def test_ctrl_c_ends_all_processes(tmp_path: Path, tiny_mini_file: Path) -> None:
    noise(tmp_path / "in", 200)
    line = [sys.executable, "-m", "ctsr", "upscale", tmp_path / "in", "-o", tmp_path / "out", "--jobs", "2"]
    line += ["--model", tiny_mini_file, "--precision", "fp32"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [str(x) for x in line], env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while not list((tmp_path / "out").glob("[0-9]*")):
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "Interrupted. Start it again to go on" in said
    assert "Traceback" not in said
    made = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert len(made) < 200
    assert not [name for name in made if name.startswith(".")]
    assert not is_alive(process.pid)


# ----------------------------------------------------------------------------------------------------------- devices


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("cuda", "There is no CUDA device that this torch can use (the CPU alone)"),
        ("cuda:1", "There is no CUDA device"),
        ("mps", "There is no MPS device"),
        ("xpu", "There is no XPU device"),
        ("cpu,cuda", "There is no CUDA device"),
        ("gpu", "There is no device 'gpu': choose cpu, cuda, cuda:1, mps or xpu"),
        ("", "There is no device ''"),
        ("all", "There is no GPU"),
        ("cpu,cpu", "names a device twice: use --jobs"),
    ],
)
def test_devices_that_are_not_there(tmp_path: Path, run: Run, text: str, says: str) -> None:
    result = run(noise(tmp_path / "a.png"), "-o", tmp_path / "b.png", "--device", text)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert says in result.stderr


@pytest.mark.parametrize("kind", ["cuda", "xpu"])
def test_devices_of_a_machine_with_three(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """What torch says of its devices is all that differs from a machine that has them."""
    monkeypatch.setattr(devices.torch.accelerator, "current_accelerator", lambda **_: torch.device(kind))
    monkeypatch.setattr(devices.torch.accelerator, "device_count", lambda: 3)
    assert parse_devices("auto") == [torch.device(kind)]
    assert parse_devices("all") == [torch.device(kind, index) for index in range(3)]
    assert parse_devices(f"{kind}:2, cpu") == [torch.device(kind, 2), torch.device("cpu")]
    with pytest.raises(ValueError, match=f"There is no {kind}:3: this machine has 3 {kind} devices"):
        parse_devices(f"{kind}:3")
    with pytest.raises(ValueError, match="no MPS device"):
        parse_devices("mps")


# ------------------------------------------------------------------------------------------------------------- pipes


def test_from_standard_input_to_standard_output(tmp_path: Path, run: Run) -> None:
    source = noise(tmp_path / "a.png")
    result = run("-", "-o", "-", "--format", "webp", "--lossless", stdin=source.read_bytes())
    assert result.exit_code == 0, result.stderr
    run(source, "-o", tmp_path / "b.webp", "--lossless")
    assert result.stdout_bytes == (tmp_path / "b.webp").read_bytes()
    with Image.open(io.BytesIO(result.stdout_bytes)) as image:
        assert (image.format, image.size) == ("WEBP", (24, 18))


def test_from_a_file_to_standard_output_and_back(tmp_path: Path, run: Run) -> None:
    piped = run(noise(tmp_path / "a.png"), "-o", "-").stdout_bytes
    assert run("-", "-o", tmp_path / "c.tif", stdin=piped).exit_code == 0
    with Image.open(tmp_path / "c.tif") as image:
        assert image.size == (48, 36)


def test_pipes_that_cannot_be(tmp_path: Path, run: Run) -> None:
    noise(tmp_path / "in", 2)
    assert "takes one picture" in run(tmp_path / "in", "-o", "-").stderr
    bad = run("-", "-o", "-", stdin=b"no picture")
    assert (bad.exit_code, bad.stdout_bytes) == (1, b"")
    assert "stdin is not a picture" in bad.stderr


# --------------------------------------------------------------------------------------------------------------- plans


def test_a_dry_run_says_all_and_writes_nothing(tmp_path: Path, run: Run) -> None:
    noise(tmp_path / "in", 3)
    run(tmp_path / "in/0.png", "-o", tmp_path / "out/0.png")
    (tmp_path / "out/1.png").write_bytes(b"something else")
    (tmp_path / "in/bad.png").write_bytes(b"nothing")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30)).save(tmp_path / "in/turned.jpg", exif=exif)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    result = run(tmp_path / "in", "-o", tmp_path / "out", "--dry-run")
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.replace(f"{tmp_path}{os.sep}", "").splitlines()
    assert lines[0] == "out/0.png: finished"
    assert lines[1].startswith("Left as it is: out/1.png is there already")
    assert lines[2] == "in/2.png (12x9) -> out/2.png (24x18)"
    assert lines[3].startswith("Error: in/bad.png is not a picture")
    assert lines[4] == "in/turned.jpg (30x40) -> out/turned.jpg (60x80)"
    assert lines[5] == "2 of 5 to do, 0.0 megapixels"
    assert lines[6].startswith("memory: ")
    assert lines[6].endswith("for 60x80")
    assert lines[7].startswith("time: about ")
    assert "a megapixel, as in/2.png" in lines[7]
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
