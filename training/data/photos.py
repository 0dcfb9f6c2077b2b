"""The photographs: one folder, decoded once into memory as uint8, with a fixed part held back for choosing models."""

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

logger = logging.getLogger(__name__)

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
# What Pillow raises on files that are damaged, cut off or made to do harm.
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


@dataclass(frozen=True)
class Photos:
    """`train` and `held_back`: pictures [H, W, 3] uint8 by name; `skipped`: files that could not be read."""

    train: dict[str, NDArray[np.uint8]]
    held_back: dict[str, NDArray[np.uint8]]
    skipped: tuple[str, ...]


@dataclass(frozen=True)
class Crop:
    """Where a square of `size` px is cut from a picture, and how it is turned.

    Attributes:
        top: first row.
        left: first column.
        size: side of the result.
        step: 2 cuts a square twice as large and halves it.
        mirrored: left and right change places.
        turns: quarter turns, after mirroring.
    """

    top: int
    left: int
    size: int
    step: int
    mirrored: bool
    turns: int


def is_held_back(name: str) -> bool:
    """One photograph in twelve, by the hash of its name, whatever else lies in the folder."""
    return hashlib.sha256(name.encode()).digest()[0] < 256 // 12


def photo_paths(folder: Path) -> dict[str, Path]:
    """Every picture file under `folder` by its name, the path relative to the folder, in order of the paths."""
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    return {path.relative_to(folder).as_posix(): path for path in paths}


def read_photo(file: Path | IO[bytes]) -> NDArray[np.uint8] | None:
    """[H, W, 3] uint8, upright; None where the file is not a whole picture."""
    try:
        with Image.open(file) as image:
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except UNREADABLE:
        return None


def load_photos(folder: Path, min_side: int = 256, training: bool = True) -> Photos:
    """Reads the photographs under `folder`; unreadable and too small ones are skipped, counted and named.

    Args:
        folder: read with all folders in it.
        min_side: px of the shorter side of one that is large enough.
        training: those to train on too, else only those held back.

    Raises:
        FileNotFoundError: there is none to train on, and there should be.
    """
    train: dict[str, NDArray[np.uint8]] = {}
    held_back: dict[str, NDArray[np.uint8]] = {}
    skipped: list[str] = []
    for name, path in photo_paths(folder).items():
        if not training and not is_held_back(name):
            continue
        pixels = read_photo(path)
        if pixels is None or min(pixels.shape[:2]) < min_side:
            skipped.append(name)
            continue
        (held_back if is_held_back(name) else train)[name] = pixels
    if skipped:
        logger.warning("skipped %d unreadable or too small: %s", len(skipped), ", ".join(skipped))
    if training and not train:
        raise FileNotFoundError(f"no photograph to train on under {folder}: give a folder of JPEG, PNG or WebP files")
    return Photos(train, held_back, tuple(skipped))


def draw_crop(height: int, width: int, size: int, rng: np.random.Generator, halve: bool = True) -> Crop:
    """A crop anywhere in a picture, mirrored and turned at random.

    Args:
        height: of the picture.
        width: of the picture.
        size: side of the crop.
        rng: where all randomness comes from.
        halve: three in ten crops of a picture of more than 1000 px are taken at half size.

    Raises:
        ValueError: the crop does not fit.
    """
    side = min(height, width)
    if side < size:
        raise ValueError(f"a crop of {size} px does not fit in a picture of {width}x{height}: leave small ones out.")
    step = 2 if halve and side >= 2 * size and side > 1000 and rng.random() < 0.3 else 1
    top, left = int(rng.integers(0, height - step * size + 1)), int(rng.integers(0, width - step * size + 1))
    return Crop(top, left, size, step, bool(rng.random() < 0.5), int(rng.integers(0, 4)))


def cut(pixels: NDArray[np.uint8], crop: Crop) -> NDArray[np.uint8]:
    """The crop of a picture [H, W, 3], as [size, size, 3]."""
    side = crop.step * crop.size
    square = pixels[crop.top : crop.top + side, crop.left : crop.left + side]
    if crop.step == 2:
        halved = Image.fromarray(square).resize((crop.size, crop.size), Image.Resampling.LANCZOS)
        square = np.asarray(halved)
    if crop.mirrored:
        square = square[:, ::-1]
    return np.ascontiguousarray(np.rot90(square, crop.turns))


def random_crop(pixels: NDArray[np.uint8], size: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A square crop [size, size, 3], mirrored and turned at random; of a large one, three in ten at half size."""
    return cut(pixels, draw_crop(*pixels.shape[:2], size, rng))
