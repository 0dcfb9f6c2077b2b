"""ctsr-mini 2 from nothing through the stages that have a recipe for it: told how soft the ground truth is."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ctsr import CTSRPipeline
from ctsr.models.autoencoder_mini2 import TimeAwareAutoencoderMini2
from training.data.datasets import mini2_data
from training.data.pairs import held_back_pairs
from training.data.photos import load_photos
from training.engine.run import Run
from training.model.one_step import DEFAULT_TIMESTEP, OneStep, open_pipeline
from training.stages import fidelity
from training.stages.stage import RESULT, train, validate

pytest.importorskip("peft")


@pytest.fixture
def recipe(photos: Path, make_run: Callable[..., Run], tmp_path: Path) -> fidelity.Recipe:
    data = mini2_data()
    return replace(
        fidelity.MINI2,
        data=replace(data, photos=photos, pairs=replace(data.pairs, crop=32)),
        run=make_run(tmp_path / "fidelity", steps=30, warm_up=5, validate_every=1000),
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


def test_fidelity_learns_from_nothing(recipe: fidelity.Recipe) -> None:
    train(fidelity.build, recipe)
    pipeline = open_pipeline(recipe.run.out / RESULT)
    assert isinstance(pipeline.vae, TimeAwareAutoencoderMini2)
    assert pipeline.family.timesteps == (DEFAULT_TIMESTEP,)
    pairs = held_back_pairs(load_photos(recipe.data.photos), recipe.data.pairs, size=64)
    with torch.no_grad():
        figures = validate(OneStep(pipeline), pairs, dial=(1.0,)).figures
    assert figures["t=1"] > figures["bicubic"]


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
