"""The strip of a sweep: the middles of several pictures side by side, each below its label."""

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

_STRIP_WIDTH = 6000
_PANEL_SIDE = 512
LABEL_HEIGHT = 32
LABEL_WIDTH = 112


def panel_side(panels: int) -> int:
    """Side in pixels of each of so many panels of a strip."""
    return max(LABEL_WIDTH, min(_PANEL_SIDE, _STRIP_WIDTH // panels))


def dial_name(t: float) -> str:
    """Two decimals, or as many as it takes to tell t."""
    short = f"{t:.2f}"
    return short if float(short) == t else f"{t!r}"


def panel(rgb: Tensor, alpha: Tensor | None, label: str, side: int) -> Tensor:
    """The middle of a picture, at most `side` a side, over white, below its label: [1, 3, h + LABEL_HEIGHT, w]."""
    top, left = (max(0, (length - side) // 2) for length in rgb.shape[-2:])
    middle = rgb[..., top : top + side, left : left + side]
    if alpha is not None:
        middle = 1 + (middle - 1) * alpha[..., top : top + side, left : left + side]
    height, width = middle.shape[-2:]
    image = Image.new("L", (max(width, LABEL_WIDTH), LABEL_HEIGHT))
    middle_of_bar = (image.width // 2, LABEL_HEIGHT // 2)
    ImageDraw.Draw(image).text(middle_of_bar, label, fill=255, font=ImageFont.load_default(20), anchor="mm")
    out = torch.zeros(1, 3, LABEL_HEIGHT + height, image.width)
    out[..., :LABEL_HEIGHT, :] = (
        torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(image.size[::-1]) / 255
    )
    start = (image.width - width) // 2
    out[..., LABEL_HEIGHT:, start : start + width] = middle.cpu()
    return out
