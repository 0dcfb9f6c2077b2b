"""The table of methods in training/README.md, cell by cell: each trains, resumes, exports, infers, and has its dial."""

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner

from ctsr import CTSRPipeline
from ctsr.app.cli import app
from training.data.datasets import Data
from training.data.pairs import Pairs
from training.engine.loop import Loop
from training.engine.run import Run
from training.model.unet_channels import keep_groups
from training.research import oftsr, pisa, tadsr
from training.stages import export, osediff, stage1, stage2
from training.stages.stage import train

pytest.importorskip("peft")

METHODS = ("ctsr", "osediff", "tadsr", "oftsr", "pisa")
Chain = list[tuple[Callable[..., Any], Any]]


@pytest.fixture
def one_end(make_mini: Callable[..., CTSRPipeline], tmp_path: Path) -> Path:
    """The file of a model without a dial."""
    pipeline, path = make_mini(), tmp_path / "one_end.safetensors"
    keep_groups(pipeline.unet, pipeline.vae.config["latent_channels"])
    pipeline.register_to_config(family="osediff", parameterization="residual", encoder_timesteps=None)
    pipeline.save_single_file(path, torch.float32)
    return path


@pytest.fixture
def chain(
    photos: Path,
    stage_files: dict[str, Path],
    one_end: Path,
    tiny_prior_file: Path,
    sd_folder: Path,
    make_run: Callable[..., Run],
    tmp_path: Path,
) -> Callable[[str], Chain]:
    """`chain(method)`: its stages in order, each with a recipe of four steps on tiny networks."""
    mini = {"data": Data(photos, pairs=Pairs(crop=32)), "start": str(stage_files["mini"])}

    def run(name: str) -> Run:
        return make_run(tmp_path / name, steps=4, warm_up=0, validate_every=4)

    def left_by(name: str) -> str:
        return str(tmp_path / name / "model.safetensors")

    def make(method: str) -> Chain:
        if method == "ctsr":
            fidelity = stage_files["mini fidelity"]
            first = replace(stage1.MINI, **mini, run=run("stage1"), fidelity=fidelity)
            second = replace(stage2.MINI, **(mini | {"start": left_by("stage1")}), run=run("stage2"), fidelity=fidelity)
            return [(stage1.build, first), (stage2.build, second)]
        if method == "osediff":
            start = mini | {"start": str(one_end)}
            return [(osediff.build, replace(osediff.MINI, **start, run=run("osediff"), prior=tiny_prior_file))]
        if method == "tadsr":
            return [(tadsr.build, replace(tadsr.MINI, **mini, run=run("tadsr"), timesteps=(100, 900)))]
        if method == "oftsr":
            flow = replace(oftsr.RECIPES["mini-teacher"][1], **mini, run=run("flow"), sampled_steps=2)
            student = {**mini, "start": left_by("flow")}
            return [
                (oftsr.build, flow),
                (oftsr.build, replace(oftsr.RECIPES["mini-distil"][1], **student, run=run("oftsr"))),
            ]
        sd = {"data": Data(photos, pairs=Pairs(crop=64)), "reconstruction": replace(pisa.L2, l2=1.0)}
        pixel = replace(pisa.RECIPES["sd21-pixel"][1], **sd, start=str(sd_folder), run=run("pixel"))
        semantic = replace(
            pisa.RECIPES["sd21-semantic"][1],
            **sd,
            start=left_by("pixel"),
            run=run("pisa"),
            prior=sd_folder,
            prompt="cat",
        )
        return [(pisa.build, pixel), (pisa.build, semantic)]

    return make


def train_in_two_parts(build: Callable[..., Any], recipe: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stage, stopped by SIGTERM in its second step and started again; the folder of it."""
    recipe = replace(recipe, run=replace(recipe.run, out=recipe.run.out.with_name(f"{recipe.run.out.name}-parts")))
    take_turns = Loop.take_turns

    def stop_in_the_second_step(self: Loop, step: int, batch: Any) -> None:
        if step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        take_turns(self, step, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "take_turns", stop_in_the_second_step)
        train(build, recipe)
    assert not (recipe.run.out / "model.safetensors").exists()
    train(build, recipe)
    return recipe.run.out


def latents(pipeline: CTSRPipeline, t: float) -> Tensor:
    picture = Image.radial_gradient("L").resize((24, 16)).convert("RGB")
    return pipeline(picture, t=t, output_type="latent", generator=torch.Generator().manual_seed(0)).images


def check_dial(method: str, pipeline: CTSRPipeline) -> None:
    """CTSR's and PiSA-SR's `t` is the papers' own, and so is `at(t)` of TADSR and OFTSR; OSEDiff has none."""
    first, middle, last = (latents(pipeline, t) for t in (0.0, 0.3, 1.0))
    assert torch.equal(first, last) is (method == "osediff")
    if method in ("tadsr", "oftsr"):
        for t, end in ((0.0, first), (1.0, last)):
            assert torch.allclose(latents(pipeline.at(t), 0.5), end, atol=1e-5)
    elif method == "pisa":  # z = pixel + (1 - t) * (semantic - pixel)
        assert torch.allclose(middle, last + 0.7 * (first - last), atol=1e-5)
    elif method == "ctsr":  # z = z0 + t * delta + t * (1 - t) * kappa
        half = latents(pipeline, 0.5)
        kappa = 4 * (half - (first + last) / 2)
        assert torch.allclose(middle, first + 0.3 * (last - first) + 0.21 * kappa, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_trains_resumes_exports_infers_and_has_its_dial(
    method: str, chain: Callable[[str], Chain], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = tmp_path
    for build, recipe in chain(method):
        train(build, recipe)
        left = recipe.run.out
        whole, parts = (
            load_file(out / "model.safetensors") for out in (left, train_in_two_parts(build, recipe, monkeypatch))
        )
        assert whole.keys() == parts.keys()
        assert all(torch.equal(whole[name], parts[name]) for name in whole)
    released, picture = tmp_path / "released.safetensors", tmp_path / "picture.png"
    export.weights(left / "model.safetensors", released)
    assert released.stat().st_size < 0.6 * (left / "model.safetensors").stat().st_size
    Image.radial_gradient("L").resize((24, 16)).convert("RGB").save(picture)
    words = ["upscale", str(picture), "-o", str(tmp_path / "large.png"), "--model", str(released), "--t", "0.3"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert Image.open(tmp_path / "large.png").size == (96, 64)
    pipeline = CTSRPipeline.from_single_file(left / "model.safetensors")
    assert pipeline.family.name == method
    check_dial(method, pipeline)
