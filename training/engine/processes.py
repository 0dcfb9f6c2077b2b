"""What the processes of a run do together: share figures, and make sure that they are one run.

Processes of several machines need no common disk: the first one reads and writes the checkpoint and sends it to the
others. All must have been given the same options, files and photographs, though, or gradients of different runs would
be averaged without a word. `agree` compares them.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

Described = Mapping[str, str]


def total(count: int) -> int:
    """Sum of the counts of all processes, which call this together."""
    return sum(cast(list[int], gather_object([count])))


def means(rows: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Mean of every row over the rows of all processes, to the bit the same however they are dealt out.

    Called by all processes together, with rows of the same names; a row may be empty in some.
    """
    everyone = cast(list[Mapping[str, Sequence[float]]], gather_object([rows]))
    whole = {name: [value for part in everyone for value in part[name]] for name in rows}
    return {name: math.fsum(row) / len(row) for name, row in whole.items() if row}


def checksum(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Of names, shapes, dtypes and bits."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def file_checksum(path: Path) -> str:
    """Of a file's bits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for part in iter(partial(file.read, 2**20), b""):
            digest.update(part)
    return digest.hexdigest()[:16]


def described(name: str, value: object) -> Iterator[tuple[str, str]]:
    """Every option below `name` as text: a file by its bits and not by its path, which machines may differ in."""
    if is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from described(f"{name}.{field.name}" if name else field.name, getattr(value, field.name))
    elif isinstance(value, str | Path) and Path(value).is_file():
        yield name, f"a file of SHA-256 {file_checksum(Path(value))}"
    elif isinstance(value, Path) or (isinstance(value, str) and Path(value).is_dir()):
        yield name, "a folder"
    else:
        yield name, repr(value)


def describe(options: object, **more: str) -> Described:
    """The options of a recipe, and whatever else must be the same in all processes, as text by name."""
    return dict(described("", options)) | more


def agree(own: Described) -> None:
    """Raises ValueError, in every process, unless `own` is the same in all of them."""
    everyone = cast(list[Described], gather_object([own]))
    for rank, other in enumerate(everyone):
        differing = [name for name in {**everyone[0], **other} if everyone[0].get(name) != other.get(name)]
        if differing:
            name = differing[0]
            raise ValueError(
                f"The processes are not one run: {', '.join(differing)} differ. {name} is {everyone[0].get(name)} in "
                f"process 0 and {other.get(name)} in process {rank}. Start all of them with the same command, on the "
                "same photographs and files."
            )


def from_first(value: Any) -> Any:
    """What process 0 has, in every process; others' `value` is ignored."""
    return broadcast_object_list([value])[0]
