"""Straight steps in what a result adds to its input: where tiles meet that do not fit."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

WIDTH = 8
"""Pixels of the input on each side of a line that are compared."""
SEGMENT = 8
"""Pixels along a line that are averaged; the median of these is taken, so that no single thing makes a seam."""
BAND = 96
"""Pixels of the input along a line that are looked at by themselves: tiles are no smaller."""
STEP = 0.35 / 255
"""Least step of a seam, in [0, 1]."""
CERTAIN = 5.0
"""Deviations of the steps elsewhere."""
ALONG = 3.5
"""Deviations of the median step along the line: a seam is the same everywhere, an edge of the picture is not."""
EVEN = 0.5
"""Least part of the step that the nearer and the farther half of both sides show: an edge shows it in the nearer."""


@dataclass(frozen=True)
class Seam:
    """A step along a line.

    Attributes:
        vertical: the line runs from top to bottom.
        place: column (or row) of the input that it lies before.
        start: first row (or column) that shows it.
        end: the one after the last.
        step: its height in [0, 1], the strongest channel's.
    """

    vertical: bool
    place: int
    start: int
    end: int
    step: float


def seams(residual: Tensor) -> list[Seam]:
    """Seams in a residual [1, 3, h, w], see `Camera.residual`, strongest first."""
    found = [*along(residual[0], True), *along(residual[0].mT, False)]
    return sorted(found, key=lambda seam: -seam.step)


def along(residual: Tensor, vertical: bool) -> list[Seam]:
    """Seams before columns of [3, h, w], looked for in all rows and in bands of them."""
    height, width = residual.shape[-2:]
    if width < 4 * WIDTH or height < 4 * SEGMENT:
        return []
    wide = torch.cat([residual, residual.mean(0, keepdim=True)])
    segments = F.avg_pool2d(wide[None], (SEGMENT, 1))[0]  # [4, rows / SEGMENT, w]
    count, rows = segments.shape[1], BAND // SEGMENT
    bands = [(0, count), *((start, min(start + rows, count)) for start in range(0, count - rows // 2, rows))]
    best: dict[int, Seam] = {}
    for start, end in bands:
        for place, step in columns(segments[:, start:end]):
            if not any(abs(old - place) <= WIDTH for old in best):
                best[place] = Seam(vertical, place, start * SEGMENT, end * SEGMENT, step)
    return list(best.values())


def columns(segments: Tensor) -> list[tuple[int, float]]:
    """Places and heights of the steps in [4, segments, w]: red, green, blue and their mean."""
    total = F.pad(segments.double().cumsum(2), (1, 0))
    half, last = WIDTH // 2, segments.shape[2] - 2 * WIDTH + 1

    def mean(offset: int, length: int) -> Tensor:
        """Of `length` columns that begin `offset` after the first of those on the left side."""
        return (total[..., offset + length : offset + length + last] - total[..., offset : offset + last]) / length

    def middle(steps: Tensor) -> Tensor:
        return steps.median(1).values

    steps = mean(WIDTH, WIDTH) - mean(0, WIDTH)  # [4, segments, places]
    step = middle(steps)
    scatter = 1.25 / 0.6745 * middle((steps - step[:, None]).abs()) / steps.shape[1] ** 0.5  # of a median
    near = middle(mean(WIDTH, half) - mean(half, half))
    far = middle(mean(WIDTH + half, half) - mean(0, half))
    deviation = step.abs().median(1, keepdim=True).values / 0.6745
    certainty, channel = (step.abs() / (deviation + 1e-9)).max(0)
    step, near, far, scatter = (x.gather(0, channel[None])[0] for x in (step, near, far, scatter))
    size = step.abs()
    even = torch.minimum(near * step.sign(), far * step.sign()) > EVEN * size
    peak = size == F.max_pool1d(size[None], 2 * WIDTH + 1, 1, WIDTH)[0]
    found = peak & even & (size > STEP) & (certainty > CERTAIN) & (size > ALONG * scatter)
    return [(int(index) + WIDTH, float(size[index])) for index in found.nonzero()[:, 0]]
