"""Give a restored picture the colours of its low-resolution source, from the whole picture at once.

The two fixes that StableSR introduced (arXiv 2305.07015) and OSEDiff uses, rewritten from their description. Both see
the whole picture, so the result does not depend on tiling. Pictures are [B, C, H, W] fp32 in about [0, 1]; the result
is a new tensor and may leave [0, 1] slightly: clamp once, at the end.
"""

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

ColorFix = Literal["none", "wavelet", "adain"]

LEVELS = 5
EPSILON = 1e-5
"""Added to a variance, so that a constant picture has a standard deviation to divide by."""


def add_tap(out: Tensor, x: Tensor, dilation: int, weight: float) -> None:
    """out[i] += weight * x[clamp(i - dilation)] and the same for i + dilation, along the first axis, in place.

    Clamped indices are replicate padding; here it may be wider than the picture, which `F.pad` refuses.
    """
    near = min(dilation, len(x))
    out[near:].add_(x[: len(x) - near], alpha=weight)
    out[:near].add_(x[0], alpha=weight)
    out[: len(x) - near].add_(x[near:], alpha=weight)
    out[len(x) - near :].add_(x[-1], alpha=weight)


def low_pass(plane: Tensor) -> Tensor:
    """Low frequencies of one channel [H, W], same dtype; overwrites `plane`.

    Level i blurs with [1 2 1] x [1 2 1] / 16 at dilation 2^i and replicate padding, done as a column and a row pass:
    five levels reach 31 pixels. Two planes are alive, `plane` and one more.
    """
    blurred = torch.empty_like(plane)
    for level in range(LEVELS):
        for source, target in ((plane, blurred), (blurred.T, plane.T)):
            torch.mul(source, 0.5, out=target)
            add_tap(target, source, 2**level, 0.25)
    return plane


def wavelet(sr: Tensor, reference: Tensor) -> Tensor:
    """High frequencies of `sr` with the low frequencies of `reference`.

    The low pass is linear, so high(sr) + low(reference) = sr + low(reference - sr): one low pass instead of two.
    Done a channel at a time, it needs the result and two planes of one channel, whatever the picture's size.

    Args:
        sr: restored picture, [B, C, H, W] fp32 in [0, 1].
        reference: the source at the same size, same shape and range.

    Raises:
        ValueError: the shapes differ.
    """
    check_shapes(sr, reference)
    out = sr.clone()
    for picture, source in zip(out, reference, strict=True):
        for plane, source_plane in zip(picture, source, strict=True):
            plane += low_pass(source_plane - plane)
    return out


def adain(sr: Tensor, reference: Tensor) -> Tensor:
    """`sr` with each channel's mean and standard deviation over the whole picture taken from `reference`.

    Standard deviations are sqrt(unbiased variance + 1e-5).

    Args:
        sr: restored picture, [B, C, H, W] fp32 in [0, 1].
        reference: the source at the same size, same shape and range.

    Raises:
        ValueError: the shapes differ.
    """
    check_shapes(sr, reference)
    mean, std = statistics(sr)
    reference_mean, reference_std = statistics(reference)
    return (sr - mean).mul_(reference_std / std).add_(reference_mean)


def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every channel of [B, C, H, W], each [B, C, 1, 1]."""
    correction = min(1, x.shape[-2] * x.shape[-1] - 1)  # the unbiased variance of one pixel would be 0/0
    variance, mean = torch.var_mean(x, dim=(-2, -1), correction=correction, keepdim=True)
    return mean, (variance + EPSILON).sqrt()


def check_shapes(sr: Tensor, reference: Tensor) -> None:
    """Raises ValueError unless both pictures have the same shape."""
    if sr.shape != reference.shape:
        raise ValueError(
            f"The colour reference is {tuple(reference.shape)} and the picture {tuple(sr.shape)}:"
            " resize the reference to the picture first."
        )


def check_color_fix(name: str) -> None:
    """Raises ValueError for a name that is not a colour fix."""
    if name not in get_args(ColorFix):
        raise ValueError(f"There is no color_fix {name!r}: choose one of {', '.join(get_args(ColorFix))}.")


COLOR_FIXES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"wavelet": wavelet, "adain": adain}


def apply_color_fix(name: ColorFix, sr: Tensor, reference: Tensor) -> Tensor:
    """`sr` with the colours of `reference` by the named fix; "none" returns `sr` itself.

    Args:
        name: "none", "wavelet" or "adain".
        sr: restored picture, [B, C, H, W] fp32 in [0, 1].
        reference: the source at the same size, same shape and range.

    Raises:
        ValueError: `name` is not a colour fix, or the shapes differ.
    """
    check_color_fix(name)
    return sr if name == "none" else COLOR_FIXES[name](sr, reference)
