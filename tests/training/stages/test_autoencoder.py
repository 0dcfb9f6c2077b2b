"""The autoencoder's stage: its loss, its gate, and the file it leaves."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ctsr import CTSRPipeline, TimeAwareAutoencoderMini
from training.data.datasets import Data
from training.data.pairs import Pairs
from training.engine.draws import Draws
from training.engine.run import Run
from training.engine.sources import Sample
from training.model.dct_init import dct_init_
from training.model.one_step import enlarge
from training.stages import autoencoder
from training.stages.autoencoder import Generator, gate, gradient_l1, psnr
from training.stages.stage import train


@pytest.fixture
def recipe(photos: Path, make_run: Callable[..., Run], tmp_path: Path) -> autoencoder.Recipe:
    return replace(
        autoencoder.MINI,
        data=Data(photos, pairs=Pairs(crop=64)),
        run=make_run(tmp_path / "autoencoder", warm_up=0),
        latent_channels=16,
    )


@pytest.fixture
def vae() -> TimeAwareAutoencoderMini:
    torch.manual_seed(0)
    model = TimeAwareAutoencoderMini(16, block_out_channels=(16, 32, 48), layers_per_block=(1, 1, 1))
    dct_init_(model)
    return model


def test_gradients_are_compared_in_both_directions() -> None:
    x = torch.rand(2, 3, 5, 6, generator=torch.Generator().manual_seed(0))
    assert gradient_l1(x, x + 0.3).item() == pytest.approx(0, abs=1e-6)
    slope = 0.1 * torch.arange(6.0)
    assert gradient_l1(x, x + slope).item() == pytest.approx(0.1, abs=1e-6)
    assert gradient_l1(x, x + slope[:5, None]).item() == pytest.approx(0.1, abs=1e-6)
    assert gradient_l1(x, x + slope + 2 * slope[:5, None]).item() == pytest.approx(0.3, abs=1e-6)


def test_psnr_is_of_pictures_in_minus_one_to_one() -> None:
    x = torch.zeros(1, 3, 4, 4)
    assert psnr(x, x + 2) == pytest.approx(0)
    assert psnr(x, x + 0.02) == pytest.approx(40, abs=1e-3)


def test_the_loss_is_of_sharp_and_enlarged_pictures_through_a_noisy_latent(
    vae: TimeAwareAutoencoderMini, recipe: autoencoder.Recipe, make_batch: Callable[..., Sample]
) -> None:
    recipe = replace(recipe, latent_noise=0.1, latent_weight=0.01, gradient_weight=2.0, soft_share=0.5)
    batch = make_batch(6)
    draws = Draws(batch["index"], recipe.run.seed)
    soft = draws.uniform("soft") < 0.5
    assert 0 < soft.sum() < 6
    rows = [enlarge(batch["lr"])[i] if is_soft else batch["sharp"][i] for i, is_soft in enumerate(soft)]
    x = torch.stack(rows)
    out = Generator(vae, recipe)(batch)
    with torch.no_grad():
        z = vae.encode(x).latents
        y = vae.decode(z + 0.1 * draws.normal("latent", z)).sample
    torch.testing.assert_close(out["pixels"].detach(), (y - x).abs().mean())
    torch.testing.assert_close(out["edges"].detach(), 2 * gradient_l1(y, x))
    torch.testing.assert_close(out["loss"].detach(), out["pixels"] + out["edges"] + 0.01 * z.square().mean())


def test_a_batch_costs_the_mean_of_its_pictures(
    vae: TimeAwareAutoencoderMini, recipe: autoencoder.Recipe, make_batch: Callable[..., Sample]
) -> None:
    loss = Generator(vae, recipe)
    with torch.no_grad():
        whole, parts = loss(make_batch(2))["loss"], [loss(make_batch(1, first))["loss"] for first in (0, 1)]
    torch.testing.assert_close(whole, (parts[0] + parts[1]) / 2)


def test_the_gate_measures_both_kinds_of_pictures(
    vae: TimeAwareAutoencoderMini, make_batch: Callable[..., Sample]
) -> None:
    batch = make_batch(2)
    pairs = [{name: value[i] for name, value in batch.items() if value.ndim} for i in (0, 1)]
    with torch.no_grad():
        report = gate(vae, pairs)
        z = vae.encode(batch["sharp"]).latents
        whole = vae.decode(z).sample.clamp(-1, 1)
    expected = [psnr(whole[i : i + 1], batch["sharp"][i : i + 1]) for i in (0, 1)]
    assert report.figures["AE(HR)"] == pytest.approx(sum(expected) / 2, abs=1e-3)
    assert report.figures["std"] == pytest.approx(float(torch.stack([row.std() for row in z]).mean()), rel=1e-4)
    assert report.figures["AE(bicubic)"] > report.figures["AE(HR)"]
    assert report.pictures["AE(HR)"].shape == (2, 3, 32, 32)


def test_the_stage_moves_all_but_the_time_layers_and_its_file_gives_back_the_enlarged_picture(
    recipe: autoencoder.Recipe, reload: Callable[[Path], CTSRPipeline]
) -> None:
    train(autoencoder.build, recipe)
    pipeline = reload(recipe.run.out)
    torch.manual_seed(0)
    start = TimeAwareAutoencoderMini(latent_channels=16)
    dct_init_(start)
    old, new = start.state_dict(), pipeline.vae.state_dict()
    fixed = {name for name in new if torch.equal(new[name], old[name])}
    zero_gates = {name for name in new if "conv1" in name}  # behind a conv2 that starts at zero: moved by decay alone
    assert {name for name in new if "time_proj" in name} <= fixed
    assert not {name for name in fixed if "time_" not in name} - zero_gates
    assert all(new[name].abs().sum() == 0 for name in new if "time_proj" in name)
    check_settings(pipeline)
    lr = torch.rand(1, 3, 12, 20, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = pipeline.vae(enlarge(2 * lr - 1)).sample
    assert_same_at_every_t(pipeline, lr, ((expected + 1) / 2).clamp(0, 1))


def check_settings(pipeline: CTSRPipeline) -> None:
    assert pipeline.family.name == "ctsr"
    assert pipeline.family.parameterization == "residual"
    assert pipeline.family.encoder_timesteps == (999,)
    assert pipeline.unet.config["in_channels"] == 16
    assert 0.1 < pipeline.scaling_factor < 10
    assert pipeline.scaling_factor != 1


def assert_same_at_every_t(pipeline: CTSRPipeline, lr: Tensor, expected: Tensor) -> None:
    for t in (0.0, 0.5, 1.0):
        found = pipeline(lr, t=t, color_fix="none", output_type="pt").images
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
