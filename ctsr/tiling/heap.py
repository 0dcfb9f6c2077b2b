"""Returns freed heap memory to the operating system (malloc_trim).

glibc maps large blocks apart and unmaps them when they are freed, but keeps smaller ones (below 32 MiB, once such a one
was freed) in its heap, where tile after tile leaves gaps that the next does not fit: Stable Diffusion's encoder grew by
some 300 MiB a tile of 1024 pixels, up to 13 GiB for a 7680x4320 picture.
"""

import ctypes
import functools
import sys
from collections.abc import Callable


@functools.cache
def malloc_trim() -> Callable[[int], int] | None:
    """glibc's function, None where the C library has none."""
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None


def give_back() -> None:
    """Takes some 100 ms for each GiB that is returned; does nothing without glibc."""
    trim = malloc_trim()
    if trim is not None:
        trim(0)


def giving_back(on_tile: Callable[[float, int], None] | None) -> Callable[[float, int], None]:
    """The same callback, after freed memory was returned."""

    def after(done: float, total: int) -> None:
        give_back()
        if on_tile is not None:
            on_tile(done, total)

    return after
