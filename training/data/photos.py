"""The photographs: one folder, decoded once into memory as uint8, with a fixed part held back for choosing models.

Of every folder one photograph in twelve is held back, by the hash of its name, but never more than `MOST_HELD_BACK`:
those of the lowest hashes. So of a folder that only grows, nothing that is held back now was trained on before. The
held-back ones stay in their files; each is read by the one process that scores it.
"""

import hashlib
import heapq
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

logger = logging.getLogger(__name__)

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
# What Pillow raises on files that are damaged, cut off or made to do harm.
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)

MOST_HELD_BACK = 128
HALVED = 0.3  # of the crops of a large photograph


@dataclass(frozen=True)
class Photos:
    """What is trained on, and what is held back.

    Attributes:
        train: pictures [H, W, 3] uint8 by name.
        held_back: files by name.
        skipped: names of those that could not be read or are too small.
        min_side: px of the shorter side of one that is large enough.
    """

    train: dict[str, NDArray[np.uint8]]
    held_back: dict[str, Path]
    skipped: tuple[str, ...] = ()
    min_side: int = 0

    @cached_property
    def train_pictures(self) -> list[NDArray[np.uint8]]:
        """Those to train on, by number."""
        return list(self.train.values())


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


def hash_of(name: str) -> bytes:
    """What decides whether a photograph is held back, and before which others."""
    return hashlib.sha256(name.encode()).digest()


def is_held_back(name: str) -> bool:
    """Whether a photograph is among the one in twelve, by the hash of its name, of which the held-back ones are."""
    return hash_of(name)[0] < 256 // 12


def held_back_names(names: Iterable[str], most: int = MOST_HELD_BACK) -> list[str]:
    """Names of the photographs held back of a folder: one in twelve, at most `most`, by rising hash."""
    return heapq.nsmallest(most, filter(is_held_back, names), key=hash_of)


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


def read_halved(file: Path | IO[bytes], least: int) -> NDArray[np.uint8] | None:
    """As `read_photo`, at half its size, which a JPEG is decoded at; whole if that has a side under `least` px."""
    try:
        with Image.open(file) as image:
            half = image.width // 2, image.height // 2
            if min(half) < least:
                return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
            image.draft("RGB", half)
            small = image.convert("RGB")
            if small.width > half[0] + 1:  # no JPEG
                small = small.resize(half, Image.Resampling.LANCZOS)
            return np.asarray(ImageOps.exif_transpose(small))
    except UNREADABLE:
        return None


def is_whole(file: IO[bytes]) -> bool:
    """Whether `read_photo` can read a file; of a JPEG, at an eighth of its size, which is faster."""
    try:
        with Image.open(file) as image:
            image.draft("RGB", (image.width // 8, image.height // 8))
            image.load()
            return True
    except UNREADABLE:
        return False


def read_large(file: Path, min_side: int) -> NDArray[np.uint8] | None:
    """As `read_photo`; None also for one whose shorter side is under `min_side` px."""
    pixels = read_photo(file)
    return None if pixels is None or min(pixels.shape[:2]) < min_side else pixels


def warn_of_skipped(names: Iterable[str]) -> None:
    """Counts and names what could not be used."""
    names = list(names)
    if names:
        logger.warning("skipped %d unreadable or too small: %s", len(names), ", ".join(names))


def load_photos(folder: Path, min_side: int = 256, training: bool = True, most: int = MOST_HELD_BACK) -> Photos:
    """Reads the photographs to train on under `folder`, and finds those held back.

    Unreadable and too small ones are skipped, counted and named.

    Args:
        folder: read with all folders in it.
        min_side: px of the shorter side of one that is large enough.
        training: read those to train on, else only find those held back.
        most: so many are held back at most.

    Raises:
        FileNotFoundError: there is none to train on, and there should be.
    """
    paths = photo_paths(folder)
    held_back = {name: paths.pop(name) for name in held_back_names(paths, most)}
    if not training:
        return Photos({}, held_back, min_side=min_side)
    read = {name: read_large(path, min_side) for name, path in paths.items()}
    train = {name: pixels for name, pixels in read.items() if pixels is not None}
    skipped = tuple(name for name in read if name not in train)
    warn_of_skipped(skipped)
    if not train:
        raise FileNotFoundError(f"no photograph to train on under {folder}: give a folder of JPEG, PNG or WebP files")
    return Photos(train, held_back, skipped, min_side)


def fingerprint(photos: Photos) -> str:
    """Of names and sizes, the same on all machines that have the same photographs."""
    digest = hashlib.sha256()
    for name, pixels in photos.train.items():
        digest.update(f"{name} {pixels.shape}".encode())
    for name, path in photos.held_back.items():
        digest.update(f"{name} {path.stat().st_size}".encode())
    return f"{len(photos.train)} and {len(photos.held_back)} held back, {digest.hexdigest()[:16]}"


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
    step = 2 if halve and side >= 2 * size and side > 1000 and rng.random() < HALVED else 1
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


def random_crop(
    pixels: NDArray[np.uint8], size: int, rng: np.random.Generator, halve: bool = True
) -> NDArray[np.uint8]:
    """A square crop [size, size, 3] as `draw_crop` draws it."""
    return cut(pixels, draw_crop(*pixels.shape[:2], size, rng, halve))
