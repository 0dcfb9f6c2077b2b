"""Keeps the still parts of a video still: what a network makes of noise differs from frame to frame, and boils.

A latent is averaged with those of the frames before it, where the small frames show the same as before.
"""

from __future__ import annotations

from torch import Tensor

CHANGE = 0.05
"""Difference of the smoothed frames, in [0, 1], from which on a place counts as moving. Noise with a standard deviation
of 0.05 stays under a third of it."""


class Steadier:
    """Averages over time; give it the frames in their order.

    Args:
        amount: share of the frames before in a still place, 0 (none) to less than 1. A share a leaves
            sqrt((1 - a) / (1 + a)) of what changes at random: 0.42 of it at 0.7.
        size: height and width of a result.
        factor: pixels a latent on each side.
    """

    def __init__(self, amount: float, size: tuple[int, int], factor: int):
        self.amount, self.size, self.factor = amount, size, factor
        self.before: tuple[Tensor, Tensor] | None = None

    def __call__(self, z: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Latents [1, C, h, w] and the small frame [1, 3, h', w'] that they show, both averaged with those before."""
        if self.amount == 0:
            return z, seen
        if self.before is not None:
            from ..ctsr.images.tensors import map_to_latents

            z_before, seen_before = self.before
            keep = self.amount * stillness(seen, seen_before)
            cells = (z.shape[-2], z.shape[-1])
            z = z + map_to_latents(keep[0, 0], self.size, cells, self.factor).to(z.device) * (z_before - z)
            seen = seen + keep * (seen_before - seen)
        self.before = z, seen
        return z, seen


def stillness(one: Tensor, other: Tensor) -> Tensor:
    """1 where two pictures [1, 3, h, w] in [0, 1] show the same, 0 where something moved, [1, 1, h, w]."""
    from ..ctsr.assess.windows import highest, local_mean

    change = local_mean(one - other, 2).abs().amax(dim=1, keepdim=True)
    return (1 - highest(change, 2) / CHANGE).clamp_(0, 1)  # the surroundings of what moves do not stay behind
