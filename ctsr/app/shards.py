"""Shards of pictures: WebDataset (.tar) and Parquet files, read and written whole, with what they were made with.

A sample of a tar is a member with a picture's suffix; a row of a Parquet file has its picture in the column `image`, as
bytes or as Hugging Face datasets have it ({"bytes", "path"}), and its name in `__key__`, `name` or the path.
Beside a shard that is finished lies SHARD.json: settings, digest of the source, and what became of each picture. It is
written last: a shard without it is made again.
"""

import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from ..errors import CTSRError, ImageReadError
from ..images.read import readable_suffixes
from ..whole_file import whole_file

SUFFIXES = (".tar", ".parquet")
NAMES = ("__key__", "name")
"""Columns that name a picture."""


class Item(NamedTuple):
    """A picture in a shard: its name, with a suffix, and its file's bytes."""

    name: str
    data: bytes


def is_shard(place: str) -> bool:
    """Whether a path or address names a shard."""
    return place.lower().endswith(SUFFIXES)


def read_shard(path: Path) -> Iterator[Item]:
    """The pictures of a shard in their order; raises ImageReadError for one that cannot be read, CTSRError for lack of
    pyarrow."""
    try:
        yield from (_read_tar if path.suffix.lower() == ".tar" else _read_parquet)(path)
    except (tarfile.TarError, OSError, KeyError, ValueError) as error:
        raise ImageReadError(f"{path} is not a whole shard of pictures ({error}).") from error


def _read_tar(path: Path) -> Iterator[Item]:
    with tarfile.open(path) as tar:
        for member in tar:
            if member.isfile() and PurePosixPath(member.name).suffix.lower() in readable_suffixes():
                file = tar.extractfile(member)
                yield Item(member.name, file.read() if file else b"")


def _arrow() -> Any:
    """pyarrow's Parquet module, which comes with Ray Data."""
    try:
        return import_module("pyarrow.parquet")
    except ImportError as error:
        raise CTSRError(f'Parquet needs pyarrow ({error}): pip install "ctsr[ray]".') from error


def _read_parquet(path: Path) -> Iterator[Item]:
    with _arrow().ParquetFile(path) as file:
        number = 0
        for batch in file.iter_batches(batch_size=16):  # pictures are large, and so are row groups
            for row in batch.to_pylist():
                yield _item_of(row, number)
                number += 1


def _item_of(row: Mapping[str, Any], number: int) -> Item:
    """A row's picture, named by its number where nothing else does."""
    image = row["image"]
    file: Mapping[str, Any] = {"bytes": image} if isinstance(image, bytes) else image
    data, path = file["bytes"], file.get("path")
    name = str(next((row[key] for key in NAMES if row.get(key)), path) or f"{number:08d}")
    return Item(name if PurePosixPath(name).suffix else f"{name}.png", data or b"")


def write_shard(path: Path, items: Sequence[Item]) -> None:
    """A shard by its suffix: there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial:
        if path.suffix == ".tar":
            with tarfile.open(partial, "w") as tar:
                for name, data in items:
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    tar.addfile(member, BytesIO(data))
        else:
            rows = [{"__key__": name, "image": data} for name, data in items]
            _arrow().write_table(import_module("pyarrow").Table.from_pylist(rows), partial)


def record_of(path: Path) -> Path:
    """The file that says what a shard was made with."""
    return path.with_name(f"{path.name}.json")


def write_record(path: Path, settings: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> None:
    """What makes a shard finished."""
    with whole_file(record_of(path)) as partial:
        partial.write_text(json.dumps({"settings": settings, "pictures": [*lines]}), encoding="utf-8")


def read_record(path: Path) -> dict[str, Any] | None:
    """Of a shard; None for one that is not finished."""
    try:
        return json.loads(record_of(path).read_text(encoding="utf-8")) if path.is_file() else None
    except (OSError, ValueError):
        return None
