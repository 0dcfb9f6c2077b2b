"""The degradations of `degradation` for whole batches on any device, the photographs in its memory.

What is drawn for a sample comes from a CPU generator of its own, seeded by (seed, number), through the same functions
as in `degradation`; photograph, crop, softness and kind are those of `pairs.make_pair`, and so is all of Real-ESRGAN's
chain. Only the noise fields are made on the device, by a generator of the sample's own, so a sample depends neither on
its batch mates nor on its place among them.
Pictures are [B, 3, H, W] fp32 in 0..255 inside. Where the sizes in a batch differ, each picture lies in the upper left
corner of a canvas whose side depends on the crop alone.

Not bit-equal to `degradation`: the JPEG is kornia's, `area` to sizes that do not divide averages whole pixels (as in
Real-ESRGAN), and crops taken at half size are bicubic instead of Lanczos.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from kornia.enhance import jpeg_codec_differentiable
from kornia.filters import filter2d
from torch import Tensor

from training.data.degradation import (
    FIRST,
    SCALE,
    SECOND,
    Kernel,
    Order,
    OrderDraw,
    Resizer,
    TwoOrders,
    distances,
    draw_camera_quality,
    draw_grain,
    draw_kind,
    draw_lens,
    draw_sharpening,
    draw_two_orders,
    normalised,
)
from training.data.pairs import Pairs, draw_plain, draw_softness, timestep_of
from training.data.photos import Crop, Photos, draw_crop
from training.data.same_size import DRAWS, Light, SameSize
from training.engine.sources import Sample

JPEG_BLOCK = 16  # px: 8x8 blocks of chroma at half size
LUMA = (0.299, 0.587, 0.114)  # BT.601

DrawT = TypeVar("DrawT")


@dataclass(frozen=True)
class Camera:
    """What `degradation.camera` draws, all but the noise itself."""

    kernel: Kernel
    how: Resizer
    grain: tuple[float, bool] | None
    sharpening: tuple[float, float] | None
    quality: int | None


Drawn = Camera | TwoOrders | SameSize


@dataclass(frozen=True)
class Plan:
    """What is done with a crop, as drawn.

    Attributes:
        softness: sigma in px of the blur between `sharp` and `soft`.
        degradation: None for plain bicubic.
        noise: seed of the noise fields.
        scale: side of `sharp` / side of `lr`, the same in all plans of a batch.
    """

    softness: float
    degradation: Drawn | None
    noise: int
    scale: int = SCALE


def draw_camera(rng: np.random.Generator, scale: int) -> Camera:
    """As `degradation.camera` does."""
    return Camera(*draw_lens(rng, scale), draw_grain(rng), draw_sharpening(rng), draw_camera_quality(rng))


def draw_degradation(pairs: Pairs, rng: np.random.Generator) -> Drawn:
    """As `pairs.twin` does."""
    if pairs.task != "sr":
        return DRAWS[pairs.task](rng)
    is_camera = draw_kind(pairs.degradation, pairs.camera_share, rng) == "camera"
    return draw_camera(rng, pairs.scale) if is_camera else draw_two_orders(rng)


def draw_plan(pairs: Pairs, rng: np.random.Generator) -> Plan:
    """Everything about a sample but its crop."""
    softness, degradation = 0.0, None
    if not draw_plain(pairs, rng):
        softness, degradation = draw_softness(pairs, rng), draw_degradation(pairs, rng)
    return Plan(softness, degradation, int(rng.integers(2**63)), pairs.scale)


def draw_sample(sizes: Sequence[tuple[int, int]], pairs: Pairs, index: int) -> tuple[int, Crop, Plan]:
    """Everything about sample number `index` of pictures of the given heights and widths: which one, crop, the rest."""
    rng = np.random.default_rng((pairs.seed, index))
    picture = int(rng.integers(len(sizes)))
    return picture, draw_crop(*sizes[picture], pairs.crop, rng), draw_plan(pairs, rng)


def to_levels(x: Tensor) -> Tensor:
    """Whole numbers in 0..255."""
    return x.round().clamp(0, 255)


def gaussian_kernel(sigma: float) -> Kernel | None:
    """Isotropic, out to 4 sigma; None where there is nothing to blur."""
    size = round(8 * sigma + 1) | 1
    return normalised(np.exp(-0.5 * distances(size, (sigma, sigma), 0.0))) if sigma > 0.05 else None


def cut(photo: Tensor, crop: Crop) -> Tensor:
    """The crop of a photograph [3, H, W] uint8, as [3, size, size] fp32 of whole numbers in 0..255."""
    side = crop.step * crop.size
    square = photo[:, crop.top : crop.top + side, crop.left : crop.left + side].float()
    if crop.step == 2:
        halved = F.interpolate(square[None], size=(crop.size, crop.size), mode="bicubic", antialias=True)
        square = to_levels(halved[0])
    if crop.mirrored:
        square = square.flip(2)
    return square.rot90(crop.turns, (1, 2))


def with_mirrored_borders(x: Tensor, sides: Sequence[int], border: int) -> Tensor:
    """Pictures of `sides` px on canvases [B, 3, L, L] -> [B, 3, L + 2 border, L + 2 border], mirrored on outwards."""
    length = x.shape[-1]
    places = [np.pad(np.arange(side), (border, length - side + border), mode="reflect") for side in sides]
    at = torch.from_numpy(np.stack(places)).to(x.device)
    batch = torch.arange(len(sides), device=x.device)[:, None, None]
    return x.permute(0, 2, 3, 1)[batch, at[:, :, None], at[:, None, :]].permute(0, 3, 1, 2)


def blur(x: Tensor, kernels: Sequence[Kernel | None], sides: Sequence[int]) -> Tensor:
    """Each picture of `sides` px on its canvas with its own kernel; None leaves it as it is."""
    border = max((kernel.shape[0] // 2 for kernel in kernels if kernel is not None), default=0)
    if border == 0:
        return x
    pulse = np.ones((1, 1), np.float32)
    padded = [np.pad(k, border - k.shape[0] // 2) for k in (pulse if k is None else k for k in kernels)]
    weights = torch.from_numpy(np.stack(padded)).to(x.device)
    return filter2d(with_mirrored_borders(x, sides, border), weights, padding="valid")


def luma(x: Tensor) -> Tensor:
    """[..., 3, H, W] -> [..., 1, H, W]."""
    weights = torch.tensor(LUMA, device=x.device).view(3, 1, 1)
    return (weights * x).sum(-3, keepdim=True)


def jpeg(x: Tensor, qualities: Sequence[int | None]) -> Tensor:
    """Each picture through the JPEG codec, 4:2:0, at its own quality; None leaves it as it is.

    kornia rounds a coefficient q to [q] + (q - [q])^3, which leaves 9 to 15 % of the damage to luma out. A second pass
    brings it to whole numbers. Only luma is taken from it: it would subsample chroma once more.
    """
    which = [number for number, quality in enumerate(qualities) if quality is not None]
    if not which:
        return x
    quality = torch.tensor([float(quality) for quality in qualities if quality is not None])
    first, second = x[which], x[which]
    for _ in range(2):
        first, second = second, to_levels(255 * jpeg_codec_differentiable(to_levels(second) / 255, quality))
    out = x.clone()
    out[which] = to_levels(first + luma(second - first))
    return out


def resize(x: Tensor, side: int, how: Resizer) -> Tensor:
    """[3, n, n] -> [3, side, side]; `bilinear` and `bicubic` do not antialias."""
    return F.interpolate(x[None], size=(side, side), mode=how)[0]


def noisy(x: Tensor, sigma: float, grey: bool, generator: torch.Generator) -> Tensor:
    """Gaussian noise on [3, n, n], per channel or one for all."""
    shape = (1 if grey else 3, *x.shape[1:])
    return (x + sigma * torch.randn(shape, generator=generator, device=x.device)).clamp(0, 255)


def poisson(x: Tensor, scale: float, grey: bool, generator: torch.Generator) -> Tensor:
    """Shot noise on [3, n, n], see `degradation.poisson`."""
    base = to_levels(luma(x) if grey else x)
    count = torch.zeros(256, device=x.device).index_fill_(0, base.flatten().long(), 1.0).sum().clamp_min(2)
    levels = torch.exp2(torch.ceil(torch.log2(count)))
    shot = torch.poisson(base / 255 * levels, generator=generator) / levels * 255 - base
    return (x + scale * shot).clamp(0, 255)


def darken(x: Tensor, light: Light) -> Tensor:
    """See `same_size.darken`."""
    return 255 * light.gain * (x / 255) ** light.gamma


def one_order(
    x: Tensor,
    sides: Sequence[int],
    order: Order,
    draws: Sequence[OrderDraw],
    target: int,
    generators: Sequence[torch.Generator],
) -> tuple[Tensor, list[int]]:
    """Blur, resize relative to `target` px, noise.

    Args:
        x: pictures of `sides` px on canvases [B, 3, L, L].
        sides: of the pictures.
        order: which of the two; its largest resize sets the new canvas.
        draws: one a picture.
        target: side in px at a resize factor of one.
        generators: of the noise, one a picture.

    Returns:
        Pictures on new canvases, their last pixels repeated to the edges, and their sides.
    """
    x = blur(x, [draw.kernel for draw in draws], sides)
    length = JPEG_BLOCK * ceil(max(4, target * order.resize_range[1]) / JPEG_BLOCK)
    new = [draw.side(target) for draw in draws]
    rows: list[Tensor] = []
    for number, (draw, generator) in enumerate(zip(draws, generators, strict=True)):
        picture = resize(x[number, :, : sides[number], : sides[number]], new[number], draw.how).clamp(0, 255)
        picture = (noisy if draw.gaussian else poisson)(picture, draw.strength, draw.grey, generator)
        rest = length - new[number]
        rows.append(F.pad(picture, (0, rest, 0, rest), mode="replicate"))
    return torch.stack(rows), new


def realesrgan(x: Tensor, draws: Sequence[TwoOrders], generators: Sequence[torch.Generator], small: int) -> Tensor:
    """See `degradation.realesrgan`: [B, 3, S, S] -> [B, 3, small, small]."""
    side = x.shape[-1]
    x, sides = one_order(x, [side] * len(draws), FIRST, [draw.first for draw in draws], side, generators)
    x = jpeg(x, [draw.quality for draw in draws])
    x, sides = one_order(x, sides, SECOND, [draw.second for draw in draws], small, generators)
    lasts = [draw.last for draw in draws]
    x = jpeg(x, [None if last.jpeg_last else last.quality for last in lasts])
    x = torch.stack([resize(y[:, :n, :n], small, last.how) for y, n, last in zip(x, sides, lasts, strict=True)])
    x = blur(x, [last.sinc for last in lasts], [small] * len(lasts))
    return jpeg(x, [last.quality if last.jpeg_last else None for last in lasts])


def camera(x: Tensor, draws: Sequence[Camera], generators: Sequence[torch.Generator], small: int) -> Tensor:
    """See `degradation.camera`: [B, 3, S, S] -> [B, 3, small, small]."""
    x = blur(x, [draw.kernel for draw in draws], [x.shape[-1]] * len(draws))
    rows: list[Tensor] = []
    for picture, draw, generator in zip(x, draws, generators, strict=True):
        taken = resize(picture, small, draw.how)
        rows.append(taken if draw.grain is None else noisy(taken, *draw.grain, generator))
    x = torch.stack(rows)
    sharpenings = [draw.sharpening or (0.0, 0.0) for draw in draws]
    amounts = torch.tensor([amount for amount, _ in sharpenings], device=x.device).view(-1, 1, 1, 1)
    kernels = [gaussian_kernel(sigma) for _, sigma in sharpenings]
    x = x + amounts * (x - blur(x, kernels, [small] * len(draws)))
    return jpeg(x, [draw.quality for draw in draws])


def spoil(x: Tensor, draws: Sequence[SameSize], generators: Sequence[torch.Generator]) -> Tensor:
    """See `same_size.spoil`: [B, 3, S, S] -> the same."""
    x = torch.stack([y if d.light is None else darken(y, d.light) for y, d in zip(x, draws, strict=True)])
    x = blur(x, [draw.kernel for draw in draws], [x.shape[-1]] * len(draws))
    rows: list[Tensor] = []
    for picture, draw, generator in zip(x, draws, generators, strict=True):
        black, slope = draw.noise or (0.0, 0.0)
        sigma = (black**2 + slope * picture.clamp(0, 255)).sqrt()
        grain = torch.randn(picture.shape, generator=generator, device=x.device)
        rows.append((picture + sigma * grain).clamp(0, 255))
    return jpeg(torch.stack(rows), [draw.quality for draw in draws])


def pick(draws: Sequence[object], kind: type[DrawT]) -> tuple[list[int], list[DrawT]]:
    """Those of a kind and where they are."""
    found = [(number, draw) for number, draw in enumerate(draws) if isinstance(draw, kind)]
    return [number for number, _ in found], [draw for _, draw in found]


def degrade(
    x: Tensor, draws: Sequence[Drawn | None], generators: Sequence[torch.Generator], scale: int = SCALE
) -> Tensor:
    """Low-resolution twins.

    Args:
        x: [B, 3, S, S], whole numbers in 0..255, S a multiple of `scale`.
        draws: one a picture; None for plain bicubic.
        generators: of the noise, one a picture, on the device of `x`.
        scale: side of `x` / side of the twins.

    Returns:
        [B, 3, S/scale, S/scale], whole numbers in 0..255.
    """
    small = x.shape[-1] // scale
    out = F.interpolate(x, size=(small, small), mode="bicubic", antialias=True)
    cameras, camera_draws = pick(draws, Camera)
    if cameras:
        out[cameras] = camera(x[cameras], camera_draws, [generators[number] for number in cameras], small)
    chains, chain_draws = pick(draws, TwoOrders)
    if chains:
        out[chains] = realesrgan(x[chains], chain_draws, [generators[number] for number in chains], small)
    same, same_draws = pick(draws, SameSize)
    if same:
        out[same] = spoil(x[same], same_draws, [generators[number] for number in same])
    return to_levels(out)


@torch.no_grad()
def samples_of(index: Tensor, sharp: Tensor, plans: Sequence[Plan]) -> Sample:
    """The samples of crops.

    Args:
        index: their numbers, int64 [B].
        sharp: crops [B, 3, S, S], whole numbers in 0..255; where they are, the rest is made.
        plans: what is done with each.

    Returns:
        The keys of `pairs.make_pair`, with a batch dimension.
    """
    device = sharp.device
    generators = [torch.Generator(device).manual_seed(plan.noise) for plan in plans]
    kernels = [gaussian_kernel(plan.softness) for plan in plans]
    soft = blur(sharp, kernels, [sharp.shape[-1]] * len(plans)).round()
    lr = degrade(soft, [plan.degradation for plan in plans], generators, plans[0].scale)
    timesteps = torch.tensor([timestep_of(plan.softness) for plan in plans], device=device)
    pictures = {"lr": lr, "soft": soft, "sharp": sharp}
    return {"index": index.to(device), "timestep": timesteps} | {name: x / 127.5 - 1 for name, x in pictures.items()}


class PairsOnDevice:
    """Batches made on a device from photographs that lie in its memory as uint8.

    Args:
        photos: to train on; all of them must fit.
        pairs: how low-resolution twins are made.
        device: where.

    Raises:
        ValueError: a photograph is smaller than the crop.
    """

    def __init__(self, photos: Photos, pairs: Pairs, device: torch.device | str):
        small = [name for name, pixels in photos.train.items() if min(pixels.shape[:2]) < pairs.crop]
        if small:
            raise ValueError(f"smaller than the crop of {pairs.crop} px, leave them out: {', '.join(small)}.")
        self.pairs, self.device = pairs, torch.device(device)
        self.photos = [torch.tensor(pixels, device=device).permute(2, 0, 1) for pixels in photos.train.values()]
        self.sizes = [(photo.shape[1], photo.shape[2]) for photo in self.photos]

    @torch.no_grad()
    def __call__(self, index: Tensor) -> Sample:
        """The samples of the numbers `index`, int64 [B]: the keys of `pairs.make_pair`, with a batch dimension."""
        drawn = [draw_sample(self.sizes, self.pairs, number) for number in index.tolist()]
        sharp = torch.stack([cut(self.photos[picture], crop) for picture, crop, _ in drawn])
        return samples_of(index, sharp, [plan for _, _, plan in drawn])
