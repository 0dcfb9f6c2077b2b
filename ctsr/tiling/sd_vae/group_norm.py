"""GroupNorm over a picture that a network sees in parts.

GroupNorm takes its statistics from all that it is given, so a tile normalised by itself gets other colours than its
neighbour. Here every part is normalised by statistics of the picture. `F.group_norm` is replaced in the calling thread,
inside a `with` block; no module is touched.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

Box = tuple[slice, slice]
"""Rows and columns, with start and stop."""
TINY = 1e-12
"""Variance that is added where it is measured, and taken off again."""
MEASURED = 2**23
"""Values that are copied at a time to be measured, or one group."""
FLAT = 1e-6
"""Variance that tells nothing: the epsilon of Stable Diffusion's norms, which they do not amplify."""


@dataclass(frozen=True)
class Moments:
    """Mean and variance of the groups of one GroupNorm.

    Attributes:
        area: samples that they were measured on, perhaps weighted: what they count in `pool`.
        mean: [groups] fp32.
        var: [groups] fp32, of the population.
    """

    area: float
    mean: Tensor
    var: Tensor


Statistics = list[Moments]
"""Of every GroupNorm of a network, in the order in which it calls them."""


def measure(x: Tensor, groups: int) -> Moments:
    """Moments of [C, h, w], at least in fp32; a few groups at a time, since it takes two copies."""
    each = x.shape[0] // groups
    step = each * max(1, MEASURED // (each * x[0].numel()))
    chunks = [x[first : first + step] for first in range(0, x.shape[0], step)]
    parts = [moments_of(chunk, chunk.shape[0] // each) for chunk in chunks]
    mean, var = (torch.cat(values) for values in zip(*parts, strict=True))
    return Moments(x[0].numel(), mean, var)


def moments_of(x: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Mean and variance of each group of [C, h, w]."""
    # GroupNorm itself: torch's reductions over channels-last tensors are several times slower.
    x = x.to(precise(x), memory_format=torch.contiguous_format).contiguous()[None]
    _, mean, rstd = torch.native_group_norm(x, None, None, 1, x.shape[1], x[0, 0].numel(), groups, TINY)
    return mean[0], rstd[0].pow(-2) - TINY


def precise(x: Tensor) -> torch.dtype:
    """The dtype of statistics of `x`: fp32, or fp64 for fp64."""
    return torch.promote_types(x.dtype, torch.float32)


def pool(parts: Sequence[Moments]) -> Moments:
    """The moments of all parts together."""
    if len(parts) == 1:
        return parts[0]
    total = sum(part.area for part in parts)
    shares = [part.area / total for part in parts]  # numbers: a tensor of them would wait for the GPU
    mean = torch.stack([share * part.mean for share, part in zip(shares, parts, strict=True)]).sum(0)
    spreads = [part.var + (part.mean - mean).square() for part in parts]
    return Moments(total, mean, torch.stack([a * b for a, b in zip(shares, spreads, strict=True)]).sum(0))


def carried(moments: Moments, before: Moments, after: Moments) -> Moments:
    """`moments`, moved by the scale and shift of each group that take `before` to `after`."""
    ratio = (after.var.clamp(min=0) + FLAT) / (before.var.clamp(min=0) + FLAT)
    mean = after.mean + ratio.sqrt() * (moments.mean - before.mean)
    return Moments(moments.area, mean, ratio * moments.var)


def normalise(x: Tensor, moments: Moments, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """GroupNorm of [B, C, ...] by given moments."""
    each = x.shape[1] // len(moments.mean)
    mean, var = (values.repeat_interleave(each).to(precise(x)) for values in (moments.mean, moments.var))
    scale, shift = (None if values is None else values.to(precise(x)) for values in (weight, bias))
    return F.batch_norm(x, mean, var, scale, shift, False, 0.0, eps)


class SharedGroupNorm(TorchFunctionMode):
    """Inside, the GroupNorms that are called normalise by `statistics`, one after the other."""

    def __init__(self, statistics: Statistics):
        super().__init__()
        self.statistics = statistics
        self.calls = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return self.group_norm(*args, **kwargs or {}) if func is F.group_norm else func(*args, **kwargs or {})

    def group_norm(
        self,
        input: Tensor,
        num_groups: int,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> Tensor:
        """In place of `F.group_norm`: [B, C, h, w], or [B, C, h * w] where attention calls it."""
        index, self.calls = self.calls, self.calls + 1
        return normalise(input, self.moments(index, input, num_groups), weight, bias, eps)

    def moments(self, index: int, x: Tensor, groups: int) -> Moments:
        """What GroupNorm number `index` normalises by."""
        return self.statistics[index]


class SurveyingGroupNorm(SharedGroupNorm):
    """As above; besides, it measures what it meets in parts of a picture.

    Args:
        statistics: to normalise by.
        cells: height and width of the parts in cells, of which an activation has a whole number of samples each.
        counted: the cells of every part that are measured, without the margins that zero padding or a halo has changed,
            and how much a cell of the part counts.

    Attributes:
        met: what was measured, of all parts together.
    """

    def __init__(self, statistics: Statistics, cells: tuple[int, int], counted: Sequence[tuple[Box, float]]):
        super().__init__(statistics)
        self.cells, self.counted = cells, counted
        self.met: Statistics = []

    def moments(self, index: int, x: Tensor, groups: int) -> Moments:
        self.met.append(pool(self.measured(x, groups)))
        return self.given(index)

    def given(self, index: int) -> Moments:
        """What GroupNorm number `index` normalises by, once it has measured."""
        return self.statistics[index]

    def measured(self, x: Tensor, groups: int) -> list[Moments]:
        """The moments of every part, with the weight that it has."""
        height, width = self.cells
        if x.ndim == 3:  # attention works at one sample a cell
            x = x.reshape(*x.shape[:2], height, width)
        scale = x.shape[-2] // height
        parts: list[Moments] = []
        for part, (box, weight) in zip(x, self.counted, strict=True):
            met = measure(part[(slice(None), *scaled(box, scale))], groups)
            parts.append(replace(met, area=met.area * weight))
        return parts


class MeasuringGroupNorm(SurveyingGroupNorm):
    """As above for a batch of a sample: adds it to `statistics`, empty at first, and normalises by the sum."""

    def given(self, index: int) -> Moments:
        if index < len(self.statistics):
            self.statistics[index] = pool([self.statistics[index], self.met[index]])
        else:
            self.statistics.append(self.met[index])
        return self.statistics[index]


class CorrectingGroupNorm(SurveyingGroupNorm):
    """As above for a batch that was met before: its change since then is put on `statistics`, which it normalises by.

    Args:
        statistics: measured under the same as `before`.
        before: what this batch met then.

    Attributes:
        corrected: `statistics` as they will be measured under `corrected`, to second order.
    """

    def __init__(
        self,
        statistics: Statistics,
        before: Statistics,
        cells: tuple[int, int],
        counted: Sequence[tuple[Box, float]],
    ):
        super().__init__(statistics, cells, counted)
        self.before = before
        self.corrected: Statistics = []

    def given(self, index: int) -> Moments:
        self.corrected.append(carried(self.statistics[index], self.before[index], self.met[index]))
        return self.corrected[index]


def scaled(box: Box, scale: int) -> Box:
    """The box on a grid of `scale` samples a cell."""
    rows, columns = box
    return slice(rows.start * scale, rows.stop * scale), slice(columns.start * scale, columns.stop * scale)
