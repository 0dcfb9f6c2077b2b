"""Mean and variance of a network's GroupNorms over a picture of which it sees one part at a time.

`measure` parts, `pool` them, and `normalise` every part by the result. Statistics are kept by module. No module is
changed: levels take the function that computes their GroupNorms as an argument.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Box = tuple[slice, slice]
"""Rows and columns, with start and stop."""
_MEASURED_VARIANCE_EPSILON = 1e-12
"""Added by the kernel that measures, and subtracted again."""
VALUES_AT_ONCE = 2**23
"""Values that are copied at a time to be measured, or one group."""
_FLAT = 1e-6
"""Variance below which a ratio of variances means nothing: the epsilon of Stable Diffusion's norms."""


@dataclass(frozen=True)
class Moments:
    """Mean and variance of the groups of one GroupNorm.

    Attributes:
        area: samples that they were measured on, perhaps weighted: their weight in `pool`.
        mean: [groups] fp32.
        var: [groups] fp32, of the population.
    """

    area: float
    mean: Tensor
    var: Tensor


Statistics = dict[nn.GroupNorm, Moments]


def measure(x: Tensor, groups: int) -> Moments:
    """Moments of [C, h, w], at least in fp32; a few groups at a time, since it takes two copies."""
    each = x.shape[0] // groups
    step = each * max(1, VALUES_AT_ONCE // (each * x[0].numel()))
    means: list[Tensor] = []
    variances: list[Tensor] = []
    for first in range(0, x.shape[0], step):
        # GroupNorm itself: torch's reductions over channels-last tensors are several times slower.
        part = (
            x[first : first + step].to(_statistics_dtype(x), memory_format=torch.contiguous_format).contiguous()[None]
        )
        shape = 1, part.shape[1], part[0, 0].numel(), part.shape[1] // each
        _, mean, rstd = torch.native_group_norm(part, None, None, *shape, _MEASURED_VARIANCE_EPSILON)
        means.append(mean[0])
        variances.append(rstd[0].pow(-2) - _MEASURED_VARIANCE_EPSILON)
    return Moments(x[0].numel(), torch.cat(means), torch.cat(variances))


def _statistics_dtype(x: Tensor) -> torch.dtype:
    """fp32, or fp64 for fp64."""
    return torch.promote_types(x.dtype, torch.float32)


def pool(parts: Sequence[Moments]) -> Moments:
    """The moments of all parts together."""
    if len(parts) == 1:
        return parts[0]
    total = sum(part.area for part in parts)
    shares = [part.area / total for part in parts]  # Python numbers: a tensor of them would wait for the GPU
    mean = torch.stack([share * part.mean for share, part in zip(shares, parts, strict=True)]).sum(0)
    spreads = [part.var + (part.mean - mean).square() for part in parts]
    return Moments(total, mean, torch.stack([a * b for a, b in zip(shares, spreads, strict=True)]).sum(0))


def carry(moments: Moments, before: Moments, after: Moments) -> Moments:
    """`moments`, changed by the scale and shift of each group that take `before` to `after`."""
    ratio = (after.var.clamp(min=0) + _FLAT) / (before.var.clamp(min=0) + _FLAT)
    mean = after.mean + ratio.sqrt() * (moments.mean - before.mean)
    return Moments(moments.area, mean, ratio * moments.var)


def normalise(norm: nn.GroupNorm, x: Tensor, moments: Moments) -> Tensor:
    """The GroupNorm of [B, C, h, w] by given moments."""
    hook: Any = getattr(norm, "_hf_hook", None)
    if hook is not None:
        hook.pre_forward(norm)  # accelerate's offloading brings the weights
    each, dtype = norm.num_channels // norm.num_groups, _statistics_dtype(x)
    mean, var = (values.repeat_interleave(each).to(dtype) for values in (moments.mean, moments.var))
    y = F.batch_norm(x, mean, var, norm.weight.to(dtype), norm.bias.to(dtype), False, 0.0, norm.eps)
    return y if hook is None else hook.post_forward(norm, y)


class GivenStatistics:
    """Computes GroupNorms by known statistics."""

    def __init__(self, statistics: Statistics):
        self.statistics = statistics

    def __call__(self, norm: nn.GroupNorm, x: Tensor) -> Tensor:
        return normalise(norm, x, self.statistics[norm])


class Survey:
    """Measures what every GroupNorm is called with, then computes it by the moments that `choose` returns.

    Args:
        size: height and width in cells of the pictures of a batch, of which an activation has a whole number of samples
            each.
        counted: for every picture of a batch what of it is measured, in cells, and how much a sample counts.
        choose: takes a GroupNorm and the moments that it was just called with; returns those to normalise by.

    Attributes:
        met: what was measured, over the batch.
        used: what was normalised by.
    """

    def __init__(
        self,
        size: tuple[int, int],
        counted: Sequence[tuple[Box, float]],
        choose: Callable[[nn.GroupNorm, Moments], Moments],
    ):
        self.size, self.counted, self.choose = size, counted, choose
        self.met: Statistics = {}
        self.used: Statistics = {}

    def __call__(self, norm: nn.GroupNorm, x: Tensor) -> Tensor:
        scale = x.shape[-2] // self.size[0]
        parts: list[Moments] = []
        for picture, (box, weight) in zip(x, self.counted, strict=True):
            moments = measure(picture[(slice(None), *scaled(box, scale))], norm.num_groups)
            parts.append(replace(moments, area=moments.area * weight))
        self.met[norm] = pool(parts)
        self.used[norm] = self.choose(norm, self.met[norm])
        return normalise(norm, x, self.used[norm])


def scaled(box: Box, scale: int) -> Box:
    """The box on a grid of `scale` samples a cell."""
    rows, columns = box
    return slice(rows.start * scale, rows.stop * scale), slice(columns.start * scale, columns.stop * scale)
