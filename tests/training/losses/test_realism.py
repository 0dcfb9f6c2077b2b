"""Realism terms as plug-ins: alone, together or neither."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ctsr import CTSRPipeline
from ctsr.models import forward
from training.engine.draws import Draws
from training.engine.sources import Sample
from training.losses.adversarial import Adversarial
from training.losses.realism import Realism, RealismTerms, total
from training.losses.score_networks import open_score_networks
from training.losses.vsd import VSD, half_timesteps, random_shift

VSD_ON = VSD(weight=2.0, guidance=1.0, peak_rate=3e-4)
MOVED = replace(VSD_ON, moved=True)
ADVERSARIAL_ON = Adversarial(weight=0.5, delay=0)
OFF = Adversarial(weight=0.0)


@pytest.fixture
def build(make_prior: Callable[..., CTSRPipeline]) -> Callable[..., RealismTerms]:
    def make(settings: Realism, **laws: object) -> RealismTerms:
        torch.manual_seed(0)
        scores = open_score_networks(make_prior())
        with torch.no_grad():
            for parameter in scores.network.parameters():
                parameter.mul_(1.1)  # not the prior any more
        return RealismTerms(settings, 4, scores, **laws)

    return make


def inputs(batch: Sample) -> tuple[Tensor, Tensor]:
    z = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1)).requires_grad_(True)
    return z, batch["soft"].clone().requires_grad_(True)


@pytest.mark.parametrize(
    ("settings", "terms", "turns"),
    [
        (Realism(VSD(), OFF), set(), []),
        (Realism(VSD_ON, OFF), {"vsd"}, ["regulariser"]),
        (Realism(VSD(), ADVERSARIAL_ON), {"adversarial"}, ["discriminator"]),
        (Realism(VSD_ON, ADVERSARIAL_ON), {"vsd", "adversarial"}, ["regulariser", "discriminator"]),
    ],
)
def test_which_terms_and_turns_there_are(
    build: Callable[..., RealismTerms],
    make_batch: Callable[..., Sample],
    settings: Realism,
    terms: set[str],
    turns: list[str],
) -> None:
    realism, batch = build(settings), make_batch()
    z, x = inputs(batch)
    losses = realism.losses(z, x, batch)
    assert losses.keys() == terms
    assert [turn.name for turn in realism.turns] == turns
    if losses:
        total(losses)["loss"].backward()
        assert (z.grad is not None) == ("vsd" in terms)
        assert (x.grad is not None) == ("adversarial" in terms)
    for turn in realism.turns:
        assert all(p.grad is None for p in turn.parameters)
        loss = turn.module({**batch, "latents": z.detach(), "fake": x.detach()})["loss"]
        loss.backward()
        assert any(p.grad is not None and p.grad.abs().max() > 0 for p in turn.parameters)


def test_the_terms_are_weighted(build: Callable[..., RealismTerms], make_batch: Callable[..., Sample]) -> None:
    realism, batch = build(Realism(VSD_ON, ADVERSARIAL_ON)), make_batch()
    z, x = inputs(batch)
    losses = realism.losses(z, x, batch)
    torch.testing.assert_close(losses["vsd"], 2 * realism.vsd.loss(z, Draws(batch["index"], 4)))
    losses["adversarial"].backward()
    assert x.grad.square().mean().sqrt().item() * x.numel() == pytest.approx(0.5, rel=1e-4)
    assert [turn.peak_rate for turn in realism.turns] == [3e-4, ADVERSARIAL_ON.peak_rate]


def test_the_laws_reach_both_sides_of_vsd(
    build: Callable[..., RealismTerms], make_batch: Callable[..., Sample]
) -> None:
    asked: list[tuple[Tensor | None, Tensor]] = []

    def law(generator_timestep: Tensor | None, draws: Draws) -> Tensor:
        steps = half_timesteps(generator_timestep, draws)
        asked.append((generator_timestep, steps))
        return steps

    realism, batch = build(Realism(VSD_ON, OFF), timesteps=law), make_batch()
    z, x = inputs(batch)
    timestep = torch.tensor([10, 901])
    realism.losses(z, x, batch, timestep)
    (turn,) = realism.turns
    turn.module({**batch, "latents": z.detach(), "timestep": timestep})
    assert [steps.tolist() for _, steps in asked] == [[5, 450], [5, 450]]


@pytest.fixture
def encode(make_prior: Callable[..., CTSRPipeline]) -> Callable[[Tensor], Tensor]:
    """The prior's plain encoder, and its scaling factor."""
    vae = make_prior().vae.requires_grad_(False)
    return lambda x: vae.config["scaling_factor"] * forward.encode(vae, x, None)


def test_moved_latents_are_those_of_the_moved_picture_and_their_gradient_goes_back_through_the_encoder(
    build: Callable[..., RealismTerms], make_batch: Callable[..., Sample], encode: Callable[[Tensor], Tensor]
) -> None:
    realism, batch = build(Realism(MOVED, OFF)), make_batch()
    z, x = inputs(batch)
    draws = Draws(batch["index"], 4)
    judged = realism.judged(z, x, batch)
    expected = encode(random_shift(x, draws))
    assert judged.shape == (2, 4, 3, 3)
    torch.testing.assert_close(judged, expected)
    realism.losses(judged, x, batch)["vsd"].backward()
    g = realism.vsd.direction(expected.detach(), draws)
    (gradient,) = torch.autograd.grad(expected, x, 2 * MOVED.weight * g / g.numel())
    torch.testing.assert_close(x.grad, gradient, rtol=1e-3, atol=1e-3 * float(gradient.abs().mean()))
    assert gradient.abs().mean() > 0
    assert z.grad is None


def test_moved_by_nothing_is_vsd_on_the_latents_of_the_decoded_picture(
    build: Callable[..., RealismTerms], make_batch: Callable[..., Sample], encode: Callable[[Tensor], Tensor]
) -> None:
    realism, plain = build(Realism(MOVED, OFF)), build(Realism(VSD_ON, OFF))
    places = torch.stack(torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij"))[None]
    still = next(n for n in range(1000) if not random_shift(places, Draws(torch.tensor([n]), 4))[..., 0, 0].any())
    batch = make_batch(1, first=still)
    z, x = encode(batch["soft"][..., :-8, :-8]), batch["soft"]
    judged = realism.judged(torch.zeros_like(z), x, batch)
    torch.testing.assert_close(realism.losses(judged, x, batch)["vsd"], plain.losses(z, x, batch)["vsd"])


@pytest.mark.parametrize("vsd", [VSD_ON, replace(MOVED, weight=0.0)])
def test_without_moving_or_without_vsd_the_latents_are_the_generators(
    build: Callable[..., RealismTerms], make_batch: Callable[..., Sample], vsd: VSD
) -> None:
    batch = make_batch()
    z, x = inputs(batch)
    assert build(Realism(vsd, OFF)).judged(z, x, batch) is z


def test_vsd_without_a_prior_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(ValueError, match="give --prior"):
        RealismTerms(Realism(VSD_ON, OFF), 0)


def test_the_total_is_the_sum_of_the_terms() -> None:
    terms = {"a": torch.tensor(1.0, requires_grad=True), "b": torch.tensor(0.5)}
    assert total(terms)["loss"].item() == 1.5
    assert total(terms).keys() == {"a", "b", "loss"}
    total(terms)["loss"].backward()
    assert terms["a"].grad.item() == 1
