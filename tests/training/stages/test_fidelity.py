"""The fidelity teacher's stage, from photographs and from another restorer's pictures."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ctsr import CTSRPipeline
from training.data.datasets import Data
from training.data.pairs import Pairs
from training.engine.run import Run
from training.engine.sources import Sample
from training.model.lora import unet_targets, vae_targets
from training.model.one_step import OneStep, open_pipeline
from training.stages import fidelity
from training.stages.fidelity import Generator
from training.stages.stage import train

pytest.importorskip("peft")

Moved = Callable[[CTSRPipeline, CTSRPipeline, str], set[str]]
Reload = Callable[[Path], CTSRPipeline]


@pytest.fixture
def mini(photos: Path, tiny_mini_file: Path, make_run: Callable[..., Run], tmp_path: Path) -> fidelity.Recipe:
    return replace(
        fidelity.MINI,
        data=Data(photos, pairs=Pairs(crop=64)),
        run=make_run(tmp_path / "fidelity", warm_up=0),
        start=str(tiny_mini_file),
    )


@pytest.fixture
def sd21(mini: fidelity.Recipe, sd_folder: Path, make_run: Callable[..., Run], tmp_path: Path) -> fidelity.Recipe:
    run = replace(fidelity.SD21.run, out=tmp_path / "fidelity", steps=2, accumulation=2, warm_up=0, workers=0)
    return replace(fidelity.SD21, data=mini.data, run=run, start=str(sd_folder), peak_rate=1e-2)


def test_the_loss_is_of_the_soft_truth_and_its_first_latents(
    mini: fidelity.Recipe, make_mini: Callable[..., CTSRPipeline], make_batch: Callable[..., Sample]
) -> None:
    model, batch = OneStep(make_mini()), make_batch()
    loss = Generator(model, mini)
    with torch.no_grad():
        aim = model.encode(batch["soft"])
        for parameter in model.vae.encoder.parameters():
            parameter.mul_(1.05)  # the aim stays the first encoder's
        z = model(batch["lr"]).z0
        x, out = model.decode(z), loss(batch)
    torch.testing.assert_close(out["l1"], (x - batch["soft"]).abs().mean())
    torch.testing.assert_close(out["l2"], 5 * (x - batch["soft"]).square().mean())
    torch.testing.assert_close(out["latents"], 0.05 * (z - aim).square().mean())
    torch.testing.assert_close(out["loss"], out["l1"] + out["l2"] + out["latents"])


def test_the_mini_moves_as_a_whole(mini: fidelity.Recipe, moved: Moved, reload: Reload) -> None:
    train(fidelity.build, mini)
    start, trained = open_pipeline(mini.start), reload(mini.run.out)
    assert trained.family == start.family
    for part in ("unet", "vae"):
        assert moved(start, trained, part) == set(getattr(start, part).state_dict())


def test_delta_and_kappa_stay_zero(
    mini: fidelity.Recipe, make_mini: Callable[..., CTSRPipeline], reload: Reload, tmp_path: Path
) -> None:
    pipeline = make_mini()
    with torch.no_grad():
        for tensor in (pipeline.unet.conv_out.weight, pipeline.unet.conv_out.bias):
            tensor[4:].zero_()
    pipeline.save_single_file(tmp_path / "start.safetensors", torch.float32)
    train(fidelity.build, replace(mini, start=str(tmp_path / "start.safetensors")))
    o, *bends = reload(mini.run.out).unet.conv_out.weight.chunk(3)
    assert not torch.equal(o, pipeline.unet.conv_out.weight[:4])
    assert all(bend.abs().sum() == 0 for bend in bends)


def test_stable_diffusion_learns_lora_and_conv_in(sd21: fidelity.Recipe, moved: Moved, reload: Reload) -> None:
    train(fidelity.build, sd21)
    start, trained = open_pipeline(sd21.start, "osediff"), reload(sd21.run.out)
    assert trained.family.name == "osediff"
    start.vae.to(torch.bfloat16).float()  # as the frozen base
    targets = [name for group in unet_targets(start.unet).values() for name in group]
    (encoder,) = vae_targets(start.vae).values()
    time_layers = {name for name in start.vae.state_dict() if "time_" in name}  # new, and drawn anew by each load
    assert moved(start, trained, "unet") == {f"{name}.weight" for name in targets} | {"conv_in.bias"}
    assert moved(start, trained, "vae") - time_layers == {f"{name}.weight" for name in encoder}


def write_pictures(folder: Path, size: int, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    folder.mkdir()
    for name in ("a", "b"):
        small = rng.integers(0, 255, (8, 8, 3), np.uint8)
        Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC).save(folder / f"{name}.png")
    return folder


def test_another_restorers_pictures_can_be_the_target(
    mini: fidelity.Recipe, reload: Reload, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lr = write_pictures(tmp_path / "lr", 24, 0)
    restored = write_pictures(tmp_path / "restored", 96, 1)
    seen: list[Sample] = []
    forward = Generator.forward

    def watch(self: Generator, batch: Sample) -> dict[str, torch.Tensor]:
        seen.append(batch)
        return forward(self, batch)

    monkeypatch.setattr(Generator, "forward", watch)
    train(fidelity.build, replace(mini, lr=lr, restored=restored))
    reload(mini.run.out)
    target = np.stack([np.asarray(Image.open(path)) for path in sorted(restored.iterdir())])
    values = {tuple(pixel) for pixel in target.reshape(-1, 3).tolist()}
    for batch in seen:
        pixels = ((batch["soft"] + 1) * 127.5).round().byte().permute(0, 2, 3, 1).reshape(-1, 3)
        assert batch["soft"].shape == (1, 3, 64, 64)
        assert {tuple(pixel) for pixel in pixels.tolist()} <= values


def test_one_folder_without_the_other_is_an_error(mini: fidelity.Recipe, tmp_path: Path) -> None:
    for wrong in (replace(mini, lr=tmp_path), replace(mini, restored=tmp_path)):
        with pytest.raises(ValueError, match="together"):
            train(fidelity.build, wrong)


def test_the_recipe_of_stable_diffusion_is_distances_alone() -> None:
    assert fidelity.SD21.reconstruction.perceptual == fidelity.SD21.latent_weight == 0
    assert (fidelity.SD21.run.batch * fidelity.SD21.run.accumulation, fidelity.SD21.peak_rate) == (16, 5e-5)
