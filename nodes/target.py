"""How large the result is to be."""

from __future__ import annotations

from dataclasses import dataclass

from .checks import check_choice, check_number, whole

SMALLEST_SCALE, LARGEST_SCALE = 0.1, 16.0
LARGEST_SIDE = 65536
LARGEST_MEGAPIXELS = 1000.0
TARGETS = ["scale", "width and height", "longest side", "shortest side", "megapixels"]
EVEN = ["batches", "always", "never"]


@dataclass(frozen=True)
class Target:
    """The size of the result.

    Attributes:
        by: one of `TARGETS`: which of the next counts.
        scale: side of the result / side of the picture.
        width, height: in pixels; 0 follows the other by the picture's proportions.
        side: the longest or shortest one, in pixels.
        megapixels: millions of pixels.
        most_megapixels: the result is made smaller until it has no more; 0 for no limit.
        even_sides: one of `EVEN`: when both sides become even, as video encoders want them.
    """

    by: str = "scale"
    scale: float = 4.0
    width: int = 0
    height: int = 0
    side: int = 2048
    megapixels: float = 4.0
    most_megapixels: float = 0.0
    even_sides: str = "batches"

    def __post_init__(self) -> None:
        check_choice("target", self.by, TARGETS)
        check_choice("even_sides", self.even_sides, EVEN)
        check_number("scale", self.scale, SMALLEST_SCALE, LARGEST_SCALE)
        for name in ("width", "height"):
            whole(name, getattr(self, name), 0, LARGEST_SIDE)
        whole("side", self.side, 1, LARGEST_SIDE)
        check_number("megapixels", self.megapixels, 0.01, LARGEST_MEGAPIXELS)
        check_number("most_megapixels", self.most_megapixels, 0, LARGEST_MEGAPIXELS)

    def size(self, height: int, width: int, count: int = 1) -> tuple[int, int]:
        """Height and width of the results of `count` pictures of height x width pixels, one size for all.

        Raises:
            ValueError: an absurd size.
        """
        from ..ctsr.images.tensors import check_size, rounded

        sides = self._sides(height, width)
        if self.most_megapixels and sides[0] * sides[1] > self.most_megapixels * 1e6:
            shrink = (self.most_megapixels * 1e6 / (sides[0] * sides[1])) ** 0.5
            sides = sides[0] * shrink, sides[1] * shrink
        is_even = self.even_sides == "always" or (self.even_sides == "batches" and count > 1)
        result = [2 * rounded(side / 2) if is_even else rounded(side) for side in sides]
        check_size(*result)
        return result[0], result[1]

    def _sides(self, height: int, width: int) -> tuple[float, float]:
        """Not yet rounded."""
        if self.by == "width and height" and (self.width or self.height):
            return self.height or height * self.width / width, self.width or width * self.height / height
        scale = self.scale
        if self.by == "longest side":
            scale = self.side / max(height, width)
        elif self.by == "shortest side":
            scale = self.side / min(height, width)
        elif self.by == "megapixels":
            scale = (self.megapixels * 1e6 / (height * width)) ** 0.5
        return scale * height, scale * width
