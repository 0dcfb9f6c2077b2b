"""A still in memory: its pixels, and what is needed to write one like it."""

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy.typing as npt
import torch

from .metadata import Metadata

Samples = npt.NDArray[Any]
"""Pixels as they lie in a file: [H, W, C], uint8, uint16 or float32; C is 1 (grey), 2 (grey, alpha), 3 or 4 (RGBA)."""

Bits = Literal[8, 16, 32]
"""Depth of a channel; 32 are floating-point numbers of which 0 is black and 1 is white."""


@dataclass(frozen=True)
class Picture:
    """A still as tensors on the CPU, upright, with what is needed to write one like it.

    rgb: [1, 3, H, W] fp32 in [0, 1], straight (not multiplied by alpha), encoded as in the file; grey is repeated.
    alpha: [1, 1, H, W] fp32 in [0, 1], all ones for an opaque file with an alpha channel, None for one without.
    grey: the file holds grey. bits: depth of the file. icc_profile: fits rgb (or grey), None means sRGB.
    metadata: EXIF and the like. lossless: of a format that can be either, the file is without loss (WebP).
    """

    rgb: torch.Tensor
    alpha: torch.Tensor | None = None
    grey: bool = False
    bits: Bits = 8
    icc_profile: bytes | None = None
    metadata: Metadata = field(default_factory=Metadata)
    lossless: bool = False

    @property
    def height(self) -> int:
        """Rows of pixels."""
        return self.rgb.shape[-2]

    @property
    def width(self) -> int:
        """Pixels in a row."""
        return self.rgb.shape[-1]
