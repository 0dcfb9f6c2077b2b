"""What a file or folder of weights holds: its kind and the names in it, told before anything in it is trusted.

A pickle is opened by `torch.load(weights_only=True)` alone, which builds tensors, numbers, strings and lists and runs
nothing, and only when the caller asks for it.
"""

import pickle
import re
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import safetensors
import safetensors.torch  # pyright: ignore[reportUnusedImport]  # used through `library`, and by diffusers < 0.33
import torch
from torch import Tensor

from ..errors import CheckpointError, first_line

library: Any = safetensors  # half of its types are unknown to pyright

INDEX = "model_index.json"
"""Of a folder in diffusers' layout."""
Kind = Literal["folder", "safetensors", "pickle"]
_LFS_POINTER = b"version https://git-lfs"
_ZIP = b"PK\x03\x04"
_LEGACY_PICKLE = b"\x80\x02"
_NESTED = 4
"""Dictionaries in each other at most; a pickle may hold one that holds itself."""
_PICTURE = re.compile(rb"\xff\xd8\xff|\x89PNG|GIF8|RIFF....WEBP|II\*\0|MM\0\*|BM|....ftyp", re.DOTALL)
_WEB_PAGE = re.compile(rb"\s*<(!doctype|html|head|\?xml)", re.IGNORECASE)
_CODE = re.compile(r"GLOBAL ([\w.]+)")
"""In torch's message; what follows is a function or class that a pickle asks for."""
_BROKEN_ZIP = (zipfile.BadZipFile, struct.error, OSError, EOFError, ValueError, RuntimeError)


@dataclass(frozen=True)
class Contents:
    """A file or folder of weights.

    Attributes:
        path: where it lies.
        kind: a folder, a safetensors file, or what torch.save wrote.
        keys: names of the tensors of a safetensors file, of the entries of a folder or of a pickled dictionary.
        metadata: of a safetensors file.
        data: the pickled dictionary; empty until `read`.
    """

    path: Path
    kind: Kind
    keys: frozenset[str] = frozenset()
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    data: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def tensors(self, prefix: str = "") -> dict[str, Tensor]:
        """Those whose names begin so; raises CheckpointError if the file cannot be read any more."""
        if self.kind == "pickle":
            return {key: x for key, x in self.data.items() if key.startswith(prefix) and isinstance(x, Tensor)}
        return tensors_of(self.path, prefix)

    @property
    def is_ours(self) -> bool:
        """Whether it is a folder that a pipeline of this library wrote: its index tells a family."""
        if self.kind != "folder" or INDEX not in self.keys:
            return False
        return '"family"' in (self.path / INDEX).read_text(encoding="utf-8", errors="replace")


def look(path: Path) -> Contents:
    """Kind and names; of a pickle the kind alone, since nothing is unpickled.

    Raises:
        CheckpointError: missing, empty, a git-lfs pointer, a web page, truncated or of no kind that holds weights.
    """
    if path.is_dir():
        return Contents(path, "folder", frozenset(entry.name for entry in path.iterdir()))
    if not path.exists():
        raise CheckpointError(f"{path} does not exist; check the name.")
    if not path.is_file():
        raise CheckpointError(f"{path} is neither a file nor a folder; give a file or a folder of weights.")
    with path.open("rb") as file:
        start = file.read(512)
    if start.startswith(_LFS_POINTER):
        raise CheckpointError(f"{path} is a git-lfs pointer, not the weights; run `git lfs pull` to fetch them.")
    if _WEB_PAGE.match(start):
        raise CheckpointError(f"{path} is a web page, not the weights; download the file that the page shows.")
    if _PICTURE.match(start) and start[8:9] != b"{":
        raise CheckpointError(f"{path} is a picture, not a model; enlarge it with `ctsr upscale {path}`.")
    # A safetensors file begins with the length of its header, which may look like any magic number.
    if start.startswith((_ZIP, _LEGACY_PICKLE)) and start[8:9] != b"{":
        return Contents(path, "pickle")
    keys, metadata = _header_of(path)
    return Contents(path, "safetensors", keys, metadata)


def read(path: Path) -> Contents:
    """As `look`, and a pickle's dictionary with it: what hangs under "state_dict" where there is such an entry.

    Raises:
        CheckpointError: as `look`; a pickle that is damaged, holds code (which is not run), or is no dictionary.
    """
    contents = look(path)
    if contents.kind != "pickle":
        return contents
    data = unpickled(path)
    for _ in range(_NESTED):
        if isinstance(data, dict) and "state_dict" in data:
            data = cast("dict[Any, Any]", data)["state_dict"]
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in cast("dict[Any, Any]", data)):
        raise CheckpointError(f"{path} holds no dictionary by names, so it is no checkpoint that this library knows.")
    named = cast("dict[str, Any]", data)
    return Contents(path, "pickle", frozenset(named), data=named)


def unpickled(path: Path) -> object:
    """What torch.save wrote; raises CheckpointError for code, which is not run, and for damage."""
    is_zip = _check_zip(path)
    try:
        return cast(object, torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip))
    except pickle.UnpicklingError as error:
        code = found[1] if (found := _CODE.search(str(error))) else "of an unknown kind"
        message = f"{path} is damaged or holds code ({code}), so it was not opened and nothing of it ran"
        raise CheckpointError(f"{message}; get it from its author, or one in safetensors format.") from error
    except Exception as error:  # what a damaged pickle raises depends on where the damage is
        raise damaged(path, first_line(error)) from error


def _check_zip(path: Path) -> bool:
    """Whether the file is a zip archive; raises CheckpointError for a damaged one: torch does not look at checksums."""
    with path.open("rb") as file:
        if file.read(len(_ZIP)) != _ZIP:
            return False
    try:
        with zipfile.ZipFile(path) as archive:
            packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist())
            wrong = "a compressed entry" if packed else archive.testzip()  # torch.save does not compress
    except _BROKEN_ZIP as error:
        raise damaged(path, first_line(error)) from error
    if wrong is not None:
        raise damaged(path, f"{wrong} is not what was written")
    return True


def damaged(path: Path, reason: str) -> CheckpointError:
    """The sentence for a pickle that cannot be read."""
    return CheckpointError(f"{path} is truncated, damaged or no checkpoint ({reason}); fetch it again.")


def _header_of(path: Path) -> tuple[frozenset[str], dict[str, str]]:
    """Names of the tensors and metadata of a safetensors file; raises CheckpointError."""
    try:
        with library.safe_open(path, framework="pt") as file:
            return frozenset(file.keys()), cast("dict[str, str]", file.metadata() or {})
    except (safetensors.SafetensorError, OSError) as error:
        raise _no_safetensors(path, error) from error


def tensors_of(path: Path, prefix: str = "") -> dict[str, Tensor]:
    """Tensors of a safetensors file whose names begin so; raises CheckpointError."""
    try:
        with library.safe_open(path, framework="pt") as file:
            names = [key for key in cast("list[str]", file.keys()) if key.startswith(prefix)]
            return {name: file.get_tensor(name) for name in names}
    except (safetensors.SafetensorError, OSError) as error:
        raise _no_safetensors(path, error) from error


def _no_safetensors(path: Path, error: Exception) -> CheckpointError:
    """The sentence for a file that does not open."""
    return CheckpointError(f"{path} is truncated or not a safetensors file ({first_line(error)}); fetch it again.")
