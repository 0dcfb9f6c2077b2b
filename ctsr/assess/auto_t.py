"""Automatic t: chosen for a picture from what it shows, with the reasons.

What makes a picture need more or less of realism was learned from held-back photographs (`tuned`, made by
`benchmarks/auto_t.py`). That part knows only the picture; `places` then looks at the ends of the dial.
"""

import math
from dataclasses import dataclass

from torch import Tensor

from . import tuned
from .blocks import blocks
from .blur import Blur, blur
from .noise import noise_level
from .windows import local_mean, luma

NO_EDGES = 1.5
"""Blur in pixels that stands for a picture without edges."""
PLAIN_SQUARES = 1.0
"""log(1 + step) of JPEG squares as plain as counts: 1.7 of 255."""
MATTERS = 0.15
"""Change of the logit of t from which a feature is a reason."""


@dataclass(frozen=True)
class Choice:
    """t for a picture.

    Attributes:
        t: in [0, 1].
        reasons: one line each.
        t_map: [h, w] in [0, 1] over the picture where places need another t, else None.
    """

    t: float
    reasons: tuple[str, ...]
    t_map: Tensor | None = None


@dataclass(frozen=True)
class Traits:
    """What a picture shows: noise in [0, 1], blur, JPEG's steps in [0, 1], part of its area that has texture."""

    noise: float
    blur: Blur | None
    blocks: float
    texture: float

    @property
    def features(self) -> tuple[float, ...]:
        """Numbers in the order of `tuned.FEATURES`."""
        width = NO_EDGES if self.blur is None else self.blur.lens
        return (math.log1p(255 * self.noise), width, min(math.log1p(255 * self.blocks), PLAIN_SQUARES), self.texture)


def traits(picture: Tensor) -> Traits:
    """What a picture [1, 3, h, w] in [0, 1] shows."""
    noise = noise_level(picture)
    grey = luma(picture)
    deviation = (local_mean(grey.square(), 2) - local_mean(grey, 2).square()).clamp_min(0).sqrt()
    texture = float((deviation > 3 * noise + 2 / 255).float().mean())
    return Traits(noise, blur(picture, noise), blocks(picture), texture)


def choose_t(picture: Tensor) -> Choice:
    """t for a picture [1, 3, h, w] fp32 in [0, 1], from the picture alone."""
    found = traits(picture)
    rows = zip(found.features, tuned.MEAN, tuned.DEVIATION, tuned.WEIGHT, strict=True)
    pulls = [weight * max(-2.0, min(2.0, (value - mean) / deviation)) for value, mean, deviation, weight in rows]
    t = round(1 / (1 + math.exp(-tuned.BIAS - sum(pulls))), 2)
    return Choice(t, (*reasons(found, pulls), f"so t = {t:g}"))


def reasons(found: Traits, pulls: list[float]) -> list[str]:
    """What moved t and where to, strongest first, in words."""
    soft = "no clear edges" if found.blur is None else f"edges {found.blur.lens:.1f} px wide at the sharpest"
    texts = (
        f"noise σ {255 * found.noise:.1f} of 255",
        soft,
        f"JPEG squares of {255 * found.blocks:.1f} of 255",
        f"{found.texture:.0%} of the picture has texture",
    )
    strong = sorted((-abs(pull), text, pull) for pull, text in zip(pulls, texts, strict=True) if abs(pull) > MATTERS)
    way = {True: "more faithful", False: "more realistic"}
    return [f"{text}: {way[pull > 0]}" for _, text, pull in strong] or ["nothing stands out: the usual t"]
