"""Tasks at a picture's own size: what they do to it, and that a model that learns one says so and keeps its scale."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from ctsr import CTSRPipeline
from ctsr.app.cli import app
from training.data.datasets import Data
from training.data.degradation_batched import PairsOnDevice
from training.data.pairs import Pairs, bicubic, held_back_pairs, make_pair
from training.data.photos import load_photos
from training.data.same_size import DRAWS, SameSize, exposure, motion_kernel, spoil
from training.engine.run import Run
from training.stages import fidelity
from training.stages.stage import train

TASKS = sorted(DRAWS)


def grey(level: int = 128) -> np.ndarray:
    return np.full((32, 32, 3), level, np.uint8)


@pytest.mark.parametrize("task", TASKS)
def test_pairs_of_a_task_are_of_one_size_and_a_function_of_their_number(task, photos: Path) -> None:
    pairs, loaded = Pairs(crop=32, task=task, scale=1), load_photos(photos)
    one, again, other = (make_pair(loaded, pairs, number) for number in (3, 3, 4))
    assert one["lr"].shape == one["soft"].shape == (3, 32, 32)
    assert torch.equal(one["lr"], again["lr"])
    assert not torch.equal(one["lr"], other["lr"])
    (held,) = held_back_pairs(loaded, pairs, size=48)
    assert held["lr"].shape == held["soft"].shape == (3, 48, 48)
    assert not torch.equal(held["lr"], held["soft"])


@pytest.mark.parametrize("task", TASKS)
def test_the_device_draws_and_makes_the_same_but_for_the_noise(task, photos: Path) -> None:
    pairs, loaded = Pairs(crop=32, task=task, scale=1, softness=0.0), load_photos(photos)
    batch = PairsOnDevice(loaded, pairs, "cpu")(torch.arange(4))
    for number in range(4):
        alone = make_pair(loaded, pairs, number)
        torch.testing.assert_close(batch["sharp"][number], alone["sharp"])
        # Noise of another generator, and kornia's JPEG
        assert (batch["lr"][number] - alone["lr"]).abs().mean() < 0.05


def test_a_stop_halves_linear_light_and_noise_is_least_in_the_dark() -> None:
    rng = np.random.default_rng(0)
    darker = spoil(grey(), SameSize(light=exposure(1.0)), rng)
    assert (darker[0, 0, 0] / 128) ** 2.2 == pytest.approx(0.5, abs=0.01)
    dark, light = (spoil(grey(level), SameSize(noise=(1.0, 0.5)), rng).std() for level in (20, 200))
    assert 1 < dark < light
    assert np.array_equal(spoil(grey(), SameSize(), rng), grey())


def test_motion_blurs_along_its_direction_and_keeps_brightness() -> None:
    kernel = motion_kernel(9.0, 0.0)
    assert kernel.sum() == pytest.approx(1)
    assert kernel.sum(axis=0)[[4, -5]].min() > 0
    assert kernel.sum(axis=1).argmax() == kernel.shape[0] // 2


@pytest.mark.parametrize("scale", [1, 2, 3])
def test_super_resolution_at_any_scale(scale: int, photos: Path) -> None:
    loaded = load_photos(photos)
    for kind in ("camera", "realesrgan"):
        pair = make_pair(loaded, Pairs(crop=48, scale=scale, degradation=kind), 0)
        assert pair["lr"].shape == (3, 48 // scale, 48 // scale)
    assert bicubic(grey(), scale).shape[0] == 32 // scale


@pytest.mark.parametrize("wrong", [{"task": "lowlight"}, {"scale": 0}, {"crop": 32, "scale": 3}])
def test_what_no_pairs_can_have_is_refused(wrong) -> None:
    with pytest.raises(ValueError, match=r"^(scale|crop) is "):
        Pairs(**wrong)


def test_a_model_of_a_task_says_so_and_keeps_a_pictures_size(photos: Path, make_run, tmp_path: Path) -> None:
    pairs = Pairs(crop=32, task="lowlight", scale=1, softness=0.0)
    run: Run = make_run(tmp_path / "out")
    train(fidelity.build, replace(fidelity.LOWLIGHT, data=Data(photos, pairs=pairs), run=run))
    file = run.out / "model.safetensors"
    pipeline = CTSRPipeline.from_single_file(file)
    assert (pipeline.config["task"], pipeline.config["default_scale"]) == ("lowlight", 1)
    assert pipeline.config["color_fix"] == "none"
    assert pipeline.changes_light
    picture = Image.new("RGB", (21, 13), "teal")
    assert pipeline(picture).images[0].size == (21, 13)
    pipeline.save_pretrained(tmp_path / "folder")
    picture.save(tmp_path / "in.png")
    for model in (file, tmp_path / "folder"):
        words = ["upscale", str(tmp_path / "in.png"), "-o", str(tmp_path / "new.png"), "--overwrite"]
        assert CliRunner().invoke(app, [*words, "--model", str(model)]).exit_code == 0
        assert Image.open(tmp_path / "new.png").size == (21, 13)
    said = CliRunner().invoke(app, ["info", str(file)]).output
    assert "lowlight, by default at scale 1" in said
    assert "output" in said


def test_a_teacher_of_another_scale_is_refused(on_tiny_files) -> None:
    from training.stages import stage1

    recipe = on_tiny_files(stage1.MINI, "mini")
    wrong = replace(recipe, data=replace(recipe.data, pairs=Pairs(crop=32, scale=2)))
    with pytest.raises(ValueError, match="is for scale 4, not 2"):
        stage1.build(wrong)
