"""Colours that alpha hides: replaced by the visible ones around, so that they do not bleed into an edge later."""

import torch
import torch.nn.functional as F


def spread_visible(rgb: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """Replace colours where alpha is zero by the visible ones around; [1, 3, H, W] and [1, 1, H, W] to [1, 3, H, W]."""
    visible = alpha > 0
    if bool(visible.all()) or not bool(visible.any()):
        return rgb
    return torch.where(visible, rgb, _spread(rgb * alpha, alpha))


def _spread(colour: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Push-pull fill: straight colours from weighted ones, those without weight from the same picture at half size."""
    straight = colour / weight.clamp_min(1e-30)
    known = weight > 0
    if bool(known.all()):
        return straight
    half = _spread(F.avg_pool2d(colour, 2, ceil_mode=True), F.avg_pool2d(weight, 2, ceil_mode=True))
    return torch.where(known, straight, F.interpolate(half, size=colour.shape[-2:], mode="bilinear"))
