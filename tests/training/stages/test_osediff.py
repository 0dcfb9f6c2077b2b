"""The realism teacher's stage: the mini with each choice of realism terms, Stable Diffusion as the paper has it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ctsr import CTSRPipeline
from ctsr.convert.prompts import encode_prompts
from training.data.datasets import Data
from training.data.pairs import Pairs
from training.engine.run import Run
from training.engine.sources import Sample
from training.losses.adversarial import Adversarial
from training.losses.realism import Realism, RealismTerms, open_prior
from training.losses.reconstruction import Reconstruction
from training.losses.vsd import VSD
from training.model.lora import unet_targets, vae_targets
from training.model.one_step import OneStep, open_pipeline
from training.model.sd21 import NEGATIVE_PROMPT
from training.stages import osediff
from training.stages.osediff import Generator
from training.stages.stage import train

pytest.importorskip("peft")

Moved = Callable[[CTSRPipeline, CTSRPipeline, str], set[str]]
Reload = Callable[[Path], CTSRPipeline]

VSD_ON, ADVERSARIAL_ON = VSD(weight=1.0, guidance=1.0), replace(osediff.MINI.realism.adversarial, delay=0)
NEITHER = Realism(adversarial=Adversarial(weight=0.0))


@pytest.fixture
def mini(
    photos: Path, tiny_mini_file: Path, tiny_prior_file: Path, make_run: Callable[..., Run], tmp_path: Path
) -> osediff.Recipe:
    return replace(
        osediff.MINI,
        data=Data(photos, pairs=Pairs(crop=64)),
        run=make_run(tmp_path / "osediff", warm_up=0),
        start=str(tiny_mini_file),
        prior=tiny_prior_file,
    )


@pytest.fixture
def sd21(mini: osediff.Recipe, sd_folder: Path, tmp_path: Path) -> osediff.Recipe:
    return replace(
        osediff.SD21,
        data=mini.data,
        run=replace(osediff.SD21.run, out=tmp_path / "osediff", steps=2, accumulation=2, warm_up=0, workers=0),
        start=str(sd_folder),
        peak_rate=1e-2,  # 5e-5 would be too little to see in two steps
        reconstruction=replace(osediff.SD21.reconstruction, perceptual=0.0, features="none"),
        realism=replace(osediff.SD21.realism, vsd=replace(osediff.SD21.realism.vsd, peak_rate=1e-2)),
    )


def checkpoint(recipe: osediff.Recipe) -> dict[str, Any]:
    return torch.load(recipe.run.out / "checkpoint.pt", weights_only=True)


def learned(state: dict[str, Any], turn: str) -> bool:
    """Whether every parameter of a turn has had a gradient."""
    rows = state["optimizers"][turn]["state"].values()
    return len(rows) > 0 and all(row["exp_avg"].abs().max() > 0 for row in rows)


@pytest.mark.parametrize(
    ("realism", "turns"),
    [
        (NEITHER, {"generator"}),
        (replace(NEITHER, vsd=VSD_ON), {"generator", "regulariser"}),
        (Realism(adversarial=ADVERSARIAL_ON), {"generator", "discriminator"}),
        (Realism(VSD_ON, ADVERSARIAL_ON), {"generator", "regulariser", "discriminator"}),
    ],
    ids=["neither", "vsd", "adversarial", "both"],
)
def test_the_mini_learns_its_unet_and_each_term_its_own_network(
    mini: osediff.Recipe, moved: Moved, reload: Reload, realism: Realism, turns: set[str]
) -> None:
    recipe = replace(mini, realism=realism)
    train(osediff.build, recipe)
    start, trained, state = open_pipeline(recipe.start), reload(recipe.run.out), checkpoint(recipe)
    assert trained.family == start.family
    assert moved(start, trained, "unet") == set(start.unet.state_dict())
    assert moved(start, trained, "vae") == set()
    assert state["modules"].keys() == turns
    assert all(learned(state, turn) for turn in turns)
    if "regulariser" in turns:
        first = open_pipeline(recipe.prior, "osediff").unet.state_dict()
        now = {name.removeprefix("network."): value for name, value in state["modules"]["regulariser"].items()}
        assert now.keys() == first.keys()
        assert not [name for name in first if torch.equal(first[name], now[name])]


def test_the_terms_move_the_result(mini: osediff.Recipe, reload: Reload, tmp_path: Path) -> None:
    weights: dict[str, torch.Tensor] = {}
    for name, realism in (
        ("neither", NEITHER),
        ("vsd", replace(NEITHER, vsd=VSD_ON)),
        ("adversarial", Realism(adversarial=ADVERSARIAL_ON)),
    ):
        recipe = replace(mini, realism=realism, run=replace(mini.run, out=tmp_path / name, precision="no"))
        train(osediff.build, recipe)
        weights[name] = reload(recipe.run.out).unet.conv_out.weight
    assert not torch.equal(weights["vsd"], weights["neither"])
    assert not torch.equal(weights["adversarial"], weights["neither"])


@pytest.mark.parametrize("lora", ["mid", "all"])
def test_stable_diffusion_learns_lora_and_conv_in_and_its_regulariser_the_adapters_asked_for(
    sd21: osediff.Recipe, moved: Moved, reload: Reload, lora
) -> None:
    recipe = replace(sd21, regulariser_lora=lora)
    train(osediff.build, recipe)
    start, trained, state = open_pipeline(recipe.start, "osediff"), reload(recipe.run.out), checkpoint(recipe)
    targets = unet_targets(start.unet)
    modules = [name for group in targets.values() for name in group]
    (encoder,) = vae_targets(start.vae).values()
    time_layers = {name for name in start.vae.state_dict() if "time_" in name}  # new, and drawn anew by each load
    start.vae.to(torch.bfloat16).float()  # as the frozen base
    assert moved(start, trained, "unet") == {f"{name}.weight" for name in modules} | {"conv_in.bias"}
    assert moved(start, trained, "vae") - time_layers == {f"{name}.weight" for name in encoder}
    groups = {"default_others": targets["default_others"]} if lora == "mid" else targets
    kept = {name: value for name, value in state["modules"]["regulariser"].items() if ".lora_B." in name}
    assert kept.keys() == {f"network.{name}.lora_B.{group}.weight" for group in groups for name in groups[group]}
    assert all(value.abs().max() > 0 for value in kept.values())  # B starts at zero
    assert learned(state, "generator")


def test_the_generators_loss_is_the_sum_of_its_terms(
    mini: osediff.Recipe, make_mini: Callable[..., CTSRPipeline], make_batch: Callable[..., Sample]
) -> None:
    model, batch = OneStep(make_mini()), make_batch()
    weights = Reconstruction(l1=1.0, l2=2.0, low=3.0, perceptual=4.0, features="encoder")
    terms = RealismTerms(Realism(VSD_ON, ADVERSARIAL_ON), 0, open_prior(replace(mini, realism=Realism(VSD_ON))))
    out = Generator(model, weights, terms)(batch)
    names = {"l1", "l2", "low", "perceptual", "vsd", "adversarial"}
    assert out.keys() == names | {"loss", "fake", "real", "latents"}
    torch.testing.assert_close(out["loss"], torch.stack([out[name] for name in names]).sum())
    with torch.no_grad():
        z = model(batch["lr"]).z0
        torch.testing.assert_close(out["latents"].detach(), z)
        torch.testing.assert_close(out["fake"].detach(), model.decode(z))
    torch.testing.assert_close(out["l1"], (out["fake"] - batch["sharp"]).abs().mean())


def test_the_regulariser_learns_on_the_latents_that_were_judged(
    mini: osediff.Recipe, make_mini: Callable[..., CTSRPipeline], make_batch: Callable[..., Sample]
) -> None:
    recipe, batch = replace(mini, realism=replace(NEITHER, vsd=replace(VSD_ON, moved=True))), make_batch()
    terms = RealismTerms(recipe.realism, 0, open_prior(recipe))
    out = Generator(OneStep(make_mini()), mini.reconstruction, terms)(batch)
    assert out["latents"].shape == (2, 4, 3, 3)
    assert torch.equal(out["latents"], terms.judged(out["latents"], out["fake"], batch))


def test_the_prior_is_the_base_that_training_starts_from_and_an_empty_prompt_is_said(
    sd21: osediff.Recipe, sd_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert sd21.prior is None
    scores, named = (open_prior(recipe) for recipe in (sd21, replace(sd21, prior=sd_folder)))
    for name, tensor in scores.network.state_dict().items():
        assert "lora_A" in name or torch.equal(tensor, named.network.state_dict()[name])
    assert "The prompt is empty for every picture" in caplog.text


def test_the_negative_prompt_is_osediffs_and_only_where_there_is_guidance(
    sd21: osediff.Recipe, sd_folder: Path
) -> None:
    scores = open_prior(sd21)
    assert torch.equal(scores.negative_prompt, encode_prompts(sd_folder, [NEGATIVE_PROMPT]))
    assert open_prior(replace(sd21, realism=Realism(VSD_ON))).negative_prompt is None
    assert open_prior(replace(sd21, realism=NEITHER)) is None


def test_guidance_without_a_text_encoder_is_an_error_that_says_what_to_do(mini: osediff.Recipe) -> None:
    with pytest.raises(ValueError, match=r"no text encoder: .* or --realism\.vsd\.guidance 1"):
        open_prior(replace(mini, realism=Realism(VSD(weight=1.0, guidance=3.0))))


def test_vsd_without_a_prior_is_an_error_that_says_what_to_do(mini: osediff.Recipe) -> None:
    with pytest.raises(ValueError, match="give --prior"):
        train(osediff.build, replace(mini, prior=None, realism=Realism(VSD_ON)))


def test_the_recipe_of_stable_diffusion_is_the_papers() -> None:
    recipe = osediff.SD21
    assert (recipe.reconstruction.l1, recipe.reconstruction.l2, recipe.reconstruction.perceptual) == (0, 1, 2)
    assert recipe.reconstruction.features == "lpips"
    assert recipe.realism.vsd == VSD(weight=1.0, guidance=7.5, peak_rate=5e-5)
    assert recipe.realism.adversarial.weight == 0
    assert (recipe.run.batch * recipe.run.accumulation, recipe.peak_rate, recipe.run.steps) == (16, 5e-5, 14000)
    assert (recipe.adapt.rank, recipe.adapt.alpha) == (4, 8)
