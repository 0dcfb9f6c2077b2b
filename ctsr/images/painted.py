"""What a person painted on a page, from the data address that its canvas gives."""

import base64
import binascii
import io

import torch
from PIL import Image
from torch import Tensor

LARGEST_SIDE = 1024
"""Pixels of what is painted: a map of t needs no more."""
LARGEST_TEXT = 2**20


def read_painted(address: str) -> Tensor:
    """The alpha of a small PNG in the address itself, [h, w] in [0, 1]; raises ValueError for anything else."""
    head, _, data = address.partition(",")
    if head != "data:image/png;base64" or len(data) > LARGEST_TEXT:
        raise ValueError("What was painted did not arrive as a PNG: clear it and paint again.")
    try:
        with Image.open(io.BytesIO(base64.b64decode(data)), formats=["PNG"]) as image:
            if max(image.size) > LARGEST_SIDE:
                raise ValueError("What was painted is too large: clear it and paint again.")
            alpha = image.convert("RGBA").getchannel("A")
    except (OSError, SyntaxError, binascii.Error) as error:
        raise ValueError("What was painted cannot be read: clear it and paint again.") from error
    return torch.frombuffer(bytearray(alpha.tobytes()), dtype=torch.uint8).view(alpha.height, alpha.width) / 255
