"""LPIPS (arXiv 1801.03924) and DISTS (arXiv 2004.07728) in torch alone, with weights from a folder.

The folder holds .npz files, which are not shipped: `vgg16_imagenet_features` and `alexnet_imagenet_features`
(`conv0.weight`, `conv0.bias`, ...), `lpips_alex_lin` and, for training, `lpips_vgg_lin` (`lin0` ... `lin4`, [C]), and
`dists_alpha_beta` (`alpha` and `beta`, [1, 1475, 1, 1]).
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .vgg import VGG_FILE, VGGFeatures

ALEX_WIDTHS = (3, 64, 192, 384, 256, 256)
ALEX_KERNELS = ((11, 4, 2), (5, 1, 2), (3, 1, 1), (3, 1, 1), (3, 1, 1))
"""Size, stride and padding of each convolution."""
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""What LPIPS takes from pictures in [-1, 1], and divides them by."""


def read_arrays(path: Path) -> dict[str, Tensor]:
    """The arrays of an .npz, fp32; raises FileNotFoundError."""
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} lacks {path.name}: give a folder with the weights of LPIPS and DISTS.")
    with np.load(path, allow_pickle=False) as archive:
        return {name: torch.tensor(archive[name].astype(np.float32)) for name in archive.files}


def read_heads(path: Path) -> list[Tensor]:
    """LPIPS's weights of each level's channels, [1, C, 1, 1]."""
    arrays = read_arrays(path)
    return [arrays[f"lin{k}"].reshape(1, -1, 1, 1) for k in range(5)]


def read_shares(folder: Path) -> Tensor:
    """DISTS's weights of means and of covariances, [2, all channels], of sum 1."""
    arrays = read_arrays(folder / "dists_alpha_beta.npz")
    shares = torch.stack([arrays[name].flatten() for name in ("alpha", "beta")])
    return shares / shares.sum()


def lpips_level(a: Tensor, b: Tensor, head: Tensor) -> Tensor:
    """One level of LPIPS: squared difference of features [B, C, h, w] of unit length, weighed by channel; the mean."""
    a, b = (F.normalize(feature.float(), dim=1) for feature in (a, b))
    return (head * (a - b).square()).sum(1).mean()


def dists_distance(pairs: Sequence[tuple[Tensor, Tensor]], shares: Tensor, floor: float = 1e-6) -> Tensor:
    """1 - DISTS's similarity of features [B, C, h, w]: `shares` [2, all C] of means and of covariances."""
    similarity, first = list[Tensor](), 0
    for a, b in pairs:
        a, b = a.float(), b.float()
        alpha, beta = shares[:, first : first + a.shape[1]]
        first += a.shape[1]
        mean_a, mean_b = a.mean((2, 3)), b.mean((2, 3))
        variances = a.var((2, 3), correction=0) + b.var((2, 3), correction=0)
        covariance = (a * b).mean((2, 3)) - mean_a * mean_b
        similarity.append(alpha * (2 * mean_a * mean_b + floor) / (mean_a**2 + mean_b**2 + floor))
        similarity.append(beta * (2 * covariance + floor) / (variances + floor))
    return 1 - torch.cat(similarity, dim=1).sum(1).mean()


class AlexFeatures(nn.Module):
    """AlexNet's features (arXiv 1404.5997) after each ReLU, [B, 3, H, W] as LPIPS scales it -> five levels."""

    def __init__(self, path: Path):
        super().__init__()
        weights, shapes = read_arrays(path), zip(pairwise(ALEX_WIDTHS), ALEX_KERNELS, strict=True)
        self.convs = nn.ModuleList(nn.Conv2d(*widths, *kernel) for widths, kernel in shapes)
        self.convs.load_state_dict({name.removeprefix("conv"): tensor for name, tensor in weights.items()})
        self.requires_grad_(False).eval()

    def forward(self, x: Tensor) -> list[Tensor]:
        features: list[Tensor] = []
        for number, conv in enumerate(self.convs):
            x = F.relu(conv(F.max_pool2d(x, 3, 2) if number in (1, 2) else x))
            features.append(x)
        return features


class Lpips(nn.Module):
    """LPIPS with AlexNet, version 0.1: the field's usual one for reports."""

    def __init__(self, folder: Path):
        super().__init__()
        self.features = AlexFeatures(folder / "alexnet_imagenet_features.npz")
        heads = read_heads(folder / "lpips_alex_lin.npz")
        self.heads = nn.ParameterList(nn.Parameter(head, requires_grad=False) for head in heads)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Distance of pictures [1, 3, H, W] in [0, 1], fp32 scalar; 0 for equal ones."""
        shift, scale = (torch.tensor(row, device=x.device).view(1, 3, 1, 1) for row in (SHIFT, SCALE))
        a, b = (self.features((2 * picture - 1 - shift) / scale) for picture in (x, y))
        return torch.stack([lpips_level(x, y, head) for x, y, head in zip(a, b, self.heads, strict=True)]).sum()


class Dists(nn.Module):
    """DISTS: structure and texture, with VGG16."""

    def __init__(self, folder: Path):
        super().__init__()
        self.features = VGGFeatures(folder / VGG_FILE)
        self.register_buffer("shares", read_shares(folder), persistent=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Distance of pictures [1, 3, H, W] in [0, 1], fp32 scalar; 0 for equal ones."""
        a, b = (self.features(2 * picture - 1) for picture in (x, y))
        return dists_distance([(x, y), *zip(a, b, strict=True)], self.get_buffer("shares"))


def open_distances(folder: Path, device: torch.device) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """Both by their names; raises FileNotFoundError for a folder that lacks a file."""
    return {"LPIPS": Lpips(folder).to(device), "DISTS": Dists(folder).to(device)}
