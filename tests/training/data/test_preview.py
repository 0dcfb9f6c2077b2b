"""The grid to look at."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.data.pairs import Pairs
from training.data.photos import is_held_back
from training.data.preview import Preview, main


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two pictures to train on."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, name in enumerate([f"{n}.png" for n in range(30) if not is_held_back(f"{n}.png")][:2]):
        small = np.random.default_rng(number).integers(0, 255, (20, 20, 3), np.uint8)
        Image.fromarray(small).resize((280, 260), Image.Resampling.BICUBIC).save(folder / name)
    return folder


def test_both_paths_show_the_same_photographs_in_three_rows(photos: Path, tmp_path: Path) -> None:
    grids = []
    for device_path in (False, True):
        out = tmp_path / f"{device_path}.png"
        main(Preview(photos, out, Pairs(crop=32, degradation="camera"), count=3, device_path=device_path))
        grids.append(np.asarray(Image.open(out)).astype(float))
    assert {grid.shape for grid in grids} == {(96, 96, 3)}
    assert np.array_equal(grids[0][64:], grids[1][64:])
    for grid in grids:
        assert np.array_equal(grid[:32:4, ::4], grid[3:32:4, 3::4])  # LR pixels are blocks
        assert 1 < np.abs(grid[32:64] - grid[64:]).mean() < 60


def test_another_seed_shows_other_samples(photos: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        main(Preview(photos, tmp_path / f"{seed}.png", Pairs(crop=32), count=2, seed=seed))
    assert (tmp_path / "0.png").read_bytes() != (tmp_path / "1.png").read_bytes()
