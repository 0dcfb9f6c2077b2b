"""Distances to a known picture."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from training.losses.perceptual import NoDistance
from training.losses.reconstruction import MINI, Reconstruction, gaussian_blur, low_frequency, reconstruction_losses


def pictures(count: int = 2) -> Tensor:
    return torch.rand(count, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_the_terms_are_weighted_distances_and_those_of_weight_zero_are_left_out() -> None:
    x, y = pictures(), pictures().flip(0)
    weights = Reconstruction(l1=2.0, l2=3.0, low=0.0, perceptual=0.0)
    terms = reconstruction_losses(x, y, weights, NoDistance())
    assert terms.keys() == {"l1", "l2"}
    assert terms["l1"].item() == pytest.approx(2 * (x - y).abs().mean().item())
    assert terms["l2"].item() == pytest.approx(3 * (x - y).square().mean().item())


def test_the_perceptual_loss_gets_both_pictures() -> None:
    x, y = pictures(), pictures().flip(0)

    class Difference(torch.nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return (a - 2 * b).mean()

    (term,) = reconstruction_losses(x, y, Reconstruction(l2=0.0, perceptual=2.0), Difference()).values()
    assert term.item() == pytest.approx(2 * (x - 2 * y).mean().item())


@pytest.mark.parametrize("weights", [MINI, Reconstruction(l1=1.0, l2=5.0, low=2.0, perceptual=0.0)])
def test_a_batch_costs_the_mean_of_its_pictures(weights: Reconstruction) -> None:
    x, y = pictures(), pictures().flip(0) * 0.3
    whole = reconstruction_losses(x, y, weights, NoDistance())
    parts = [reconstruction_losses(x[i : i + 1], y[i : i + 1], weights, NoDistance()) for i in range(2)]
    for name, term in whole.items():
        torch.testing.assert_close(term, (parts[0][name] + parts[1][name]) / 2)


def test_the_low_frequency_term_sees_brightness_and_no_texture() -> None:
    x = pictures()
    assert low_frequency(x, x + 0.25).item() == pytest.approx(0.25)
    texture = torch.tensor([0.5, -0.5]).repeat(12).expand_as(x)
    assert low_frequency(x, x + texture).item() == pytest.approx(0, abs=1e-6)


def test_a_blur_keeps_brightness_and_is_gaussian() -> None:
    torch.testing.assert_close(gaussian_blur(torch.full((1, 3, 9, 9), 0.7), 5, 1.0), torch.full((1, 3, 9, 9), 0.7))
    pulse = torch.zeros(1, 1, 31, 31)
    pulse[..., 15, 15] = 1
    blurred = gaussian_blur(pulse, 15, 1.5)[0, 0]
    offsets = torch.arange(31.0) - 15
    assert blurred.sum().item() == pytest.approx(1, abs=1e-5)
    assert (blurred.sum(0) * offsets.square()).sum().sqrt().item() == pytest.approx(1.5, abs=0.01)
    torch.testing.assert_close(blurred, blurred.T)
    assert blurred[15 + 2, 15].item() / blurred[15, 15].item() == pytest.approx(2.718281828 ** (-0.5 * (2 / 1.5) ** 2))


def test_a_blur_mirrors_its_borders_and_keeps_channels_apart() -> None:
    x = pictures()
    blurred = gaussian_blur(x, 7, 1.2)
    padded = F.pad(x, (3, 3, 3, 3), mode="reflect")
    torch.testing.assert_close(blurred, gaussian_blur(padded, 7, 1.2)[..., 3:-3, 3:-3])
    for channel in range(3):
        torch.testing.assert_close(
            blurred[:, channel : channel + 1], gaussian_blur(x[:, channel : channel + 1], 7, 1.2)
        )
