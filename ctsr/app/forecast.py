"""Sizes of the results of a run, from the headers of its pictures, for `ctsr plan`."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import ImageReadError
from ..images.header import read_header
from ..images.tensors import check_size
from .jobs import find_pictures
from .options import Options


def result_sizes(inputs: Sequence[Path], frames: str | None, options: Options) -> list[tuple[int, int]]:
    """Height and width of each result.

    Args:
        inputs: pictures, and folders that are searched with their subfolders.
        frames: "NxWxH", so many pictures of a size.
        options: scale or size, and checks.

    Raises:
        ValueError: nothing to plan, or a size that cannot be.
        ImageReadError: a picture whose size cannot be read.
    """
    shapes = [shape for path in inputs for shape in shapes_of(path)]
    if frames is not None:
        shapes += parse_frames(frames)
    if not shapes:
        raise ValueError("Nothing to plan: name pictures or folders, or give --frames such as 240x640x360.")
    sizes = [options.size.of(*shape) for shape in shapes]
    for size in sizes:
        check_size(*size)
    return sizes


def shapes_of(path: Path) -> Iterator[tuple[int, int]]:
    """Height and width of a file's pictures, or of all in a folder that can be read."""
    for picture in find_pictures(path, Path()) if path.is_dir() else [path]:
        try:
            header = read_header(picture)
        except ImageReadError:
            if not path.is_dir():
                raise
            continue  # the run reports it and goes on
        yield from [(header.height, header.width)] * header.frames


def parse_frames(text: str) -> list[tuple[int, int]]:
    """Sizes from "240x640x360"; raises ValueError."""
    match = re.fullmatch(r"\s*(\d{1,7})\s*[xX×]\s*(\d{1,9})\s*[xX×]\s*(\d{1,9})\s*", text)
    if match is None or 0 in map(int, match.groups()):
        raise ValueError(f"--frames takes a count, a width and a height, such as 240x640x360, not {text!r}.")
    return [(int(match[3]), int(match[2]))] * int(match[1])
