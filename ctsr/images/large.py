"""How large a picture may be: what the memory holds, where Pillow has one limit for all machines."""

import contextlib
from collections.abc import Generator

import psutil
from PIL import Image

_PILLOW_LIMIT = 2 * 89_478_485
"""Pixels that Pillow refuses to decode on any machine."""
_SHARE = 0.25
"""Of the machine's memory, that the colours of a picture may take."""
_BYTES = 12
"""A pixel in memory: three colours in fp32."""


def most_pixels() -> int:
    """Pixels of the largest picture that is decoded on this machine."""
    return max(_PILLOW_LIMIT, int(_SHARE * psutil.virtual_memory().total / _BYTES))


@contextlib.contextmanager
def pixel_limit(most: int | None) -> Generator[None, None, None]:
    """Inside, Pillow opens pictures of up to `most` pixels; None is no limit, for headers alone."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None if most is None else most // 2  # an error is raised at twice as many
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before
