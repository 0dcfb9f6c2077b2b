"""How much a picture shows the squares of JPEG."""

import torch
from torch import Tensor

from .windows import luma

SIDE = 8
"""Pixels a side of JPEG's squares."""


def blocks(picture: Tensor) -> float:
    """Steps at the borders of JPEG's squares beyond those elsewhere, in [0, 1]; 0 for a picture without.

    The step between two pixels beyond what the slopes on both sides explain, averaged over columns (and rows) of the
    same place in a square: after Wang, Bovik and Evans (ICIP 2000). The squares may begin anywhere (a picture that was
    cut), and the smaller of both directions counts, since texture has one more often than both.

    Args:
        picture: [1, 3, h, w] in [0, 1].
    """
    if min(picture.shape[-2:]) < 4 * SIDE:
        return 0.0
    grey = luma(picture)[0, 0]
    return min(excess(grey), excess(grey.T))


def excess(plane: Tensor) -> float:
    """The strongest place's step minus the others' median, between columns of [h, w]."""
    difference = plane.diff(dim=1)
    step = (difference[:, 1:-1] - (difference[:, :-2] + difference[:, 2:]) / 2).abs().clamp_max(0.1).mean(0)
    step = step[: len(step) // SIDE * SIDE].view(-1, SIDE).mean(0)
    return max(0.0, float(step.max() - torch.median(step)))
