"""Stage 2: the endpoint head moves what it should, its file has a dial."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ctsr import CTSRPipeline
from training.engine.draws import Draws
from training.engine.sources import Sample
from training.losses.adversarial import Adversarial
from training.losses.realism import Realism, RealismTerms, open_prior
from training.model.one_step import OneStep, open_pipeline
from training.stages import stage2
from training.stages.stage import train
from training.stages.stage2 import Bends, Weights, dial_group
from training.stages.teachers import Faithful

Moved = Callable[[CTSRPipeline, CTSRPipeline, str], set[str]]
Reload = Callable[[Path], CTSRPipeline]


@pytest.fixture
def mini(on_tiny_files: Callable[..., stage2.Recipe]) -> stage2.Recipe:
    return on_tiny_files(stage2.MINI, "mini")


@pytest.fixture
def sd21(on_tiny_files: Callable[..., stage2.Recipe]) -> stage2.Recipe:
    return on_tiny_files(stage2.SD21, "sd")


def upscale(pipeline: CTSRPipeline, t: float) -> np.ndarray:
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 255, (12, 20, 3), np.uint8))
    return np.asarray(pipeline(picture, t=t).images[0])


def latents(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def bends(make_mini: Callable[..., CTSRPipeline], recipe: stage2.Recipe, model: OneStep) -> Bends:
    stage1, faithful = (OneStep(make_mini(seed)).requires_grad_(False) for seed in (0, 7))
    return Bends(model, stage1, Faithful(faithful, faithful.vae), recipe, RealismTerms(Realism(), 0))


def test_the_truth_of_another_restorer_s_pictures_is_beside_them(
    mini: stage2.Recipe, make_mini: Callable[..., CTSRPipeline], batch: Sample
) -> None:
    model = OneStep(make_mini())
    of_network = bends(make_mini, mini, model)
    of_pictures = Bends(model, of_network.stage1, Faithful(None, model.vae), mini, RealismTerms(Realism(), 0))
    truth = {"sharp": of_pictures, "soft": of_network}
    for name, loss in truth.items():
        changed = {**batch, name: -batch[name]}
        before, after = loss(batch), loss(changed)
        assert before["end"] != after["end"]
        assert before["faithful"] != after["faithful"]


def test_mini_with_a_frozen_decoder_keeps_stage_1_to_the_bit(mini: stage2.Recipe, moved: Moved, reload: Reload) -> None:
    """delta's and kappa's weights learn, and nothing else: at the full rate, where weight decay would show."""
    train(stage2.build, replace(mini, adapt=replace(mini.adapt, decoder=False), run=replace(mini.run, warm_up=1)))
    before, after = open_pipeline(mini.start), reload(mini.run.out)
    assert moved(before, after, "vae") == set()
    assert moved(before, after, "unet") == {"conv_out.weight", "conv_out.bias"}
    for old, new in zip(before.unet.conv_out.parameters(), after.unet.conv_out.parameters(), strict=True):
        groups = zip(old.chunk(3), new.chunk(3), strict=True)
        assert [torch.equal(a, b) for a, b in groups] == [True, False, False]
    assert np.array_equal(upscale(before, 0.0), upscale(after, 0.0))
    z = latents(1, 4, 4, 6)
    with torch.no_grad():
        assert torch.equal(before.unet(z, 999).sample[:, :4], after.unet(z, 999).sample[:, :4])


def test_mini(mini: stage2.Recipe, moved: Moved, reload: Reload) -> None:
    """The decoder learns with them."""
    train(stage2.build, mini)
    before, after = open_pipeline(mini.start), reload(mini.run.out)
    names = moved(before, after, "vae")
    assert names
    assert {name.split(".")[0] for name in names} == {"decoder"}
    assert moved(before, after, "unet") == {"conv_out.weight", "conv_out.bias"}
    assert not np.array_equal(upscale(after, 0.0), upscale(after, 1.0))


def test_all_of_the_unet_learns_beside_an_anchor_and_a_discriminator(
    mini: stage2.Recipe, moved: Moved, reload: Reload
) -> None:
    adversarial = Realism(adversarial=Adversarial(weight=0.1))
    adapt = replace(mini.adapt, unet="full")
    train(stage2.build, replace(mini, adapt=adapt, weights=Weights(anchor=1.0), realism=adversarial))
    after = reload(mini.run.out)
    assert "mid_blocks.0.project.weight" in moved(open_pipeline(mini.start), after, "unet")


def test_sd21_gets_a_dial(sd21: stage2.Recipe, moved: Moved, reload: Reload) -> None:
    """A file of one group comes back as one of three; the autoencoder is what it was."""
    train(stage2.build, sd21)
    before, after = open_pipeline(sd21.start), reload(sd21.run.out)
    assert after.config["family"] == "ctsr"
    assert moved(before, after, "vae") == set()
    old, new = before.unet.conv_out, after.unet.conv_out
    assert new.out_channels == 3 * old.out_channels
    assert torch.allclose(new.weight[:4], old.weight, atol=1e-2)  # bf16 while it was frozen
    assert after.unet.config["out_channels"] == 12


def test_sd21_heads_alone_leave_everything_else(sd21: stage2.Recipe, reload: Reload) -> None:
    train(stage2.build, replace(sd21, adapt=replace(sd21.adapt, unet="frozen"), weights=Weights()))
    before, after = open_pipeline(sd21.start), reload(sd21.run.out)
    others = dict(after.unet.named_parameters())
    for name, parameter in before.unet.named_parameters():
        assert torch.equal(others[name][: parameter.shape[0]], parameter)
    assert after.unet.conv_out.weight[4:].abs().max() > 0
    assert np.abs(upscale(before, 0.0).astype(int) - upscale(after, 0.0)).max() <= 1


def test_os_part_of_conv_out_has_no_gradient(make_mini) -> None:
    unet = make_mini(0).unet.requires_grad_(False)
    group = dial_group(unet, 4)
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


def test_score_distillation_may_join(make_mini, mini: stage2.Recipe, tiny_prior_file: Path, batch: Sample) -> None:
    """On moved latents, weighed by the nearness; its regulariser learns on the same."""
    recipe = replace(mini, prior=tiny_prior_file, realism=Realism(replace(mini.realism.vsd, weight=1.0)))
    assert recipe.realism.vsd.moved
    loss = bends(make_mini, recipe, OneStep(make_mini(3)))
    loss.terms = RealismTerms(recipe.realism, 0, open_prior(recipe))
    with torch.no_grad():
        for parameter in loss.terms.turns[0].module.parameters():
            parameter.mul_(1.1)  # not the prior any more
    out = loss(batch)
    judged = out["latents"]
    assert torch.equal(judged, loss.terms.judged(None, out["fake"], batch))
    (gradient,) = torch.autograd.grad(out["vsd"], judged, retain_graph=True)
    (plain,) = torch.autograd.grad(loss.terms.losses(judged, out["fake"], batch)["vsd"], judged)
    near = 1 - Draws(batch["index"], mini.run.seed).uniform("dial")
    torch.testing.assert_close(gradient, near.view(-1, 1, 1, 1) * plain)
    assert plain.abs().max() > 0


@pytest.mark.parametrize(
    ("changes", "what", "match"),
    [
        ({}, {"encoder": "full"}, "encoder frozen"),
        ({}, {"time_layers": True}, "encoder frozen"),
        ({}, {"unet": "full"}, "anchor"),
        ({"fidelity": None}, {}, "one faithful teacher"),
    ],
)
def test_settings_that_cannot_work_are_refused(mini: stage2.Recipe, changes, what, match) -> None:
    with pytest.raises(ValueError, match=match):
        train(stage2.build, replace(mini, adapt=replace(mini.adapt, **what), **changes))


def test_files_of_two_passes_cannot_start_it(make_sd) -> None:
    pipeline = make_sd("osediff")
    pipeline.register_to_config(family="tadsr")
    with pytest.raises(ValueError, match="ctsr or osediff"):
        stage2.with_dial_groups(pipeline)
