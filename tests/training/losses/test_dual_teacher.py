"""Stage 1's losses: the paper's two terms, and their form as directions."""

import math

import pytest
import torch
from torch import Tensor

from ctsr.families import alpha_bar
from training.losses.dual_teacher import (
    clamping,
    clean_consistency,
    directed,
    direction,
    implied_noise,
    literal_agreement,
    literal_consistency,
    noised,
    snr,
)
from training.losses.vsd import clean

TIMESTEPS = torch.tensor([20, 500, 979])


def latents(seed: int) -> Tensor:
    return torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(seed))


def weighted_distance(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    return (weight * (a - b).square()).mean()


def test_the_snr_is_52_at_tau_20():
    assert snr(torch.tensor([20])).item() == pytest.approx(52.5, abs=0.1)
    assert snr(TIMESTEPS).shape == (3, 1, 1, 1)


def test_clamping_leaves_what_is_small_and_brings_the_rest_to_the_limit():
    weights = (clamping(TIMESTEPS, 5.0) * snr(TIMESTEPS)).flatten()
    assert weights[0].item() == pytest.approx(5.0)
    assert torch.equal(weights[1:], snr(TIMESTEPS).flatten()[1:])
    assert torch.equal(clamping(TIMESTEPS, math.inf).flatten(), torch.ones(3))


def test_both_latents_get_the_same_noise():
    z, truth, noise = latents(0), latents(1), latents(2)
    ours, theirs = noised(z, truth, noise, TIMESTEPS)
    assert torch.allclose(ours - theirs, alpha_bar(TIMESTEPS).sqrt().float() * (z - truth), atol=1e-5)


def test_the_implied_noise_is_the_inverse_of_the_clean_estimate():
    noisy, epsilon = latents(0), latents(1)
    x = clean(noisy, epsilon, TIMESTEPS)
    assert torch.allclose(implied_noise(noisy, x, TIMESTEPS), epsilon, atol=1e-4)


def test_a_denoiser_that_knows_the_latent_implies_the_noise_that_was_added():
    z, noise = latents(0), latents(1)
    noisy, _ = noised(z, z, noise, TIMESTEPS)
    assert torch.allclose(implied_noise(noisy, z, TIMESTEPS), noise, atol=1e-5)


def test_literal_agreement_is_the_snr_times_the_distance_of_clean_latents():
    noisy, student, teacher = latents(0), latents(1), latents(2)
    loss = literal_agreement(noisy, student, teacher, TIMESTEPS)
    assert loss.item() == pytest.approx(weighted_distance(student, teacher, snr(TIMESTEPS)).item(), rel=1e-5)
    limited = literal_agreement(noisy, student, teacher, TIMESTEPS, most=5.0)
    assert limited.item() == pytest.approx(
        weighted_distance(student, teacher, snr(TIMESTEPS).clamp(max=5.0)).item(), rel=1e-5
    )


def test_literal_agreement_is_the_distance_of_the_noises():
    noisy, epsilon, other = latents(0), latents(1), latents(2)
    loss = literal_agreement(noisy, clean(noisy, epsilon, TIMESTEPS), clean(noisy, other, TIMESTEPS), TIMESTEPS)
    assert loss.item() == pytest.approx(torch.nn.functional.mse_loss(epsilon, other).item(), rel=1e-4)


def test_literal_consistency_of_a_fixed_teacher_is_the_snr_times_the_distance_to_the_truth():
    z, truth, end = latents(0), latents(1), latents(2)
    noisy = noised(z, truth, latents(3), TIMESTEPS)
    loss = literal_consistency(noisy, (end, end), TIMESTEPS)
    assert loss.item() == pytest.approx(weighted_distance(z, truth, snr(TIMESTEPS)).item(), rel=1e-5)


def test_the_directed_loss_has_the_gradient_of_score_distillation():
    """2 g / N by z, and nothing by what the networks said."""
    z, student, aim = (latents(seed).requires_grad_() for seed in range(3))
    directed(z, student, aim).backward()
    g = (student - aim) / (z - aim).abs().mean(dim=(1, 2, 3), keepdim=True)
    assert torch.allclose(z.grad, 2 * g.detach() / z.numel(), atol=1e-7)
    assert student.grad is None
    assert aim.grad is None


def test_a_direction_is_as_long_near_the_aim_as_far_from_it():
    z, aim = latents(0), latents(1)
    far, near = direction(z, z, aim), direction(aim + 1e-2 * (z - aim), aim + 1e-2 * (z - aim), aim)
    assert torch.allclose(far, near, atol=1e-3)
    assert far.abs().mean(dim=(1, 2, 3)).allclose(torch.ones(3))


def test_a_direction_at_the_aim_is_zero():
    z = latents(0)
    assert direction(z, z, z).abs().max() == 0


def test_consistency_on_clean_latents_goes_through_the_teacher():
    """B_k has a gradient only by what the teacher says of the student's latent."""
    noisy, weight = latents(0).requires_grad_(), 0.5
    other = latents(1).requires_grad_()
    clean_consistency((weight * noisy, other)).backward()
    d = (weight * noisy - other).detach()
    g = d / d.abs().mean(dim=(1, 2, 3), keepdim=True)
    assert torch.allclose(noisy.grad, 2 * weight * g / noisy.numel(), atol=1e-7)
    assert other.grad is None


def test_both_forms_of_consistency_pull_alike_near_and_far():
    """A denoiser that says what it sees, and a teacher that is an endpoint, differ in nothing then."""
    truth = latents(1)
    for distance in (1e-3, 1.0, 30.0):
        z = (truth + distance * latents(2)).requires_grad_()
        (as_denoiser,) = torch.autograd.grad(clean_consistency((z, truth)), z)
        (as_endpoint,) = torch.autograd.grad(directed(z, z, truth), z)
        assert torch.allclose(as_denoiser, as_endpoint, rtol=1e-3, atol=1e-8)
