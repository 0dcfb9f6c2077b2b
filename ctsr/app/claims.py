"""Which of several runs into one folder works on a picture; the claims of a run that dies hold nobody up."""

import contextlib
from collections.abc import Generator, Iterable
from pathlib import Path

from filelock import FileLock, Timeout

from ..images.write import write_failure
from ..whole_file import hidden_key, hidden_name, hidden_path

_CLAIM = "claim"
_TRIES = 5  # at what another run removes again


@contextlib.contextmanager
def claim(target: Path, wait: bool = False) -> Generator[bool, None, None]:
    """Hold the right to make `target`; yields whether it is ours.

    It is a lock of the operating system on a hidden file beside `target`, so that the system frees it when its process
    dies. Missing folders are made, see `new_folders`.

    Args:
        target: the file to make.
        wait: until the run that has it is done with it, or dead.

    Raises:
        ImageWriteError: the folder cannot be made or written to.
    """
    path = hidden_name(target, _CLAIM)
    lock = FileLock(path)
    try:
        _acquire(lock, path, -1 if wait else 0)
    except Timeout:
        yield False
        return
    except OSError as error:
        raise write_failure(target, error) from error
    try:
        yield True
    finally:
        path.unlink(missing_ok=True)  # while it is ours: who waits for it sees that it is gone, and makes another
        lock.release()


def _acquire(lock: FileLock, path: Path, timeout: float) -> None:
    """Acquire a lock on a file that may be missing, as its folder may be, or be removed by the run that had it."""
    for attempt in range(_TRIES):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout)
        except FileNotFoundError:
            if attempt == _TRIES - 1:
                raise
            continue
        if path.exists() or attempt == _TRIES - 1:
            return
        lock.release()


@contextlib.contextmanager
def new_folders(folders: Iterable[Path]) -> Generator[None, None, None]:
    """Remove those of some folders and their parents that were missing before and are empty after."""
    missing = {parent for folder in folders for parent in (folder, *folder.parents) if not parent.exists()}
    try:
        yield
    finally:
        for folder in sorted(missing, key=lambda path: len(path.parts), reverse=True):
            with contextlib.suppress(OSError):  # it holds something
                folder.rmdir()


def remove_leftovers(folders: Iterable[Path]) -> None:
    """Remove what runs that died left in these folders: claims, and files that were not finished."""
    for folder in folders:
        for path in folder.glob(".ctsr-*") if folder.is_dir() else ():
            if (key := hidden_key(path)) is None:
                continue
            claimed = hidden_path(folder, key, _CLAIM)
            with contextlib.suppress(OSError, Timeout), FileLock(claimed, 0):
                path.unlink(missing_ok=True)
                claimed.unlink(missing_ok=True)
