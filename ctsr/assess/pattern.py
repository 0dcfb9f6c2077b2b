"""The fixed pattern: what a network leaves at the same places of a grid on every picture.

A bias of a few channels draws it, and the eye finds it in dark fur, skin and water, where no single picture shows it
to a distance. Our own measure: high-pass what is left of a picture, and average it by position.
"""

import cv2
import numpy as np
import numpy.typing as npt

PERIOD = 8
"""px: the largest grid that one of the models has."""
SIGMA = 4.0
"""px of the Gaussian that is taken away."""
MOST = 8.0
"""Levels of 255 at which a residue is clipped, so that edges do not count."""


class FixedPattern:
    """Averages pictures as they come."""

    def __init__(self) -> None:
        self.sums = np.zeros((PERIOD, PERIOD, 3))
        self.counts = np.zeros((PERIOD, PERIOD, 1))

    def add(self, picture: npt.NDArray[np.uint8]) -> None:
        """Takes an RGB picture [H, W, 3] whose first pixel is at the corner of the grid."""
        x = picture.astype(np.float32)
        residue = np.clip(x - cv2.GaussianBlur(x, (0, 0), SIGMA), -MOST, MOST)
        for row in range(PERIOD):
            for column in range(PERIOD):
                cell = residue[row::PERIOD, column::PERIOD]
                self.sums[row, column] += cell.sum((0, 1))
                self.counts[row, column] += cell.shape[0] * cell.shape[1]

    def peak(self) -> float:
        """Largest mean residue of a position and channel, in levels of 255; a real photograph has nearly none."""
        return float(np.abs(self.sums / np.maximum(self.counts, 1)).max())
