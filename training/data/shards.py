"""Photographs in WebDataset shards, for sets that do not fit in memory, and training pairs from them.

    python -m training.data.shards write --photos PHOTOS --out SHARDS --per-shard 100

A shard is a tar file with one member a photograph, the file's own bytes. The global sequence of shards is endless:
shard number k = 0, 1, 2, ... is entry k mod N of the permutation of epoch k // N, for N shards. It is dealt out to the
consumers, which are all workers of all processes: consumer c takes every k with k mod consumers = c. A sample depends
on the seed, on k and on its position in the shard, so not on who reads it.
"""

import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import tyro
import webdataset as wds
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info
from webdataset.tariterators import tarfile_samples

from training.data.pairs import Pairs, pair_of
from training.data.photos import SUFFIXES, is_held_back, photo_paths, read_photo
from training.engine.run import Run
from training.engine.sources import Sample, load_ahead, to_device

logger = logging.getLogger(__name__)

POSITIONS = 2**20  # of a shard; a sample's number is k * POSITIONS + position


def key_of(number: int, name: str) -> str:
    """A photograph's key: unlike all others, and without dots, at which WebDataset would cut it."""
    stem = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "_" for c in name.rpartition(".")[0])
    return f"{number:08d}-{stem[-60:]}"


def write(photos: Path, out: Path, per_shard: int = 100) -> None:
    """Packs the photographs to train on into shards, without the held-back ones.

    They are dealt out in a random order, so that a shard is a mixture, and evenly, so that consumers keep pace. Files
    that cannot be read are skipped, counted and named.

    Args:
        photos: folder of JPEG, PNG or WebP files.
        out: folder for the shards.
        per_shard: at most so many photographs in each.

    Raises:
        FileExistsError: `out` holds shards already.
        FileNotFoundError: there is no readable photograph.
    """
    if any(out.glob("*.tar")):
        raise FileExistsError(f"{out} holds shards already: give an empty folder.")
    paths = {name: path for name, path in photo_paths(photos).items() if not is_held_back(name)}
    readable = [name for name, path in paths.items() if read_photo(path) is not None]
    skipped = sorted(paths.keys() - set(readable))
    if skipped:
        logger.warning("skipped %d unreadable: %s", len(skipped), ", ".join(skipped))
    if not readable:
        raise FileNotFoundError(f"no photograph to train on under {photos}: give a folder of JPEG, PNG or WebP files.")
    out.mkdir(parents=True, exist_ok=True)
    order = np.random.default_rng(0).permutation(len(readable))
    shards = np.array_split(order, -(-len(readable) // per_shard))
    for number, members in enumerate(shards):
        write_shard(out / f"{number:06d}.tar", {readable[i]: paths[readable[i]] for i in members})
    logger.info("wrote %d photographs in %d shards to %s", len(readable), len(shards), out)


def write_shard(path: Path, members: Mapping[str, Path]) -> None:
    """One shard of photographs by name; written beside `path`, then renamed."""
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file, wds.TarWriter(file, mtime=0) as tar:
        for position, (name, photo) in enumerate(members.items()):
            tar.write({"__key__": key_of(position, name), photo.suffix[1:].lower(): photo.read_bytes()})
    partial.rename(path)


def read_shard(path: Path) -> Iterator[tuple[str, NDArray[np.uint8] | None]]:
    """Names and pictures [H, W, 3] of a shard, None for what cannot be read; of a damaged shard what comes before."""
    for entry in tarfile_samples([{"url": str(path)}], handler=wds.warn_and_continue):
        picture = next((value for key, value in entry.items() if f".{key}" in SUFFIXES), None)
        yield entry["__key__"], None if picture is None else read_photo(io.BytesIO(picture))


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

    Photographs that are smaller than the crop or cannot be read are skipped, counted and, once by each consumer, named.

    Args:
        shards: tar files, in the same order in every process and after every stop.
        pairs: how low-resolution twins are made.
        rank: of this process.
        world: number of processes.
        first_shard: number of the shard to start at, see `resume_shard`.

    Raises:
        FileNotFoundError: a shard is missing, or none is given.
    """

    def __init__(self, shards: Sequence[str | Path], pairs: Pairs, rank: int = 0, world: int = 1, first_shard: int = 0):
        self.shards = [Path(shard) for shard in shards]
        missing = [str(shard) for shard in self.shards if not shard.is_file()]
        if missing or not self.shards:
            raise FileNotFoundError(f"missing shards: {', '.join(missing) or 'none given'}; write some with `write`.")
        self.pairs, self.rank, self.world, self.first_shard = pairs, rank, world, first_shard
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

    def samples(self, k: int) -> Iterator[Sample]:
        """Of shard number `k`."""
        path = self.path(k)
        for position, (name, pixels) in enumerate(read_shard(path)):
            if pixels is None or min(pixels.shape[:2]) < self.pairs.crop:
                self.skip(f"{path.name}/{name}")
                continue
            rng = np.random.default_rng((self.pairs.seed, k, position))
            yield {**pair_of(pixels, self.pairs, k * POSITIONS + position, rng), "shard": torch.tensor(k)}

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
    """

    def __init__(self, shards: Sequence[str | Path], pairs: Pairs):
        self.shards, self.pairs = shards, pairs
        self.latest: dict[int, int] = {}

    def batches(
        self, run: Run, start: int, latest_shards: Mapping[int, int], rank: int, world: int
    ) -> Iterator[Sample]:
        """Endless, from `resume_shard(latest_shards)` on, whatever the step."""
        first = resume_shard(latest_shards)
        self.latest = dict.fromkeys(range(world * max(1, run.workers)), first)
        return load_ahead(ShardPairs(self.shards, self.pairs, rank, world, first), run)

    def on_device(self, batch: Sample, device: torch.device) -> Sample:
        """The batch, moved."""
        return to_device(batch, device)

    def consumers(self, batch: Mapping[str, Tensor]) -> Mapping[int, int]:
        """The latest shard of every consumer so far, `batch["shard"]` (of all processes) included."""
        for k in batch["shard"].tolist():
            consumer = k % len(self.latest)
            self.latest[consumer] = max(k, self.latest[consumer])
        return dict(self.latest)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    tyro.extras.subcommand_cli_from_dict({"write": write})
