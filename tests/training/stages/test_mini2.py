"""ctsr-mini 2 from nothing through the stages that have a recipe for it: told how soft the ground truth is."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ctsr import CTSRPipeline
from ctsr.assess.vgg import VGG_FILE
from ctsr.models.autoencoder_mini2 import TimeAwareAutoencoderMini2
from training.data.datasets import mini2_data
from training.data.pairs import held_back_pairs
from training.data.photos import load_photos
from training.engine.run import Run
from training.model.one_step import DEFAULT_TIMESTEP, OneStep, open_pipeline
from training.stages import fidelity, joint, osediff, stage1, stage2
from training.stages.stage import RESULT, psnr_y, train, validate

pytest.importorskip("peft")


@pytest.fixture
def recipe(photos: Path, make_run: Callable[..., Run], tmp_path: Path) -> fidelity.Recipe:
    data = mini2_data()
    return replace(
        fidelity.MINI2,
        data=replace(data, photos=photos, pairs=replace(data.pairs, crop=32)),
        run=make_run(tmp_path / "fidelity", steps=80, warm_up=5, validate_every=1000),
        peak_rate=1e-3,
    )


def test_a_new_one_gives_the_enlarged_picture_back() -> None:
    model = OneStep(open_pipeline("new"))
    lr = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        picture = model.decode(model(lr).z0)
        torch.testing.assert_close(
            picture,
            model.decode(
                model.encode(torch.nn.functional.interpolate(lr, scale_factor=4, mode="bicubic", antialias=True))
            ),
            atol=1e-5,
            rtol=1e-4,
        )
    assert model.family.timesteps == (DEFAULT_TIMESTEP,)


def test_it_is_told_the_timestep_and_others_are_not(make_mini: Callable[..., object]) -> None:
    batch = {"timestep": torch.tensor([5]), "soft": torch.zeros(1), "sharp": torch.ones(1)}
    told, untold = OneStep(open_pipeline("new")), OneStep(make_mini())
    assert told.told(batch) is batch["timestep"]
    assert told.ground_truth(batch) is batch["soft"]
    assert untold.told(batch) is None
    assert untold.ground_truth(batch) is batch["sharp"]


def test_held_back_pairs_are_scored_at_their_own_timestep(recipe: fidelity.Recipe) -> None:
    torch.manual_seed(0)
    model = OneStep(open_pipeline("new"))
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    (pair,) = held_back_pairs(load_photos(recipe.data.photos), recipe.data.pairs, size=64)
    batch = {name: tensor[None] for name, tensor in pair.items()}
    with torch.no_grad():
        told, untold = (model.decode(model(batch["lr"], step).z0) for step in (batch["timestep"], None))
        figure = validate(model, [pair], dial=(0.0,)).figures["t=0"]
    assert figure == pytest.approx(psnr_y(told, batch["soft"]), abs=1e-4)
    assert abs(figure - psnr_y(untold, batch["soft"])) > 1e-3


def test_fidelity_learns_from_nothing(recipe: fidelity.Recipe) -> None:
    train(fidelity.build, recipe)
    pipeline = open_pipeline(recipe.run.out / RESULT)
    assert isinstance(pipeline.vae, TimeAwareAutoencoderMini2)
    assert pipeline.family.timesteps == (DEFAULT_TIMESTEP,)
    pairs = held_back_pairs(load_photos(recipe.data.photos), recipe.data.pairs, size=64)
    with torch.no_grad():
        figures = validate(OneStep(pipeline), pairs, dial=(1.0,)).figures
    assert figures["t=1"] > figures["bicubic"]


def test_the_whole_lineage_runs_and_keeps_what_each_stage_must(
    photos: Path, make_run: Callable[..., Run], perceptual_weights: Path, tmp_path: Path
) -> None:
    def short(recipe: Any, name: str, **changes: Any) -> Any:
        data = replace(recipe.data, photos=photos, pairs=replace(recipe.data.pairs, crop=32))
        return replace(recipe, data=data, run=make_run(tmp_path / name, steps=3, validate_every=1000), **changes)

    def result(name: str) -> Path:
        return tmp_path / name / RESULT

    vgg = replace(osediff.MINI2.reconstruction, weights=perceptual_weights)
    features = replace(osediff.MINI2.realism.adversarial, features=perceptual_weights / VGG_FILE, delay=0)
    realism = replace(osediff.MINI2.realism, adversarial=features)
    seen = {"reconstruction": vgg, "realism": realism}
    train(fidelity.build, short(fidelity.MINI2, "fidelity"))
    faithful = {"fidelity": result("fidelity")}
    train(osediff.build, short(osediff.MINI2, "osediff", start=str(result("fidelity")), **seen))
    train(stage1.build, short(stage1.MINI2, "stage1", start=str(result("osediff")), **faithful, **seen))
    train(stage2.build, short(stage2.MINI2, "stage2", start=str(result("stage1")), **faithful))
    last = short(joint.MINI2, "joint", start=str(result("stage2")), realistic=vgg, realism=realism)
    train(joint.build, last)

    picture = torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    first, before, after = (open_pipeline(result(name)) for name in ("stage1", "stage2", "joint"))
    at = {t: before(picture, scale=4, t=t, output_type="pt").images for t in (0.0, 0.25, 1.0)}
    torch.testing.assert_close(at[0.0], first(picture, scale=4, output_type="pt").images, atol=1e-5, rtol=0)
    assert (at[1.0] - at[0.0]).abs().max() > 1e-4, "stage 2 has learned a way to the faithful end"
    assert (after(picture, scale=4, t=0.0, output_type="pt").images - at[0.0]).abs().max() > 1e-5


def test_the_pipeline_runs_it_at_any_size_by_tiles_and_from_its_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    pipeline = open_pipeline("new")
    for part in (pipeline.unet, pipeline.vae):
        for parameter in part.parameters():
            parameter.data += 0.02 * torch.randn_like(parameter)
    picture = torch.rand(1, 3, 21, 30)
    whole = pipeline(picture, scale=4, t=0.0, output_type="pt").images
    assert whole.shape == (1, 3, 84, 120)
    tiled = pipeline(picture, scale=4, t=0.0, tile=128, output_type="pt").images
    torch.testing.assert_close(tiled, whole, atol=2e-5, rtol=0)
    other = pipeline(picture, scale=4, t=0.0, timestep=0, output_type="pt").images
    assert (other - whole).abs().max() > 1e-3, "the timestep changes the picture"
    latents = pipeline.encode(picture, 84, 120).latents
    ends = [pipeline.endpoints(latents, timestep).z0 for timestep in (None, DEFAULT_TIMESTEP, 0)]
    assert torch.equal(ends[0], ends[1])
    assert (ends[0] - ends[2]).abs().max() > 1e-3, "the UNet is told the timestep too, not the encoder alone"
    pipeline.save_single_file(tmp_path / "mini2.safetensors", torch.float32)
    again = CTSRPipeline.from_single_file(tmp_path / "mini2.safetensors", torch_dtype=torch.float32)
    assert again.family == pipeline.family
    assert torch.equal(again(picture, scale=4, t=0.0, output_type="pt").images, whole)
