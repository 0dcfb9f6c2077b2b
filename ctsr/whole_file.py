"""Files that are there whole or not at all."""

import contextlib
import os
import secrets
from collections.abc import Generator
from pathlib import Path


@contextlib.contextmanager
def whole_file(path: Path) -> Generator[Path, None, None]:
    """An empty file in the same folder, which becomes `path` if all goes well and is gone if not.

    It has the permissions of any new file here, whatever writes it: newer releases of safetensors write for the owner
    alone.

    Raises:
        OSError: the folder is missing or cannot be written to, or `path` cannot be replaced.
    """
    partial = path.parent / f".ctsr-{os.getpid()}-{secrets.token_hex(4)}.part"  # short, however long the name
    try:
        partial.touch(exist_ok=False)
        mode = partial.stat().st_mode
        yield partial
        if partial.stat().st_mode != mode:
            partial.chmod(mode)
        os.replace(partial, path)
    finally:
        with contextlib.suppress(OSError):  # gone after the rename; its folder may never have been there
            partial.unlink()
