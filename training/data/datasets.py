"""What a stage trains on: photographs in memory, or shards."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from glob import glob
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from torch import nn

from training.data.degradation_batched import PairsOnDevice
from training.data.pairs import SOFTEST, Pairs, held_back_pairs, make_pair, paired_photos, timestep_of
from training.data.photos import Photos, load_photos
from training.data.shard_writer import COMMAND, HELD_BACK, INDEX, check_index, read_index
from training.data.shards import ShardSource
from training.engine.processes import total
from training.engine.run import own_device, own_share
from training.engine.sources import ByNumber, Sample, Source

SMALLEST = 256  # px of the shorter side of a photograph that is used


@dataclass(frozen=True)
class Data:
    """Where the pictures come from.

    Attributes:
        photos: folder of photographs, of which one in twelve, but at most 128, are held back; or a folder of shards
            that `training.data.shard_writer` made, whose held-back ones lie beside them.
        shards: pattern of other WebDataset shards to train on, such as "SHARDS/*.tar"; those of `photos` that are held
            back are scored.
        pairs: how low-resolution twins are made.
        degrade_on: "workers", processes on the CPU, or "device", in batches; photographs of a folder are then kept in
            the device's memory as uint8.
        crops: taken of a photograph each time that it is decoded from a shard.
    """

    photos: Path
    shards: str | None = None
    pairs: Pairs = field(default_factory=Pairs)
    degrade_on: Literal["workers", "device"] = "workers"
    crops: int = 4

    def __post_init__(self) -> None:
        if self.crops < 1:
            raise ValueError(f"crops is {self.crops}: give 1 or more of each photograph.")

    @property
    def has_index(self) -> bool:
        """Whether `photos` is a folder of shards."""
        return (self.photos / INDEX).is_file()


def mini_data() -> Data:
    """The mini's: 128 px, four of five by a camera model."""
    return Data(photos=tyro.MISSING, pairs=Pairs(crop=128))


def mini2_data(softness: float = SOFTEST) -> Data:
    """ctsr-mini 2's: ground truths from crisp to `softness` px, which the timestep tells, and some bicubic twins."""
    return Data(photos=tyro.MISSING, pairs=Pairs(crop=128, softness=softness, camera_share=0.7, bicubic_share=0.05))


def lowlight_data() -> Data:
    """Low light's: at the picture's own size, the photograph itself as ground truth, and some that are light enough.

    160 px: how dark a place should be is seen around it, and the network sees 92 px on each side.
    """
    pairs = Pairs(crop=160, task="lowlight", scale=1, softness=0.0, bicubic_share=0.05)
    return Data(photos=tyro.MISSING, pairs=pairs)


def sd21_data() -> Data:
    """The papers': 512 px, heavy degradation, the photograph itself as ground truth."""
    return Data(photos=tyro.MISSING, pairs=Pairs(crop=512, degradation="realesrgan", softness=0.0))


def open_source(data: Data, photos: Photos) -> Source:
    """Batches with `index` and `timestep` [B], `lr` [B, 3, h, w], `soft` and `sharp` [B, 3, H, W], see `pairs`."""
    if data.shards is not None or data.has_index:
        return ShardSource(shard_paths(data), data.pairs, data.crops, data.degrade_on == "device")
    if data.degrade_on == "device":
        on_device = PairsOnDevice(photos, data.pairs, own_device())
        return ByNumber(lambda index: {}, lambda batch: on_device(batch["index"]))
    return ByNumber(lambda index: make_pair(photos, data.pairs, index))


def shard_paths(data: Data) -> list[str | Path]:
    """The shards to train on, in order.

    Raises:
        FileNotFoundError: the pattern matches none.
        ValueError: one of the index is missing or cut off.
    """
    if data.shards is None:
        shards = read_index(data.photos).shards
        check_index(data.photos, shards)
        return [data.photos / shard.name for shard in shards]
    paths = sorted(glob(data.shards))
    if not paths:
        raise FileNotFoundError(f"no shard matches {data.shards}: write some with `{COMMAND}`.")
    return [*paths]


def restored_source(data: Data, lr: Path, restored: Path, hr: Path | None, realistic: Path | None = None) -> Source:
    """Batches from pictures that other restorers made, as `soft` and `realistic`; see `pairs.paired_photos`."""
    pictures = paired_photos(lr, restored, hr, realistic, data.pairs.scale)
    return ByNumber(lambda index: pictures.make(index, data.pairs.crop, data.pairs.seed))


def taught_source(data: Data, photos: Photos, folders: tuple[Path, Path, Path, Path], share: float) -> Source:
    """As `open_source`, with `realistic` and `faithful` [B, 3, H, W] in [-1, 1] beside: what each end is to draw.

    Args:
        data: of the degraded photographs, which are their own aims.
        photos: in memory; those of shards are not.
        folders: pictures of LR, HR, and what a realistic and a faithful restorer made of LR; told to be as crisp as
            photographs are.
        share: of samples that come from these, 0 to 1.

    Raises:
        ValueError: another share, or photographs are asked for that are not in memory, or to be degraded on the device.
        FileNotFoundError: as `paired_photos`.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"the share of taught pictures is {share}: give one from 0 to 1.")
    if share < 1 and (not photos.train or data.degrade_on == "device"):
        raise ValueError(
            "Photographs beside taught pictures come from a folder and are degraded by workers: give a folder of them "
            "and --data.degrade-on workers, or --taught-share 1."
        )
    lr, hr, realistic, faithful = folders
    pictures = paired_photos(lr, faithful, hr, realistic, data.pairs.scale)

    def make(index: int) -> Sample:
        if np.random.default_rng((data.pairs.seed, 2, index)).random() >= share:
            sample = make_pair(photos, data.pairs, index)
            return {**sample, "realistic": sample["soft"], "faithful": sample["soft"]}
        sample = pictures.make(index, data.pairs.crop, data.pairs.seed)
        known = {"timestep": torch.tensor(timestep_of(0.0)), "faithful": sample["soft"], "soft": sample["sharp"]}
        return {**sample, **known}

    return ByNumber(make)


def open_photos(data: Data) -> tuple[Photos, list[Sample]]:
    """The photographs, where training reads no shards, and this process's share of the held-back ones as fixed pairs.

    Raises:
        ValueError: none is held back, so nothing could be scored.
    """
    smallest = max(SMALLEST, data.pairs.crop)
    if data.has_index:
        names = read_index(data.photos).held_back
        photos = Photos({}, {name: data.photos / HELD_BACK / name for name in names}, min_side=smallest)
    else:
        photos = load_photos(data.photos, smallest, training=data.shards is None)
    rank, world = own_share()
    pairs = held_back_pairs(photos, data.pairs, rank=rank, world=world)
    check_held_back(total(len(pairs)), data.photos)
    return photos, pairs


def check_held_back(count: int, folder: Path) -> None:
    """Raises ValueError if none of the photographs of the folder could be held back."""
    if not count:
        raise ValueError(
            f"no photograph under {folder} that is large enough is held back (one in twelve is, by its name): add some."
        )


def batches_of_one(pairs: Sequence[Sample], module: nn.Module) -> Iterator[Sample]:
    """Each pair as a batch [1, ...] on the device of `module`."""
    device = next(module.parameters()).device
    for pair in pairs:
        yield {name: tensor[None].to(device) for name, tensor in pair.items()}
