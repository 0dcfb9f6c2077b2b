"""What `CTSRPipeline.__call__` is asked for, and whether it can be done."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from typing_extensions import TypedDict  # in typing from Python 3.11

from .families import TRAIN_TIMESTEPS, Dial, check_dial
from .images.color_fix import ColorFix, check_color_fix
from .images.inputs import Maps, as_maps
from .images.tensors import DEFAULT_SCALE, check_size, output_size
from .runtime.offload import check_tile
from .runtime.step_end import StepEnd
from .tiling.tiled import Progress

DEFAULT_T = 0.5


class CallOptions(TypedDict, total=False):
    """Keyword arguments of `CTSRPipeline.__call__` on which the type of its result does not depend."""

    timestep: int | None
    t_map: Maps | None
    tile: int
    tile_overlap: int | None
    color_fix: ColorFix | None
    prompt_embeds: Tensor | None
    generator: torch.Generator | Sequence[torch.Generator] | None
    callback: Progress | None
    prompt: str | Sequence[str] | None
    num_images_per_prompt: int
    callback_on_step_end: StepEnd | None
    callback_on_step_end_tensor_inputs: Sequence[str]


def check_inputs(
    pictures: Sequence[Tensor],
    scale: float | None,
    height: int | None,
    width: int | None,
    timestep: int | None,
    tile: int,
    tile_overlap: int | None,
    color_fix: str | None,
    output_type: str,
    default_scale: float = DEFAULT_SCALE,
) -> list[tuple[int, int]]:
    """Raises ValueError with the remedy for what cannot run; returns height and width of each result."""
    if not pictures:
        raise ValueError("image is empty: pass at least one picture.")
    if scale is not None and (height is not None or width is not None):
        raise ValueError("scale and a size are both given: pass scale, or height and width, or one of these two.")
    scale = default_scale if scale is None else scale
    sizes = [output_size(picture, scale, height, width) for picture in pictures]
    for size in sizes:
        check_size(*size)
    check_tile(tile, tile_overlap)
    if output_type not in ("pil", "pt", "np", "latent"):
        raise ValueError(f"output_type must be pil, pt, np or latent, not {output_type!r}.")
    if color_fix is not None:
        check_color_fix(color_fix)
    if output_type != "pil" and len(set(sizes)) > 1:
        raise ValueError("Results of several sizes cannot be one batch: use output_type 'pil' or height and width.")
    if timestep is not None and timestep not in range(TRAIN_TIMESTEPS):
        raise ValueError(f"timestep must be an integer from 0 to {TRAIN_TIMESTEPS - 1}, not {timestep}.")
    return sizes


def check_dials(
    t: Dial | Literal["auto"] | None, t_map: Maps | None, count: int
) -> list[float] | list[Tensor] | list[None]:
    """One t or map [h, w] for each of `count` pictures, None for automatic ones.

    Raises:
        ValueError: t is invalid, or t and t_map are both given.
    """
    if t_map is not None:
        if t is not None:
            raise ValueError("t and t_map are both given: pass t, or a map that holds t everywhere.")
        return as_maps(t_map, count)
    if isinstance(t, str):
        if t != "auto":
            raise ValueError(f't must be numbers from 0 to 1, or "auto", not {t!r}.')
        return [None] * count
    t = DEFAULT_T if t is None else t
    check_dial("t", t)
    dials = [float(dial) for dial in torch.as_tensor(t, dtype=torch.float32).reshape(-1)]
    if len(dials) not in (1, count):
        raise ValueError(f"t must be one number or one a picture: got {len(dials)} for {count} pictures.")
    return dials if len(dials) == count else dials * count
