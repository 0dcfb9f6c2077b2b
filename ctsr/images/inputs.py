"""What a caller hands over as pictures, or as maps of t over them, as tensors: PIL pictures, arrays, tensors, lists.

Integers span their type: 255 is white in uint8, 65535 in uint16. Floating-point numbers are taken as they are, 1 is
white.
"""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from .icc import WITHOUT_RGB, fitting_profile, to_srgb
from .tensors import check_map

logger = logging.getLogger(__name__)

Pictures = Image.Image | Sequence[Image.Image] | np.ndarray[Any, Any] | Tensor
Map = Image.Image | np.ndarray[Any, Any] | Tensor
Maps = Map | Sequence[Map]

WHITE = {torch.uint8: 255, torch.uint16: 65535}
DEEP_MODES = ("I", "F")
"""How the names of Pillow's modes of more than 8 bits begin; all of them are grey."""


def as_tensors(image: Pictures) -> list[Tensor]:
    """Pictures of any accepted kind as [B, 3, h, w] fp32 in [0, 1], upright.

    Raises:
        ValueError: none of these kinds, no RGB, values out of range; the message says what to pass.
    """
    if isinstance(image, Image.Image):
        return [from_pil(image)]
    if isinstance(image, Tensor):
        return [check_picture(as_numbers(image if image.ndim == 4 else image[None]))]
    if isinstance(image, np.ndarray):
        pixels = from_array("image", image)
        return [check_picture(as_numbers((pixels if pixels.ndim == 4 else pixels[None]).movedim(-1, 1)))]
    if isinstance(image, (list, tuple)):
        return [batch for item in image for batch in as_tensors(item)]
    raise ValueError(f"image must be a PIL picture, an array, a tensor or a list of these, not {type(image).__name__}.")


def from_pil(picture: Image.Image) -> Tensor:
    """[1, 3, h, w] fp32 in [0, 1]: upright by its EXIF orientation, 16 bits kept, alpha dropped with a warning."""
    upright = ImageOps.exif_transpose(picture)
    if upright.has_transparency_data:
        logger.warning("The picture's alpha is dropped: enlarge it apart, or use `ctsr upscale`, which keeps it.")
    if upright.mode.startswith(DEEP_MODES):
        return check_picture(deep_grey(upright).expand(1, 3, -1, -1))
    rgb = to_srgb(upright) if upright.mode in WITHOUT_RGB else upright.convert("RGB")
    return torch.as_tensor(np.array(rgb)).permute(2, 0, 1)[None].float() / 255


def profiles_of(image: Pictures) -> list[bytes | None]:
    """The ICC profile of each picture that `as_tensors` makes: that of an RGB picture of PIL, of all others None."""
    if isinstance(image, Image.Image):
        rgb = not image.mode.startswith(DEEP_MODES) and image.mode not in WITHOUT_RGB
        return [fitting_profile(image.info.get("icc_profile"), False, "A picture") if rgb else None]
    if isinstance(image, (list, tuple)):
        return [profile for item in image for profile in profiles_of(item)]
    batch = isinstance(image, (np.ndarray, Tensor)) and image.ndim == 4
    return [None] * (len(image) if batch else 1)


def deep_grey(picture: Image.Image) -> Tensor:
    """[h, w] fp32 of a picture of more than 8 bits: 65535 is white in integers, 1 in floating-point numbers."""
    samples = from_array("image", np.asarray(picture)).float()
    return samples if picture.mode.startswith("F") else samples / WHITE[torch.uint16]


def from_array(name: str, array: np.ndarray[Any, Any]) -> Tensor:
    """A copy of an array of numbers of any strides and byte order, which torch would not take.

    Raises:
        ValueError: it holds no numbers.
    """
    if array.dtype.kind not in "buif":
        raise ValueError(f"{name} must be an array of numbers, not of {array.dtype}.")
    return torch.as_tensor(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))


def as_numbers(x: Tensor) -> Tensor:
    """uint8 and uint16 samples as fp32 in [0, 1], all others as they are."""
    return x.float() / WHITE[x.dtype] if x.dtype in WHITE else x


def check_picture(batch: Tensor) -> Tensor:
    """fp32 [B, 3, h, w]; raises ValueError for another shape or dtype, or values that are not finite."""
    if batch.ndim != 4 or batch.shape[1] != 3 or 0 in batch.shape:
        raise ValueError(
            f"image must hold RGB pictures, [B, 3, h, w] tensors or [B, h, w, 3] arrays: got {list(batch.shape)} "
            "(channels first)."
        )
    if not batch.is_floating_point():
        raise ValueError(f"image must be uint8, uint16, or float in [0, 1]: got {batch.dtype}. Convert it first.")
    if not bool(torch.isfinite(batch).all()):
        raise ValueError("image holds NaN or infinite values: repair it first.")
    low, high = (float(value) for value in batch.aminmax())
    if low < -0.5 or high > 1.5:  # a little outside is a resampler's overshoot, more is another scale
        raise ValueError(f"image must be in [0, 1]: got values from {low:.3g} to {high:.3g}. Scale them first.")
    return batch.float()


def as_maps(t_map: Maps, count: int) -> list[Tensor]:
    """A map of t for each of `count` pictures, [h, w] fp32 in [0, 1].

    Args:
        t_map: one map for all or one a picture: grey pictures (black is t = 0, white is t = 1), arrays or tensors
            [h, w], a list of these, or a batch [B, h, w] or [B, 1, h, w].
        count: number of pictures.

    Raises:
        ValueError: another kind, shape, number or range; the message says what to pass.
    """
    maps = split_maps(t_map)
    if len(maps) not in (1, count):
        raise ValueError(f"t_map must be one map or one a picture: got {len(maps)} for {count} pictures.")
    for one in maps:
        check_map(one)
    maps = [one.float() for one in maps]
    return maps if len(maps) == count else maps * count


def split_maps(t_map: Maps) -> list[Tensor]:
    """The maps [h, w] of any accepted kind, as numbers; their shape and values are not looked at."""
    if isinstance(t_map, Image.Image):
        upright = ImageOps.exif_transpose(t_map)
        deep = upright.mode.startswith(DEEP_MODES)
        return [deep_grey(upright) if deep else torch.as_tensor(np.array(upright.convert("L"))).float() / 255]
    if isinstance(t_map, (list, tuple)):
        return [one for item in t_map for one in split_maps(item)]
    if not isinstance(t_map, (Tensor, np.ndarray)):
        raise ValueError(f"t_map must be a PIL picture, an array or a tensor, not {type(t_map).__name__}.")
    numbers = t_map if isinstance(t_map, Tensor) else from_array("t_map", t_map)
    if numbers.dtype in WHITE and numbers.numel() and 0 < int(numbers.int().max()) <= 1:
        raise ValueError(f"t_map holds 0 and 1 in {numbers.dtype}, whose white is {WHITE[numbers.dtype]}: pass bools.")
    numbers = as_numbers(numbers)
    if numbers.ndim == 4 and numbers.shape[1] == 1:
        numbers = numbers[:, 0]
    return list(numbers) if numbers.ndim == 3 else [numbers]
