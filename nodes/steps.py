"""The steps that the nodes are made of: encode, restore and decode, and which model does them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from . import host
from .checks import whole
from .inputs import LARGEST_TILE
from .latents import turn
from .progress import Work
from .values import HostEndpoints, Origin

if TYPE_CHECKING:
    from ..ctsr.images.color_fix import ColorFix
    from ..ctsr.tiling.network import Stage


def tile_side(tile: float) -> int:
    """Side of a tile as a whole number, 0 for automatic; raises ValueError for one out of range."""
    from ..ctsr.runtime.offload import check_tile

    side = whole("tile", tile, 0, LARGEST_TILE)
    check_tile(side, None)
    return side


def bring_in(model: host.HostModel, stage: Stage, size: tuple[int, int], tile: int, work: Work) -> None:
    """Has the host load a network for its work on a result of `size`, and notes the memory which that takes."""
    work.memory = max(work.memory, host.load(model, stage, *size, tile))


def model_of(vae: Any) -> host.HostModel:
    """The model that a VAE belongs to; raises ValueError for a VAE that is not one of ours."""
    if not isinstance(vae, host.CTSRVAE):
        raise ValueError("vae is not a CTSR checkpoint's: connect the VAE of Load CTSR, or use the host's VAE Decode.")
    return vae.model


def model_for(vae: Any, endpoints: HostEndpoints) -> host.HostModel:
    """The model of a VAE for `endpoints`; raises ValueError as `model_of`, or for those of another checkpoint."""
    model, maker = model_of(vae), endpoints.origin.model_id
    if maker != model.model_id:
        raise ValueError(
            f"endpoints were made by {maker}, but vae belongs to {model.model_id}: connect both to the same Load CTSR."
        )
    return model


def encode(
    model: host.HostModel,
    rgb: Tensor,
    alpha: Tensor | None,
    size: tuple[int, int],
    timestep: int | None,
    seed: int,
    tile: int,
    work: Work,
    first: int = 0,
) -> tuple[Tensor, Origin]:
    """Unscaled latents [B, C, h, w] of pictures [B, 3, h, w], and where they come from.

    `first` is the number of the first picture in the work, `timestep` None the checkpoint's own.
    """
    pipe = model.pipeline
    bring_in(model, "encode", size, tile, work)
    passes: list[host.Batch] = []
    for i in range(len(rgb)):
        latents = pipe.encode_unscaled(rgb[i : i + 1], *size, timestep, tile=tile, callback=work.picture(first + i))
        passes = passes or [host.Batch(len(rgb)) for _ in latents]
        for batch, z in zip(passes, latents, strict=True):
            batch.add(z)
    samples, *second = (batch.result() for batch in passes)
    return samples, Origin(model.model_id, size, rgb, alpha, timestep, seed, second[0] if second else None)


def restore(
    model: host.HostModel, samples: Tensor, origin: Origin, tile: int, work: Work, first: int = 0
) -> HostEndpoints:
    """Endpoints of unscaled latents [B, C, h, w], whose first is number `first` in the work.

    Raises:
        ValueError: the checkpoint takes two encodes and the latent brings one.
    """
    from ..ctsr.families import Endpoints

    pipe = model.pipeline
    encodes = [samples] if origin.second is None else [samples, origin.second]
    needed = len(pipe.family.encoder_timesteps) if origin.timestep is None else 1
    if len(encodes) != needed:
        raise ValueError(
            f"{model.model_id} takes {needed} encodes of a picture, but latent brings {len(encodes)}: connect "
            "Time-Aware Encode directly."
        )
    height, width = (side * pipe.vae_scale_factor for side in samples.shape[-2:])
    bring_in(model, "unet", (height, width), tile, work)
    parts: dict[str, host.Batch] = {}
    for i in range(len(samples)):
        latents = [z[i : i + 1].float() * pipe.scaling_factor for z in encodes]
        noise = torch.Generator().manual_seed(origin.seed)
        ends = pipe.endpoints(latents, origin.timestep, generator=noise, tile=tile, callback=work.picture(first + i))
        for name, value in (("z0", ends.z0), ("delta", ends.delta), ("kappa", ends.kappa)):
            if value is not None:
                parts.setdefault(name, host.Batch(len(samples))).add(value)
    batches = {name: batch.result() for name, batch in parts.items()}
    return HostEndpoints(Endpoints(**batches), pipe.scaling_factor, pipe.vae_scale_factor, origin)


def decode(
    model: host.HostModel, samples: Tensor, origin: Origin, tile: int, color_fix: str, work: Work, number: int = 0
) -> Tensor:
    """IMAGE [1, H, W, 3 or 4] of unscaled latents [1, C, h, w], of picture `number` in the work."""
    from ..ctsr.images.tensors import resize

    size, reference = origin.size, origin.reference
    if reference is None and color_fix != "none":
        work.warn("Without the picture that Time-Aware Encode saw, colours are left as they are decoded.")
    keep = reference is None or model.pipeline.changes_light
    fix = cast("ColorFix", "none" if keep else color_fix)
    bring_in(model, "decode", size, tile, work)
    picture = model.pipeline.decode_unscaled(
        samples.float(), size, reference, fix, tile=tile, callback=work.picture(number)
    )
    if origin.alpha is not None:
        picture = torch.cat([picture, resize(origin.alpha, *size).clamp_(0, 1).to(picture)], dim=1)
    return turn(picture, origin.turn).movedim(1, -1)


def decode_each(
    model: host.HostModel,
    rows: Iterable[tuple[Tensor, Origin]],
    count: int,
    tile: int,
    color_fix: str,
    work: Work,
) -> Tensor:
    """IMAGE [count, H, W, 3 or 4] of latents and origins of single pictures, the first `count` of the work."""
    images = host.Batch(count)
    for number, (samples, origin) in enumerate(rows):
        images.add(decode(model, samples, origin, tile, color_fix, work, number))
    work.result = describe(images.result())
    return images.result()


def describe(images: Tensor) -> str:
    """Size and number of an IMAGE [B, H, W, C] in words."""
    count, height, width = images.shape[:3]
    return f"{width}x{height}" + (f" · {count} pictures" if count > 1 else "")
