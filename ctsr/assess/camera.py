"""The camera model: how a result comes back to its input.

The result is brought to the input's size (antialiased bicubic) and filtered with a small kernel, fitted to the input.
The kernel sums to one and is symmetric, so that it explains blur and sharpening alike but neither a colour cast nor a
shift, which are then read from what is left. The fit gives less weight to pixels that are far off (Tukey's biweight),
so that a thing that does not belong there does not bend it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from ..images.tensors import resize

RADIUS = 3
"""Of the kernel, in pixels of the input."""
ROUNDS = 4
"""Of weighing and fitting anew."""
TUKEY = 4.685
"""Deviations beyond which a pixel has no weight: 95 % efficient for Gaussian noise."""
QUANTISATION = 0.5 / 255
"""Least deviation that counts, in [0, 1]: half a level of eight bits."""
SAMPLES = 2**19
"""Numbers of a picture that are fitted to, at most."""
ORBITS = [(i, j) for i in range(RADIUS + 1) for j in range(i + 1) if (i, j) != (0, 0)]
"""Distances (larger, smaller) in the kernel that symmetry makes equal."""


@dataclass(frozen=True)
class Camera:
    """A fitted camera model.

    Attributes:
        kernel: [7, 7], of sum 1, in pixels of the input.
        cast: what the result's colours are too high by, one number a channel, in [0, 1].
        shift: how far the result lies to the right of the input and below it, in pixels of the input.
        residual: input - returned result, without cast and shift, [1, 3, h, w] fp32.
        returned: the result as the camera gives it back, [1, 3, h, w].
    """

    kernel: Tensor
    cast: tuple[float, float, float]
    shift: tuple[float, float]
    residual: Tensor
    returned: Tensor

    @property
    def blur(self) -> float:
        """Standard deviation of the kernel in pixels of the input; 0 for one that sharpens."""
        offsets = torch.arange(-RADIUS, RADIUS + 1, dtype=self.kernel.dtype)
        return max(0.0, float((self.kernel.sum(0) * offsets.square()).sum())) ** 0.5


def fit_camera(picture: Tensor, result: Tensor) -> Camera:
    """Fits the camera that brings `result` back to `picture`.

    Args:
        picture: the input, [1, 3, h, w] fp32 in [0, 1].
        result: [1, 3, H, W] fp32 in [0, 1], of any size.
    """
    base = resize(result.float(), *picture.shape[-2:])
    columns = [*(around(base, *orbit) - base for orbit in ORBITS), *central_differences(base), *channels_of(base)]
    every = slice(None, None, -(-base.numel() // SAMPLES) | 1)  # odd: no comb of columns in a picture of even width
    design = torch.stack([column.reshape(-1)[every] for column in columns], 1).double()
    target = (picture - base).flatten()[every].double()
    solution = torch.zeros(len(columns), dtype=torch.float64)
    for _ in range(ROUNDS):
        solution = weighted_least_squares(design, target, tukey(target - design @ solution))
    explained = [float(c) * column for c, column in zip(solution, columns, strict=True)]
    returned = base + sum(explained[: len(ORBITS)])
    residual = picture - base - sum(explained)
    right, down, *cast = (float(c) for c in solution[len(ORBITS) :])
    return Camera(kernel_of(solution[: len(ORBITS)]), (-cast[0], -cast[1], -cast[2]), (right, down), residual, returned)


def moved(picture: Tensor, right: int, down: int) -> Tensor:
    """A picture moved by whole pixels; the border is repeated."""
    rows = torch.arange(picture.shape[-2], device=picture.device).sub(down).clamp(0, picture.shape[-2] - 1)
    columns = torch.arange(picture.shape[-1], device=picture.device).sub(right).clamp(0, picture.shape[-1] - 1)
    return picture[..., rows, :][..., columns]


def around(x: Tensor, far: int, near: int) -> Tensor:
    """Mean of the four or eight pixels at these distances from each pixel."""
    height, width = x.shape[-2:]
    padded = F.pad(x, (RADIUS,) * 4, mode="replicate")
    places = {(a, b) for i, j in ((far, near), (near, far)) for a in (-i, i) for b in (-j, j)}
    out = torch.zeros_like(x)
    for down, right in sorted(places):
        out += padded[..., RADIUS + down : RADIUS + down + height, RADIUS + right : RADIUS + right + width]
    return out / len(places)


def central_differences(x: Tensor) -> tuple[Tensor, Tensor]:
    """Slope to the right and downwards, of the size of x."""
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    across = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
    return across, (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2


def channels_of(x: Tensor) -> list[Tensor]:
    """For each channel, ones there and zeros in the others."""
    return [torch.eye(3)[i].view(1, 3, 1, 1).expand_as(x) for i in range(3)]


def tukey(left: Tensor) -> Tensor:
    """Weight of each number by Tukey's biweight, the scale from the median deviation."""
    scale = max(float((left - left.median()).abs().median()) / 0.6745, QUANTISATION)
    return (1 - (left / (TUKEY * scale)).square()).clamp_min(0).square()


def weighted_least_squares(design: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Coefficients of the columns of [n, columns], with a trace of ridge for flat pictures."""
    weighted = design * weight[:, None]
    normal = weighted.T @ design
    ridge = normal.diagonal().mean() * 1e-6 + 1e-9
    solve: Callable[[Tensor, Tensor], Tensor] = cast(Any, torch.linalg).solve
    return solve(normal + ridge * torch.eye(len(normal), dtype=normal.dtype), weighted.T @ target)


def kernel_of(taps: Tensor) -> Tensor:
    """[7, 7] of sum 1 from the weights of the orbits."""
    kernel = torch.zeros(2 * RADIUS + 1, 2 * RADIUS + 1, dtype=torch.float64)
    for tap, (far, near) in zip(taps, ORBITS, strict=True):
        places = {(a, b) for i, j in ((far, near), (near, far)) for a in (-i, i) for b in (-j, j)}
        for down, right in places:
            kernel[RADIUS + down, RADIUS + right] += float(tap) / len(places)
    kernel[RADIUS, RADIUS] += 1 - float(taps.sum())
    return kernel.float()
