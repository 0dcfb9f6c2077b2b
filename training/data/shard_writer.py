"""Photographs packed into WebDataset shards, for sets that do not fit in memory.

    python -m training.data.shard_writer --photos PHOTOS --out SHARDS --per-shard 100

A shard is a tar file with one member a photograph, the file's own bytes. Beside the shards lie `held_back/`, a folder
with the photographs held back, and `index.json`, which is written last: a folder without it is not complete.
"""

import io
import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import tyro
import webdataset as wds

from ctsr.whole_file import whole_file
from training.data.photos import MOST_HELD_BACK, held_back_names, is_whole, photo_paths, warn_of_skipped

logger = logging.getLogger(__name__)

INDEX, HELD_BACK = "index.json", "held_back"
COMMAND = "python -m training.data.shard_writer --photos PHOTOS --out SHARDS"


@dataclass(frozen=True)
class Shard:
    """A line of the index: file name, photographs in it, and its size in bytes."""

    name: str
    photographs: int
    size: int


@dataclass(frozen=True)
class Index:
    """What a folder of shards holds.

    Attributes:
        shards: in order.
        held_back: names of the files in `held_back/`.
    """

    shards: tuple[Shard, ...]
    held_back: tuple[str, ...]


def key_of(number: int, name: str) -> str:
    """A photograph's key: unlike all others, and without dots, at which WebDataset would cut it."""
    stem = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "_" for c in name.rpartition(".")[0])
    return f"{number:08d}-{stem[-60:]}"


def write(
    photos: Path, out: Path, per_shard: int = 100, threads: int | None = None, held_back: int = MOST_HELD_BACK
) -> None:
    """Packs the photographs to train on into shards, and copies those held back.

    They are dealt out in a random order, so that a shard is a mixture, and evenly, so that consumers keep pace. Files
    that cannot be read are skipped, counted and named.

    Args:
        photos: folder of JPEG, PNG or WebP files.
        out: folder for the shards.
        per_shard: at most so many photographs in each.
        threads: that write, a shard each at a time; by default one for every processor.
        held_back: at most so many photographs are held back.

    Raises:
        FileExistsError: `out` holds shards already.
        FileNotFoundError: there is no readable photograph.
    """
    if any(out.glob("*.tar")):
        raise FileExistsError(f"{out} holds shards already: give an empty folder.")
    paths = photo_paths(photos)
    chosen = {name: paths.pop(name) for name in held_back_names(paths, held_back)}
    if not paths:
        raise FileNotFoundError(f"no photograph to train on under {photos}: give a folder of JPEG, PNG or WebP files.")
    out.mkdir(parents=True, exist_ok=True)
    names = list(paths)
    rows = np.array_split(np.random.default_rng(0).permutation(len(names)), -(-len(names) // per_shard))
    files = [out / f"{number:06d}.tar" for number in range(len(rows))]
    members = [{names[i]: paths[names[i]] for i in row} for row in rows]
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:  # decoding and writing leave Python's lock alone
        written = list(pool.map(write_shard, files, members))
    shards = [shard for shard, _ in written if shard.photographs]
    warn_of_skipped(sorted(name for _, skipped in written for name in skipped))
    if not shards:
        raise FileNotFoundError(f"no photograph to train on under {photos}: give a folder of JPEG, PNG or WebP files.")
    copies = copy_held_back(chosen, out / HELD_BACK)
    with whole_file(out / INDEX) as partial:
        partial.write_text(json.dumps({"shards": [asdict(s) for s in shards], "held_back": copies}), encoding="utf-8")
    logger.info("%d photographs in %d shards in %s", sum(s.photographs for s in shards), len(shards), out)


def write_shard(path: Path, members: Mapping[str, Path]) -> tuple[Shard, list[str]]:
    """One shard of photographs by name, and the names of those that cannot be read.

    It is written beside `path`, then renamed; there is none where nothing can be read.
    """
    partial, skipped = path.with_suffix(".partial"), list[str]()
    with partial.open("wb") as file, wds.TarWriter(file, mtime=0) as tar:
        for position, (name, photo) in enumerate(members.items()):
            data = photo.read_bytes()
            if is_whole(io.BytesIO(data)):
                tar.write({"__key__": key_of(position, name), photo.suffix[1:].lower(): data})
            else:
                skipped.append(name)
    shard = Shard(path.name, len(members) - len(skipped), partial.stat().st_size)
    if shard.photographs:
        partial.rename(path)
    else:
        partial.unlink()
    return shard, skipped


def copy_held_back(paths: Mapping[str, Path], folder: Path) -> list[str]:
    """Copies photographs into a folder; their names there."""
    folder.mkdir(exist_ok=True)
    names = [key_of(number, name) + paths[name].suffix.lower() for number, name in enumerate(sorted(paths))]
    for name, path in zip(names, (paths[name] for name in sorted(paths)), strict=True):
        shutil.copyfile(path, folder / name)
    return names


def read_index(folder: Path) -> Index:
    """Of a folder of shards; raises ValueError if it cannot be read."""
    try:
        content = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        return Index(tuple(Shard(**row) for row in content["shards"]), tuple(content["held_back"]))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{folder / INDEX} cannot be read ({error}): write the shards again.") from error


def check_index(folder: Path, shards: Sequence[Shard]) -> None:
    """Raises ValueError that names the shards which are not there, or not whole."""
    sizes = {entry.name: entry.stat().st_size for entry in os.scandir(folder) if entry.name.endswith(".tar")}
    wrong = [shard.name for shard in shards if sizes.get(shard.name) != shard.size]
    if wrong:
        shown = ", ".join(wrong[:5]) + (", ..." if len(wrong) > 5 else "")
        raise ValueError(f"{folder} lacks {len(wrong)} of its shards, or has them cut off: copy again {shown}.")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    tyro.cli(write)
