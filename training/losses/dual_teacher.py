"""Distillation from two teachers, one realistic and one faithful: stage 1 of CTSR (arXiv 2503.14272).

z is the student's restored latent, z* the ground truth's; both get the same noise:

    z_tau(v) = sqrt(abar) v + sqrt(1 - abar) eps

For each teacher k the paper has two terms, A_k (student and teacher agree behind the student's noised latent) and B_k
(the teacher says the same behind the student's latent as behind the ground truth's). Networks of any parameterization
come in as estimates of the clean latent, x_k(z_tau); the noise that such an estimate implies is

    eps_k(z_tau) = (z_tau - sqrt(abar) x_k) / sqrt(1 - abar)

A teacher that is no denoiser (another restorer, or a network trained at one timestep alone) is its own restored latent
z_k, whatever the noise: x_k = z_k. All functions take and give fp32.
"""

import math

import torch
from torch import Tensor

from ctsr.families import alpha_bar
from training.losses.vsd import add_noise, stop_gradient_loss


def noised(z: Tensor, truth: Tensor, noise: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor]:
    """z_tau of the student's latent and of the ground truth's, [B, C, h, w] each, with one and the same noise."""
    return add_noise(z, noise, timestep), add_noise(truth, noise, timestep)


def implied_noise(noisy: Tensor, x: Tensor, timestep: Tensor) -> Tensor:
    """The noise prediction that says x [B, C, h, w] lies behind `noisy`, for timesteps [B]."""
    abar = alpha_bar(timestep).to(noisy.device)
    return ((noisy.double() - abar.sqrt() * x.double()) / (1 - abar).sqrt()).float()


def snr(timestep: Tensor) -> Tensor:
    """Signal to noise abar / (1 - abar), fp32 [B, 1, 1, 1]: what a distance of clean latents weighs as noise."""
    abar = alpha_bar(timestep)
    return (abar / (1 - abar)).float()


def clamping(timestep: Tensor, most: float) -> Tensor:
    """What brings a squared distance of noises [B, ...] down to at most `most` times that of clean latents."""
    return (most / snr(timestep)).clamp(max=1.0)


def squared_noise_distance(a: Tensor, b: Tensor, timestep: Tensor, most: float = math.inf) -> Tensor:
    """mean |a - b|^2 of noises [B, C, h, w], its share of each picture clamped as `clamping` says."""
    return (clamping(timestep, most).to(a.device) * (a - b).square()).mean()


def literal_agreement(
    noisy: Tensor, student: Tensor, teacher: Tensor, timestep: Tensor, most: float = math.inf
) -> Tensor:
    """A_k as printed: |eps_k - eps_S|^2 behind the student's noised latent; equals SNR |x_S - x_k|^2.

    Args:
        noisy: z_tau of the student's latent, [B, C, h, w].
        student, teacher: clean latents that the two see behind it.
        timestep: [B].
        most: the largest weight of the distance of clean latents; the SNR is 52 at tau = 20.
    """
    epsilons = (implied_noise(noisy, x, timestep) for x in (teacher, student))
    return squared_noise_distance(*epsilons, timestep, most)


def literal_consistency(
    noisy: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], timestep: Tensor, most: float = math.inf
) -> Tensor:
    """B_k as printed: |eps_k(z_tau) - eps_k(z*_tau)|^2; for a fixed x_k it equals SNR |z - z*|^2.

    Args:
        noisy: z_tau of the student's latent and of the ground truth's, [B, C, h, w] each, from `noised`.
        teacher: clean latents that the teacher sees behind them.
        timestep: [B].
        most: as for `literal_agreement`.
    """
    epsilons = (implied_noise(z, x, timestep) for z, x in zip(noisy, teacher, strict=True))
    return squared_noise_distance(*epsilons, timestep, most)


def direction(z: Tensor, student: Tensor, aim: Tensor) -> Tensor:
    """g = (x_S - aim) / mean|z - aim|, the mean over each picture; no gradient.

    The normalisation of score distillation (`vsd`): the same length far from the aim and near it, at every tau.
    """
    with torch.no_grad():
        return (student - aim) / (z - aim).abs().mean(dim=(1, 2, 3), keepdim=True).clamp_min(1e-6)


def directed(z: Tensor, student: Tensor, aim: Tensor) -> Tensor:
    """A loss that moves z [B, C, h, w] along -g: its gradient by z is 2 g / N, by anything else zero.

    A_k in the form of score distillation, with `aim` = x_k; B_k of a fixed teacher, with `student` = z and
    `aim` = z*.
    """
    return stop_gradient_loss(z, direction(z, student, aim))


def clean_consistency(teacher: tuple[Tensor, Tensor]) -> Tensor:
    """B_k on clean latents: mean d^2 / sg mean|d| with d = x_k(z_tau) - sg x_k(z*_tau), the mean over each picture.

    Its gradient by x_k is as long as that of `directed` by z, near and far; it runs through the teacher into z_tau.
    """
    d = teacher[0] - teacher[1].detach()
    return (d.square() / d.detach().abs().mean(dim=(1, 2, 3), keepdim=True).clamp_min(1e-6)).mean()
