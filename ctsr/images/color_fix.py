"""Give a restored picture the colours of its low-resolution source, from the whole picture at once.

Two fixes that StableSR introduced (arXiv 2305.07015) and OSEDiff uses, rewritten from their description, and one that
leaves lightness as it is restored. All see the whole picture, so the result does not depend on tiling. Pictures are
[B, C, H, W] fp32 in about [0, 1]; the result is a new tensor and may leave [0, 1] slightly: clamp once, at the end.
"""

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from .srgb import DARK, DARK_ENCODED, GAIN, GAMMA, OFFSET, SLOPE

ColorFix = Literal["none", "wavelet", "adain", "lab"]

LEVELS = 5
_EPSILON = 1e-5
"""Added to a variance, so that a constant picture has a standard deviation to divide by."""


def _add_tap(out: Tensor, x: Tensor, dilation: int, weight: float) -> None:
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
            _add_tap(target, source, 2**level, 0.25)
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


def lab(sr: Tensor, reference: Tensor) -> Tensor:
    """`sr` with the low frequencies of its colour, in CIELAB, from the reference, and its own lightness.

    Unlike `wavelet` it leaves contrast over wide areas as the network restored it; of lightness the reference gives the
    mean alone.

    Args:
        sr: restored picture, [B, 3, H, W] fp32 in [0, 1].
        reference: the source at the same size, same shape and range.

    Raises:
        ValueError: the shapes differ.
    """
    check_shapes(sr, reference)
    out = torch.empty_like(sr)
    for picture, source, result in zip(sr, reference, out, strict=True):
        own, other = to_lab(picture), to_lab(source)
        own[0] += other[0].mean() - own[0].mean()
        for channel in (1, 2):
            own[channel] += low_pass(other[channel] - own[channel])
        result.copy_(from_lab(own))
    return out


XYZ = ((0.4124564, 0.3575761, 0.1804375), (0.2126729, 0.7151522, 0.0721750), (0.0193339, 0.1191920, 0.9503041))
"""Of linear sRGB, a row each (IEC 61966-2-1); the sum of a row is the white point D65."""
_BEND = 6 / 29
"""Where CIELAB's cube root goes over into a line."""


def to_lab(picture: Tensor) -> Tensor:
    """CIELAB of sRGB [3, H, W] in [0, 1]: L in [0, 100], then a and b."""
    rgb = picture.clamp(0, 1)
    linear = torch.where(rgb > DARK_ENCODED, ((rgb + OFFSET) / GAIN) ** GAMMA, rgb / SLOPE)
    xyz = mix(_white_is_one(picture), linear).clamp(min=0)
    x, y, z = torch.where(xyz > _BEND**3, xyz ** (1 / 3), xyz / (3 * _BEND**2) + 4 / 29)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def from_lab(x: Tensor) -> Tensor:
    """sRGB [3, H, W] of CIELAB; colours outside of sRGB are clamped to [0, 1]."""
    y = (x[0] + 16) / 116
    roots = torch.stack([y + x[1] / 500, y, y - x[2] / 200])
    xyz = torch.where(roots > _BEND, roots**3, 3 * _BEND**2 * (roots - 4 / 29))
    linear = mix(_white_is_one(x).inverse(), xyz).clamp(0, 1)
    return torch.where(linear > DARK, GAIN * linear ** (1 / GAMMA) - OFFSET, SLOPE * linear)


def _white_is_one(like: Tensor) -> Tensor:
    """The matrix from linear sRGB to XYZ relative to white, [3, 3]."""
    matrix = torch.tensor(XYZ, dtype=like.dtype, device=like.device)
    return matrix / matrix.sum(dim=1, keepdim=True)


def mix(matrix: Tensor, planes: Tensor) -> Tensor:
    """`matrix` [3, 3] times every pixel of [3, H, W]."""
    return (matrix @ planes.flatten(1)).view_as(planes)


def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every channel of [B, C, H, W], each [B, C, 1, 1]."""
    correction = min(1, x.shape[-2] * x.shape[-1] - 1)  # the unbiased variance of one pixel would be 0/0
    variance, mean = torch.var_mean(x, dim=(-2, -1), correction=correction, keepdim=True)
    return mean, (variance + _EPSILON).sqrt()


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


COLOR_FIXES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"wavelet": wavelet, "adain": adain, "lab": lab}


def apply_color_fix(name: ColorFix, sr: Tensor, reference: Tensor) -> Tensor:
    """`sr` with the colours of `reference` by the named fix; "none" returns `sr` itself.

    Args:
        name: "none", "wavelet", "adain" or "lab".
        sr: restored picture, [B, C, H, W] fp32 in [0, 1].
        reference: the source at the same size, same shape and range.

    Raises:
        ValueError: `name` is not a colour fix, or the shapes differ.
    """
    check_color_fix(name)
    return sr if name == "none" else COLOR_FIXES[name](sr, reference)
