"""Addresses that fsspec knows, such as s3://bucket/pictures; where they are taken, paths are taken likewise."""

import os
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from .errors import CTSRError


def is_address(place: str) -> bool:
    """Whether it is an address, not a path."""
    return "://" in place


def file_system(place: str) -> tuple[Any, str]:
    """fsspec's file system of an address or a path, and the path in it, without a slash at its end.

    Raises:
        CTSRError: fsspec, or the package that it needs for this kind of address, is missing.
        ValueError: a kind of address that fsspec does not know.
    """
    try:
        files, inner = cast("tuple[Any, str]", import_module("fsspec").core.url_to_fs(place))
    except ImportError as error:
        raise CTSRError(f"{place} cannot be reached without one more package ({error}).") from error
    return files, inner.rstrip("/") or inner


def fetch(place: str, path: Path) -> None:
    """Copies the file at an address, if there is one, to `path`, whose folder is made; raises as `file_system`."""
    files, inner = file_system(place)
    path.parent.mkdir(parents=True, exist_ok=True)
    if files.exists(inner):
        files.get(inner, str(path))


def send(path: Path, place: str) -> None:
    """Copies a file to an address, whose folder is made; raises as `file_system`, and OSError."""
    files, inner = file_system(place)
    files.makedirs(os.path.dirname(inner), exist_ok=True)
    files.put(str(path), inner)
