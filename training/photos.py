"""The photographs: one folder, decoded once into memory as uint8, with a fixed part held back for choosing models."""

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

logger = logging.getLogger(__name__)

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


@dataclass(frozen=True)
class Photos:
    """`train` and `held_back`: pictures [H, W, 3] uint8 by name; `skipped`: files that could not be read."""

    train: dict[str, NDArray[np.uint8]]
    held_back: dict[str, NDArray[np.uint8]]
    skipped: tuple[str, ...]


def is_held_back(name: str) -> bool:
    """One photograph in twelve, by the hash of its name, whatever else lies in the folder."""
    return hashlib.sha256(name.encode()).digest()[0] < 256 // 12


def load_photos(folder: Path, min_side: int = 256, limit: int | None = None) -> Photos:
    """Reads every photograph under `folder`; unreadable and too small ones are skipped, counted and named."""
    train: dict[str, NDArray[np.uint8]] = {}
    held_back: dict[str, NDArray[np.uint8]] = {}
    skipped: list[str] = []
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    for path in paths[:limit]:
        name = path.relative_to(folder).as_posix()
        try:
            with Image.open(path) as image:
                pixels = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
        except OSError:
            skipped.append(name)
            continue
        if min(pixels.shape[:2]) < min_side:
            skipped.append(name)
            continue
        (held_back if is_held_back(name) else train)[name] = pixels
    if skipped:
        logger.warning("skipped %d unreadable or too small: %s", len(skipped), ", ".join(skipped))
    if not train:
        raise FileNotFoundError(f"no photograph to train on under {folder}: give a folder of JPEG, PNG or WebP files")
    return Photos(train, held_back, tuple(skipped))


def random_crop(pixels: NDArray[np.uint8], size: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A square crop [size, size, 3], mirrored and turned at random; of a large one, three in ten at half size."""
    step = 2 if min(pixels.shape[:2]) >= 2 * size and min(pixels.shape[:2]) > 1000 and rng.random() < 0.3 else 1
    h, w = pixels.shape[:2]
    top, left = rng.integers(0, h - step * size + 1), rng.integers(0, w - step * size + 1)
    crop = pixels[top : top + step * size, left : left + step * size]
    if step == 2:
        crop = np.asarray(Image.fromarray(crop).resize((size, size), Image.Resampling.LANCZOS))
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    return np.ascontiguousarray(np.rot90(crop, rng.integers(0, 4)))
