"""The ends of every stage: its command line, its scores, its file."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import tyro
from skimage.metrics import peak_signal_noise_ratio

from ctsr import CTSRPipeline
from training.data.datasets import open_photos
from training.data.pairs import held_back_pairs
from training.data.photos import load_photos
from training.engine.run import Run
from training.engine.sources import Sample
from training.model.one_step import OneStep, enlarge
from training.research import prior
from training.stages import autoencoder, fidelity, joint, osediff
from training.stages.stage import psnr_y, read_recipe, save, validate, video_luma


def test_luma_is_bt601() -> None:
    corners = torch.tensor([[-1.0, -1, -1], [1, 1, 1], [1, -1, -1]]).view(3, 3, 1, 1)
    assert video_luma(corners).flatten().tolist() == pytest.approx([16, 235, 81.481], abs=0.01)
    assert torch.equal(video_luma(3 * corners), video_luma(corners))


def test_psnr_is_of_luma_in_eight_bits() -> None:
    white = torch.ones(1, 3, 4, 4)
    assert psnr_y(white, -white) == pytest.approx(20 * np.log10(255 / 219), abs=0.01)
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.rand(1, 3, 16, 16, generator=generator) * 2 - 1 for _ in range(2))
    expected = peak_signal_noise_ratio(video_luma(y).numpy(), video_luma(x).numpy(), data_range=255)
    assert psnr_y(x, y) == pytest.approx(expected, abs=1e-3)


@pytest.fixture
def pairs(photos: Path) -> list[Sample]:
    (pair,) = held_back_pairs(load_photos(photos), fidelity.MINI.data.pairs, size=64)
    return [pair] * 5


def test_the_score_is_the_mean_along_the_dial_beside_bicubic(
    make_mini: Callable[..., CTSRPipeline], pairs: list[Sample]
) -> None:
    pipeline = make_mini()
    with torch.no_grad():
        report = validate(OneStep(pipeline), pairs, dial=(0.0, 1.0))
    assert report.figures.keys() == {"bicubic", "t=0", "t=1"}
    lr, soft = pairs[0]["lr"][None], pairs[0]["soft"][None]
    assert report.figures["bicubic"] == pytest.approx(psnr_y(enlarge(lr), soft))
    for t in (0.0, 1.0):
        picture = torch.as_tensor(pipeline((lr + 1) / 2, t=t, color_fix="none", output_type="pt").images)
        assert report.figures[f"t={t:g}"] == pytest.approx(psnr_y(2 * picture - 1, soft), abs=1e-3)
    assert {name: tuple(x.shape) for name, x in report.pictures.items()} == dict.fromkeys(
        ("bicubic", "t=0", "t=1", "HR"), (4, 3, 64, 64)
    )
    assert torch.equal(report.pictures["HR"][0], pairs[0]["sharp"])


def test_the_file_is_whole(make_mini: Callable[..., CTSRPipeline], tmp_path: Path) -> None:
    pipeline = make_mini()
    pipeline.register_to_config(encoder_timesteps=[500])
    path = save(pipeline, tmp_path / "run")
    loaded = CTSRPipeline.from_single_file(path, torch_dtype=torch.float32)
    assert path == tmp_path / "run" / "model.safetensors"
    assert loaded.family == pipeline.family
    for part in ("vae", "unet"):
        old, new = (getattr(p, part).state_dict() for p in (pipeline, loaded))
        assert all(torch.equal(old[name], new[name]) for name in old)


@dataclass(frozen=True)
class Recipe:
    run: Run
    start: str


def test_the_command_line_chooses_a_recipe_and_changes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    base = Recipe(Run(tyro.MISSING, steps=10), tyro.MISSING)
    recipes = {"mini": ("small", base), "sd21": ("large", Recipe(Run(tyro.MISSING, steps=99), tyro.MISSING))}
    monkeypatch.setattr(sys, "argv", ["x", "sd21", "--run.out", "there", "--start", "mini", "--run.batch", "3"])
    assert read_recipe(recipes) == Recipe(Run(Path("there"), steps=99, batch=3), "mini")


@pytest.mark.parametrize("stage", [autoencoder, fidelity, prior, osediff, joint])
def test_the_recipes_of_a_stage_can_be_run_from_the_command_line(
    stage, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, (_, recipe) in stage.RECIPES.items():
        words = ["x", name, "--data.photos", str(photos), "--run.out", "there", "--run.precision", "no"]
        words += ["--data.pairs.crop", "64"]
        words += ["--start", "here"] if hasattr(recipe, "start") else []
        words += ["--prior", "base"] if getattr(recipe, "prior", None) is tyro.MISSING else []
        monkeypatch.setattr(sys, "argv", words)
        found = read_recipe(stage.RECIPES)
        assert found.run.precision == "no"
        assert found.run.steps == recipe.run.steps
        assert found.peak_rate == recipe.peak_rate
        assert open_photos(found.data)[0].held_back


def test_what_a_recipe_cannot_know_must_be_given(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["x", "mini", "--run.out", "there"])
    with pytest.raises(SystemExit):
        read_recipe(fidelity.RECIPES)
    said = capsys.readouterr()
    assert "--data.photos" in said.out + said.err
    assert "--start" in said.out + said.err
