"""LPIPS and DISTS from a folder of weights, of random ones in the real layout."""

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ctsr.assess.perceptual import open_distances


def pictures(seed: int) -> Tensor:
    return torch.rand(1, 3, 64, 80, generator=torch.Generator().manual_seed(seed))


def test_equal_pictures_have_no_distance_and_farther_ones_have_more(perceptual_weights: Path) -> None:
    distances = open_distances(perceptual_weights, torch.device("cpu"))
    assert list(distances) == ["LPIPS", "DISTS"]
    x, other = pictures(0), pictures(1)
    with torch.inference_mode():
        for distance in distances.values():
            assert distance(x, x).item() == pytest.approx(0, abs=1e-6)
            assert 0 < distance(x, (x + 0.03).clamp(0, 1)) < distance(x, other)


def test_a_missing_file_is_named(perceptual_weights: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(perceptual_weights, tmp_path / "weights")
    (folder / "lpips_alex_lin.npz").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks lpips_alex_lin\.npz: give a folder"):
        open_distances(folder, torch.device("cpu"))
