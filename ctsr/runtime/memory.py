"""Whether a result fits into memory at all, whatever the tiles."""

import torch

from ..tiling.memory import total_memory

BUFFER_BYTES = 44
"""Bytes per pixel of the result at the peak: result, reference, colour-fixed result, two planes."""
BUFFER_SHARE = 3 / 4
"""Part of the total memory that these may take: with more the system kills the process."""


def check_room(height: int, width: int, device: torch.device) -> None:
    """Raises ValueError for a result whose picture buffers alone would not fit into the memory of `device`."""
    need, have = height * width * BUFFER_BYTES, BUFFER_SHARE * total_memory(device)
    if need > have:
        raise ValueError(
            f"The result of {width}x{height} pixels would take {need / 2**30:.1f} GiB of memory, and no more "
            f"than {have / 2**30:.1f} can be used here: choose a smaller size."
        )
