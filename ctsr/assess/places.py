"""Where automatic t must be higher: places whose realistic end does not come back to the input.

Only some places are looked at, those where the ends of the dial differ most: a decode of both ends everywhere would
cost more than the run itself.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..images.tensors import map_to_latents, pad, resize
from .auto_t import Choice, mean_t, summary
from .camera import QUANTISATION
from .windows import gaussian, local_mean, luma

Place = tuple[int, int, int]
"""Top, left and side in latents."""
Decode = Callable[[Place], tuple[Tensor, Tensor]]
"""The picture of a place at t = 0 and at t = 1, [1, 3, H, W] each."""

SIDE = 24
"""Pixels of the input a side of a place."""
MARGIN = 4
"""Latents around a place that are decoded with it."""
EFFORT = 0.15
"""Part of a decode of the whole picture that both ends of all places may take together, twice over."""
MOST = 32
"""Places."""
BACK = 0.6
"""Pixels of the input: the blur that a difference is looked at through."""
DEPARTS = 1.3
"""Times that the realistic end may depart by what the faithful end does."""
PLAIN = 0.5
"""Of the noise, by which any end may depart besides."""
NAMED = 3
"""Places that reasons name."""


def check_places(
    picture: Tensor,
    choice: Choice,
    noise: float,
    delta: Tensor,
    factor: int,
    size: tuple[int, int],
    decode: Decode,
) -> Choice:
    """The choice with t raised where the realistic end departs from the input.

    Args:
        picture: the input, [1, 3, h, w] in [0, 1].
        choice: by the picture alone.
        noise: the input's standard deviation.
        delta: the way from the realistic to the faithful latents, [1, C, h, w] of at least the size of the result, as
            padding makes them.
        factor: pixels of the result a latent.
        size: height and width of the result.
        decode: gives both ends of a place.
    """
    enlarged = pad(resize(luma(picture), *size), factor)
    delta = delta[..., : enlarged.shape[-2] // factor, : enlarged.shape[-1] // factor]
    scale = size[1] / picture.shape[-1]
    looked_at = where_to_look(delta, max(1, round(SIDE * scale / factor)))
    before = torch.full((1, 1), choice.t) if choice.t_map is None else choice.t_map
    before = map_to_latents(before, size, (delta.shape[-2], delta.shape[-1]), factor)
    raised = list[tuple[Place, float]]()
    for place in looked_at:
        top, left, side = (factor * value for value in place)
        source = enlarged[..., top : top + side, left : left + side]
        r0, r1 = (difference(end, source, scale) for end in decode(place))
        here = float(part(before, place).mean())
        t = least_t(r0, r1, here, noise)
        if t > here + 0.05:
            raised.append((place, t))
    if not raised:
        return choice
    half = factor * raised[0][0][2] // 2
    texts = [
        f"around x {factor * left + half}, y {factor * top + half} of the result: t = {t:.2f}, "
        "a lower one departs from the input"
        for (top, left, _), t in raised
    ]
    more = [f"and at {len(texts) - NAMED} more places"] if len(texts) > NAMED else []
    t_map = torch.maximum(before, islands(before, raised))[0, 0]
    return Choice(mean_t(t_map), (*choice.reasons[:-1], *texts[:NAMED], *more, summary(t_map)), t_map)


def part(x: Tensor, place: Place) -> Tensor:
    """What of [1, C, h, w] over the latents is a place, without a copy."""
    top, left, side = place
    return x[..., top : top + side, left : left + side]


def where_to_look(delta: Tensor, side: int) -> list[Place]:
    """Places whose ends differ most, as many as `EFFORT` allows, strongest first."""
    height, width = delta.shape[-2:]
    count = min(MOST, int(EFFORT * height * width / (side + 2 * MARGIN) ** 2))
    if count < 1 or min(height, width) < side:
        return []
    energy = F.avg_pool2d(delta.float().square().mean(1, keepdim=True), side)[0, 0]
    strongest = energy.flatten().argsort(descending=True, stable=True)[:count]
    return [(int(index) // energy.shape[1] * side, int(index) % energy.shape[1] * side, side) for index in strongest]


def difference(end: Tensor, source: Tensor, scale: float) -> Tensor:
    """What an end adds to the enlarged input that a camera would show, its mean apart, [1, 1, H, W]."""
    left = gaussian(luma(end.to(source.device)) - source, max(0.5, BACK * scale))
    return left - left.mean()


def least_t(r0: Tensor, r1: Tensor, t: float, noise: float) -> float:
    """The least t, no lower than the given one, at which (1 - t) r0 + t r1 is within what may depart."""
    allowed = DEPARTS**2 * float(r1.square().mean()) + (PLAIN * max(noise, QUANTISATION)) ** 2
    for step in range(21):
        at = t + (1 - t) * step / 20
        if float(((1 - at) * r0 + at * r1).square().mean()) <= allowed:
            return at
    return 1.0


def islands(like: Tensor, raised: list[tuple[Place, float]]) -> Tensor:
    """t of some places over the latents, [1, 1, h, w] as `like`, falling to 0 around them without hard borders."""
    out = torch.zeros_like(like)
    for place, value in raised:
        part(out, place).fill_(value)
    radius = max(1, raised[0][0][2] // 4)
    return local_mean(F.max_pool2d(out, 2 * radius + 1, 1, radius), radius)
