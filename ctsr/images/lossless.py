"""Whether a WebP is without loss: Pillow reads both kinds and does not tell."""

import struct
from pathlib import Path

_FRAME_HEADER = 16  # bytes between the head of a frame of an animation and the chunks within


def is_lossless_webp(path: Path) -> bool:
    """Whether the pixels of a WebP, or of its first frame, are stored without loss (in a chunk VP8L)."""
    with path.open("rb") as file:
        file.seek(12)
        while len(head := file.read(8)) == 8:
            kind, length = struct.unpack("<4sL", head)
            if kind in (b"VP8L", b"VP8 "):
                return kind == b"VP8L"
            file.seek(_FRAME_HEADER if kind == b"ANMF" else length + length % 2, 1)
    return False
