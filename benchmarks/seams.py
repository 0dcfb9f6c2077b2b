"""Seams of latent cells: luma steps of neighbouring pixels across the borders of cells over those elsewhere.

    python benchmarks/seams.py DIR [DIR ...] [--cell 8]

One line a folder: the ratio of the two means over all its pictures, and the folder. Without seams it is 1. A cell is
what one latent decodes to: 8x8 px of Stable Diffusion's autoencoder, 4x4 of ctsr-mini 2's.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from PIL import Image

from ctsr.app.metrics import video_luma
from ctsr.images.read import readable_suffixes


def steps(y: NDArray[np.float64], cell: int) -> NDArray[np.float64]:
    """Of luma [H, W], from row to row: sum and number of |changes| across borders, then of those elsewhere."""
    change = np.abs(np.diff(y, axis=0))
    border = np.arange(1, y.shape[0]) % cell == 0
    across, elsewhere = change[border], change[~border]
    return np.array([across.sum(), across.size, elsewhere.sum(), elsewhere.size])


def ratio(folder: Path, cell: int) -> float:
    """Mean step across borders over the mean step elsewhere, in both directions, of all pictures in `folder`."""
    paths = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in readable_suffixes()]
    if not paths:
        raise typer.BadParameter(f"no picture in {folder}.")
    sums = np.zeros(4)
    for path in paths:
        y = video_luma(Image.open(path).convert("RGB"))
        sums += steps(y, cell) + steps(y.T, cell)
    return float((sums[0] / sums[1]) / (sums[2] / sums[3]))


def main(folders: Annotated[list[Path], typer.Argument(exists=True, file_okay=False)], cell: int = 8) -> None:
    """Prints each folder's ratio."""
    for folder in folders:
        print(f"{ratio(folder, cell):.4f}  {folder}")


if __name__ == "__main__":
    typer.run(main)
