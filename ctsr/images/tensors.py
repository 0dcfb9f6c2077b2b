"""Pictures as tensors: in from what a caller holds, resized, padded, checked, and out again; a map of t over them."""

import logging
import math
from collections.abc import Sequence
from typing import Any, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch import Tensor

from ..families import check_dial

logger = logging.getLogger(__name__)

Pictures = Image.Image | Sequence[Image.Image] | np.ndarray[Any, Any] | Tensor
OutputType = Literal["pil", "pt", "np", "latent"]

MAX_SIDE = 2**16


def output_size(picture: Tensor, scale: float, height: int | None, width: int | None) -> tuple[int, int]:
    """Height and width of the result: as asked, or round(scale * side), halves up, at least 1."""
    if height is not None and width is not None:
        return height, width
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"scale must be a positive number, not {scale}.")
    h, w = picture.shape[-2:]
    return max(1, math.floor(scale * h + 0.5)), max(1, math.floor(scale * w + 0.5))


def check_size(height: int, width: int) -> None:
    """Raises ValueError for an empty or absurd result."""
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


def as_tensors(image: Pictures) -> list[Tensor]:
    """Pictures of any accepted kind as [B, 3, h, w] fp32 in [0, 1]."""
    if isinstance(image, Image.Image):
        return [from_pil(image)]
    if isinstance(image, Tensor):
        return [check_picture(image if image.ndim == 4 else image[None])]
    if isinstance(image, np.ndarray):
        pixels = torch.as_tensor(np.array(image, order="C"))  # a copy: torch takes no negative strides
        batch = (pixels if pixels.ndim == 4 else pixels[None]).movedim(-1, 1)
        return [check_picture(batch.float() / 255 if batch.dtype == torch.uint8 else batch)]
    if isinstance(image, (list, tuple)):
        return [batch for item in image for batch in as_tensors(item)]
    raise ValueError(f"image must be a PIL picture, an array, a tensor or a list of these, not {type(image).__name__}.")


def from_pil(picture: Image.Image) -> Tensor:
    """[1, 3, h, w] fp32 in [0, 1]; raises ValueError for more than 8 bits."""
    check_bits("image", picture)
    if picture.has_transparency_data:
        logger.warning("The picture's alpha is dropped: enlarge it apart, or use `ctsr upscale`, which keeps it.")
    return torch.as_tensor(np.array(picture.convert("RGB"))).permute(2, 0, 1)[None].float() / 255


def check_bits(name: str, picture: Image.Image) -> None:
    """Raises ValueError for more than 8 bits a channel, which Pillow would clip to white."""
    if picture.mode.startswith(("I", "F")):
        raise ValueError(f"{name} has more than 8 bits (Pillow's mode {picture.mode}): pass a float array in [0, 1].")


def check_picture(batch: Tensor) -> Tensor:
    """fp32 [B, 3, h, w]; raises ValueError for another shape or dtype, or values that are not finite."""
    if batch.ndim != 4 or batch.shape[1] != 3 or 0 in batch.shape:
        raise ValueError(
            f"image must hold RGB pictures, [B, 3, h, w] tensors or [B, h, w, 3] arrays: got {list(batch.shape)} "
            "(channels first)."
        )
    if not batch.is_floating_point():
        raise ValueError(f"image must be float in [0, 1] (or a uint8 array): got {batch.dtype}. Divide by 255 first.")
    if not bool(torch.isfinite(batch).all()):
        raise ValueError("image holds NaN or infinite values: repair it first.")
    low, high = (float(value) for value in batch.aminmax())
    if low < -0.5 or high > 1.5:  # a little outside is a resampler's overshoot, more is another scale
        raise ValueError(f"image must be in [0, 1]: got values from {low:.3g} to {high:.3g}. Scale them first.")
    return batch.float()


def check_map(t_map: Tensor) -> None:
    """Raises ValueError for a map of t that is not [h, w] or leaves [0, 1]."""
    if t_map.ndim != 2 or 0 in t_map.shape:
        raise ValueError(f"t_map must be [h, w], not {list(t_map.shape)}.")
    check_dial("t_map", t_map)


def map_to_latents(t_map: Tensor | Image.Image, size: tuple[int, int], cells: tuple[int, int], factor: int) -> Tensor:
    """A map of t over the result as [1, 1, h, w] over the (padded) latents, averaged over each cell.

    Args:
        t_map: [h, w] in [0, 1], or a picture whose grey is taken, black = 0.
        size: height and width of the result in pixels.
        cells: height and width of the latents.
        factor: pixels a latent on each side.

    Raises:
        ValueError: the map is not [h, w] or holds values outside [0, 1].
    """
    if isinstance(t_map, Image.Image):
        check_bits("t_map", t_map)
        t_map = torch.as_tensor(np.array(t_map.convert("L"))).float() / 255
    check_map(t_map)
    full = F.interpolate(t_map[None, None].float(), size=size, mode="bilinear", antialias=True)
    below, right = cells[0] * factor - size[0], cells[1] * factor - size[1]
    return F.avg_pool2d(F.pad(full, (0, right, 0, below), mode="replicate"), factor).clamp_(0, 1)


def as_pil(picture: Tensor) -> Image.Image:
    """[1, 3, H, W] in [0, 1] as a picture; values are rounded, not truncated."""
    return Image.fromarray(rearrange((picture * 255).round_().byte(), "1 c h w -> h w c").cpu().numpy())


def as_output(
    results: Sequence[Tensor | Image.Image], output_type: OutputType
) -> list[Image.Image] | np.ndarray[Any, Any] | Tensor:
    """Finished pictures as one object: the list of PIL pictures as it is, tensors [1, C, H, W] as one batch."""
    if output_type == "pil":
        return cast("list[Image.Image]", list(results))
    tensors = cast("list[Tensor]", list(results))
    batch = torch.cat(tensors) if len(tensors) > 1 else tensors[0]
    return rearrange(batch, "b c h w -> b h w c").cpu().numpy() if output_type == "np" else batch
