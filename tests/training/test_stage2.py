"""Stage 2: the endpoint head moves what it should, its file has a dial; the ablations train and come back."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from ctsr import CTSRPipeline
from training import stage2
from training.adversarial import Adversarial
from training.data import Data
from training.draws import Draws
from training.loop import Run
from training.one_step import OneStep
from training.pairs import Pairs
from training.realism import Realism, RealismTerms
from training.sources import Sample
from training.stage1 import Faithful
from training.stage2 import Bends, Weights, add_time_condition, b2_latent, bend_group, literal_latent, open_variant

CROP = 32


@pytest.fixture
def batch(make_batch: Callable[..., Sample]) -> Sample:
    return make_batch(2)


@pytest.fixture
def mini(photos: Path, stage_files: dict[str, Path], make_run: Callable[..., Run], tmp_path: Path) -> stage2.Recipe:
    """The mini's recipe on tiny files."""
    return replace(
        stage2.MINI,
        data=Data(photos, pairs=Pairs(crop=CROP)),
        run=make_run(tmp_path / "out"),
        start=str(stage_files["mini"]),
        fidelity=stage_files["mini fidelity"],
    )


@pytest.fixture
def sd21(photos: Path, stage_files: dict[str, Path], make_run: Callable[..., Run], tmp_path: Path) -> stage2.Recipe:
    """SD's recipe on tiny files."""
    return replace(
        stage2.SD21,
        data=Data(photos, pairs=Pairs(crop=64)),
        run=make_run(tmp_path / "out"),
        start=str(stage_files["sd"]),
        fidelity=stage_files["sd"],
    )


def moved(before: nn.Module, after: nn.Module) -> set[str]:
    """Names of the parameters that differ."""
    old = dict(before.named_parameters())
    return {name for name, parameter in after.named_parameters() if not torch.equal(parameter, old[name])}


def load(path: Path) -> CTSRPipeline:
    return CTSRPipeline.from_single_file(path, torch_dtype=torch.float32)


def upscale(pipeline: CTSRPipeline, t: float) -> np.ndarray:
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 255, (12, 20, 3), np.uint8))
    return np.asarray(pipeline(picture, t=t).images[0])


def latents(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def bends(make_mini: Callable[..., CTSRPipeline], recipe: stage2.Recipe, model: OneStep) -> Bends:
    stage1, faithful = (OneStep(make_mini(seed)).requires_grad_(False) for seed in (0, 7))
    return Bends(model, stage1, Faithful(faithful, faithful.vae), recipe, RealismTerms(Realism(), 0))


def test_mini_with_a_frozen_decoder_keeps_stage_1_to_the_bit(mini: stage2.Recipe, stage_files: dict[str, Path]) -> None:
    """delta's and kappa's weights learn, and nothing else: at the full rate, where weight decay would show."""
    stage2.train(replace(mini, adapt=replace(mini.adapt, decoder=False), run=replace(mini.run, warm_up=1)))
    before, after = load(stage_files["mini"]), load(mini.run.out / "model.safetensors")
    assert moved(before.vae, after.vae) == set()
    assert moved(before.unet, after.unet) == {"conv_out.weight", "conv_out.bias"}
    for old, new in zip(before.unet.conv_out.parameters(), after.unet.conv_out.parameters(), strict=True):
        groups = zip(old.chunk(3), new.chunk(3), strict=True)
        assert [torch.equal(a, b) for a, b in groups] == [True, False, False]
    assert np.array_equal(upscale(before, 0.0), upscale(after, 0.0))
    z = latents(1, 4, 4, 6)
    with torch.no_grad():
        assert torch.equal(before.unet(z, 999).sample[:, :4], after.unet(z, 999).sample[:, :4])


def test_mini(mini: stage2.Recipe, stage_files: dict[str, Path]) -> None:
    """The decoder learns with them."""
    stage2.train(mini)
    before, after = load(stage_files["mini"]), load(mini.run.out / "model.safetensors")
    names = moved(before.vae, after.vae)
    assert names
    assert {name.split(".")[0] for name in names} == {"decoder"}
    assert moved(before.unet, after.unet) == {"conv_out.weight", "conv_out.bias"}
    assert upscale(after, 0.0).shape == (48, 80, 3)
    assert not np.array_equal(upscale(after, 0.0), upscale(after, 1.0))


def test_all_of_the_unet_learns_beside_an_anchor_and_a_discriminator(
    mini: stage2.Recipe, stage_files: dict[str, Path]
) -> None:
    adversarial = Realism(adversarial=Adversarial(weight=0.1))
    adapt = replace(mini.adapt, unet="full")
    stage2.train(replace(mini, adapt=adapt, weights=Weights(anchor=1.0), realism=adversarial))
    after = load(mini.run.out / "model.safetensors")
    assert "mid_blocks.0.project.weight" in moved(load(stage_files["mini"]).unet, after.unet)


def test_sd21_gets_a_dial(sd21: stage2.Recipe, stage_files: dict[str, Path]) -> None:
    """A file of one group comes back as one of three; the autoencoder is what it was."""
    stage2.train(sd21)
    before, after = load(stage_files["sd"]), load(sd21.run.out / "model.safetensors")
    assert after.config["family"] == "ctsr"
    assert moved(before.vae, after.vae) == set()
    old, new = before.unet.conv_out, after.unet.conv_out
    assert new.out_channels == 3 * old.out_channels
    assert torch.allclose(new.weight[:4], old.weight, atol=1e-2)  # bf16 while it was frozen
    assert upscale(after, 0.5).shape == (48, 80, 3)
    assert after.unet.config["out_channels"] == 12


def test_sd21_heads_alone_leave_everything_else(sd21: stage2.Recipe, stage_files: dict[str, Path]) -> None:
    stage2.train(replace(sd21, adapt=replace(sd21.adapt, unet="frozen"), weights=Weights()))
    before, after = load(stage_files["sd"]), load(sd21.run.out / "model.safetensors")
    others = dict(after.unet.named_parameters())
    for name, parameter in before.unet.named_parameters():
        assert torch.equal(others[name][: parameter.shape[0]], parameter)
    assert after.unet.conv_out.weight[4:].abs().max() > 0
    assert np.abs(upscale(before, 0.0).astype(int) - upscale(after, 0.0)).max() <= 1


def test_os_part_of_conv_out_has_no_gradient(make_mini) -> None:
    unet = make_mini(0).unet.requires_grad_(False)
    group = bend_group(unet)
    assert group["weight_decay"] == 0
    unet(latents(1, 4, 4, 4), 999).sample.square().sum().backward()
    for parameter in group["params"]:
        parts = parameter.grad.chunk(3)
        assert [bool(part.abs().max() > 0) for part in parts] == [False, True, True]
    assert all(parameter.grad is None for name, parameter in unet.named_parameters() if "conv_out" not in name)


def test_only_the_anchor_speaks_to_o(make_mini, mini: stage2.Recipe, batch: Sample) -> None:
    """The ends and the way between them hold z^0 where it is."""
    for anchor, wanted in ((0.0, False), (1.0, True)):
        model = OneStep(make_mini(3))
        loss = bends(make_mini, replace(mini, weights=Weights(anchor=anchor)), model)
        loss(batch)["loss"].backward()
        o, delta, kappa = model.unet.conv_out.weight.grad.chunk(3)
        assert bool(o.abs().max() > 0) is wanted
        assert delta.abs().max() > 0
        assert kappa.abs().max() > 0


def test_the_anchor_is_zero_at_stage_1(make_mini, mini: stage2.Recipe, batch: Sample) -> None:
    for seed, near in ((0, True), (3, False)):
        terms = bends(make_mini, replace(mini, weights=Weights(anchor=1.0)), OneStep(make_mini(seed)))(batch)
        assert (terms["anchor"] == 0) == (terms["decoder"] == 0) == near


def test_terms_vanish_for_ends_that_are_right(make_mini, mini: stage2.Recipe, batch: Sample) -> None:
    """A faithful teacher that is the model's own far end leaves delta nothing to learn."""
    model = OneStep(make_mini(0))
    own = OneStep(make_mini(0)).requires_grad_(False)
    loss = Bends(model, own, Faithful(own, own.vae), mini, RealismTerms(Realism(), 0))
    assert loss(batch)["way"] < 1e-10


def test_realism_counts_by_its_nearness_to_the_realistic_end(make_mini, mini: stage2.Recipe, batch: Sample) -> None:
    class Sum(RealismTerms):
        def losses(self, z: Tensor, x: Tensor, batch: Sample, timestep: Tensor | None = None):
            return {"pictures": x.sum(), "of latents": z.sum()}

    loss = bends(make_mini, mini, OneStep(make_mini(3)))
    loss.terms = Sum(Realism(), 0)
    out = loss(batch)
    near = 1 - Draws(batch["index"], mini.run.seed).uniform("dial")
    for term, of in (("pictures", "fake"), ("of latents", "latents")):
        (gradient,) = torch.autograd.grad(out[term], out[of], retain_graph=True)
        assert torch.allclose(gradient, near.view(-1, 1, 1, 1).expand_as(gradient))


@pytest.mark.parametrize("size", ["mini", "sd"])
@torch.no_grad()
def test_a_time_condition_starts_without_effect(stage_files: dict[str, Path], size: str) -> None:
    model, plain = OneStep(load(stage_files[size])), OneStep(load(stage_files[size]))
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
    model = OneStep(load(stage_files["mini"]))
    add_time_condition(model.unet)
    seen: list[Tensor] = []
    model.unet.time_embedding.cond_proj.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    b2_latent(model, latents(2, 4, 8, 8), torch.tensor([0.25, 1.0]))
    assert torch.allclose(seen[0], model.unet.time_proj(torch.tensor([249.75, 999.0])))


def test_b2_of_the_mini_comes_back(mini: stage2.Recipe, stage_files: dict[str, Path]) -> None:
    stage2.train(replace(mini, variant="B2", adapt=network("full", mini), weights=Weights(flow=1.0)))
    assert not (mini.run.out / "model.safetensors").exists()
    check_b2(mini, stage_files["mini"])


def test_b2_at_sd_size_comes_back(sd21: stage2.Recipe, stage_files: dict[str, Path]) -> None:
    stage2.train(replace(sd21, variant="B2"))
    check_b2(sd21, stage_files["sd"])


def network(how: str, recipe: stage2.Recipe) -> stage2.Adapt:
    return replace(recipe.adapt, unet=how, decoder=False)


@torch.no_grad()
def check_b2(recipe: stage2.Recipe, start: Path) -> None:
    model = open_variant(start, recipe.run.out / "unet")
    assert model.unet.time_embedding.cond_proj.weight.abs().max() > 0
    z = latents(1, 4, 8, 8)
    latent = b2_latent(model, z, 0.5)
    assert latent.shape == z.shape
    assert latent.isfinite().all()
    assert not torch.equal(latent, b2_latent(model, z, 1.0))


def test_the_printed_equations_train_a_velocity(mini: stage2.Recipe, stage_files: dict[str, Path]) -> None:
    """Without a faithful teacher: they have none."""
    stage2.train(replace(mini, variant="literal", fidelity=None, adapt=network("full", mini)))
    stage1, student = OneStep(load(stage_files["mini"])), open_variant(stage_files["mini"], mini.run.out / "unet")
    assert moved(stage1.unet, student.unet)
    z = latents(1, 4, 8, 8)
    with torch.no_grad():
        assert torch.equal(literal_latent(stage1, student, z, 0.0), stage1.x0(z, 999))
        assert not torch.equal(literal_latent(stage1, student, z, 1.0), stage1.x0(z, 999))


def test_t_and_the_later_t_are_in_order() -> None:
    draws = Draws(torch.arange(16), 0)
    t, later = stage2.dial_and_later(draws, torch.zeros(16))
    assert (t < later).all()
    assert t.min() > 0
    assert later.max() < 1


@pytest.mark.parametrize(
    ("changes", "what", "match"),
    [
        ({}, {"encoder": "full"}, "encoder frozen"),
        ({}, {"time_layers": True}, "encoder frozen"),
        ({}, {"unet": "full"}, "anchor"),
        ({"variant": "B2"}, {"decoder": False}, "full or lora"),
        ({"variant": "literal"}, {"unet": "full"}, "no decoder"),
        ({"fidelity": None}, {}, "one faithful teacher"),
    ],
)
def test_settings_that_cannot_work_are_refused(mini: stage2.Recipe, changes, what, match) -> None:
    with pytest.raises(ValueError, match=match):
        stage2.train(replace(mini, adapt=replace(mini.adapt, **what), **changes))


def test_files_of_two_passes_cannot_start_it(make_sd) -> None:
    pipeline = make_sd("osediff")
    pipeline.register_to_config(family="tadsr")
    with pytest.raises(ValueError, match="ctsr or osediff"):
        stage2.with_bends(pipeline)
