"""VGG16's ImageNet features, frozen, as perceptual losses and discriminators see pictures.

VGG16: Simonyan and Zisserman (arXiv 1409.1556). Its weights are not shipped: give torchvision's state dict
(`vgg16-397923af.pth`, or any file of `features.N.weight`), or an .npz of `conv0.weight`, `conv0.bias`, ...,
`conv12.bias`. Pooling is DISTS's (arXiv 2004.07728): a Hann-windowed root mean square, which does not alias as the
maximum does, so a gradient through it draws no grid.
"""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""Channels and 3x3 convolutions of each stage; a pooling by 2 before every stage but the first."""
TORCHVISION = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
"""Numbers of the convolutions in torchvision's `features`."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def read_weights(path: Path) -> Mapping[str, Tensor]:
    """Weights as `conv0.weight` ... `conv12.bias` from one of the two kinds of file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file holds no VGG16.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"no VGG16 weights at {path}: give torchvision's vgg16 .pth, or an .npz of its features."
        )
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            weights = {name: torch.tensor(archive[name].astype(np.float32)) for name in archive.files}
    else:
        state = cast("dict[str, Tensor]", torch.load(path, map_location="cpu", weights_only=True))
        numbers = {f"features.{n}.": f"conv{i}." for i, n in enumerate(TORCHVISION)}
        weights = {
            new + name.removeprefix(old): tensor.float()
            for name, tensor in state.items()
            for old, new in numbers.items()
            if name.startswith(old)
        }
    if not {f"conv{i}.weight" for i in range(13)} <= weights.keys():
        raise ValueError(f"{path} holds no VGG16 features: give torchvision's vgg16 .pth, or an .npz of its features.")
    return weights


class VGGFeatures(nn.Module):
    """Pictures to features after the last ReLU of each stage.

    Args:
        path: the weights; see `read_weights`.
        stages: how many of the five stages to run.
    """

    def __init__(self, path: Path, stages: int = len(STAGES)):
        super().__init__()
        weights, convs = read_weights(path), list[nn.ModuleList]()
        widths = [3, *(width for width, count in STAGES[:stages] for _ in range(count))]
        layers = [nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths)]
        for number, layer in enumerate(layers):
            layer.weight = nn.Parameter(weights[f"conv{number}.weight"])
            layer.bias = nn.Parameter(weights[f"conv{number}.bias"])
        for _, count in STAGES[:stages]:
            convs.append(nn.ModuleList(layers[:count]))
            layers = layers[count:]
        self.stages = nn.ModuleList(convs)
        window = torch.hann_window(5, periodic=False)[1:-1]
        self.register_buffer("window", torch.outer(window, window) / window.sum() ** 2, persistent=False)
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False).eval().to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> list[Tensor]:
        """[B, 3, H, W] in [-1, 1] -> features [B, C, H / 2^k, W / 2^k] of each stage k."""
        h = ((x + 1) / 2 - cast(Tensor, self.mean)) / cast(Tensor, self.std)
        h, features = h.contiguous(memory_format=torch.channels_last), list[Tensor]()
        for number, convs in enumerate(self.stages):
            if number:
                h = self._pool(h)
            for conv in cast(nn.ModuleList, convs):
                h = F.relu(conv(h))
            features.append(h)
        return features

    def _pool(self, x: Tensor) -> Tensor:
        kernel = cast(Tensor, self.window).to(x.dtype).expand(x.shape[1], 1, 3, 3)
        return (F.conv2d(x * x, kernel, stride=2, padding=1, groups=x.shape[1]) + 1e-6).sqrt()
