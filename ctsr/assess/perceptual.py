"""LPIPS (arXiv 1801.03924) and DISTS (arXiv 2004.07728) in torch alone, with weights from a folder.

The folder holds .npz files, which are not shipped: `vgg16_imagenet_features` and `alexnet_imagenet_features`
(`conv0.weight`, `conv0.bias`, ...), `lpips_alex_lin` and, for training, `lpips_vgg_lin` (`lin0` ... `lin4`, [C]), and
`dists_alpha_beta` (`alpha` and `beta`, [1, 1475, 1, 1]).
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

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


class Products(NamedTuple):
    """Two pictures' features a and b [B, C, h, w] and their products by element, fp32."""

    a: Tensor
    b: Tensor
    aa: Tensor
    bb: Tensor
    ab: Tensor


def products(a: Tensor, b: Tensor) -> Products:
    """What both distances are made of."""
    a, b = a.float(), b.float()
    return Products(a, b, a * a, b * b, a * b)


def over_channels(x: Tensor, *weights: Tensor) -> Sequence[Tensor]:
    """Sums of x [B, C, h, w] over its channels, one [B, h, w] for each of the weights [C]."""
    return (x.permute(0, 2, 3, 1) @ torch.stack(weights, dim=1)).unbind(-1)


def lpips_level(of: Products, head: Tensor) -> Tensor:
    """The mean over all places of one level of LPIPS, see `lpips_map`: a scalar."""
    return lpips_map(of, head).mean()


def lpips_map(of: Products, head: Tensor, floor: float = 1e-20) -> Tensor:
    """One level of LPIPS: squared difference of features of unit length, weighed by `head` [1, C, 1, 1], [B, h, w].

    Written out, w (a / |a| - b / |b|)^2 needs sums of products over the channels alone, which are matrix products.
    """
    weights = head.flatten()
    ones = torch.ones_like(weights)
    length_a, weighed_a = over_channels(of.aa, ones, weights)
    length_b, weighed_b = over_channels(of.bb, ones, weights)
    (weighed_ab,) = over_channels(of.ab, weights)
    length_a, length_b = length_a + floor, length_b + floor
    return weighed_a / length_a + weighed_b / length_b - 2 * weighed_ab * (length_a * length_b).rsqrt()


def dists_distance(levels: Sequence[Products], shares: Tensor, floor: float = 1e-6) -> Tensor:
    """1 - DISTS's similarity of features: `shares` [2, all C] of means and of covariances."""
    similarity, first = list[Tensor](), 0
    for of in levels:
        alpha, beta = shares[:, first : first + of.a.shape[1]]
        first += of.a.shape[1]
        a, b, aa, bb, ab = (x.mean((2, 3)) for x in of)
        variances = (aa - a * a).clamp_min(0) + (bb - b * b).clamp_min(0)
        similarity.append(alpha * (2 * a * b + floor) / (a * a + b * b + floor))
        similarity.append(beta * (2 * (ab - a * b) + floor) / (variances + floor))
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
        levels = zip(a, b, self.heads, strict=True)
        return torch.stack([lpips_level(products(*pair), head) for *pair, head in levels]).sum()


class Dists(nn.Module):
    """DISTS: structure and texture, with VGG16."""

    def __init__(self, folder: Path):
        super().__init__()
        self.features = VGGFeatures(folder / VGG_FILE)
        self.register_buffer("shares", read_shares(folder), persistent=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Distance of pictures [1, 3, H, W] in [0, 1], fp32 scalar; 0 for equal ones."""
        a, b = (self.features(2 * picture - 1) for picture in (x, y))
        levels = [products(*pair) for pair in ((x, y), *zip(a, b, strict=True))]
        return dists_distance(levels, self.get_buffer("shares"))


def open_distances(folder: Path, device: torch.device) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """Both by their names; raises FileNotFoundError for a folder that lacks a file."""
    return {"LPIPS": Lpips(folder).to(device), "DISTS": Dists(folder).to(device)}
