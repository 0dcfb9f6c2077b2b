"""Pictures as tensors: their size, resized, padded, with a map of t over them, and out again."""

import math
import operator
from collections.abc import Sequence
from typing import Any, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch import Tensor

from ..families import check_dial

OutputType = Literal["pil", "pt", "np", "latent"]

DEFAULT_SCALE = 4.0
MAX_SIDE = 2**16


def output_size(picture: Tensor, scale: float, height: int | None, width: int | None) -> tuple[int, int]:
    """Height and width of the result: as asked, one side by the other and the picture's proportions, or by `scale`.

    Sides are rounded, halves up, to at least 1. `scale` counts where neither side is given.
    """
    h, w = picture.shape[-2:]
    if height is not None:
        return height, rounded(w * height / h) if width is None else width
    if width is not None:
        return rounded(h * width / w), width
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"scale must be a positive number, not {scale}.")
    return rounded(scale * h), rounded(scale * w)


def rounded(side: float) -> int:
    """Whole pixels, halves up, at least 1; of absurd sides something that `check_size` refuses."""
    return max(1, math.floor(min(side, 2.0 * MAX_SIDE) + 0.5))


def check_size(height: int, width: int) -> None:
    """Raises ValueError for an empty or absurd result, or sides that are no whole numbers."""
    try:
        height, width = operator.index(height), operator.index(width)
    except TypeError as error:
        raise ValueError(f"height and width must be whole numbers, not {height!r} and {width!r}.") from error
    if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
        raise ValueError(f"The result would have {width}x{height} pixels: keep each side from 1 to {MAX_SIDE}.")


def resize(picture: Tensor, height: int, width: int) -> Tensor:
    """Bicubic (a = -0.5, antialiased when it shrinks, as Pillow does), [B, C, h, w] fp32 -> [B, C, height, width].

    The same bits however the picture lies in memory: torch rounds differently by strides.
    """
    return F.interpolate(picture.contiguous(), size=(height, width), mode="bicubic", antialias=True)


def pad(picture: Tensor, multiple: int) -> Tensor:
    """Repeats the last row and column until both sides are multiples of `multiple`."""
    bottom, right = -picture.shape[-2] % multiple, -picture.shape[-1] % multiple
    return F.pad(picture, (0, right, 0, bottom), mode="replicate") if bottom or right else picture


def check_map(t_map: Tensor) -> None:
    """Raises ValueError for a map of t that is not [h, w] or leaves [0, 1]."""
    if t_map.ndim != 2 or 0 in t_map.shape:
        raise ValueError(f"t_map must be [h, w] for each picture, not {list(t_map.shape)}.")
    check_dial("t_map", t_map)


def map_to_latents(t_map: Tensor, size: tuple[int, int], cells: tuple[int, int], factor: int) -> Tensor:
    """A map of t over the result as [1, 1, h, w] over the (padded) latents, averaged over each cell.

    Args:
        t_map: [h, w] in [0, 1], of any size.
        size: height and width of the result in pixels.
        cells: height and width of the latents.
        factor: pixels a latent on each side.

    Raises:
        ValueError: the map is not [h, w] or holds values outside [0, 1].
    """
    check_map(t_map)
    full = F.interpolate(t_map[None, None].float(), size=size, mode="bilinear", antialias=True)
    below, right = cells[0] * factor - size[0], cells[1] * factor - size[1]
    return F.avg_pool2d(F.pad(full, (0, right, 0, below), mode="replicate"), factor).clamp_(0, 1)


def as_pil(picture: Tensor, icc_profile: bytes | None = None) -> Image.Image:
    """[1, 3, H, W] in [0, 1] as a picture, the profile in its `info`; values are rounded, not truncated."""
    made = Image.fromarray(rearrange((picture * 255).round_().byte(), "1 c h w -> h w c").cpu().numpy())
    if icc_profile is not None:
        made.info["icc_profile"] = icc_profile
    return made


def as_output(
    results: Sequence[Tensor | Image.Image], output_type: OutputType
) -> list[Image.Image] | np.ndarray[Any, Any] | Tensor:
    """Finished pictures as one object: the list of PIL pictures as it is, tensors [1, C, H, W] as one batch."""
    if output_type == "pil":
        return cast("list[Image.Image]", list(results))
    tensors = cast("list[Tensor]", list(results))
    batch = torch.cat(tensors) if len(tensors) > 1 else tensors[0]
    return rearrange(batch, "b c h w -> b h w c").cpu().numpy() if output_type == "np" else batch
