"""The command line through its entry point: what is written where, what is said, and the exit codes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from ctsr import CTSRPipeline, __version__
from ctsr.app import lazy_pipeline
from ctsr.app import upscale as files_upscaled
from ctsr.app.cli import app
from ctsr.errors import ImageReadError
from ctsr.images import strip
from ctsr.images.picture import Picture
from ctsr.images.read import read_picture
from ctsr.images.tensors import resize
from ctsr.images.write import write_picture
from ctsr.whole_file import digest

ROOT = Path(__file__).parents[3]
STRESS = ROOT.parent / "shared" / "data" / "stress"
Upscale = Callable[..., Result]


def ctsr(*arguments: object) -> Result:
    """Runs the command in this process; no traceback may come out."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture
def upscale(tiny_mini_file: Path) -> Upscale:
    """`ctsr upscale` with the tiny model, in fp32."""
    return lambda *arguments: ctsr("upscale", *arguments, "--model", tiny_mini_file, "--precision", "fp32")


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a model is a failure of the test."""

    def refuse(*_: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(lazy_pipeline, "load_pipeline", refuse)


def picture(path: Path, size: tuple[int, int] = (12, 9), mode: str = "RGB") -> Path:
    """A file of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0], len(mode)) if len(mode) > 1 else (size[1], size[0])
    values = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    image = Image.fromarray(values)
    assert image.mode == mode
    image.save(path)
    return path


def tree(folder: Path) -> list[str]:
    """Files below a folder, hidden ones too."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def size_of(path: Path) -> tuple[int, int]:
    """Width and height."""
    with Image.open(path) as image:
        return image.size


def one_sentence(result: Result, code: int) -> str:
    """What a failed command says: a single line."""
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("Error: ")
    assert lines[0].endswith((".", "'mini'"))
    return lines[0]


# ---------------------------------------------------------------------------------------------------------- one file


def test_one_file_is_what_the_pipeline_gives(
    tmp_path: Path, upscale: Upscale, tiny_mini: CTSRPipeline, tiny_mini_file: Path
) -> None:
    source = picture(tmp_path / "a.png")
    result = upscale(source, "-o", tmp_path / "out" / "b.png", "--t", 0.3, "--color-fix", "adain")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == f"{tmp_path / 'out' / 'b.png'}: 48x36\n"
    original = read_picture(source)
    expected = tiny_mini(original.rgb, t=0.3, color_fix="adain", output_type="pt").images
    write_picture(tmp_path / "expected.png", expected, original)
    with Image.open(tmp_path / "out" / "b.png") as image, Image.open(tmp_path / "expected.png") as other:
        assert np.array_equal(np.asarray(image), np.asarray(other))
        settings = json.loads(image.info["ctsr"])
    assert settings == {
        "ctsr": __version__,
        "model": "tiny-mini.safetensors",
        "weights": digest(tiny_mini_file),
        "t": 0.3,
        "scale": 4.0,
        "tile": 0,
        "color_fix": "adain",
        "precision": "float32",
        "source": digest(source),
    }
    assert tree(tmp_path / "out") == ["b.png"]


def test_names_without_output_or_with_a_folder(
    tmp_path: Path, upscale: Upscale, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = picture(tmp_path / "in" / "a.v1.jpg")
    monkeypatch.chdir(tmp_path)
    assert upscale(source, "--scale", 1.5).exit_code == 0
    assert size_of(tmp_path / "a.v1-ctsr.png") == (18, 14)  # 13.5 is rounded up
    assert upscale(source, "-o", "new", "--scale", 1).exit_code == 0
    assert upscale(source, "-o", "new.d/", "--scale", 1).exit_code == 0
    assert tree(tmp_path) == ["a.v1-ctsr.png", "in/a.v1.jpg", "new.d/a.v1.jpg", "new/a.v1.jpg"]


@pytest.mark.parametrize("size", ["7x31", "1x1", "40X3"])
def test_exact_size(tmp_path: Path, upscale: Upscale, size: str) -> None:
    source = picture(tmp_path / "a.png", (20, 20))
    assert upscale(source, "-o", tmp_path / "b.png", "--size", size, "--tile", 128).exit_code == 0
    assert size_of(tmp_path / "b.png") == tuple(map(int, size.lower().split("x")))


def test_alpha_is_enlarged_apart(tmp_path: Path, upscale: Upscale) -> None:
    source = picture(tmp_path / "a.png", mode="RGBA")
    assert upscale(source, "-o", tmp_path / "b.png").exit_code == 0
    alpha, result = read_picture(source).alpha, read_picture(tmp_path / "b.png").alpha
    assert alpha is not None
    assert result is not None
    assert (result - resize(alpha, 36, 48).clamp(0, 1)).abs().max() <= 0.5 / 255 + 1e-6


@pytest.mark.parametrize(("mode", "bits"), [("L", 8), ("RGB", 16), ("L", 16)])
def test_grey_and_depth_stay(tmp_path: Path, upscale: Upscale, mode: str, bits: int) -> None:
    rgb = torch.rand(1, 1 if mode == "L" else 3, 9, 12).expand(-1, 3, -1, -1)
    write_picture(tmp_path / "a.png", rgb, Picture(rgb, grey=mode == "L", bits=16 if bits == 16 else 8))
    assert upscale(tmp_path / "a.png", "-o", tmp_path / "b.png", "--scale", 2).exit_code == 0
    again = read_picture(tmp_path / "b.png")
    assert (again.grey, again.bits) == (mode == "L", bits)


def test_warnings_are_short_lines(tmp_path: Path, upscale: Upscale) -> None:
    rgb = torch.rand(1, 3, 8, 8)
    write_picture(tmp_path / "a.png", rgb, Picture(rgb, bits=16))
    result = upscale(tmp_path / "a.png", "-o", tmp_path / "b.jpg", "--scale", 1)
    assert result.exit_code == 0
    warning, done = result.stderr.splitlines()
    assert warning.startswith(f"Warning: {tmp_path / 'b.jpg'}: JPEG holds 8 bits a channel")
    assert done.endswith(": 8x8")


# ----------------------------------------------------------------------------------------------------------- folders


def test_folder_keeps_names_and_suffixes(tmp_path: Path, upscale: Upscale) -> None:
    source, out = tmp_path / "in", tmp_path / "in" / "out"
    for name in ("a.png", "b.PNG", "sub/deep/a.png", "c.jpg", "d.gif", "e.gif", "e.png"):
        picture(source / name, (4, 3), "L" if name.endswith("gif") else "RGB")
    picture(source / "rgba.bmp", (4, 3)).write_bytes(rgba_bmp())
    for name in (".hidden.png", ".trash/a.png", "x.png.part", ".ctsr-1-2.part", "notes.txt", "out/old/a.png"):
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("not a picture")
    result = upscale(source, "-o", out, "--scale", 1)
    assert result.exit_code == 0, result.stderr
    assert result.stderr == "8 done, 0 skipped, 0 failed\n"
    made = ["a.png", "b.PNG", "c.jpg", "d.png", "e.gif.png", "e.png", "old/a.png", "rgba.png", "sub/deep/a.png"]
    assert tree(out) == sorted(made)
    assert read_picture(out / "rgba.png").alpha is not None
    with Image.open(out / "c.jpg") as image:
        assert image.format == "JPEG"


def rgba_bmp() -> bytes:
    """2x2 pixels with an alpha channel (a BITMAPV4 header), which Pillow reads and cannot write."""
    header = (108).to_bytes(4, "little") + (2).to_bytes(4, "little") * 2 + b"\x01\0\x20\0\x03\0\0\0"
    masks = b"".join(mask.to_bytes(4, "little") for mask in (0xFF0000, 0xFF00, 0xFF, 0xFF000000))
    header = (header + bytes(20) + masks).ljust(108, b"\0")
    return b"BM" + (138).to_bytes(4, "little") + bytes(4) + (122).to_bytes(4, "little") + header + bytes(range(16))


def test_one_bad_file_does_not_stop_the_rest_and_a_second_run_goes_on(tmp_path: Path, upscale: Upscale) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    picture(source / "a.png")
    picture(source / "c.png")
    (source / "b.png").write_bytes(b"no picture at all")
    result = upscale(source, "-o", out)
    assert result.exit_code == 1
    summary, failure = result.stderr.splitlines()
    assert summary == "2 done, 0 skipped, 1 failed"
    assert failure.startswith(f"Error: {source / 'b.png'} is not a picture")
    assert tree(out) == ["a.png", "c.png"]
    (out / "c.png").unlink()
    again = upscale(source, "-o", out)
    assert again.stderr.startswith("1 done, 1 skipped, 1 failed")
    assert tree(out) == ["a.png", "c.png"]


def test_files_and_folders_together(tmp_path: Path, upscale: Upscale) -> None:
    inputs = [picture(tmp_path / "x" / "a.png").parent, picture(tmp_path / "b.png"), tmp_path / "missing.png"]
    result = upscale(*inputs, tmp_path / "x" / "a.png", "-o", tmp_path / "out", "--scale", 1)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[0] == "2 done, 0 skipped, 1 failed"
    assert "missing.png does not exist" in result.stderr
    assert tree(tmp_path / "out") == ["a.png", "b.png"]


@pytest.mark.usefixtures("no_model")
def test_plans_that_cannot_be(tmp_path: Path, upscale: Upscale) -> None:
    a, b = picture(tmp_path / "1" / "a.png"), picture(tmp_path / "2" / "a.png")
    (tmp_path / "empty").mkdir()
    before = tree(tmp_path)
    assert "say with -o" in one_sentence(upscale(a.parent), 2)
    assert "would both become" in one_sentence(upscale(a, b, "-o", tmp_path / "out"), 2)
    assert "would both become" in one_sentence(upscale(a.parent, b.parent, "-o", tmp_path / "out"), 2)
    assert "input folder itself" in one_sentence(upscale(a.parent, "-o", a.parent), 2)
    assert "overwrite an input" in one_sentence(upscale(a, "-o", a, "--overwrite"), 2)
    assert "overwrite an input" in one_sentence(upscale(a, "-o", a.parent), 2)
    assert "looks like one picture" in one_sentence(upscale(a.parent, "-o", tmp_path / "b.png"), 2)
    assert "is a file" in one_sentence(upscale(a, b, "-o", b), 2)
    assert "No pictures" in one_sentence(upscale(tmp_path / "empty", "-o", tmp_path / "out"), 2)
    assert "suffix decides" in one_sentence(upscale(a, "-o", tmp_path / "b.xyz"), 2)
    assert tree(tmp_path) == before
    assert not (tmp_path / "out").exists()


def test_interrupt_leaves_no_half_file(tmp_path: Path, upscale: Upscale, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "in" / "a.png")
    picture(tmp_path / "in" / "b.png")
    save, calls = Image.Image.save, []

    def interrupted(self: Image.Image, file: object, *args: object, **kwargs: object) -> None:
        calls.append(file)
        if len(calls) == 2:
            file.write(b"half")
            raise KeyboardInterrupt
        save(self, file, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "save", interrupted)
    result = upscale(tmp_path / "in", "-o", tmp_path / "out", "--scale", 1)
    assert result.exit_code == 130
    assert result.stderr.splitlines()[0] == "1 done, 0 skipped, 0 failed, 1 not started"
    assert tree(tmp_path / "out") == ["a.png"]


# --------------------------------------------------------------------------------------------------------- arguments


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--t", "1.01"), "give a number from 0 (most realistic)"),
        (("--t", "-0.1"), "give a number from 0 (most realistic)"),
        (("--t", "nan"), "give a number from 0 (most realistic)"),
        (("--scale", "0"), "scale must be a positive"),
        (("--scale", "-4"), "scale must be a positive"),
        (("--scale", "inf"), "scale must be a positive"),
        (("--scale", "nan"), "scale must be a positive"),
        (("--scale", "1e9"), "scale must be a positive"),
        (("--scale", "2", "--size", "9x9"), "exclude each other"),
        (("--size", "9"), "WIDTHxHEIGHT"),
        (("--size", "0x9"), "keep each side"),
        (("--size", "9x70000"), "keep each side"),
        (("--tile", "8"), "tile must be 0"),
        (("--tile", "-1"), "tile must be 0"),
        (("--model", "nowhere"), "does not exist"),
        (("--precision", "fp16", "--device", "cpu"), "on a CPU choose"),
        (("-o", "a.xyz"), "use one of .png"),
    ],
)
def test_bad_arguments(tmp_path: Path, tiny_mini_file: Path, arguments: tuple[str, ...], says: str) -> None:
    source = picture(tmp_path / "a.png")
    result = ctsr("upscale", source, "-o", tmp_path / "out" / "b.png", "--model", tiny_mini_file, *arguments)
    assert says.lower() in one_sentence(result, 2).lower()
    assert tree(tmp_path) == ["a.png"]


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("arguments", "target", "says"),
    [
        (("--scale", "60000"), "b.png", "keep each side"),
        (("--scale", "4000"), "b.webp", "at most 16383"),
        (("--size", "65536x65536"), "b.png", "GiB of memory"),
    ],
)
def test_results_that_cannot_be(
    tmp_path: Path, upscale: Upscale, arguments: tuple[str, ...], target: str, says: str
) -> None:
    source = picture(tmp_path / "a.png")
    assert says in one_sentence(upscale(source, "-o", tmp_path / target, *arguments), 1)
    assert tree(tmp_path) == ["a.png"]


def test_model_that_cannot_be_loaded_ends_the_run(tmp_path: Path) -> None:
    picture(tmp_path / "in" / "a.png")
    picture(tmp_path / "in" / "b.png")
    (tmp_path / "bad.safetensors").write_bytes(b"nonsense")
    result = ctsr("upscale", tmp_path / "in", "-o", tmp_path / "out", "--model", tmp_path / "bad.safetensors")
    assert "bad.safetensors is truncated" in one_sentence(result, 2)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none(tmp_path: Path, upscale: Upscale) -> None:
    result = upscale(picture(tmp_path / "a.png"), "-o", tmp_path / "b.png", "--device", "cuda")
    assert "no CUDA device" in one_sentence(result, 2)


def test_torch_errors_are_sentences(tmp_path: Path, upscale: Upscale, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory\nstack")

    monkeypatch.setattr(files_upscaled, "resize", fail)
    result = upscale(picture(tmp_path / "a.png", mode="RGBA"), "-o", tmp_path / "b.png", "--scale", 1)
    assert "out of memory" in one_sentence(result, 1)
    monkeypatch.setattr(files_upscaled, "resize", lambda *_: 1 / 0 if False else torch.zeros(1, 1, 2).view(7))
    result = upscale(tmp_path / "a.png", "-o", tmp_path / "b.png", "--scale", 1)
    assert "please report it" in one_sentence(result, 1)
    assert tree(tmp_path) == ["a.png"]


# ---------------------------------------------------------------------------------------------------- sweep and info


def test_sweep(tmp_path: Path, tiny_mini_file: Path, upscale: Upscale, monkeypatch: pytest.MonkeyPatch) -> None:
    source, calls = picture(tmp_path / "a.png", (30, 20)), []
    for step in ("encode", "endpoints", "decode_unscaled"):
        method = getattr(CTSRPipeline, step)

        def counted(
            *args: object, step: str = step, method: Callable[..., object] = method, **kwargs: object
        ) -> object:
            calls.append(step)
            return method(*args, **kwargs)

        monkeypatch.setattr(CTSRPipeline, step, counted)
    model = ("--model", tiny_mini_file, "--precision", "fp32")
    result = ctsr("sweep", source, "-o", tmp_path / "out", "--t", "0,0.125,1,1.0", *model)
    assert result.exit_code == 0, result.stderr
    assert calls == ["encode", "endpoints", *["decode_unscaled"] * 3]
    assert tree(tmp_path / "out") == ["a_strip.png", "a_t0.00.png", "a_t0.125.png", "a_t1.00.png"]
    width, height = size_of(tmp_path / "out" / "a_strip.png")
    assert (width, height) == (4 * 120, 80 + strip.LABEL_HEIGHT)
    upscale(source, "-o", tmp_path / "single.png", "--t", 0.125)
    with Image.open(tmp_path / "single.png") as one, Image.open(tmp_path / "out" / "a_t0.125.png") as other:
        assert np.array_equal(np.asarray(one), np.asarray(other))
        assert json.loads(one.info["ctsr"]) == json.loads(other.info["ctsr"])
    with Image.open(tmp_path / "out" / "a_strip.png") as image:
        pixels = np.asarray(image)
        assert np.array_equal(pixels[strip.LABEL_HEIGHT :, 240:360], np.asarray(other))
    for index in range(4):  # every panel has its label
        assert pixels[: strip.LABEL_HEIGHT, 120 * index : 120 * (index + 1)].max() > 200


def test_strip_is_never_too_wide(tmp_path: Path) -> None:
    panels = [
        strip.panel(torch.rand(1, 3, 900, 700), None, "t = 0.00", 400),
        strip.panel(torch.rand(1, 3, 2, 1), None, "x", 400),
    ]
    assert [tuple(x.shape) for x in panels] == [(1, 3, 432, 400), (1, 3, 34, strip.LABEL_WIDTH)]


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("dials", ["", "0,x", "0,2", "nan"])
def test_sweep_refuses_bad_dials(tmp_path: Path, tiny_mini_file: Path, dials: str) -> None:
    source = picture(tmp_path / "a.png")
    result = ctsr("sweep", source, "-o", tmp_path / "out", "--t", dials, "--model", tiny_mini_file)
    assert "numbers from 0 to 1" in one_sentence(result, 2)


def test_sweep_of_a_bad_file(tmp_path: Path, tiny_mini_file: Path) -> None:
    result = ctsr("sweep", tmp_path / "a.png", "-o", tmp_path / "out", "--model", tiny_mini_file)
    assert "does not exist" in one_sentence(result, 1)
    assert tree(tmp_path) == []


def test_info(tiny_mini: CTSRPipeline, tiny_mini_file: Path) -> None:
    result = ctsr("info", tiny_mini_file, "--input-size", "320x240", "--scale", "2", "--precision", "fp32")
    assert (result.exit_code, result.stderr) == (0, "")
    rows = {line[:19].strip(): line[19:] for line in result.stdout.splitlines()}
    assert rows["family"].startswith("ctsr (1 UNet pass, a dial)")
    assert rows["parameterization"] == "residual"
    assert rows["unet"].startswith("TimeConditionedUNetMini, 0.0")
    assert rows["precision"] == "fp32 (as asked)"
    assert rows["attention"].startswith("none")
    assert rows["output"] == "640x480"
    assert all("MiB, untiled" in rows[f"{stage} memory"] for stage in ("encode", "unet", "decode"))
    tiled = ctsr("info", tiny_mini_file, "--input-size", "640x480", "--tile", "256", "--precision", "auto")
    assert tiled.stdout.count("tiles of 256 pixels") == 3
    assert "(auto: " in tiled.stdout


def test_info_takes_the_size_of_the_result_as_upscale_does(tiny_mini_file: Path) -> None:
    result = ctsr("info", tiny_mini_file, "--input-size", "640x480", "--size", "1000x")
    assert "1000x750" in result.stdout
    assert "exclude each other" in one_sentence(ctsr("info", tiny_mini_file, "--size", "9x9", "--scale", "2"), 2)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("info", "a.png"), "a.png is a picture, not a model; enlarge it with `ctsr upscale a.png`."),
        (("upscale", "a.png", "-o", "b.png", "--model", "a.png"), "a.png is a picture, not a model"),
        (("convert", "none.pkl", "-o", "x.safetensors"), "none.pkl does not exist; check the name."),
        (("info", "bare.safetensors"), "has lost its metadata"),
        (("upscale", "a.png", "-o", "n" * 252 + ".png"), "its name is too long; give a shorter one with -o."),
        (("upscale", "n" * 247 + ".png"), "its name is too long; give a shorter one with -o."),
    ],
)
def test_remedies(
    tmp_path: Path, tiny_mini: CTSRPipeline, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], says: str
) -> None:
    """What was wrong and what helps, for what people do."""
    monkeypatch.chdir(tmp_path)
    picture(Path("a.png"))
    picture(Path("n" * 247 + ".png"))
    tiny_mini.save_single_file(Path("model.safetensors"))
    save_file(load_file("model.safetensors"), "bare.safetensors")
    before = tree(tmp_path)
    assert says in one_sentence(ctsr(*arguments), 1 if "too long" in says else 2)
    assert tree(tmp_path) == before


def test_info_names_attention(tiny_sd: CTSRPipeline, tmp_path: Path) -> None:
    tiny_sd.save_single_file(tmp_path / "sd.safetensors")
    result = ctsr("info", tmp_path / "sd.safetensors")
    assert result.exit_code == 0
    assert any(line.split() == ["attention", "sdpa"] for line in result.stdout.splitlines())
    assert "blended" in ctsr("info", tmp_path / "sd.safetensors", "--tile", "512").stdout


# ------------------------------------------------------------------------------------------------- as its own process


def command(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python -m ctsr`."""
    line = [sys.executable, "-m", "ctsr", *map(str, arguments)]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(line, capture_output=True, text=True, timeout=300, env=variables)


def test_process_version_and_help() -> None:
    result = command("--version")
    assert (result.returncode, result.stdout, result.stderr) == (0, f"ctsr {__version__}\n", "")


def test_process_upscales_and_reports(tmp_path: Path, tiny_mini_file: Path) -> None:
    """A folder with a good and a bad file, with an ASCII terminal: the whole way, and nothing but our own lines."""
    picture(tmp_path / "in" / "写真.png")
    (tmp_path / "in" / "bad.jpg").write_bytes(b"")
    folders = (tmp_path / "in", "-o", tmp_path / "out")
    result = command("upscale", *folders, "--model", tiny_mini_file, PYTHONIOENCODING="ascii")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.splitlines() == [
        "1 done, 0 skipped, 1 failed",
        f"Error: {tmp_path / 'in' / 'bad.jpg'} is empty; fetch it again from its source.",
    ]
    assert size_of(tmp_path / "out" / "写真.png") == (48, 36)


# ------------------------------------------------------------------------------------------- the project's hard files


BAD = {
    "bomb_65536x65535.png": "million pixels",
    "corrupt_header.jpg": "damaged or cut off",
    "truncated.jpg": "damaged or cut off",
    "truncated.png": "damaged or cut off",
}
SIZES = {  # upright, from the files' descriptions; these have more pixels than a quick test works on
    "huge_7680x4320.jpg": (7680, 4320),
    "photo.avif": (4096, 800),
    "rgba_2048x1536.png": (2048, 1536),
    "ycck_adobe.jpg": (1318, 611),
}
SCALES = {"huge_7680x4320.jpg": 0.05, "photo.avif": 0.25, "rgba_2048x1536.png": 0.25, "ycck_adobe.jpg": 0.5}
ALPHA = {
    "alpha_soft_photo.png", "anim.gif", "anim.webp", "anim_apng.png", "full_transparent.png", "gray16_alpha.png",
    "image_in_alpha.png", "lossy_alpha.webp", "palette8_trns.png", "rgba16_interlaced.png", "rgba32.bmp",
    "rgba_2048x1536.png",
}  # fmt: skip
GREY = {"gray.jpg", "gray16.png", "gray1bit.png", "gray16_alpha.png"}
DEEP = {"gray16.png", "gray16_alpha.png", "rgb16.tiff", "rgb16_photo.png", "rgba16_interlaced.png"}
LONG = {"anim_97frames.webp", "huge_7680x4320.jpg"}
FILES = sorted(path.name for path in STRESS.glob("*") if path.suffix != ".csv")
needs_stress = pytest.mark.skipif(not FILES, reason=f"no folder {STRESS}")


@needs_stress
def test_tables_name_files_that_are_there() -> None:
    assert len(FILES) == 43
    assert {*BAD, *SIZES, *SCALES, *ALPHA, *GREY, *DEEP} <= set(FILES)


@pytest.fixture(scope="session")
def calm_file(tiny_mini_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose decoder ends in zeros: its colour fix gives back a blurred source, which has a look."""
    pipe = CTSRPipeline.from_single_file(tiny_mini_file, torch_dtype=torch.float32)
    for parameter in pipe.vae.decoder.conv_out.parameters():
        parameter.data.zero_()
    path = tmp_path_factory.mktemp("calm") / "calm.safetensors"
    pipe.save_single_file(path, dtype=torch.float32)
    return path


@needs_stress
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in LONG else []) for name in FILES or ["none"]]
)
def test_hard_file(name: str, tmp_path: Path, calm_file: Path) -> None:
    """Right size, mode, depth and look; or one sentence and no file."""
    scale = SCALES.get(name, 2)
    model = ("--model", calm_file, "--precision", "fp32", "--color-fix", "wavelet")
    result = ctsr("upscale", STRESS / name, "-o", tmp_path, "--scale", scale, *model)
    if name in BAD:
        assert BAD[name] in one_sentence(result, 1)
        assert tree(tmp_path) == []
        return
    assert result.exit_code == 0, result.stderr
    assert "Traceback" not in result.stderr
    stem = os.path.splitext(name)[0]
    target = tmp_path / (f"{stem}.png" if name == "rgba32.bmp" else name)
    assert tree(tmp_path) == [target.name]
    source, again = read_picture(STRESS / name), read_picture(target)
    assert (source.width, source.height) == SIZES.get(name, (source.width, source.height))
    assert (again.width, again.height) == (int(source.width * scale + 0.5), int(source.height * scale + 0.5))
    assert (again.alpha is not None) == (name in ALPHA)
    assert again.grey == (name in GREY and name != "gray16_alpha.png")  # which has no writer at this depth
    assert again.bits == (16 if name in DEEP else 8)
    assert again.icc_profile == source.icc_profile or name == "gray16_alpha.png"
    looks_alike(source, again)


def looks_alike(source: Picture, result: Picture) -> None:
    """The colours are those of the source, and lie where they lay."""
    visible = 1 if source.alpha is None else resize(source.alpha, 4, 4).clamp(0, 1)
    seen = 1 if result.alpha is None else resize(result.alpha, 4, 4).clamp(0, 1)
    difference = resize(source.rgb, 4, 4) * visible - resize(result.rgb, 4, 4) * seen
    blur = 0.15 if source.width * source.height < 64**2 else 0.1  # the colour fix blurs over 31 pixels
    assert difference.abs().mean() < blur


@needs_stress
def test_folder_run_over_all_small_ones(tmp_path: Path, upscale: Upscale) -> None:
    """Finishes, reports each bad file once, and leaves what it made; a second run does nothing again."""
    names = [name for name in FILES if name not in SIZES.keys() | LONG]
    for name in names:
        (tmp_path / "in").mkdir(exist_ok=True)
        shutil.copyfile(STRESS / name, tmp_path / "in" / name)
    result = upscale(tmp_path / "in", "-o", tmp_path / "out", "--size", "24x16")
    assert result.exit_code == 1
    lines = result.stderr.splitlines()
    assert f"{len(names) - len(BAD)} done, 0 skipped, {len(BAD)} failed" in lines
    assert sorted(line.split("/in/")[1].split(" ")[0] for line in lines if line.startswith("Error")) == sorted(BAD)
    assert all(line.startswith(("Error: ", "Warning: ", "34 done")) for line in lines)
    assert len(tree(tmp_path / "out")) == len(names) - len(BAD)
    assert {size_of(path) for path in (tmp_path / "out").iterdir()} == {(24, 16)}
    again = upscale(tmp_path / "in", "-o", tmp_path / "out", "--size", "24x16")
    assert f"0 done, {len(names) - len(BAD)} skipped, {len(BAD)} failed" in again.stderr


def test_bad_files_are_bad_for_the_reader_too() -> None:
    for name in set(BAD) & set(FILES):
        with pytest.raises(ImageReadError):
            read_picture(STRESS / name)


def test_metadata_is_kept_or_stripped(tmp_path: Path, upscale: Upscale) -> None:
    exif = Image.Exif()
    exif[0x010F] = "ExampleCam"
    Image.new("RGB", (8, 6)).save(tmp_path / "a.jpg", exif=exif, dpi=(300, 300))
    for name, arguments in (("kept.png", ()), ("stripped.png", ("--strip-metadata",))):
        assert upscale(tmp_path / "a.jpg", "-o", tmp_path / name, "--scale", 1, *arguments).exit_code == 0
        with Image.open(tmp_path / name) as image:
            image.load()
            assert image.getexif().get(0x010F) == ("ExampleCam" if name == "kept.png" else None)
            assert ("dpi" in image.info) == (name == "kept.png")
            assert "ctsr" in image.info


def test_automatic_t_is_told_with_its_reasons(upscale, tmp_path):
    target = tmp_path / "auto.png"
    result = upscale(picture(tmp_path / "in.png"), "-o", target, "--t", "auto")
    assert result.exit_code == 0, result.output
    assert "on average" in result.output
    assert size_of(target) == (48, 36)


def test_automatic_t_of_each_picture_of_a_folder_is_told_too(upscale, tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a.png", "b.png"):
        picture(tmp_path / "in" / name)
    result = upscale(tmp_path / "in", "-o", tmp_path / "out", "--t", "auto")
    assert result.exit_code == 0, result.output
    assert all(f"{tmp_path / 'out' / name}: " in result.output for name in ("a.png", "b.png"))
    assert result.output.count("on average") == 2


def test_a_t_that_is_no_number_is_one_sentence(upscale, tmp_path, no_model):
    result = upscale(picture(tmp_path / "in.png"), "-o", tmp_path / "x.png", "--t", "best")
    assert result.exit_code == 2
    assert "--t takes a number from 0 to 1, or auto, not 'best'" in result.output
