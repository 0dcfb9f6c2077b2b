"""`ctsr evaluate`: what it writes, that the figures are right, and what it says when something is missing."""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from ctsr import CTSRPipeline
from ctsr.app import lazy_pipeline
from ctsr.app.cli import app
from ctsr.images.read import read_picture
from ctsr.images.tensors import as_pil, resize

pytest.importorskip("skimage", reason="needs the extra eval")
pytest.importorskip("matplotlib", reason="needs the extra eval")

from scipy.ndimage import gaussian_filter

from ctsr.app.metrics import PSNR, SSIM, Method, Scores
from ctsr.app.pairs import name_folders
from ctsr.app.scores import draw, write_csv

NAMES = ("a", "b")
TABLES = ["per_picture.csv", "perception_distortion.png", "scores.csv"]
Run = Callable[..., Result]
STAND_IN = '''
"""Stand-in for pyiqa, which cannot be installed where the tests run (it needs torchvision): its documented interface,
with simple figures for scores. MUSIQ has no weights; DISTS fails at its first picture; FID looks into its folders."""
from pathlib import Path


class Metric:
    def __init__(self, name):
        self.name, self.lower_better = name, name in ("niqe", "lpips", "dists", "fid")

    def __call__(self, target, ref=None, **options):
        if self.name == "fid":
            files = [sorted(path.name for path in Path(folder).iterdir()) for folder in (target, ref)]
            assert options == {"verbose": False} and files[0] == files[1]
            return float(len(files[0]))
        assert target.shape[:2] == (1, 3) and 0 <= target.min() and target.max() <= 1
        assert (ref is not None) == (self.name in ("lpips", "dists"))
        if self.name == "dists":
            raise AssertionError("too small\\nfor it")
        return target.mean() if ref is None else (target - ref).abs().mean()


def create_metric(name, as_loss=False, device=None):
    print("Downloading weights")
    if name == "musiq":
        raise OSError("no weights to be had")
    return Metric(name)
'''


def picture(path: Path, size: tuple[int, int], seed: int) -> Path:
    """A file of smooth noise, so that SSIM is not zero."""
    path.parent.mkdir(parents=True, exist_ok=True)
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(path, quality=95)
    return path


@pytest.fixture(autouse=True)
def no_pyiqa(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if pyiqa were not installed: it would download weights."""
    monkeypatch.setitem(sys.modules, "pyiqa", None)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """LR 16x16 and HR 64x64 of two pictures, and a folder `peer` of others' results, in several formats."""
    for seed, (name, suffix) in enumerate(zip(NAMES, (".png", ".jpg"), strict=True)):
        picture(tmp_path / "lr" / f"{name}{suffix}", (16, 16), seed)
        picture(tmp_path / "hr" / f"{name}.png", (64, 64), seed)
        picture(tmp_path / "peer" / f"{name}.bmp", (64, 64), seed + 10)
    return tmp_path


@pytest.fixture
def run(folders: Path, tiny_mini_file: Path) -> Run:
    """`ctsr evaluate` over the folders with the tiny model in fp32; no traceback may come out."""

    def run(*arguments: object, lr: str = "lr", hr: str = "hr", out: str = "out") -> Result:
        inputs = ("--lr", folders / lr, "--hr", folders / hr, "--out", folders / out)
        line = ("evaluate", *inputs, "--model", tiny_mini_file, "--precision", "fp32", "--device", "cpu", *arguments)
        result = CliRunner().invoke(app, [str(argument) for argument in line])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return run


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a model is a failure of the test."""

    def refuse(*_: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(lazy_pipeline, "load_pipeline", refuse)


def table(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def pixels(path: Path) -> np.ndarray:
    """[H, W, 3] fp64 in 0..255."""
    with Image.open(path) as image:
        assert image.mode == "RGB"
        return np.asarray(image, np.float64)


def psnr_and_ssim(result: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """The formulas once more: Y of BT.601, and SSIM with the Gaussian window where it lies inside the picture."""
    x, y = (picture @ [65.481 / 255, 128.553 / 255, 24.966 / 255] + 16 for picture in (result, truth))

    def mean(z: np.ndarray) -> np.ndarray:
        return gaussian_filter(z, 1.5, radius=5)[5:-5, 5:-5]

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mx, my = mean(x), mean(y)
    variances, covariance = mean(x * x) - mx**2 + mean(y * y) - my**2, mean(x * y) - mx * my
    ssim = (2 * mx * my + c1) * (2 * covariance + c2) / ((mx**2 + my**2 + c1) * (variances + c2))
    return 10 * math.log10(255**2 / ((x - y) ** 2).mean()), ssim.mean()


def scored(folders: Path, row: dict[str, str]) -> np.ndarray:
    """The picture that a row of per_picture.csv is about, made once more."""
    out, name = folders / "out", row["picture"]
    if row["name"] == "ctsr":
        return pixels(out / f"t_{float(row['t']):.2f}" / f"{name}.png")
    if row["name"] == "pixel blend":
        z0, z1, t = pixels(out / "t_0.00" / f"{name}.png"), pixels(out / "t_1.00" / f"{name}.png"), float(row["t"])
        return (z0 + t * (z1 - z0)).round()
    if row["name"] == "bicubic":
        low = next((folders / "lr").glob(f"{name}.*"))
        return np.asarray(as_pil(resize(read_picture(low).rgb, 64, 64).clamp(0, 1)), np.float64)
    return pixels(folders / row["name"] / f"{name}.bmp")


def errors(result: Result, code: int = 2) -> list[str]:
    """What a failed command says: nothing but sentences."""
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert lines
    assert all(line.startswith("Error: ") and line.endswith(".") for line in lines), lines
    return lines


def files_in(folder: Path) -> list[str]:
    """Files below a folder, hidden ones too."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# --------------------------------------------------------------------------------------------------------- the whole


def test_every_method_is_scored_in_both_tables(folders: Path, run: Run) -> None:
    result = run("--t", "1,0.25,0", "--sr", folders / "peer", "--color-fix", "adain")
    assert result.exit_code == 0, result.stderr
    out = folders / "out"
    made = [f"t_{t}/{name}.png" for t in ("0.00", "0.25", "1.00") for name in NAMES]
    assert files_in(out) == sorted([*made, *TABLES])
    methods = [
        ("ctsr", "0.0"),
        ("ctsr", "0.25"),
        ("ctsr", "1.0"),
        ("pixel blend", "0.25"),
        ("bicubic", ""),
        ("peer", ""),
    ]
    per_picture, scores = table(out / "per_picture.csv"), table(out / "scores.csv")
    assert list(per_picture[0]) == ["picture", "name", "t", PSNR, SSIM]
    assert [(row["picture"], row["name"], row["t"]) for row in per_picture] == [(n, *m) for n in NAMES for m in methods]
    assert [(row["name"], row["t"]) for row in scores] == methods
    for row in per_picture:
        expected = psnr_and_ssim(scored(folders, row), pixels(folders / "hr" / f"{row['picture']}.png"))
        assert (float(row[PSNR]), float(row[SSIM])) == pytest.approx(expected, abs=1e-6)
    for mean, first, second in zip(scores, per_picture[: len(methods)], per_picture[len(methods) :], strict=True):
        for metric in (PSNR, SSIM):
            assert float(mean[metric]) == pytest.approx((float(first[metric]) + float(second[metric])) / 2)
            assert f"{float(mean[metric]):.4f}" in result.stdout


def test_what_is_missing_and_what_was_written_is_said(folders: Path, run: Run) -> None:
    result = run("--t", "0.5")
    out = folders / "out"
    warning, written = result.stderr.splitlines()
    assert warning.startswith("Warning: NIQE, LPIPS, DISTS, MUSIQ, MANIQA, CLIPIQA, FID are left out: pyiqa cannot be")
    assert warning.endswith('pip install "ctsr[iqa]".')
    assert written == f"Written: {out / 'scores.csv'}, {out / 'per_picture.csv'}, {out / 'perception_distortion.png'}"
    assert [row["name"] for row in table(out / "scores.csv")] == ["ctsr", "bicubic"]  # no ends, no blend
    with Image.open(out / "perception_distortion.png") as plot:
        assert plot.format == "PNG"
        assert len(np.unique(np.asarray(plot))) > 2


def test_pictures_are_those_of_the_pipeline(folders: Path, run: Run, tiny_mini: CTSRPipeline) -> None:
    """8-bit RGB of exactly the truth's size, whatever the source is and whatever each pair's factor."""
    Image.fromarray(np.random.default_rng(0).integers(0, 2**16, (12, 20), np.uint16)).save(folders / "lr" / "a.png")
    picture(folders / "hr" / "a.png", (60, 36), 0)
    assert run("--t", "0.25", "--color-fix", "adain", out="elsewhere").exit_code == 0
    for source, width, height in ((folders / "lr" / "a.png", 60, 36), (folders / "lr" / "b.jpg", 64, 64)):
        low = read_picture(source).rgb
        (expected,) = tiny_mini(low, t=0.25, height=height, width=width, color_fix="adain").images
        made = folders / "elsewhere" / "t_0.25" / f"{source.stem}.png"
        assert np.array_equal(pixels(made), np.asarray(expected, np.float64))
        with Image.open(made) as image:
            settings = json.loads(image.info["ctsr"])
        assert (settings["t"], settings["size"]) == (0.25, f"{width}x{height}")


def test_pictures_without_a_partner_are_named(folders: Path, run: Run) -> None:
    picture(folders / "lr" / "c.png", (16, 16), 0)
    picture(folders / "hr" / "d.png", (64, 64), 0)
    result = run("--t", "0")
    assert result.exit_code == 0
    assert [line.split(": ", 2)[2] for line in result.stderr.splitlines()[:2]] == [
        "left out, being in one folder only: c.",
        "left out, being in one folder only: d.",
    ]
    assert [row["picture"] for row in table(folders / "out" / "per_picture.csv")] == ["a", "a", "b", "b"]


def test_the_truth_itself_has_an_infinite_psnr(folders: Path, run: Run) -> None:
    assert run("--t", "0", "--sr", folders / "hr").exit_code == 0
    last = table(folders / "out" / "scores.csv")[-1]
    assert (last["name"], float(last[PSNR]), float(last[SSIM])) == ("hr", math.inf, pytest.approx(1))


def test_lpips_dists_and_the_pattern_need_no_pyiqa(folders: Path, run: Run, perceptual_weights: Path) -> None:
    result = run("--t", "1", "--features", str(perceptual_weights))
    rows = {row["name"]: row for row in table(folders / "out" / "scores.csv")}
    assert all(float(row[name]) > 0 for row in rows.values() for name in ("LPIPS", "DISTS", "pattern"))
    assert "Warning: NIQE, MUSIQ, MANIQA, CLIPIQA, FID are left out" in " ".join(result.stderr.split())
    assert list(table(folders / "out" / "per_picture.csv")[0]) == ["picture", "name", "t", PSNR, SSIM, "LPIPS", "DISTS"]
    refused = run("--t", "1", "--features", str(folders / "hr"))
    assert refused.exit_code == 2
    assert "give a folder with the weights of LPIPS and DISTS" in " ".join(refused.stderr.split())


def test_metrics_of_pyiqa(folders: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for pyiqa, which cannot be installed here: its documented interface, not its figures."""
    (folders / "modules").mkdir()
    (folders / "modules" / "pyiqa.py").write_text(STAND_IN)
    monkeypatch.delitem(sys.modules, "pyiqa")
    monkeypatch.syspath_prepend(folders / "modules")
    result = run("--t", "0,0.5,1")
    assert result.exit_code == 0, result.stderr
    warnings = [line for line in result.stderr.splitlines() if line.startswith("Warning")]
    assert warnings == ["Warning: MUSIQ is left out: no weights to be had", "Warning: DISTS is left out: too small"]
    assert "Downloading" not in result.stdout
    assert "Lower is better: pattern, NIQE, LPIPS, FID" in result.stdout
    scores, per_picture = table(folders / "out" / "scores.csv"), table(folders / "out" / "per_picture.csv")
    assert list(per_picture[0])[3:] == [PSNR, SSIM, "NIQE", "LPIPS", "MANIQA", "CLIPIQA"]
    assert list(scores[0])[2:] == [PSNR, SSIM, "pattern", "NIQE", "LPIPS", "MANIQA", "CLIPIQA", "FID"]
    assert {row["FID"] for row in scores} == {"2.0"}
    for row in per_picture:
        made, truth = scored(folders, row) / 255, pixels(folders / "hr" / f"{row['picture']}.png") / 255
        expected = (made.mean(), abs(made - truth).mean())
        assert (float(row["NIQE"]), float(row["LPIPS"])) == pytest.approx(expected, rel=1e-5)


# -------------------------------------------------------------------------------------------------------------- plot


def test_plot_draws_curves_over_t_and_points() -> None:
    means = {
        Method("ctsr", 0.0): {PSNR: 25.0, SSIM: 0.7, "NIQE": 4.0},
        Method("ctsr", 0.5): {PSNR: 26.0, SSIM: 0.8, "NIQE": 5.0},
        Method("ctsr", 1.0): {PSNR: 27.0, SSIM: 0.9, "NIQE": 7.0},
        Method("pixel blend", 0.5): {PSNR: 26.5, SSIM: 0.8, "NIQE": 6.0},
        Method("bicubic"): {PSNR: 26.8, SSIM: 0.7, "NIQE": 9.0},
        Method("truth"): {PSNR: math.inf, SSIM: 1.0, "NIQE": 3.0},
    }
    (axes,) = draw(Scores({PSNR: False, SSIM: False, "NIQE": True}, [], means)).axes
    lines = {line.get_label(): np.asarray(line.get_xydata()).tolist() for line in axes.lines}
    assert lines == {
        "ctsr": [[25, 4], [26, 5], [27, 7]],
        "pixel blend": [[25, 4], [26.5, 6], [27, 7]],
        "bicubic": [[26.8, 9]],
    }
    assert [text.get_text() for text in axes.texts] == ["t = 0", "t = 0.5", "t = 1"]
    assert axes.get_ylabel() == "NIQE (lower is better)"
    (axes,) = draw(Scores({PSNR: False, SSIM: False}, [], means)).axes
    assert axes.get_ylabel() == "SSIM-Y (higher is better)"
    assert np.asarray(axes.lines[0].get_ydata()).tolist() == [0.7, 0.8, 0.9]


# ------------------------------------------------------------------------------------------------------------ errors


@pytest.mark.usefixtures("no_model")
def test_pairs_that_do_not_fit_are_all_named(folders: Path, run: Run) -> None:
    (folders / "lr" / "a.png").write_bytes(b"nothing")
    (folders / "hr" / "b.png").write_bytes((folders / "hr" / "b.png").read_bytes()[:-400])
    for seed, (name, low, high) in enumerate(
        (("c", (16, 16), (65, 64)), ("d", (16, 16), (64, 32)), ("e", (2, 2), (8, 8)), ("f", (16, 16), (8, 8)))
    ):
        picture(folders / "lr" / f"{name}.png", low, seed)
        picture(folders / "hr" / f"{name}.png", high, seed)
    lines = errors(run())
    assert len(lines) == 6
    assert f"{folders / 'lr' / 'a.png'} is not a picture" in lines[0]
    assert f"{folders / 'hr' / 'b.png'} is damaged" in lines[1]
    assert "65x64 pixels, not a whole multiple of 16x16" in lines[2]
    assert "64x32 pixels, not a whole multiple of 16x16" in lines[3]
    assert "SSIM needs 11 a side" in lines[4]
    assert "8x8 pixels, not a whole multiple of 16x16" in lines[5]
    assert not (folders / "out").exists()


@pytest.mark.usefixtures("no_model")
def test_results_of_others_must_be_there_and_fit(folders: Path, run: Run) -> None:
    picture(folders / "peer" / "b.bmp", (63, 64), 0)
    assert "they must be the same" in errors(run("--sr", folders / "peer"))[0]
    (folders / "peer" / "a.bmp").unlink()
    (folders / "peer" / "b.bmp").unlink()
    assert f"{folders / 'peer'} lacks the results of a, b." in errors(run("--sr", folders / "peer"))[0]


@pytest.mark.usefixtures("no_model")
def test_folders_that_cannot_be(folders: Path, run: Run) -> None:
    (folders / "empty").mkdir()
    assert "names must be the same but for the suffix" in errors(run(hr="empty"))[0]
    assert "is not a folder" in errors(run(lr="nowhere"))[0]
    assert "is a file" in errors(run(out="hr/a.png"))[0]
    assert "given twice" in errors(run("--sr", folders / "peer", "--sr", folders / "lr" / ".." / "peer"))[0]
    (folders / "peer").rename(folders / "t_0.50")
    own = run("--sr", folders / "t_0.50", "--t", "0.5", out=".")
    assert "would be overwritten" in errors(own)[0]
    picture(folders / "lr" / "a.bmp", (16, 16), 0)
    assert "a.bmp and a.png have the same name" in errors(run())[0]


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("arguments", "says"), [(("--t", "0,2"), "numbers from 0 to 1"), (("--tile", "8"), "tile must be 0")]
)
def test_bad_arguments(run: Run, arguments: tuple[str, ...], says: str) -> None:
    assert says in errors(run(*arguments))[0]


@pytest.mark.usefixtures("no_model")
def test_missing_scikit_image_says_what_to_install(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("ctsr.app.evaluate", "ctsr.app.metrics"):
        monkeypatch.delitem(sys.modules, module)
        monkeypatch.delattr(module)
    monkeypatch.setitem(sys.modules, "skimage", None)
    (line,) = errors(run())
    assert 'pip install "ctsr[eval]"' in line


def test_a_failure_on_the_way_ends_without_tables(folders: Path, run: Run) -> None:
    (folders / "out").mkdir()
    (folders / "out" / "t_1.00").write_text("a file where a folder must be")
    result = run("--t", "0,1")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith(f"Error: {folders / 'lr' / 'a.png'}: ")
    assert files_in(folders / "out") == ["t_0.00/a.png", "t_1.00"]


def test_half_a_table_is_never_left(tmp_path: Path) -> None:
    def interrupted() -> list[float]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_csv(tmp_path / "scores.csv", ["name"], (interrupted() for _ in range(1)))
    assert files_in(tmp_path) == []


def test_folders_of_results_have_names_of_their_own(tmp_path: Path) -> None:
    folders = [tmp_path / "x" / "peer", tmp_path / "y" / "peer", tmp_path / "bicubic", tmp_path / "other"]
    assert name_folders(folders) == [*(str(folder.resolve()) for folder in folders[:3]), "other"]
