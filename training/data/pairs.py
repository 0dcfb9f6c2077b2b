"""Training pairs: a low-resolution twin of a photograph, or of another restorer's picture.

A sample is a pure function of a seed and its number: `lr` [3, crop/scale, crop/scale], `soft` (what the LR was made
from) and `sharp` (the photograph) [3, crop, crop], fp32 in [-1, 1], and two int64 scalars: `index`, the number, and
`timestep`, which says how crisp `soft` is.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ctsr.images.stems import by_stem
from training.data.degradation import CAMERA_SHARE, SCALE, Degradation, degrade, gaussian
from training.data.photos import (
    Crop,
    Photos,
    cut,
    draw_crop,
    photo_paths,
    random_crop,
    read_large,
    read_photo,
    warn_of_skipped,
)
from training.data.same_size import DRAWS, Task, spoil
from training.engine.sources import Sample

logger = logging.getLogger(__name__)

Pixels = NDArray[np.uint8]

GRID = 16
"""px that a side must be a multiple of: two latents of SD, four of the mini."""
SOFTEST = 3.0
"""Sigma in px of the blur of a ground truth at timestep 0; at 999 it is as crisp as the photograph."""


@dataclass(frozen=True)
class Pairs:
    """How low-resolution twins are made.

    Attributes:
        crop: side of `soft` and `sharp` in px, a multiple of 16 and of `scale`.
        task: "sr", or "lowlight", "deblur" or "dejpeg" at the picture's own size, see `same_size`.
        scale: side of `sharp` / side of `lr`; 1 for all tasks but "sr".
        degradation: of "sr": "camera", "realesrgan", or "mix" of the two.
        softness: largest sigma in px of the blur between `sharp` and `soft`: the ground truth of a camera picture is
            not razor-sharp, so the faithful target is not either.
        camera_share: share of "camera" in the mix.
        bicubic_share: share of samples whose LR is the sharp photograph, bicubic / scale, and nothing else; TADSR uses
            .01. At scale 1 it is the photograph itself, which a model is to leave alone.
        seed: of all samples.
    """

    crop: int = 160
    task: Task = "sr"
    scale: int = SCALE
    degradation: Degradation = "mix"
    softness: float = 1.0
    camera_share: float = CAMERA_SHARE
    bicubic_share: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.scale < 1 or (self.task != "sr" and self.scale != 1):
            raise ValueError(f"scale is {self.scale}: give 1 or more for sr, 1 for the other tasks.")
        if self.crop <= 0 or self.crop % GRID or self.crop % self.scale:
            raise ValueError(f"crop is {self.crop}: give a multiple of {GRID} and of the scale, {self.scale}.")
        if not 0 <= self.softness < math.inf:
            raise ValueError(f"softness is {self.softness}: give a sigma of 0 px or more.")


def to_tensor(pixels: Pixels) -> Tensor:
    """[H, W, 3] uint8 -> [3, H, W] fp32 in [-1, 1]."""
    return torch.tensor(pixels).permute(2, 0, 1).float() / 127.5 - 1


def bicubic(pixels: Pixels, scale: int = SCALE) -> Pixels:
    """1 / scale of the size, antialiased."""
    size = pixels.shape[1] // scale, pixels.shape[0] // scale
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))


def draw_plain(pairs: Pairs, rng: np.random.Generator) -> bool:
    """Whether a sample is plain bicubic; without such samples nothing is drawn."""
    return pairs.bicubic_share > 0 and bool(rng.random() < pairs.bicubic_share)


def draw_softness(pairs: Pairs, rng: np.random.Generator) -> float:
    """Sigma in px of the blur between `sharp` and `soft`; one in four is not blurred."""
    return pairs.softness * rng.random() if rng.random() < 0.75 else 0.0


def timestep_of(softness: float) -> int:
    """Timestep that tells ctsr-mini 2 how crisp a ground truth is: 999 for no blur, 0 for `SOFTEST` px and more."""
    return round(999 * (1 - min(1.0, softness / SOFTEST)))


def soften(sharp: Pixels, sigma: float) -> Pixels:
    """Gaussian blur in 8 bits."""
    return np.rint(gaussian(sharp.astype(np.float32), sigma)).astype(np.uint8)


def twin(soft: Pixels, pairs: Pairs, rng: np.random.Generator) -> Pixels:
    """What a model is given of a ground truth [H, W, 3]: [H/scale, W/scale, 3]."""
    if pairs.task == "sr":
        return degrade(soft, pairs.degradation, rng, pairs.camera_share, pairs.scale)
    return spoil(soft, DRAWS[pairs.task](rng), rng)


def sample_of(index: int, lr: Pixels, soft: Pixels, sharp: Pixels, timestep: int | None = None) -> Sample:
    """Pictures [H, W, 3] uint8 as a sample; without `timestep` where nobody knows how crisp `soft` is."""
    known = {} if timestep is None else {"timestep": torch.tensor(timestep)}
    pictures = {"lr": to_tensor(lr), "soft": to_tensor(soft), "sharp": to_tensor(sharp)}
    return {"index": torch.tensor(index), **known, **pictures}


def pair_of(pixels: Pixels, pairs: Pairs, index: int, rng: np.random.Generator) -> Sample:
    """A sample from one photograph [H, W, 3].

    Raises:
        ValueError: it is smaller than the crop.
    """
    sharp = random_crop(pixels, pairs.crop, rng)
    if draw_plain(pairs, rng):
        return sample_of(index, bicubic(sharp, pairs.scale), sharp, sharp, timestep_of(0.0))
    sigma = draw_softness(pairs, rng)
    soft = soften(sharp, sigma)
    return sample_of(index, twin(soft, pairs, rng), soft, sharp, timestep_of(sigma))


def make_pair(photos: Photos, pairs: Pairs, index: int) -> Sample:
    """Sample number `index`, from a photograph drawn anew for each."""
    rng = np.random.default_rng((pairs.seed, index))
    pixels = photos.train_pictures[rng.integers(len(photos.train))]
    return pair_of(pixels, pairs, index, rng)


def held_back_pairs(
    photos: Photos, pairs: Pairs, size: int = 384, least_softness: float = 0.0, rank: int = 0, world: int = 1
) -> list[Sample]:
    """One fixed pair from the middle of every held-back photograph, `camera` degraded where the task is "sr".

    Unreadable and too small ones are skipped, counted and named.

    Args:
        photos: of which the held-back ones are taken.
        pairs: task, scale, softness and seed.
        size: side of `soft` and `sharp` in px; of a smaller photograph as much as it allows, a multiple of 16 and of
            the scale.
        least_softness: smallest sigma in px of the blur between `sharp` and `soft`; the largest is `pairs.softness`.
        rank, world: the photographs are dealt out to `world` processes; these are those of process `rank`.

    Raises:
        ValueError: the size is under 16, or the least softness is none from 0 to the largest.
    """
    if size < GRID:
        raise ValueError(f"size is {size}: give {GRID} px or more.")
    if not 0 <= least_softness <= pairs.softness:
        raise ValueError(f"least softness is {least_softness}: give one from 0 to {pairs.softness} px, the largest.")
    samples: list[Sample] = []
    skipped: list[str] = []
    grid, settings = math.lcm(GRID, pairs.scale), replace(pairs, degradation="camera")
    for index, (name, path) in list(enumerate(sorted(photos.held_back.items())))[rank::world]:
        pixels = read_large(path, photos.min_side)
        if pixels is None:
            skipped.append(name)
            continue
        rng = np.random.default_rng((pairs.seed, 1, index))
        side = min(size, *pixels.shape[:2]) // grid * grid
        top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
        sharp = np.ascontiguousarray(pixels[top : top + side, left : left + side])
        sigma = least_softness + (pairs.softness - least_softness) * rng.random()
        soft = soften(sharp, sigma)
        samples.append(sample_of(index, twin(soft, settings, rng), soft, sharp, timestep_of(sigma)))
    warn_of_skipped(skipped)
    return samples


class Row(NamedTuple):
    """One LR picture [h, w, 3] and, `scale` times as large, what restorers made of it and the ground truth."""

    name: str
    lr: Pixels
    target: Pixels
    hr: Pixels
    realistic: Pixels | None = None


@dataclass(frozen=True)
class PairedFolder:
    """Pairs that lie ready in folders, in memory. `skipped`: files that could not be read."""

    rows: tuple[Row, ...]
    skipped: tuple[str, ...]
    scale: int = SCALE

    @cached_property
    def smallest(self) -> Row:
        """The one of the shortest side, which limits the crop."""
        return min(self.rows, key=lambda row: min(row.lr.shape[:2]))

    def make(self, index: int, crop: int, seed: int = 0) -> Sample:
        """Sample number `index`: a crop of a row drawn anew for each, mirrored and turned at random.

        `soft` is the restorer's picture, `sharp` the ground truth, or the restorer's picture where there is none;
        `realistic` [3, crop, crop] a realistic restorer's, where there is one.

        Raises:
            ValueError: the crop is no multiple of the scale, or larger than the smallest picture.
        """
        scale, largest = self.scale, self.scale * min(self.smallest.lr.shape[:2])
        if crop <= 0 or crop % scale or crop > largest:
            name = self.smallest.name
            raise ValueError(f"crop is {crop}: give a multiple of {scale} up to {largest}, as {name} allows.")
        rng = np.random.default_rng((seed, index))
        row = self.rows[rng.integers(len(self.rows))]
        at = draw_crop(*row.lr.shape[:2], crop // scale, rng, halve=False)
        enlarged = Crop(scale * at.top, scale * at.left, crop, at.step, at.mirrored, at.turns)
        sample = sample_of(index, cut(row.lr, at), cut(row.target, enlarged), cut(row.hr, enlarged))
        if row.realistic is not None:
            sample["realistic"] = to_tensor(cut(row.realistic, enlarged))
        return sample


def pictures_under(folder: Path) -> dict[str, Path]:
    """The picture files under a folder by their names less the suffix; raises as `paired_photos`."""
    paths = by_stem(photo_paths(folder))
    if not paths:
        raise FileNotFoundError(f"no picture under {folder}: give a folder of JPEG, PNG or WebP files.")
    return paths


def read_row(name: str, paths: Sequence[Path], scale: int) -> Row | None:
    """LR, restorer's picture and ground truth, if all can be read."""
    pictures = [read_photo(path) for path in paths]
    if any(picture is None for picture in pictures):
        return None
    lr, *large = (picture for picture in pictures if picture is not None)
    for path, picture in zip(paths[1:], large, strict=True):
        if picture.shape[:2] != (scale * lr.shape[0], scale * lr.shape[1]):
            size, wanted = f"{picture.shape[1]}x{picture.shape[0]}", f"{scale * lr.shape[1]}x{scale * lr.shape[0]}"
            raise ValueError(f"{path} is {size} px, but {scale} times its LR is {wanted}: give pictures that fit.")
    return Row(name, lr, large[0], large[min(1, len(large) - 1)], large[2] if len(large) > 2 else None)


def paired_photos(
    lr: Path, targets: Path, hr: Path | None = None, realistic: Path | None = None, scale: int = SCALE
) -> PairedFolder:
    """Reads LR pictures and, of the same stems, those that restorers made of them (CTSR's endpoints).

    Args:
        lr: folder of LR pictures.
        targets: folder of the restorer's pictures, `scale` times as large.
        hr: folder of the true pictures, if there are any.
        realistic: folder of a realistic restorer's pictures beside them; needs `hr`.
        scale: side of theirs / side of an LR picture.

    Returns:
        All of it in memory; rows with a picture that cannot be read are skipped, counted and named.

    Raises:
        FileNotFoundError: a folder has no picture, or none of the stem of an LR picture.
        ValueError: a picture is not `scale` times as large as its LR, or two of a folder differ in the suffix alone.
    """
    folders = [folder for folder in (lr, targets, hr, realistic) if folder is not None]
    files = [pictures_under(folder) for folder in folders]
    for folder, paths in zip(folders[1:], files[1:], strict=True):
        missing = sorted(files[0].keys() - paths.keys())
        if missing:
            raise FileNotFoundError(f"{folder} lacks {len(missing)} pictures of {lr}: {', '.join(missing)}.")
    rows = {name: read_row(name, [paths[name] for paths in files], scale) for name in files[0]}
    skipped = tuple(name for name, row in rows.items() if row is None)
    if skipped:
        logger.warning("skipped %d of which a picture cannot be read: %s", len(skipped), ", ".join(skipped))
    if len(skipped) == len(rows):
        raise FileNotFoundError(f"no readable pair in {lr} and {targets}: give folders of whole pictures.")
    return PairedFolder(tuple(row for row in rows.values() if row is not None), skipped, scale)
