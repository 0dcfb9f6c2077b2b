"""A picture with known properties, and what a camera makes of it."""

import pytest
import torch
from torch import Tensor

from ctsr.assess.windows import gaussian
from ctsr.images.tensors import resize

SCALE = 4


def draw_scene(side: int = 512) -> Tensor:
    """[1, 3, side, side]: shapes with sharp edges over fine texture, the same every time."""
    generator = torch.Generator().manual_seed(5)
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    scene = torch.full((3, side, side), 0.45)
    for _ in range(40):
        y, x, size = (int(value) for value in torch.randint(0, side, (3,), generator=generator))
        colour = torch.rand(3, 1, 1, generator=generator) * 0.5 + 0.25
        inside = (rows - y).abs() + (columns - x).abs() < size // 8 + 6
        scene = torch.where(inside, colour, scene)
    grain = torch.randn(1, 1, side, side, generator=generator)
    texture = gaussian(grain, 3)[0] * 0.4 * (columns > side // 2)  # the left half is smooth
    return (scene + texture).clamp(0.02, 0.98)[None]


def camera(scene: Tensor, noise: float = 2 / 255, lens: float = 0.5) -> Tensor:
    """A quarter of the size, blurred by `lens` pixels of the result, noisy, 8 bits."""
    small = resize(gaussian(scene, SCALE * lens), scene.shape[-2] // SCALE, scene.shape[-1] // SCALE)
    small = small + torch.randn(small.shape, generator=torch.Generator().manual_seed(1)) * noise
    return (small.clamp(0, 1) * 255).round() / 255


@pytest.fixture(scope="session")
def scene() -> Tensor:
    return draw_scene()


@pytest.fixture(scope="session")
def photo(scene: Tensor) -> Tensor:
    """The scene as a camera saw it, [1, 3, 128, 128]."""
    return camera(scene)
