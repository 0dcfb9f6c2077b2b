"""Training pairs from photographs in WebDataset shards, for sets that do not fit in memory; `shard_writer` makes them.

The global sequence of shards is endless: shard number k = 0, 1, 2, ... is entry k mod N of the permutation of epoch
k // N, for N shards. It is dealt out to the consumers, which are all workers of all processes: consumer c takes every k
with k mod consumers = c. Of each photograph several crops are taken every time that it is decoded, and those of a shard
are mixed. A sample depends on the seed, on k and on its number in the shard, so not on who reads it.
"""

import io
import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import webdataset as wds
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info
from webdataset.tariterators import tarfile_samples

from training.data.degradation_batched import draw_plan, samples_of
from training.data.pairs import Pairs, pair_of
from training.data.photos import HALVED, SUFFIXES, random_crop, read_halved, read_photo
from training.data.shard_writer import COMMAND
from training.engine.run import Run
from training.engine.sources import Sample, load_ahead, to_device

logger = logging.getLogger(__name__)

Pixels = NDArray[np.uint8]

POSITIONS = 2**20  # of a shard; a sample's number is k * POSITIONS + its own in the shard
MIXED = 16  # photographs whose crops are mixed
LARGE = 1000  # px of the shorter side of a photograph that may be taken at half size


def read_shard(path: Path) -> Iterator[tuple[str, bytes | None]]:
    """Names and files of a shard, None for what is no photograph; of a damaged shard what comes before."""
    for entry in tarfile_samples([{"url": str(path)}], handler=wds.warn_and_continue):
        yield entry["__key__"], next((value for key, value in entry.items() if f".{key}" in SUFFIXES), None)


def decode(data: bytes, crop: int, rng: np.random.Generator) -> Pixels | None:
    """A photograph [H, W, 3], three in ten of the large ones at half size; None if it is unreadable or too small."""
    is_half = rng.random() < HALVED
    pixels = read_halved(io.BytesIO(data), max(crop, LARGE // 2)) if is_half else read_photo(io.BytesIO(data))
    return None if pixels is None or min(pixels.shape[:2]) < crop else pixels


@dataclass(frozen=True)
class CropOf:
    """A crop [S, S, 3] of a photograph, the number of the sample that it becomes, and where its randomness is from."""

    number: int
    pixels: Pixels
    rng: np.random.Generator


def resume_shard(latest: Mapping[int, int]) -> int:
    """Where to start again after a stop.

    A consumer reads its shards in order, so all of its shards before the latest of which a sample was seen are done.
    What comes before the earliest of these is done by everyone; from there on nothing is lost, and no more is repeated
    than what lies between the slowest and the fastest consumer. The numbers mean the same whatever the number of
    consumers, so a run may be resumed with another one.

    Args:
        latest: the latest shard number seen from each consumer. All consumers must be in it: for one of which nothing
            has been seen yet, the `first_shard` of the run.

    Returns:
        `first_shard` for `ShardPairs`; 0 where there is nothing to go by.
    """
    return min(latest.values(), default=0)


class ShardPairs(IterableDataset[Sample]):
    """An endless stream of samples like those of `pairs.make_pair`, with `shard`, their shard's number k.

    With `degraded=False` a sample is `sharp` alone, [3, crop, crop] uint8, with `index` and `shard`. Photographs that
    are smaller than the crop or cannot be read are skipped, counted and, once by each consumer, named.

    Args:
        shards: tar files, in the same order in every process and after every stop.
        pairs: how low-resolution twins are made.
        rank: of this process.
        world: number of processes.
        first_shard: number of the shard to start at, see `resume_shard`.
        crops: taken of a photograph each time that it is decoded.
        degraded: whether the low-resolution twins are made here.

    Raises:
        FileNotFoundError: a shard is missing, or none is given.
    """

    def __init__(
        self,
        shards: Sequence[str | Path],
        pairs: Pairs,
        rank: int = 0,
        world: int = 1,
        first_shard: int = 0,
        crops: int = 1,
        degraded: bool = True,
    ):
        self.shards = [Path(shard) for shard in shards]
        missing = [str(shard) for shard in self.shards if not shard.is_file()]
        if missing or not self.shards:
            raise FileNotFoundError(
                f"missing shards: {', '.join(missing) or 'none given'}; write some with `{COMMAND}`."
            )
        self.pairs, self.rank, self.world, self.first_shard = pairs, rank, world, first_shard
        self.crops, self.degraded = crops, degraded
        self.skipped: set[str] = set()

    def path(self, k: int) -> Path:
        """Of shard number `k` of the global sequence."""
        epoch, place = divmod(k, len(self.shards))
        return self.shards[np.random.default_rng((self.pairs.seed, epoch)).permutation(len(self.shards))[place]]

    def skip(self, name: str) -> None:
        """Named at the first meeting."""
        if name not in self.skipped:
            self.skipped.add(name)
            logger.warning("skipped %d so far, unreadable or too small: now %s", len(self.skipped), name)

    def crops_of(self, k: int) -> Iterator[CropOf]:
        """Of shard number `k`, photograph by photograph."""
        path = self.path(k)
        for position, (name, data) in enumerate(read_shard(path)):
            drawn = np.random.default_rng((self.pairs.seed, k, position))
            pixels = None if data is None else decode(data, self.pairs.crop, drawn)
            if pixels is None:
                self.skip(f"{path.name}/{name}")
                continue
            for rng, number in zip(drawn.spawn(self.crops), range(position * self.crops, POSITIONS), strict=False):
                yield CropOf(k * POSITIONS + number, random_crop(pixels, self.pairs.crop, rng, halve=False), rng)

    def samples(self, k: int) -> Iterator[Sample]:
        """Of shard number `k`, mixed."""
        mixed = wds.filters.shuffle(
            MIXED * self.crops, initial=MIXED * self.crops, rng=random.Random(f"{self.pairs.seed} {k}")
        )
        for crop in mixed(self.crops_of(k)):
            yield {**self.sample_of(crop), "shard": torch.tensor(k)}

    def sample_of(self, crop: CropOf) -> Sample:
        """A crop with its twin, or as it is."""
        if self.degraded:
            return pair_of(crop.pixels, self.pairs, crop.number, crop.rng)
        return {"index": torch.tensor(crop.number), "sharp": torch.from_numpy(crop.pixels).permute(2, 0, 1)}

    def __iter__(self) -> Iterator[Sample]:
        worker = get_worker_info()
        workers, number = (1, 0) if worker is None else (worker.num_workers, worker.id)
        consumers, consumer = self.world * workers, self.rank * workers + number
        k = self.first_shard + (consumer - self.first_shard) % consumers
        barren = 0
        while barren < len(self.shards):
            barren += 1
            for sample in self.samples(k):
                barren = 0
                yield sample
            k += consumers
        raise ValueError(f"no photograph of {self.pairs.crop} px or more in {barren} shards: take a smaller crop.")


class ShardSource:
    """Shards as a `sources.Source`.

    Args:
        shards: tar files.
        pairs: how low-resolution twins are made.
        crops: taken of a photograph each time that it is decoded.
        on_device: make the twins where the batch trains, not in the workers.
    """

    def __init__(self, shards: Sequence[str | Path], pairs: Pairs, crops: int = 1, on_device: bool = False):
        self.shards, self.pairs, self.crops, self.degrades_on_device = shards, pairs, crops, on_device
        self.latest: dict[int, int] = {}

    def batches(
        self, run: Run, start: int, latest_shards: Mapping[int, int], rank: int, world: int
    ) -> Iterator[Sample]:
        """Endless, from `resume_shard(latest_shards)` on, whatever the step."""
        first = resume_shard(latest_shards)
        self.latest = dict.fromkeys(range(world * max(1, run.workers)), first)
        pairs = ShardPairs(self.shards, self.pairs, rank, world, first, self.crops, not self.degrades_on_device)
        return load_ahead(pairs, run)

    def on_device(self, batch: Sample, device: torch.device) -> Sample:
        """The batch, moved, and degraded there where asked."""
        batch = to_device(batch, device)
        if not self.degrades_on_device:
            return batch
        plans = [draw_plan(self.pairs, np.random.default_rng((self.pairs.seed, i))) for i in batch["index"].tolist()]
        return {"shard": batch["shard"]} | samples_of(batch["index"], batch["sharp"].float(), plans)

    def note_shards(self, batch: Mapping[str, Tensor]) -> Mapping[int, int]:
        """The latest shard of every consumer so far, `batch["shard"]` (of all processes) included."""
        for k in batch["shard"].tolist():
            consumer = k % len(self.latest)
            self.latest[consumer] = max(k, self.latest[consumer])
        return dict(self.latest)
