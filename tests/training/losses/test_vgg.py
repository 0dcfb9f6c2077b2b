"""VGG16's features, the distance and the discriminator on them, with random weights in the real layout."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ctsr.assess.perceptual import dists_distance, products
from ctsr.assess.vgg import STAGES, TORCHVISION, VGG_FILE, VGGFeatures, read_weights
from training.losses.adversarial import Adversarial, AdversarialTerm, FeatureDiscriminator
from training.losses.perceptual import VGGDistance, perceptual_loss


@pytest.fixture
def folder(perceptual_weights: Path) -> Path:
    return perceptual_weights


def pictures(seed: int = 0) -> Tensor:
    return torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_features_have_the_sizes_of_the_stages(folder: Path) -> None:
    features = VGGFeatures(folder / VGG_FILE)(pictures())
    assert [tuple(f.shape) for f in features] == [
        (2, width, -(-32 // 2**k), -(-48 // 2**k)) for k, (width, _) in enumerate(STAGES)
    ]


def test_the_first_stage_is_two_convolutions_of_the_normalised_picture(folder: Path) -> None:
    weights, x = read_weights(folder / VGG_FILE), pictures()
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    h = ((x + 1) / 2 - mean) / std
    for number in (0, 1):
        h = F.relu(F.conv2d(h, weights[f"conv{number}.weight"], weights[f"conv{number}.bias"], padding=1))
    torch.testing.assert_close(VGGFeatures(folder / VGG_FILE)(x, 1)[0], h)


def test_the_pictures_seen_last_are_remembered_with_their_graph_and_others_are_not(folder: Path) -> None:
    vgg, x, y = VGGFeatures(folder / VGG_FILE), pictures().requires_grad_(), pictures(1)
    first = vgg(x, 2)
    vgg(y, 1)
    again = vgg(x.detach(), 3)
    assert again[:2] == first
    assert again[2].requires_grad
    vgg(pictures(2), 1)
    vgg(pictures(3), 1)
    assert vgg(x, 1)[0] is not first[0]
    torch.testing.assert_close(vgg(x, 3), again)


def test_a_shared_discriminator_and_distance_pay_one_pass(folder: Path) -> None:
    term = AdversarialTerm(Adversarial(weight=1.0, penalty=0.0, delay=0, features=folder / VGG_FILE), seed=0)
    loss, sharp = VGGDistance(folder), pictures()
    assert isinstance(term.discriminator, FeatureDiscriminator)
    assert term.discriminator.vgg is loss.vgg
    x = (0.5 * sharp).requires_grad_()
    distance = loss(x, sharp)
    g = term.direction(x, {"index": torch.arange(2), "lr": F.avg_pool2d(sharp, 4)})
    alone = term.direction(x.detach().clone(), {"index": torch.arange(2), "lr": F.avg_pool2d(sharp, 4)})
    torch.testing.assert_close(g, alone)
    distance.backward()  # its graph is whole still
    assert x.grad.abs().max() > 0


def test_a_state_dict_of_torchvision_gives_the_same_weights(folder: Path, tmp_path: Path) -> None:
    weights = read_weights(folder / VGG_FILE)
    kinds = ("weight", "bias")
    state = {f"features.{n}.{kind}": weights[f"conv{i}.{kind}"] for i, n in enumerate(TORCHVISION) for kind in kinds}
    torch.save(state | {"classifier.0.weight": torch.zeros(2, 2)}, tmp_path / "vgg16.pth")
    again = read_weights(tmp_path / "vgg16.pth")
    assert again.keys() == weights.keys()
    assert all(torch.equal(again[name], weights[name]) for name in weights)


def test_a_missing_or_foreign_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="torchvision"):
        read_weights(tmp_path / "absent.npz")
    np.savez(tmp_path / "other.npz", x=np.zeros(2))
    with pytest.raises(ValueError, match="no VGG16 features"):
        read_weights(tmp_path / "other.npz")


def test_equal_pictures_have_no_distance_and_a_farther_one_has_more(folder: Path) -> None:
    loss, x = VGGDistance(folder), pictures()
    assert loss(x, x).item() == pytest.approx(0, abs=1e-6)
    assert 0 < loss(x + 0.02, x) < loss(pictures(1), x)


def test_the_gradient_reaches_the_first_picture_only(folder: Path) -> None:
    loss, x, y = VGGDistance(folder), pictures().requires_grad_(), pictures(1).requires_grad_()
    loss(x, y).backward()
    assert x.grad.abs().max() > 0
    assert y.grad is None
    assert all(p.grad is None for p in loss.parameters())


def test_dists_does_not_see_where_texture_lies_but_how_strong_it_is() -> None:
    x = torch.randn(1, 2, 64, 64, generator=torch.Generator().manual_seed(0))
    means_only = torch.tensor([[0.5, 0.5], [0.0, 0.0]])
    assert dists_distance([products(x + 1, x.flip(-1) + 1)], means_only) == pytest.approx(0, abs=1e-5)
    covariances = torch.tensor([[0.0, 0.0], [0.5, 0.5]])
    assert dists_distance([products(x, 3 * x)], covariances) == pytest.approx(1 - 6 / 10, abs=1e-3)


def test_without_weights_the_loss_says_what_to_give() -> None:
    with pytest.raises(ValueError, match=r"--reconstruction\.weights"):
        perceptual_loss("vgg", None)


def test_the_discriminator_learns_heads_only_and_tells_blurred_from_sharp(folder: Path) -> None:
    torch.manual_seed(0)
    term = AdversarialTerm(Adversarial(weight=1.0, penalty=0.0, delay=0, features=folder / VGG_FILE), seed=0)
    assert isinstance(term.discriminator, FeatureDiscriminator)
    turn = term.turn()
    assert all(".heads." in f".{name}" for name, p in turn.module.named_parameters() if p.requires_grad)
    sharp = pictures()
    batch = {
        "index": torch.arange(2),
        "lr": F.avg_pool2d(sharp, 4),
        "sharp": sharp,
        "real": sharp,
        "fake": F.avg_pool2d(sharp, 3, 1, 1),
    }
    optimizer = torch.optim.Adam([p for p in turn.module.parameters() if p.requires_grad], 1e-3)
    losses = []
    for _ in range(12):
        out = turn.module(batch)
        assert set(out) == {"loss"}
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
        losses.append(out["loss"].item())
    assert losses[-1] < 0.9 * losses[0]
