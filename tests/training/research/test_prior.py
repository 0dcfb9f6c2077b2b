"""The mini's prior: noise prediction on the plain encoder's latents."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ctsr import CTSRPipeline
from training.data.datasets import Data
from training.data.pairs import Pairs
from training.engine.draws import Draws
from training.engine.run import Run
from training.engine.sources import Sample
from training.losses.score_networks import open_score_networks
from training.losses.vsd import add_noise
from training.model.one_step import OneStep, open_pipeline
from training.research import prior
from training.research.prior import NoiseLoss, score
from training.stages.stage import train


@pytest.fixture
def recipe(photos: Path, tiny_mini_file: Path, make_run: Callable[..., Run], tmp_path: Path) -> prior.Recipe:
    return replace(
        prior.MINI,
        data=Data(photos, pairs=Pairs(crop=64)),
        run=make_run(tmp_path / "prior", warm_up=0),
        start=str(tiny_mini_file),
    )


def test_the_loss_is_that_of_the_noise_on_plain_latents(
    make_prior: Callable[..., CTSRPipeline], make_batch: Callable[..., Sample]
) -> None:
    model, batch = OneStep(make_prior()), make_batch()
    draws = Draws(batch["index"], 6)
    with torch.no_grad():
        z = model.encode(batch["sharp"])
        noise, tau = draws.normal("noise", z), draws.integers("timestep", 0, 999)
        expected = (model.unet(add_noise(z, noise, tau), tau).sample - noise).square().mean()
    loss = NoiseLoss(model.requires_grad_(False), 6)
    model.unet.requires_grad_(True)
    out = loss(batch)
    torch.testing.assert_close(out["loss"].detach(), expected)
    out["loss"].backward()
    assert all(p.grad is not None for p in model.unet.parameters())


def test_a_batch_costs_the_mean_of_its_pictures(
    make_prior: Callable[..., CTSRPipeline], make_batch: Callable[..., Sample]
) -> None:
    loss = NoiseLoss(OneStep(make_prior()), 0)
    with torch.no_grad():
        whole, parts = loss(make_batch(2))["loss"], [loss(make_batch(1, first))["loss"] for first in (0, 1)]
    torch.testing.assert_close(whole, (parts[0] + parts[1]) / 2)


def test_the_score_of_a_prior_that_knows_the_noise_is_zero(
    make_prior: Callable[..., CTSRPipeline], make_batch: Callable[..., Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = OneStep(make_prior()), make_batch(1)
    pairs = [{name: value[0] for name, value in batch.items() if value.ndim}]
    with torch.no_grad():
        z = model.encode(batch["sharp"])
        ignorant = score(model, pairs, 3)
        noise = Draws(torch.tensor([0]), 3).normal("score", z)
        monkeypatch.setattr(prior, "denoiser", lambda _: lambda noisy, step: noise)
        known = score(model, pairs, 3)
    assert ignorant.figures.keys() == known.figures.keys() == {f"tau={tau}" for tau in (100, 300, 500, 700, 900)}
    assert max(known.figures.values()) < 1e-6
    assert min(ignorant.figures.values()) > 0.01


def test_the_stage_moves_the_unet_alone_and_vsd_can_take_its_file(
    recipe: prior.Recipe, reload: Callable[[Path], CTSRPipeline]
) -> None:
    train(prior.build, recipe)
    trained, start = reload(recipe.run.out), open_pipeline(recipe.start)
    assert trained.family.name == "osediff"
    assert trained.family.parameterization == "epsilon"
    assert trained.unet.config["out_channels"] == trained.unet.config["in_channels"] == 4
    assert trained.unet.conv_out.weight.abs().sum() > 0  # a new one is zero
    old, new = start.vae.state_dict(), trained.vae.state_dict()
    assert all(torch.equal(old[name], new[name]) for name in old)
    z, tau = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([500])
    scores = open_score_networks(open_pipeline(recipe.run.out / "model.safetensors", "osediff"))
    with torch.no_grad():
        assert torch.equal(scores.prior(z, tau), trained.unet(z, tau).sample)
