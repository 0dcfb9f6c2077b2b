"""Automatic t: chosen for every place of a picture from what the picture shows, with the reasons.

Where a picture has contrast the realistic end is a guess that costs fidelity; in smooth, noisy or dark places it costs
little and gives back texture. How much was learned from held-back photographs: `tuned` holds a network of one hidden
layer, made by `benchmarks/auto_t.py`. It knows only the picture; `places` then looks at the ends of the dial.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import tuned
from .blocks import blocks
from .blur import Blur, blur
from .noise import noise_level
from .windows import gaussian, local_mean, luma

NO_EDGES = 1.5
"""Blur in pixels that stands for a picture without edges."""
PLAIN_SQUARES = 1.0
"""log(1 + step) of JPEG squares as plain as counts: 1.7 of 255."""
MATTERS, UNUSUAL = 0.03, 0.5
"""A feature is a reason from this change of the mean t and these deviations from what is usual on, both."""
REASONS = 3
"""So many are told, beside contrast."""
COARSE, FINE, AROUND = 3.0, 1.0, 2
"""Pixels: contrast is what Gaussians of the first two take away, over windows that reach as far as the third."""
LEAST_CONTRAST = 0.5
"""Levels of 255: what rounding leaves."""
LIMIT = 3.0
"""Deviations beyond which a feature counts no more."""
STRIP = 512
"""Rows whose contrast is measured at a time."""
LOOKED_AT = 128
"""Pixels a side, at most, that reasons are taken from."""


@dataclass(frozen=True)
class Choice:
    """t for a picture.

    Attributes:
        t: in [0, 1], the mean over the picture.
        reasons: one line each.
        t_map: [h, w] in [0, 1] over the picture, of any size; None where one t holds everywhere.
    """

    t: float
    reasons: tuple[str, ...]
    t_map: Tensor | None = None


@dataclass(frozen=True)
class Traits:
    """What a picture shows: noise in [0, 1], blur, JPEG's steps in [0, 1], part of its area that has texture, and its
    mean brightness in [0, 1]."""

    noise: float
    blur: Blur | None
    blocks: float
    texture: float
    brightness: float

    @property
    def features(self) -> tuple[float, ...]:
        """Numbers in the order of `tuned.FEATURES`, without those of contrast."""
        width = NO_EDGES if self.blur is None else self.blur.lens
        squares = min(math.log1p(255 * self.blocks), PLAIN_SQUARES)
        return (math.log1p(255 * self.noise), width, squares, self.texture, self.brightness)


def traits(picture: Tensor) -> Traits:
    """What a picture [1, 3, h, w] in [0, 1] shows."""
    noise = noise_level(picture)
    grey = luma(picture)
    deviation = (local_mean(grey.square(), 2) - local_mean(grey, 2).square()).clamp_min(0).sqrt()
    texture = float((deviation > 3 * noise + 2 / 255).float().mean())
    return Traits(noise, blur(picture, noise), blocks(picture), texture, float(grey.mean()))


def contrast(picture: Tensor) -> Tensor:
    """Coarse and fine contrast around each pixel, noise included: log of levels of 255, [1, 3, h, w] -> [2, h, w]."""
    height, halo = picture.shape[-2], math.ceil(3 * COARSE) + AROUND
    out = picture.new_empty(2, height, picture.shape[-1])
    for top in range(0, height, STRIP):
        above = min(top, halo)
        grey = luma(picture[..., top - above : top + STRIP + halo, :])
        for plane, width in zip(out, (COARSE, FINE), strict=True):
            power = local_mean((grey - gaussian(grey, width)).square_(), AROUND)[0, 0, above : above + STRIP]
            plane[top : top + STRIP] = power.mul_(255**2).add_(LEAST_CONTRAST**2).log_().div_(2)
    return out


def choose_t(picture: Tensor) -> Choice:
    """t for a picture [1, 3, h, w] fp32 in [0, 1], from the picture alone."""
    found, local = traits(picture), contrast(picture)
    known = (*found.features, *(float(plane.mean()) for plane in local))
    few = local[:, :: -(-local.shape[1] // LOOKED_AT), :: -(-local.shape[2] // LOOKED_AT)]
    t_map = t_of(local, known)
    return Choice(mean_t(t_map), (by_contrast(few, known), *reasons(found, few, known), summary(t_map)), t_map)


def t_of(local: Tensor, known: Sequence[float]) -> Tensor:
    """t at every place, [h, w], by the contrast there, [2, h, w], and the features of the whole picture."""
    scales = list(zip(tuned.MEAN, tuned.DEVIATION, strict=True))
    same = [
        max(-LIMIT, min(LIMIT, (x - mean) / deviation)) for x, (mean, deviation) in zip(known, scales, strict=False)
    ]
    coarse, fine = (
        ((plane - mean) / by).clamp_(-LIMIT, LIMIT)
        for plane, (mean, by) in zip(local, scales[len(same) :], strict=True)
    )
    logit = torch.full_like(coarse, tuned.BIAS)
    for (*weights, of_coarse, of_fine, bias), out in zip(tuned.HIDDEN, tuned.OUT, strict=True):
        constant = bias + sum(weight * x for weight, x in zip(weights, same, strict=True))
        unit = (of_coarse * coarse).add_(fine, alpha=of_fine).add_(constant).tanh_()
        logit.add_(unit, alpha=out)
    return logit.sigmoid_()


def mean_t(t_map: Tensor) -> float:
    """One t for all of a map."""
    return round(float(t_map.mean()), 2)


def summary(t_map: Tensor) -> str:
    """The last line of the reasons."""
    return f"t = {mean_t(t_map):g} on average, where 0 invents detail and 1 keeps to the picture"


def by_contrast(local: Tensor, known: Sequence[float]) -> str:
    """What smooth places take and what strong contrast takes, in words: the quarters of least and of most contrast."""
    order = local[0].flatten().argsort(stable=True)
    t = t_of(local, known).flatten()[order]
    quarter = -(-len(t) // 4)
    smooth, strong = float(t[:quarter].mean()), float(t[-quarter:].mean())
    if abs(strong - smooth) < MATTERS:
        return "its contrast is even: about the same t everywhere"
    return f"smooth places: t = {smooth:.2f}; edges and strong texture: t = {strong:.2f}"


def reasons(found: Traits, local: Tensor, known: Sequence[float]) -> list[str]:
    """What else moved t most, strongest first, each against a picture that is like most in this one thing."""
    usual, here, strong = tuned.MEAN, float(t_of(local, known).mean()), list[tuple[float, str]]()
    for i, x in enumerate(found.features):
        off = (x - usual[i]) / tuned.DEVIATION[i]
        by = here - float(t_of(local, (*known[:i], usual[i], *known[i + 1 :])).mean())
        if abs(off) >= UNUSUAL and abs(by) >= MATTERS and (text := in_words(found, tuned.FEATURES[i], off > 0)):
            strong.append((abs(by), f"{text}: t {abs(by):.2f} {'higher' if by > 0 else 'lower'}"))
    return [text for _, text in sorted(strong, key=lambda one: -one[0])[:REASONS]]


def in_words(found: Traits, feature: str, more: bool) -> str:
    """How a picture differs from most in one feature of the whole; "" for fewer squares of JPEG, which most lack."""
    usual = dict[str, float](zip(tuned.FEATURES, tuned.MEAN, strict=True))
    than, comparative = "than usual", "more" if more else "less"
    if feature == "noise":
        return f"{comparative} grain {than} (σ {255 * found.noise:.1f} of 255, not {math.expm1(usual[feature]):.1f})"
    if feature == "blur":
        soft = "no clear edges" if found.blur is None else f"softer edges {than} ({found.blur.lens:.1f} px)"
        return soft if more else "crisp edges"
    if feature == "blocks":
        return f"squares of JPEG ({255 * found.blocks:.1f} of 255)" if more else ""
    if feature == "texture":
        return f"{comparative} clear detail {than} ({found.texture:.0%} of the picture, not {usual[feature]:.0%})"
    shade = "brighter" if more else "darker"
    return f"{shade} {than} ({found.brightness:.0%}, not {usual['brightness']:.0%})"
