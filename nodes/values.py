"""What travels between the nodes beside the host's own types."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from ..ctsr.families import Endpoints

logger = logging.getLogger(__name__)

KEY = "ctsr"
"""Of the entry in a LATENT."""


@dataclass(frozen=True)
class Origin:
    """What the steps after TimeAwareEncode need to know beside the latent.

    Attributes:
        model_id: of the checkpoint whose latents these are.
        size: height and width of the result in pixels; the latents may cover a padded border more.
        reference: the low-resolution pictures [B, 3, h, w] in [0, 1], from which colours are taken; None if unknown.
        alpha: theirs, [B, 1, h, w] in [0, 1], or None.
        timestep: tau of the encoder where it is not the checkpoint's own.
        seed: of the start noise, for families that have one.
        second: unscaled latents of the second encode of two-tau families, [B, C, h, w], or None.
    """

    model_id: str
    size: tuple[int, int]
    reference: Tensor | None = None
    alpha: Tensor | None = None
    timestep: int | None = None
    seed: int = 0
    second: Tensor | None = None


@dataclass(frozen=True)
class HostEndpoints:
    """CTSR_ENDPOINTS: the ends of the dial on the host's intermediate device.

    Attributes:
        ends: each [B, C, h, w], scaled, fp32.
        scaling_factor: s; a LATENT holds z / s.
        vae_scale_factor: pixels a latent on each side.
        origin: of the latent.
    """

    ends: Endpoints
    scaling_factor: float
    vae_scale_factor: int
    origin: Origin


@dataclass(frozen=True)
class Entry:
    """What a LATENT holds beside its samples: which samples these were, and where they come from."""

    samples: Tensor
    origin: Origin


def make_latent(samples: Tensor, origin: Origin) -> dict[str, Any]:
    """A LATENT: unscaled samples [B, C, h, w] and the entry for the nodes after it."""
    return {"samples": samples, KEY: Entry(samples, origin)}


def origin_of(latent: dict[str, Any], model_id: str, pad_multiple: int, vae_scale_factor: int) -> Origin:
    """The entry of a LATENT, or what can be known without one.

    The host's own latent nodes copy entries but change samples. Of samples of another size or number nothing is known
    any more; of others (mirrored, turned, blended) the size is, but not what they show where. Both with a warning.

    Args:
        latent: `samples` [B, C, h, w], and perhaps the entry.
        model_id: of the checkpoint that will take it.
        pad_multiple: pixels that the sides of an encoded picture are padded to a multiple of.
        vae_scale_factor: pixels a latent on each side.

    Raises:
        ValueError: the latent is another checkpoint's.
    """
    samples: Tensor = latent["samples"]
    unknown = Origin(model_id, (samples.shape[-2] * vae_scale_factor, samples.shape[-1] * vae_scale_factor))
    entry: Entry | None = latent.get(KEY)
    if entry is None:
        return unknown
    origin = entry.origin
    if origin.model_id != model_id:
        raise ValueError(
            f"latent was made by {origin.model_id}, but this node has {model_id}: connect both to the same LoadCTSR."
        )
    padded = tuple(-(-side // pad_multiple) * pad_multiple for side in origin.size)
    count = samples.shape[0] if origin.reference is None else origin.reference.shape[0]
    if padded != unknown.size or count != samples.shape[0]:
        logger.warning(
            "A node before this one changed the latent's size or batch: what TimeAwareEncode noted of the picture no "
            "longer fits, so the result is neither cropped nor colour-fixed."
        )
        return unknown
    if entry.samples is not samples:
        logger.warning(
            "A node before this one changed the latent: its colours are not fixed by the picture that TimeAwareEncode "
            "saw, and alpha is left out."
        )
        return replace(origin, reference=None, alpha=None, second=None)
    return origin
