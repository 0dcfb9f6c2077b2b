"""From which value on a finding is reported: set by hand to what `python -m benchmarks.report` shows of each."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Each is the least value of a finding of that kind.

    Attributes:
        departure: rms difference of the returned result from the input, in units of the tolerated difference.
        cast: in [0, 1].
        shift: in pixels of the result.
        halo: see `detail.halo`.
        sharpening: see `detail.sharpening`.
        lost: part of a place's texture that is missing.
        lost_area: part of the picture where that much is missing.
        clipped: part of the result that is newly black or white.
    """

    departure: float = 3.0
    cast: float = 1.2 / 255
    shift: float = 0.5
    halo: float = 0.0125
    sharpening: float = 0.8
    lost: float = 0.6
    lost_area: float = 0.002
    clipped: float = 0.01


LIMITS = Limits()
CONTRAST = 0.15
"""Part of the local contrast that a faithful result may differ by: no camera model is exact."""
