"""What travels between the nodes beside the host's own types."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from ..ctsr.families import Endpoints


@dataclass(frozen=True)
class Origin:
    """What the steps after TimeAwareEncode need to know beside the latent; all of it lies as the network sees it.

    Attributes:
        model_id: of the checkpoint whose latents these are.
        size: height and width of the result in pixels; the latents may cover a padded border more.
        reference: the low-resolution pictures [B, 3, h, w] in [0, 1], from which colours are taken; None if unknown.
        alpha: theirs, [B, 1, h, w] in [0, 1], or None.
        timestep: tau of the encoder where it is not the checkpoint's own.
        seed: of the start noise, for families that have one.
        second: unscaled latents of the second encode of two-tau families, [B, C, h, w], or None.
        turn: how LATENTs and results lie, turned from what the network sees: see `latents.turn`.
    """

    model_id: str
    size: tuple[int, int]
    reference: Tensor | None = None
    alpha: Tensor | None = None
    timestep: int | None = None
    seed: int = 0
    second: Tensor | None = None
    turn: int = 0

    def seeing(self, reference: Tensor) -> Origin:
        """The same with other pictures to take colours from."""
        return replace(self, reference=reference)

    def row(self, number: int) -> Origin:
        """That of one picture of the batch."""

        def one(x: Tensor | None) -> Tensor | None:
            return None if x is None else x[number : number + 1]

        return replace(self, reference=one(self.reference), alpha=one(self.alpha), second=one(self.second))


@dataclass(frozen=True)
class HostEndpoints:
    """CTSR_ENDPOINTS: the ends of the dial on the host's intermediate device.

    Attributes:
        ends: each [B, C, h, w], scaled, in the host's number format for what travels between nodes.
        scaling_factor: s; a LATENT holds z / s.
        vae_scale_factor: pixels a latent on each side.
        origin: of the latent.
    """

    ends: Endpoints
    scaling_factor: float
    vae_scale_factor: int
    origin: Origin

    def latent_at(self, t: float | Tensor) -> Tensor:
        """What a LATENT holds at t (a number, or a map as `ctsr.families.blend` takes it): z(t) / s, [B, C, h, w]."""
        from ..ctsr.families import blend

        return blend(self.ends, t) / self.scaling_factor

    def row(self, number: int) -> HostEndpoints:
        """That of one picture of the batch, in fp32."""
        z0, delta, kappa = self.ends.z0, self.ends.delta, self.ends.kappa
        rows = (None if x is None else x[number : number + 1].float() for x in (delta, kappa))
        ends = type(self.ends)(z0[number : number + 1].float(), *rows)
        return replace(self, ends=ends, origin=self.origin.row(number))
