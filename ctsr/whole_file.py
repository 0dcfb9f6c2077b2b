"""Files that are there whole or not at all."""

import contextlib
import errno
import hashlib
import os
import re
import secrets
import stat
from collections.abc import Generator
from pathlib import Path

PROBE_BYTES = 2**16
"""What a folder must have room for before work on a picture begins."""


_HIDDEN = re.compile(r"\.ctsr-([0-9a-f]{16})(-[0-9a-f]{8})?\.\w+")


def hidden_name(path: Path, kind: str, token: str = "") -> Path:
    """A hidden name beside `path` that tells of it, short however long that of `path` is."""
    key = hashlib.sha256(path.name.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return hidden_path(path.parent, key, kind, token)


def hidden_path(folder: Path, key: str, kind: str, token: str = "") -> Path:
    """The `hidden_name` in a folder that has this `hidden_key`."""
    return folder / f".ctsr-{key}{token and f'-{token}'}.{kind}"


def hidden_key(path: Path) -> str | None:
    """What a `hidden_name` tells of its file, the same for all of one file; None for other names."""
    match = _HIDDEN.fullmatch(path.name)
    return None if match is None else match[1]


def sha256(*paths: Path) -> str:
    """Of the contents of one file, or of several in their order, in hexadecimal."""
    hasher = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while part := file.read(2**20):
                hasher.update(part)
    return hasher.hexdigest()


def digest(*paths: Path) -> str:
    """16 hexadecimal digits that tell these files' contents from all others."""
    return sha256(*paths)[:16]


def partial_name(path: Path) -> Path:
    """A name beside `path` that no other process uses."""
    return hidden_name(path, "part", secrets.token_hex(4))


@contextlib.contextmanager
def whole_file(path: Path) -> Generator[Path, None, None]:
    """An empty file in the same folder, which becomes `path` if all goes well and is gone if not.

    What was written is on the disk before the rename, so that a crash leaves the old file or the new one. It has the
    permissions of any new file here, whatever writes it: newer releases of safetensors write for the owner alone.

    Raises:
        OSError: the folder is missing or cannot be written to, or `path` cannot be replaced.
    """
    partial = partial_name(path)
    try:
        partial.touch(exist_ok=False)
        mode = partial.stat().st_mode
        yield partial
        if partial.stat().st_mode != mode:
            partial.chmod(mode)
        with partial.open("r+b") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        with contextlib.suppress(OSError):  # gone after the rename; its folder may never have been there
            partial.unlink()


def check_writable(path: Path) -> None:
    """Write, flush and remove a small file in the folder of `path`, or in the nearest one above that exists.

    Raises:
        OSError: the folder is full, read-only or not allowed; `path` is a folder, or its name is too long.
    """
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISDIR(path.lstat().st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    probe = partial_name(folder / path.name)
    try:
        with probe.open("xb") as file:
            file.write(bytes(PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    finally:
        probe.unlink(missing_ok=True)
