"""Perceptual losses: our encoder's, LPIPS, and what happens where its package is missing."""

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ctsr import CTSRPipeline
from training.losses.perceptual import EncoderFeatures, Lpips, NoDistance, perceptual_loss
from training.model.one_step import OneStep


def pictures(seed: int = 0) -> Tensor:
    return torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture
def model(make_mini: Callable[..., CTSRPipeline]) -> OneStep:
    return OneStep(make_mini())


def test_equal_pictures_have_no_distance_and_others_have_one(model: OneStep) -> None:
    loss = perceptual_loss("encoder", model)
    assert loss(pictures(), pictures()).item() == 0
    near, far = loss(pictures(), pictures() + 0.01), loss(pictures(), pictures(1))
    assert 0 < near < far < 4
    torch.testing.assert_close(loss(pictures(), pictures(1)), loss(pictures(1), pictures()))


def test_a_batch_costs_the_mean_of_its_pictures(model: OneStep) -> None:
    loss, x, y = perceptual_loss("encoder", model), pictures(), pictures(1)
    torch.testing.assert_close(loss(x, y), (loss(x[:1], y[:1]) + loss(x[1:], y[1:])) / 2)


def test_the_gradient_reaches_the_first_picture_only(model: OneStep) -> None:
    loss, x, y = perceptual_loss("encoder", model), pictures().requires_grad_(), pictures(1).requires_grad_()
    loss(x, y).backward()
    assert x.grad.abs().max() > 0
    assert y.grad is None
    assert all(p.grad is None for p in (*loss.parameters(), *model.parameters()))


def test_the_features_are_those_of_the_plain_encoder_as_it_was(model: OneStep) -> None:
    loss = EncoderFeatures(model.vae.encoder)
    seen: list[Tensor] = []
    encoder: Any = model.vae.encoder
    for block in (*encoder.blocks_4, *encoder.blocks_8):
        block.register_forward_hook(lambda _m, _i, output: seen.append(output))
    with torch.no_grad():
        model.encode(pictures())
    expected = [x / x.norm(dim=1, keepdim=True) for x in seen]
    for a, b in zip(loss.features(pictures()), expected, strict=True):
        torch.testing.assert_close(a, b)
    before = loss(pictures(), pictures(1))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(loss(pictures(), pictures(1)), before)


def test_none_costs_nothing(model: OneStep) -> None:
    loss = perceptual_loss("none", model)
    assert isinstance(loss, NoDistance)
    assert loss(pictures(), pictures(1)).item() == 0


def test_stable_diffusion_has_no_encoder_of_ours(make_sd: Callable[..., CTSRPipeline]) -> None:
    with pytest.raises(ValueError, match="lpips for SD"):
        perceptual_loss("encoder", OneStep(make_sd()))


def test_a_missing_lpips_is_an_error_that_says_what_to_do(model: OneStep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(ImportError, match=r"pip install lpips"):
        perceptual_loss("lpips", model)


def test_lpips_is_zero_for_equal_pictures_and_moves_the_first_only() -> None:
    pytest.importorskip("lpips", exc_type=ImportError)
    loss, x = Lpips(), pictures().requires_grad_()
    assert loss(pictures(), pictures()).item() == 0
    loss(x, pictures(1)).backward()
    assert x.grad.abs().max() > 0
    assert all(p.grad is None for p in loss.parameters())
