"""From a MASK to a map of t over the latents."""

from __future__ import annotations

import torch
from torch import Tensor

PLACEHOLDER = (64, 64)
"""Size of the empty mask that LoadImage gives for a picture without alpha."""


def is_placeholder(mask: Tensor) -> bool:
    """Whether a MASK is only what LoadImage gives for a picture without alpha."""
    return tuple(mask.shape[-2:]) == PLACEHOLDER and not bool(mask.any())


def dial_map(
    mask: Tensor,
    t: float,
    t_inside: float,
    feather: int,
    size: tuple[int, int],
    cells: tuple[int, int],
    vae_scale_factor: int,
) -> Tensor:
    """A map of t over the latents: `t` outside of the mask, `t_inside` inside.

    Args:
        mask: [B, h, w] or [h, w], 1 inside; values outside [0, 1] are clamped.
        t, t_inside: in [0, 1].
        feather: width in pixels of the result over which one goes into the other.
        size: height and width of the result in pixels.
        cells: height and width of the latents, which may cover a padded border more.
        vae_scale_factor: pixels a latent on each side.

    Returns:
        [B, 1, *cells] in [0, 1].
    """
    from ..ctsr.images.tensors import map_to_latents

    masks = mask if mask.ndim == 3 else mask[None]
    inside = torch.cat([map_to_latents(one.float().clamp(0, 1), size, cells, vae_scale_factor) for one in masks])
    return (t + (t_inside - t) * blur(inside, feather / vae_scale_factor)).clamp_(0, 1)


def blur(x: Tensor, width: float) -> Tensor:
    """Gaussian blur of [B, 1, h, w] whose step response rises from 2 % to 98 % over `width` samples."""
    from ..ctsr.assess.windows import gaussian

    return gaussian(x.mT, width / 4).mT.contiguous() if width > 0 else x  # columns first: the order decides last bits
