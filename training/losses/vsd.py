"""Variational score distillation in latent space: OSEDiff (arXiv 2406.08177), TADSR (2508.16557).

A frozen prior says where clean latents of photographs lie, a regulariser, trained on the generator's own latents, says
where those lie; their difference moves the generator. With x_phi and x_psi the two estimates of the clean latent behind
z_tau = sqrt(abar) z + sqrt(1 - abar) eps,

    g = (x_phi - x_psi) / mean|z - x_psi|        L = mean (z - sg(z - g))^2        dL/dz = 2 g / N

Latents are judged cell by cell, and nothing in them holds neighbouring cells together: where a latent is nearly a block
transform, as the mini's is, the pictures get seams at the borders of its 8x8 px cells. `random_shift` is the cure, that
of block-wise de-noising (cycle spinning, Coifman and Donoho, "Translation-invariant de-noising", 1995): the latents
judged are those of the decoded picture moved by a random offset, so that no border stays where it is.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctsr.families import alpha_bar, coefficients, predict_x0
from training.engine.draws import Draws
from training.engine.sources import Sample

TimestepLaw = Callable[[Tensor | None, Draws], Tensor]
GuidanceLaw = Callable[[Tensor], Tensor]

CELL = 8  # px of a picture to a latent
LOWEST, HIGHEST = 20, 979  # OSEDiff's range for the distillation; the regulariser trains on all of 0..999


def uniform_timesteps(generator_timestep: Tensor | None, draws: Draws) -> Tensor:
    """OSEDiff's law: U{20..979}, int64 [B]."""
    return draws.integers("vsd timestep", LOWEST, HIGHEST)


def half_timesteps(generator_timestep: Tensor | None, draws: Draws) -> Tensor:
    """TADSR's law: tau_v = floor(tau_s / 2) of the generator's own timestep."""
    if generator_timestep is None:
        raise ValueError("TADSR's law needs the generator's timestep.")
    return generator_timestep // 2


def constant_guidance(scale: float) -> GuidanceLaw:
    """The same classifier-free guidance at every timestep; OSEDiff's is 7.5."""
    return lambda timestep: torch.full(timestep.shape, scale, dtype=torch.float32)


def rising_guidance(timestep: Tensor) -> Tensor:
    """TADSR's code: 7.5 + tau_v / 200."""
    return 7.5 + timestep.float() / 200


def add_noise(z: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
    """sqrt(abar) z + sqrt(1 - abar) eps, fp32, for timesteps [B]."""
    abar = alpha_bar(timestep).to(z.device)
    return (abar.sqrt() * z.double() + (1 - abar).sqrt() * noise.double()).float()


def random_shift(x: Tensor, draws: Draws) -> Tensor:
    """Pictures [B, 3, H, W] -> [B, 3, H - 8, W - 8], each without its first dy rows and dx columns, U{0..7}."""
    tops, lefts = (draws.integers(f"vsd {name}", 0, CELL - 1).tolist() for name in ("top", "left"))
    height, width = x.shape[2] - CELL, x.shape[3] - CELL
    rows = zip(x, tops, lefts, strict=True)
    return torch.stack([row[:, top : top + height, left : left + width] for row, top, left in rows])


class Denoiser(Protocol):
    """A noise prediction: latents [B, C, h, w], timesteps [B], prompt [1, L, D] or None for the default one."""

    def __call__(self, z: Tensor, timestep: Tensor, prompt: Tensor | None = None) -> Tensor: ...


def clean(z: Tensor, epsilon: Tensor, timestep: Tensor) -> Tensor:
    """x0 of a noise prediction, fp32."""
    return predict_x0(z, epsilon, *coefficients("epsilon", timestep))


@dataclass(frozen=True)
class VSD:
    """Weights and laws of the term.

    Attributes:
        weight: zero leaves it out.
        guidance: classifier-free guidance of the prior; 1 for a prior that knows no prompt.
        peak_rate: of the regulariser.
        moved: judge the latents of the decoded picture, moved by a random offset, in place of the generator's own: no
            seams at the borders of the cells (see `random_shift`), for one more pass of the encoder there and back.
    """

    weight: float = 0.0
    guidance: float = 7.5
    peak_rate: float = 5e-5
    moved: bool = False


class VSDTerm:
    """The generator's side."""

    def __init__(
        self,
        prior: Denoiser,
        regulariser: Denoiser,
        timesteps: TimestepLaw,
        guidance: GuidanceLaw,
        negative_prompt: Tensor | None = None,
    ):
        self.prior, self.regulariser = prior, regulariser
        self.timesteps, self.guidance, self.negative_prompt = timesteps, guidance, negative_prompt

    @torch.no_grad()
    def direction(self, z: Tensor, draws: Draws, generator_timestep: Tensor | None = None) -> Tensor:
        """g, fp32 like z [B, C, h, w]."""
        timestep = self.timesteps(generator_timestep, draws).to(z.device)
        noisy = add_noise(z, draws.normal("vsd", z), timestep)
        x_phi = clean(noisy, self.regulariser(noisy, timestep), timestep)
        x_psi = clean(noisy, self.guided(noisy, timestep), timestep)
        return (x_phi - x_psi) / (z - x_psi).abs().mean(dim=(1, 2, 3), keepdim=True)

    def guided(self, z: Tensor, timestep: Tensor) -> Tensor:
        """The prior's noise prediction under guidance against the negative prompt."""
        epsilon = self.prior(z, timestep)
        scale = self.guidance(timestep).to(z.device).view(-1, 1, 1, 1)
        if self.negative_prompt is None or bool((scale == 1).all()):
            return epsilon
        against = self.prior(z, timestep, self.negative_prompt)
        return against + scale * (epsilon - against)

    def loss(self, z: Tensor, draws: Draws, generator_timestep: Tensor | None = None) -> Tensor:
        """Scalar whose gradient by z is 2 g / N."""
        return stop_gradient_loss(z, self.direction(z.detach(), draws, generator_timestep))


def stop_gradient_loss(z: Tensor, g: Tensor) -> Tensor:
    """mean (z - sg(z - g))^2."""
    return F.mse_loss(z, (z - g).detach())


class RegulariserLoss(nn.Module):
    """The regulariser's own turn: it learns to denoise the generator's latents, which it finds as `latents`."""

    def __init__(self, network: nn.Module, denoise: Denoiser, seed: int, timesteps: TimestepLaw | None = None):
        super().__init__()
        self.network, self.denoise, self.seed, self.timesteps = network, denoise, seed, timesteps

    def forward(self, batch: Sample) -> dict[str, Tensor]:
        """`loss`: mean squared error of the noise, timesteps U{0..999} or the law given."""
        z, draws = batch["latents"], Draws(batch["index"], self.seed)
        if self.timesteps is None:
            timestep = draws.integers("regulariser timestep", 0, 999)
        else:
            timestep = self.timesteps(batch.get("timestep"), draws)
        timestep, noise = timestep.to(z.device), draws.normal("regulariser", z)
        return {"loss": F.mse_loss(self.denoise(add_noise(z, noise, timestep), timestep).float(), noise)}
