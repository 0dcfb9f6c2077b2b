"""How many training samples a processor core makes, and what a million photographs cost before the first of them.

    python -m benchmarks.loader --photos PHOTOS

Samples a second of one core, from photographs in memory and from shards, by crops taken of each decoded photograph and
by where they are degraded; then the index of 10,000 shards and the choice of the held-back ones among a million names.
"""

import json
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import torch
import tyro

from training.data.pairs import Pairs, make_pair
from training.data.photos import held_back_names, load_photos
from training.data.shard_writer import INDEX, Shard, read_index, write
from training.data.shards import ShardPairs
from training.engine.sources import Sample

MILLION, PER_SHARD = 1_000_000, 100


def rate(samples: Iterator[Sample], count: int) -> float:
    """Samples a second, without the first two."""
    list(islice(samples, 2))
    started = time.perf_counter()
    list(islice(samples, count))
    return count / (time.perf_counter() - started)


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds that it takes, and MiB by which the peak memory of the process grows."""
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    work()
    return time.perf_counter() - started, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def throughput(photos: Path, shards: Path, pairs: Pairs, count: int) -> None:
    """A table of samples a second."""
    loaded = load_photos(photos)
    print(f"crop {pairs.crop}, {pairs.degradation}")
    print(f"  memory                 {rate(iter(make_pair(loaded, pairs, i) for i in range(10**9)), count):8.1f}")
    paths = sorted(shards.glob("*.tar"))
    for crops in (1, 4, 16):
        for degraded, where in ((True, "workers"), (False, "device")):
            source = ShardPairs(paths, pairs, crops=crops, degraded=degraded)
            print(f"  shards, {crops:2d} crops, {where:8s} {rate(iter(source), count):6.1f}")


def million(folder: Path) -> None:
    """Figures of a million photographs."""
    names = [f"{number // 1000:04d}/{number:07d}.jpg" for number in range(MILLION)]
    seconds, grown = timed(lambda: held_back_names(names))
    print(f"held back among a million names: {seconds:.2f} s, {grown:.0f} MiB")
    shards = [asdict(Shard(f"{number:06d}.tar", PER_SHARD, 50_000_000)) for number in range(MILLION // PER_SHARD)]
    (folder / INDEX).write_text(json.dumps({"shards": shards, "held_back": []}), encoding="utf-8")
    seconds, grown = timed(lambda: read_index(folder))
    print(f"index of {len(shards)} shards: {seconds:.2f} s, {grown:.0f} MiB")
    for shard in shards:
        (folder / shard["name"]).touch()
    pairs = timed(lambda: ShardPairs([folder / shard["name"] for shard in shards], Pairs()))
    print(f"a loader over them: {pairs[0]:.2f} s, {pairs[1]:.0f} MiB")


def main(photos: Path, crop: int = 128, count: int = 200) -> None:
    """Prints the tables.

    Args:
        photos: folder of photographs.
        crop: side of a training picture in px.
        count: samples measured.
    """
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        started = time.perf_counter()
        write(photos, folder / "shards", per_shard=50, threads=1)
        written = sum(shard.photographs for shard in read_index(folder / "shards").shards)
        print(f"writing: {1000 * (time.perf_counter() - started) / written:.1f} ms a photograph, one thread")
        for degradation in ("camera", "realesrgan"):
            throughput(photos, folder / "shards", Pairs(crop=crop, degradation=degradation), count)
        (folder / "million").mkdir()
        million(folder / "million")


if __name__ == "__main__":
    tyro.cli(main)
