"""The other forms of stage 2: a time condition, the printed equations; they train and come back."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from training.engine.draws import Draws
from training.model.one_step import OneStep, open_pipeline
from training.research import stage2_variants
from training.research.stage2_variants import (
    Recipe,
    add_time_condition,
    b2_latent,
    dial_and_later,
    literal_latent,
    open_variant,
)
from training.stages.stage import train

Moved = Callable[[object, object, str], set[str]]


@pytest.fixture
def mini(on_tiny_files: Callable[..., Recipe]) -> Recipe:
    return on_tiny_files(stage2_variants.MINI, "mini")


@pytest.fixture
def sd21(on_tiny_files: Callable[..., Recipe]) -> Recipe:
    return on_tiny_files(stage2_variants.SD21, "sd")


def latents(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", ["mini", "sd"])
@torch.no_grad()
def test_a_time_condition_starts_without_effect(stage_files: dict[str, Path], size: str) -> None:
    model, plain = OneStep(open_pipeline(stage_files[size])), OneStep(open_pipeline(stage_files[size]))
    add_time_condition(model.unet)
    z = latents(2, 4, 8, 8)
    for t in (0.0, 0.4, torch.tensor([0.0, 1.0])):
        assert torch.equal(b2_latent(model, z, t), plain.x0(z, 999))
    model.unet.time_embedding.cond_proj.weight.fill_(0.1)
    both = b2_latent(model, z, torch.tensor([0.0, 1.0]))
    assert torch.allclose(both[:1], b2_latent(model, z[:1], 0.0), atol=1e-4)
    assert torch.allclose(both[1:], b2_latent(model, z[1:], 1.0), atol=1e-4)
    assert (b2_latent(model, z, 0.0) - b2_latent(model, z, 1.0)).abs().max() > 1e-3


@torch.no_grad()
def test_t_is_told_as_a_timestep_is(stage_files: dict[str, Path]) -> None:
    """By the sinusoid of 999 t: that of t itself would hardly move."""
    model = OneStep(open_pipeline(stage_files["mini"]))
    add_time_condition(model.unet)
    seen: list[Tensor] = []
    model.unet.time_embedding.cond_proj.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    b2_latent(model, latents(2, 4, 8, 8), torch.tensor([0.25, 1.0]))
    assert torch.allclose(seen[0], model.unet.time_proj(torch.tensor([249.75, 999.0])))


def test_b2_of_the_mini_comes_back(mini: Recipe) -> None:
    train(stage2_variants.build, replace(mini, flow=1.0))
    assert not (mini.run.out / "model.safetensors").exists()
    check_b2(mini)


def test_b2_at_sd_size_comes_back(sd21: Recipe) -> None:
    train(stage2_variants.build, sd21)
    check_b2(sd21)


@torch.no_grad()
def check_b2(recipe: Recipe) -> None:
    model = open_variant(recipe.start, recipe.run.out / "unet")
    assert model.unet.time_embedding.cond_proj.weight.abs().max() > 0
    z = latents(1, 4, 8, 8)
    latent = b2_latent(model, z, 0.5)
    assert latent.shape == z.shape
    assert latent.isfinite().all()
    assert not torch.equal(latent, b2_latent(model, z, 1.0))


def test_the_printed_equations_train_a_velocity(mini: Recipe, moved: Moved) -> None:
    """Without a faithful teacher: they have none."""
    train(stage2_variants.build, replace(mini, variant="literal", fidelity=None))
    stage1, student = OneStep(open_pipeline(mini.start)), open_variant(mini.start, mini.run.out / "unet")
    assert moved(stage1, student, "unet")
    z = latents(1, 4, 8, 8)
    with torch.no_grad():
        assert torch.equal(literal_latent(stage1, student, z, 0.0), stage1.x0(z, 999))
        assert not torch.equal(literal_latent(stage1, student, z, 1.0), stage1.x0(z, 999))


def test_t_and_the_later_t_are_in_order() -> None:
    draws = Draws(torch.arange(16), 0)
    t, later = dial_and_later(draws, torch.zeros(16))
    assert (t < later).all()
    assert t.min() > 0
    assert later.max() < 1


@pytest.mark.parametrize(
    ("what", "match"),
    [
        ({"encoder": "full"}, "encoder frozen"),
        ({"time_layers": True}, "encoder frozen"),
        ({"unet": "frozen"}, "full or lora"),
        ({"decoder": True}, "no decoder"),
    ],
)
def test_settings_that_cannot_work_are_refused(mini: Recipe, what: dict[str, object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        train(stage2_variants.build, replace(mini, adapt=replace(mini.adapt, **what)))


def test_one_faithful_teacher_it_must_be(mini: Recipe) -> None:
    with pytest.raises(ValueError, match="one faithful teacher"):
        train(stage2_variants.build, replace(mini, fidelity=None))
