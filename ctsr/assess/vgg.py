"""VGG16's ImageNet features, frozen, as perceptual losses and discriminators see pictures.

VGG16: Simonyan and Zisserman (arXiv 1409.1556). Its weights are not shipped: give torchvision's state dict
(`vgg16-397923af.pth`, or any file of `features.N.weight`), or an .npz of `conv0.weight`, `conv0.bias`, ...,
`conv12.bias`. Pooling is DISTS's (arXiv 2004.07728): a Hann-windowed root mean square, which does not alias as the
maximum does, so a gradient through it draws no grid.

A perceptual loss and a discriminator of one run share one network (`open_vgg`), which remembers the pictures that it
saw last: a step pays one pass for the result and one for the ground truth, whoever looks at them.
"""

from collections.abc import Mapping
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

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


VGG_FILE = "vgg16_imagenet_features.npz"
"""Its name in a folder of perceptual weights."""
REMEMBERED = 3  # pictures: a result, its aim and its ground truth


class VGGFeatures(nn.Module):
    """Pictures to features after the last ReLU of each stage.

    Args:
        path: the weights; see `read_weights`.
    """

    def __init__(self, path: Path):
        super().__init__()
        self.seen: list[tuple[Tensor, list[Tensor]]] = []
        weights, convs = read_weights(path), list[nn.ModuleList]()
        widths = [3, *(width for width, count in STAGES for _ in range(count))]
        layers = [nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths)]
        for number, layer in enumerate(layers):
            layer.weight = nn.Parameter(weights[f"conv{number}.weight"])
            layer.bias = nn.Parameter(weights[f"conv{number}.bias"])
        for _, count in STAGES:
            convs.append(nn.ModuleList(layers[:count]))
            layers = layers[count:]
        self.stages = nn.ModuleList(convs)
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)
        cast(Any, self.requires_grad_(False).eval()).to(memory_format=torch.channels_last)

    def forward(self, x: Tensor, stages: int = len(STAGES)) -> list[Tensor]:
        """[B, 3, H, W] in [-1, 1] -> features [B, C, H / 2^k, W / 2^k] of the first `stages` stages k.

        Of a picture that it saw last, or a detached twin of it, they are the same tensors, with their graph.
        """
        features = self._remembered(x)
        h = features[-1] if features else (x.add(1).div(2) - cast(Tensor, self.mean)) / cast(Tensor, self.std)
        h = h.contiguous(memory_format=torch.channels_last)
        for number in range(len(features), stages):
            if number:
                h = pool(h)
            for conv in cast(nn.ModuleList, self.stages[number]):
                h = F.relu(conv(h))
            features.append(h)
        return features[:stages]

    def _remembered(self, x: Tensor) -> list[Tensor]:
        """The list of features that are known of x; an empty one, remembered from now on, of a new picture."""
        for picture, features in self.seen:
            if picture.data_ptr() == x.data_ptr() and picture.shape == x.shape:
                return features
        self.seen = [*self.seen, (x, [])][-REMEMBERED:]
        return self.seen[-1][1]


def pool(x: Tensor) -> Tensor:
    """[B, C, H, W] to half the size: the root of the squares' mean under a 3x3 Hann window of weights 1, 2, 1.

    Two means of 2x2, one pixel apart, are that window; their gradient is many times faster on a CPU than a depthwise
    convolution's.
    """
    return (F.avg_pool2d(F.avg_pool2d(x * x, 2, stride=1, padding=1), 2) + 1e-6).sqrt()


@lru_cache(maxsize=1)
def open_vgg(path: Path) -> VGGFeatures:
    """The network of a file; the same one for all losses of a run."""
    return VGGFeatures(path)
