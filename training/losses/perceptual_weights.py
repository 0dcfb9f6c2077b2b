"""A folder of perceptual weights, for the stages with a perceptual loss and for `ctsr evaluate --features`.

    pip install --no-deps lpips DISTS-pytorch
    python -m training.losses.perceptual_weights --out PERCEPTUAL --vgg16 vgg16-397923af.pth \\
        --alexnet alexnet-owt-7be5be79.pth

The heads of LPIPS (BSD) and DISTS (MIT) lie in these two packages, the features in torchvision's files of VGG16 and
AlexNet, which `torchvision.models.vgg16(weights="IMAGENET1K_V1")` downloads.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import cast

import numpy as np
import torch
import tyro
from torch import Tensor

from ctsr.assess.vgg import VGG_FILE, read_weights

ALEXNET = (0, 3, 6, 8, 10)
"""Numbers of the convolutions in torchvision's `features` of AlexNet."""
LEVELS = 5


def in_package(package: str, name: str) -> Path:
    """A file of an installed package, which is not imported; raises FileNotFoundError that says how to get it."""
    spec = find_spec(package)
    places = [] if spec is None else spec.submodule_search_locations or []
    for place in places:
        if (Path(place) / name).is_file():
            return Path(place) / name
    raise FileNotFoundError(f"{package} with {name} is not installed: pip install --no-deps lpips DISTS-pytorch.")


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a .pth file; nothing in it is run."""
    return cast("dict[str, Tensor]", torch.load(path, map_location="cpu", weights_only=True))


def save(path: Path, tensors: dict[str, Tensor]) -> None:
    """As an .npz that `ctsr.assess` reads."""
    np.savez(path, **{name: tensor.detach().numpy() for name, tensor in tensors.items()})


def main(out: Path, vgg16: Path, alexnet: Path | None = None) -> None:
    """Writes the folder.

    Args:
        out: folder, made if it is not there.
        vgg16: torchvision's file.
        alexnet: torchvision's file, for LPIPS as reports have it; training needs none.

    Raises:
        FileNotFoundError: a package or file is not there.
        ValueError: a file holds something else.
    """
    heads = {name: read(in_package("lpips", f"weights/v0.1/{name}.pth")) for name in ("vgg", "alex")}
    dists = read(in_package("DISTS_pytorch", "weights.pt"))
    features = read_weights(vgg16)
    out.mkdir(parents=True, exist_ok=True)
    save(out / VGG_FILE, {name: tensor.half() for name, tensor in features.items()})
    for name, head in heads.items():
        rows = {f"lin{level}": head[f"lin{level}.model.1.weight"].reshape(-1) for level in range(LEVELS)}
        save(out / f"lpips_{name}_lin.npz", rows)
    save(out / "dists_alpha_beta.npz", {name: dists[name] for name in ("alpha", "beta")})
    if alexnet is not None:
        state = read(alexnet)
        if f"features.{ALEXNET[-1]}.weight" not in state:
            raise ValueError(f"{alexnet} holds no AlexNet: give torchvision's alexnet .pth.")
        convs = {
            f"conv{number}.{part}": state[f"features.{old}.{part}"].half()
            for number, old in enumerate(ALEXNET)
            for part in ("weight", "bias")
        }
        save(out / "alexnet_imagenet_features.npz", convs)


if __name__ == "__main__":
    tyro.cli(main)
