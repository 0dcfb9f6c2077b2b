"""What a node refuses, in one sentence that names the input and the remedy.

The host checks values of widgets when a prompt is queued, but not those that arrive over a link, no NaN and, in some
versions, no combos: so every node checks again.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

HDR = ["refuse", "clamp", "tone-map"]
KNEE = 0.8
"""Brightest channel of a pixel that a tone-mapped picture leaves as it is."""


@contextmanager
def plain_errors(path: Path | None = None) -> Iterator[None]:
    """Turns the library's errors into ValueErrors: the host shows a type by its module's name, which is a folder here.

    Args:
        path: a checkpoint, whose name stands for it in the message; shared workflows and screenshots show no folder.
    """
    from ..ctsr.errors import CTSRError

    try:
        yield
    except CTSRError as error:
        text = str(error)
        if path is not None:
            text = text.replace(f"'{path}'", repr(path.name)).replace(str(path), path.name)
        if "`ctsr convert" in text:
            text += " The command comes with `pip install` of this pack's folder, in an environment of its own."
        raise ValueError(text) from error


def check_number(name: str, value: float, low: float, high: float) -> None:
    """Raises ValueError for a value outside [low, high] or not a number."""
    if not (is_number(value) and low <= value <= high):
        raise ValueError(f"{name} is {value!r}: give a number from {low} to {high}.")


def whole(name: str, value: float, low: int, high: int) -> int:
    """`value` as a whole number, as 100.0 over a link is; raises ValueError for another or one outside [low, high]."""
    if not (is_number(value) and low <= value <= high and value == int(value)):
        raise ValueError(f"{name} is {value!r}: give a whole number from {low} to {high}.")
    return int(value)


def is_number(value: object) -> bool:
    """Whether it can be compared with one; NaN is then outside every range."""
    return isinstance(value, (int, float))


def check_choice(name: str, value: str, choices: Sequence[str], remedy: str = "") -> None:
    """Raises ValueError for a value that is none of the choices; `remedy` is what else can be done."""
    if value not in choices:
        other = f"; or {remedy}" if remedy else ""
        raise ValueError(f"{name} is {value!r}: choose one of {', '.join(choices)}{other}.")


def split_image(image: Tensor, hdr: str = "refuse") -> tuple[Tensor, Tensor | None]:
    """Colours and alpha of an IMAGE.

    Args:
        image: [B, h, w, C] in about [0, 1]; 1 channel is grey, 3 are RGB, 4 RGBA.
        hdr: one of `HDR`, what becomes of values far beyond 1.

    Returns:
        RGB [B, 3, h, w] and alpha [B, 1, h, w] in [0, 1] or None; where `image` is fp32 in range, both are views of it.

    Raises:
        ValueError: an empty image, another shape, or values that are no picture's.
    """
    check_choice("hdr", hdr, HDR)
    if image.ndim != 4 or image.shape[-1] not in (1, 3, 4):
        raise ValueError(f"image has shape {list(image.shape)}: connect an IMAGE with 1, 3 or 4 channels.")
    if 0 in image.shape:
        raise ValueError(f"image is empty (shape {list(image.shape)}): connect one with pixels.")
    pixels = image.movedim(-1, 1).float()
    low, high = (float(value) for value in pixels.aminmax())
    is_usual = low >= -0.5 and high <= 1.5  # NaN fails too; a little outside is a resampler's overshoot
    if not is_usual and (hdr == "refuse" or not (math.isfinite(low) and math.isfinite(high))):
        raise ValueError(
            f"image holds values from {low:.3g} to {high:.3g}: connect one with values from 0 to 1, or set hdr to "
            "clamp or tone-map for a picture with highlights beyond 1."
        )
    rgb = pixels.expand(-1, 3, -1, -1) if pixels.shape[1] == 1 else pixels[:, :3]
    if not is_usual:
        rgb = tone_map(rgb) if hdr == "tone-map" else rgb.clamp(0, 1)
    return rgb, pixels[:, 3:].clamp(0, 1) if pixels.shape[1] == 4 else None


def tone_map(rgb: Tensor) -> Tensor:
    """Highlights [B, 3, h, w] drawn into [0, 1], with their hue: up to `KNEE` as it is, then ever more slowly to 1."""
    peak = rgb.amax(dim=1, keepdim=True)
    drawn = KNEE + (1 - KNEE) * (1 - torch.exp((KNEE - peak) / (1 - KNEE)))
    return (rgb * torch.where(peak > KNEE, drawn / peak.clamp(min=KNEE), 1)).clamp(0, 1)


def check_samples(samples: Tensor, channels: int, alignment: int = 1) -> None:
    """Raises ValueError for a LATENT's samples that a network cannot take.

    Args:
        samples: should be [B, channels, h, w], finite, with h and w multiples of `alignment`.
        channels: of the checkpoint's latents.
        alignment: of its UNet.
    """
    if samples.ndim != 4 or 0 in samples.shape or samples.shape[1] != channels:
        raise ValueError(
            f"latent has shape {list(samples.shape)}, but this checkpoint's latents have {channels} channels: "
            "connect the latent of Time-Aware Encode or Tradeoff t of the same checkpoint."
        )
    if samples.shape[-2] % alignment or samples.shape[-1] % alignment:
        raise ValueError(
            f"latent is {samples.shape[-1]}x{samples.shape[-2]}: its sides must be multiples of {alignment}; connect "
            "Time-Aware Encode, which pads them."
        )
    if not bool(samples.sum(dtype=torch.float32).isfinite()):  # an honest sum overflows fp16
        raise ValueError("latent holds NaN or infinite values: look at what comes before it.")


def check_mask(
    mask: Tensor, batch: int, size: tuple[int, int], picture: tuple[int, int] | None = None, name: str = "mask"
) -> None:
    """Raises ValueError for a MASK that does not belong to the picture.

    Args:
        mask: [B, h, w] or [h, w] of any size with the proportions of the result or of the picture.
        batch: pictures.
        size: height and width of the result.
        picture: those of the picture that was enlarged, where they are known.
        name: of the input.
    """
    if mask.ndim not in (2, 3) or 0 in mask.shape:
        raise ValueError(f"{name} has shape {list(mask.shape)}: connect a MASK, [batch, height, width].")
    count = mask.shape[0] if mask.ndim == 3 else 1
    if count not in (1, batch):
        raise ValueError(f"{name} holds {count} masks for {batch} pictures: connect one, or one a picture.")
    if not bool(torch.isfinite(mask).all()):
        raise ValueError(f"{name} holds NaN or infinite values: connect one with values from 0 to 1.")
    h, w = mask.shape[-2:]
    if not any(same_proportions((h, w), sides) for sides in (size, picture or size)):
        raise ValueError(
            f"{name} is {w}x{h}, which has not the proportions of the {size[1]}x{size[0]} result: "
            "connect the mask of the same picture, of any scale."
        )


def same_proportions(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two heights and widths differ by a scale and, on every side, a pixel of rounding."""
    return abs(one[1] * other[0] - one[0] * other[1]) <= sum(one) + sum(other)
