"""The pattern that lies on every picture of a folder at the same places of an 8x8 px grid, in levels of 255.

    python benchmarks/fixed_pattern.py DIR [DIR ...] [--pictures 20]

One line a folder: the peak over positions and channels, and the folder; of photographs it is about .1.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image

from ctsr.assess.pattern import FixedPattern
from ctsr.images.read import readable_suffixes


def main(folders: Annotated[list[Path], typer.Argument(exists=True, file_okay=False)], pictures: int = 20) -> None:
    """Prints each folder's peak, of its first `pictures` pictures by name."""
    for folder in folders:
        paths = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in readable_suffixes()][:pictures]
        if not paths:
            raise typer.BadParameter(f"no picture in {folder}.")
        pattern = FixedPattern()
        for path in paths:
            pattern.add(np.asarray(Image.open(path).convert("RGB")))
        print(f"{pattern.peak():.3f}  {folder}")


if __name__ == "__main__":
    typer.run(main)
