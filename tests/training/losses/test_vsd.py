"""Score distillation against the formulas of the papers, written down once more."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ctsr import CTSRPipeline
from training.engine.draws import Draws
from training.engine.sources import Sample
from training.losses.score_networks import denoiser
from training.losses.vsd import (
    RegulariserLoss,
    VSDTerm,
    add_noise,
    clean,
    constant_guidance,
    half_timesteps,
    random_shift,
    rising_guidance,
    stop_gradient_loss,
    uniform_timesteps,
)
from training.model.one_step import OneStep

BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
ABAR = torch.cumprod(1 - BETAS, 0)


def x0(z: Tensor, epsilon: Tensor, tau: Tensor) -> Tensor:
    abar = ABAR[tau].view(-1, 1, 1, 1)
    return ((z - (1 - abar).sqrt() * epsilon) / abar.sqrt()).float()


def noised(z: Tensor, epsilon: Tensor, tau: Tensor) -> Tensor:
    abar = ABAR[tau].view(-1, 1, 1, 1)
    return (abar.sqrt() * z + (1 - abar).sqrt() * epsilon).float()


def latents(count: int = 3, channels: int = 4) -> Tensor:
    return torch.randn(count, channels, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def draws() -> Draws:
    return Draws(torch.tensor([5, 17, 2]), 9)


class Pair:
    """Two tiny networks and what they were asked."""

    def __init__(self, make: Callable[..., CTSRPipeline]):
        self.prior, self.regulariser = OneStep(make(0)), OneStep(make(7))
        self.calls: list[tuple[Tensor, Tensor | None]] = []

    def watched_prior(self, z: Tensor, timestep: Tensor, prompt: Tensor | None = None) -> Tensor:
        self.calls.append((timestep, prompt))
        return denoiser(self.prior)(z, timestep, prompt)

    def term(self, scale: float = 1.0, negative: Tensor | None = None) -> VSDTerm:
        law = constant_guidance(scale)
        return VSDTerm(self.watched_prior, denoiser(self.regulariser), uniform_timesteps, law, negative)


def test_constants_of_the_schedule() -> None:
    z, zero = torch.ones(4, 1, 1, 1), torch.zeros(4, 1, 1, 1)
    tau = torch.tensor([1, 100, 500, 999])
    assert add_noise(z, zero, tau).flatten().tolist() == pytest.approx([0.99915, 0.94563, 0.52567, 0.06826], abs=1e-5)
    assert add_noise(zero, z, tau)[3].item() == pytest.approx(0.99767, abs=1e-5)
    assert clean(z, zero, tau)[3].item() == pytest.approx(14.6488, abs=1e-3)
    assert clean(zero, z, tau)[3].item() == pytest.approx(-14.6146, abs=1e-3)


def test_noising_and_cleaning_are_inverse() -> None:
    z, tau = latents(), torch.tensor([0, 400, 999])
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(1))
    noisy = add_noise(z, noise, tau)
    torch.testing.assert_close(noisy, noised(z, noise, tau), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(clean(noisy, noise, tau), z, rtol=1e-4, atol=1e-4)
    assert add_noise(z.bfloat16(), noise.bfloat16(), tau).dtype == torch.float32


def test_the_laws(draws: Draws) -> None:
    many = uniform_timesteps(None, Draws(torch.arange(4000)))
    assert (many.min().item(), many.max().item()) == (20, 979)
    assert many.float().mean().item() == pytest.approx(499.5, abs=15)
    assert torch.equal(uniform_timesteps(None, draws)[:1], uniform_timesteps(None, Draws(torch.tensor([5]), 9)))
    steps = torch.tensor([1, 40, 999])
    assert half_timesteps(steps, draws).tolist() == [0, 20, 499]
    with pytest.raises(ValueError, match="generator's timestep"):
        half_timesteps(None, draws)
    assert constant_guidance(7.5)(steps).tolist() == [7.5] * 3
    assert rising_guidance(torch.tensor([0, 100, 499])).tolist() == pytest.approx([7.5, 8.0, 9.995])


def test_the_gradient_by_the_latent_is_two_g_over_n(make_prior: Callable[..., CTSRPipeline], draws: Draws) -> None:
    nets, z = Pair(make_prior), latents().requires_grad_(True)
    nets.term().loss(z, draws).backward()
    tau, noise = draws.integers("vsd timestep", 20, 979), draws.normal("vsd", z)
    with torch.no_grad():
        noisy = noised(z, noise, tau)
        x_phi = x0(noisy, nets.regulariser.unet(noisy, tau).sample, tau)
        x_psi = x0(noisy, nets.prior.unet(noisy, tau).sample, tau)
    g = torch.stack([(phi - psi) / (row - psi).abs().mean() for phi, psi, row in zip(x_phi, x_psi, z, strict=True)])
    torch.testing.assert_close(z.grad, (2 * g / z.numel()).detach(), rtol=1e-3, atol=1e-3 * float(z.grad.abs().mean()))
    assert z.grad.abs().mean() > 0
    assert all(p.grad is None for model in (nets.prior, nets.regulariser) for p in model.parameters())


def test_each_picture_has_its_own_normaliser(make_prior: Callable[..., CTSRPipeline], draws: Draws) -> None:
    term, z = Pair(make_prior).term(), latents() * torch.tensor([0.1, 1.0, 10.0]).view(3, 1, 1, 1)
    whole = term.direction(z, draws)
    for row in range(3):
        alone = term.direction(z[row : row + 1], Draws(draws.index[row : row + 1], draws.seed))
        torch.testing.assert_close(whole[row : row + 1], alone, rtol=1e-4, atol=1e-5)


def test_guidance_goes_from_the_negative_prompt_through_the_prompt(
    make_sd: Callable[..., CTSRPipeline], draws: Draws
) -> None:
    nets = Pair(lambda seed: make_sd("osediff"))
    negative, z = torch.randn(1, 4, 16, generator=torch.Generator().manual_seed(3)), latents()
    tau = uniform_timesteps(None, draws)
    guided = nets.term(7.5, negative).guided(z, tau)
    with torch.no_grad():
        positive = nets.prior.unet(z, tau, nets.prior.prompt.expand(3, -1, -1)).sample
        against = nets.prior.unet(z, tau, negative.expand(3, -1, -1)).sample
    torch.testing.assert_close(guided, against + 7.5 * (positive - against), rtol=1e-4, atol=1e-4)
    assert (guided - positive).abs().max() > 0.01
    assert [prompt is None for _, prompt in nets.calls] == [True, False]


@pytest.mark.parametrize(("scale", "with_negative"), [(1.0, True), (7.5, False)])
def test_guidance_of_one_or_without_a_negative_prompt_is_one_pass(
    make_sd: Callable[..., CTSRPipeline], draws: Draws, scale: float, with_negative: bool
) -> None:
    nets, z = Pair(lambda seed: make_sd("osediff")), latents()
    negative = torch.randn(1, 4, 16) if with_negative else None
    tau = uniform_timesteps(None, draws)
    with torch.no_grad():
        guided = nets.term(scale, negative).guided(z, tau)
        assert torch.equal(guided, denoiser(nets.prior)(z, tau))
    assert len(nets.calls) == 1


def test_a_regulariser_that_agrees_with_the_prior_moves_nothing(
    make_prior: Callable[..., CTSRPipeline], draws: Draws
) -> None:
    prior = denoiser(OneStep(make_prior()))
    z = latents().requires_grad_(True)
    VSDTerm(prior, prior, uniform_timesteps, constant_guidance(1.0)).loss(z, draws).backward()
    assert z.grad.abs().max() == 0


def test_the_loss_is_the_mean_square_of_g_and_pulls_along_it() -> None:
    z, g = latents().requires_grad_(True), torch.full((3, 4, 8, 8), 0.5)
    loss = stop_gradient_loss(z, g)
    assert loss.item() == pytest.approx(0.25)
    loss.backward()
    torch.testing.assert_close(z.grad, 2 * g / z.numel())


@pytest.mark.parametrize("law", [None, half_timesteps])
def test_the_regulariser_learns_the_noise_of_its_own_draws(
    make_prior: Callable[..., CTSRPipeline], law: Callable[..., Tensor] | None
) -> None:
    model = OneStep(make_prior())
    batch: Sample = {
        "latents": latents().requires_grad_(True),
        "index": torch.tensor([5, 17, 2]),
        "timestep": torch.tensor([3, 500, 999]),
    }
    loss = RegulariserLoss(model.unet, denoiser(model), 9, law)(batch)["loss"]
    draws = Draws(batch["index"], 9)
    tau = draws.integers("regulariser timestep", 0, 999) if law is None else torch.tensor([1, 250, 499])
    noise = draws.normal("regulariser", batch["latents"])
    noisy = noised(batch["latents"], noise, tau)
    expected = (model.unet(noisy, tau).sample - noise).square().mean()
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(p.grad is not None for p in model.unet.parameters())


def test_its_timesteps_reach_both_ends_and_its_noise_is_not_the_generators() -> None:
    drawn = Draws(torch.arange(20000)).integers("regulariser timestep", 0, 999)
    assert (drawn.min().item(), drawn.max().item()) == (0, 999)
    draws, like = Draws(torch.arange(2)), torch.empty(2, 4, 8, 8)
    assert not torch.equal(draws.normal("vsd", like), draws.normal("regulariser", like))


def test_a_picture_moves_by_its_own_number_to_every_phase_of_a_cell() -> None:
    rows, columns = torch.meshgrid(torch.arange(24.0), torch.arange(32.0), indexing="ij")
    places = torch.stack([rows, columns, rows]).expand(400, 3, 24, 32)
    moved = random_shift(places, Draws(torch.arange(400), 3))
    corners = moved[:, :, :1, :1]
    assert torch.equal(moved - corners, places[:, :, :16, :24])
    assert {tuple(corner.tolist()) for corner in corners[:, :2, 0, 0]} == {(y, x) for y in range(8) for x in range(8)}
    assert torch.equal(random_shift(places[7:9], Draws(torch.tensor([7, 8]), 3)), moved[7:9])
