"""`-` as the name of a picture: standard input, and standard output."""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

PIPE = "-"


def take_input(inputs: Sequence[Path], folder: Path) -> list[Path]:
    """The inputs, with standard input, where it is one of them, as a file in `folder`; raises ValueError."""
    if PIPE not in map(str, inputs):
        return list(inputs)
    if sys.stdin.isatty():
        raise ValueError("- is standard input, and nothing comes from there: pipe a picture in, or name a file.")
    path = folder / "stdin"
    with path.open("wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
    return [path if str(item) == PIPE else item for item in inputs]


def output_file(inputs: Sequence[Path], suffix: str, folder: Path) -> Path:
    """A file in `folder` for what will go to standard output; raises ValueError for what cannot."""
    if len(inputs) != 1 or inputs[0].is_dir():
        raise ValueError("-o - takes one picture: name a folder with -o for several.")
    if sys.stdout.isatty():
        raise ValueError("-o - would fill the terminal with a picture: redirect it, or name a file with -o.")
    return folder / f"stdout{suffix}"


def give_output(path: Path) -> None:
    """A file to standard output."""
    with path.open("rb") as file:
        shutil.copyfileobj(file, sys.stdout.buffer)
    sys.stdout.buffer.flush()
