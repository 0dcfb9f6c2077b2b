"""Maps of a report as masks and in colours."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from .limits import LIMITS
from .report import Report

HEAT = ((0.0, (0, 0, 40)), (0.35, (110, 20, 120)), (0.7, (240, 100, 40)), (1.0, (255, 255, 190)))
"""Colours of a map from 0 to 1."""


def departure_mask(found: Report, size: tuple[int, int]) -> Tensor:
    """Where a result departs from its input, [1, 1, *size] in [0, 1]: 0.5 is the least that is a finding."""
    return F.interpolate(found.departure_map.div(2 * LIMITS.departure).clamp(0, 1), size=size)


def heat(values: Tensor) -> Tensor:
    """[1, 1, h, w] in [0, 1] -> [1, 3, h, w] in the colours of `HEAT`, from dark to bright."""
    out = torch.zeros(1, 3, *values.shape[-2:])
    for (low, dark), (high, bright) in pairwise(HEAT):
        part = ((values - low) / (high - low)).clamp(0, 1)
        colours = [torch.tensor(colour).view(1, 3, 1, 1) / 255 for colour in (dark, bright)]
        out = torch.where(values >= low, colours[0] * (1 - part) + colours[1] * part, out)
    return out
