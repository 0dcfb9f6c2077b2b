"""The folder of perceptual weights, from files of the published names and shapes."""

import importlib
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from ctsr.assess.perceptual import open_distances
from ctsr.assess.vgg import STAGES, TORCHVISION
from training.losses.perceptual import VGGDistance
from training.losses.perceptual_weights import main

ALEX = ((0, 3, 64, 11), (3, 64, 192, 5), (6, 192, 384, 3), (8, 384, 256, 3), (10, 256, 256, 3))


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """lpips and DISTS_pytorch with heads of ones, where Python finds packages."""
    place = tmp_path / "packages"
    for name in ("lpips", "DISTS_pytorch"):
        (place / name).mkdir(parents=True)
        (place / name / "__init__.py").write_text("raise ImportError('never imported')\n")
    (place / "lpips/weights/v0.1").mkdir(parents=True)
    for name, widths in (("vgg", (64, 128, 256, 512, 512)), ("alex", (64, 192, 384, 256, 256))):
        state = {f"lin{i}.model.1.weight": torch.ones(1, width, 1, 1) for i, width in enumerate(widths)}
        torch.save(state, place / f"lpips/weights/v0.1/{name}.pth")
    torch.save({name: torch.ones(1, 1475, 1, 1) for name in ("alpha", "beta")}, place / "DISTS_pytorch/weights.pt")
    monkeypatch.syspath_prepend(str(place))
    importlib.invalidate_caches()
    return place


@pytest.fixture
def nets(tmp_path: Path) -> tuple[Path, Path]:
    """torchvision's VGG16 and AlexNet with random features."""
    widths = [3, *(width for width, count in STAGES for _ in range(count))]
    vgg: dict[str, torch.Tensor] = {}
    for number, (before, after) in zip(TORCHVISION, pairwise(widths), strict=True):
        vgg[f"features.{number}.weight"] = 0.05 * torch.randn(after, before, 3, 3)
        vgg[f"features.{number}.bias"] = torch.zeros(after)
    alex: dict[str, torch.Tensor] = {}
    for number, before, after, side in ALEX:
        alex[f"features.{number}.weight"] = 0.05 * torch.randn(after, before, side, side)
        alex[f"features.{number}.bias"] = torch.zeros(after)
    torch.save(vgg, tmp_path / "vgg.pth")
    torch.save(alex, tmp_path / "alex.pth")
    return tmp_path / "vgg.pth", tmp_path / "alex.pth"


def test_the_folder_serves_training_and_reports(packages: Path, nets: tuple[Path, Path], tmp_path: Path) -> None:
    main(tmp_path / "out", *nets)
    a, b = torch.rand(2, 1, 3, 64, 64)
    assert VGGDistance(tmp_path / "out")(2 * a - 1, 2 * b - 1) > 0
    for distance in open_distances(tmp_path / "out", torch.device("cpu")).values():
        assert distance(a, a).abs() < 1e-4 < distance(a, b)


def test_what_is_missing_is_said(nets: tuple[Path, Path], tmp_path: Path, packages: Path) -> None:
    (packages / "DISTS_pytorch/weights.pt").unlink()
    with pytest.raises(FileNotFoundError, match="pip install --no-deps lpips DISTS-pytorch"):
        main(tmp_path / "out", *nets)
    assert not (tmp_path / "out").exists()


def test_another_network_is_refused(packages: Path, nets: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no AlexNet"):
        main(tmp_path / "out", nets[0], packages / "lpips/weights/v0.1/vgg.pth")
