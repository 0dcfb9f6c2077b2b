"""Training pairs to look at: a grid of LR pictures, the same enlarged, and the photographs.

python -m training.data.preview --photos PHOTOS --out grid.png --pairs.degradation camera --pairs.crop 192
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from einops import rearrange
from PIL import Image
from torch import Tensor

from training.data.degradation_batched import PairsOnDevice
from training.data.pairs import Pairs, make_pair
from training.data.photos import Photos, load_photos
from training.engine.sources import Sample


@dataclass(frozen=True)
class Preview:
    """What to show.

    Attributes:
        photos: folder of photographs.
        out: the picture to write; its rows are LR (enlarged by repeating pixels), LR enlarged bicubically, photograph.
        pairs: how low-resolution twins are made.
        count: columns.
        seed: other numbers show other samples.
        device_path: make the pairs as batches on the device, not one by one by NumPy. Both take the same crops.
    """

    photos: Path
    out: Path
    pairs: Pairs = field(default_factory=Pairs)
    count: int = 8
    seed: int = 0
    device_path: bool = False


def make_batch(photos: Photos, preview: Preview) -> Sample:
    """`preview.count` samples, on the CPU."""
    index = torch.from_numpy(np.random.default_rng(preview.seed).integers(2**31, size=preview.count))
    if preview.device_path:
        device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
        return {name: tensor.cpu() for name, tensor in PairsOnDevice(photos, preview.pairs, device)(index).items()}
    samples = [make_pair(photos, preview.pairs, number) for number in index.tolist()]
    return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}


def grid(batch: Sample) -> Tensor:
    """Three rows, one column a sample: [3 * crop, B * crop, 3] uint8."""
    lr = batch["lr"]
    size = batch["sharp"].shape[2:]
    repeated = F.interpolate(lr, size=size, mode="nearest")
    rows = torch.stack([repeated, F.interpolate(lr, size=size, mode="bicubic"), batch["sharp"]])
    return rearrange((rows.clamp(-1, 1) + 1) * 127.5, "row b c h w -> (row h) (b w) c").round().byte()


def main(preview: Preview) -> None:
    """Writes the grid."""
    batch = make_batch(load_photos(preview.photos, min_side=max(256, preview.pairs.crop)), preview)
    Image.fromarray(grid(batch).numpy()).save(preview.out)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main(tyro.cli(Preview))
