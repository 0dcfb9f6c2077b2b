"""The autoencoder of ctsr-mini 2: an orthonormal transform, and the time-aware block before it."""

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from ctsr.models.autoencoder_mini2 import (
    FACTOR,
    LATENT_CHANNELS,
    TimeAwareAutoencoderMini2,
    TimeAwareBlock,
    colour_transform,
    cosine_transform,
)
from ctsr.tiling.tiled import halo_tiled


def drawn(module: nn.Module) -> nn.Module:
    """All weights drawn, so that no path is dead."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return module


def pictures(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def vae() -> TimeAwareAutoencoderMini2:
    return drawn(TimeAwareAutoencoderMini2(width=8, time_embed_dim=16))


def test_the_transform_is_orthonormal_and_its_first_row_is_the_mean():
    matrix = cosine_transform()
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(FACTOR**2), atol=1e-6, rtol=0)
    torch.testing.assert_close(matrix[0], torch.full((FACTOR**2,), 1 / FACTOR))


@torch.no_grad()
def test_decoding_a_plain_latent_gives_the_picture_back(vae):
    x = pictures(2, 3, 24, 20)
    latents = vae.encode(x).latents
    assert latents.shape == (2, LATENT_CHANNELS, 6, 5)
    torch.testing.assert_close(latents.square().sum(), x.square().sum())
    torch.testing.assert_close(vae.decode(latents).sample, x, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_a_plan_made_of_fake_tensors_leaves_nothing_behind(vae):
    x = pictures(1, 3, 8, 8)
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = vae.decode(vae.encode(torch.zeros(1, 3, 8, 8)).latents).sample
    assert isinstance(fake, FakeTensor)
    real = vae.decode(vae.encode(x).latents).sample
    assert not isinstance(real, FakeTensor)
    assert not isinstance(colour_transform(x.dtype, x.device), FakeTensor)


@torch.no_grad()
def test_a_flat_picture_has_only_means(vae):
    latents = vae.encode(torch.full((1, 3, 8, 8), 0.5)).latents
    means = latents[:, :: FACTOR**2]
    torch.testing.assert_close(means, torch.full_like(means, 0.5 * FACTOR))
    assert latents.square().sum() == pytest.approx(means.square().sum().item(), rel=1e-5)


@torch.no_grad()
def test_a_new_encoder_is_the_plain_one_at_every_timestep():
    vae, x = TimeAwareAutoencoderMini2(width=8, time_embed_dim=16), pictures(1, 3, 16, 16)
    assert torch.equal(vae.encode(x, 300).latents, vae.encode(x).latents)


@torch.no_grad()
def test_the_timestep_matters_and_may_be_one_a_picture(vae):
    x, steps = pictures(2, 3, 16, 16), [100, 900]
    together = vae.encode(x, torch.tensor(steps)).latents
    apart = torch.cat([vae.encode(x[i : i + 1], step).latents for i, step in enumerate(steps)])
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-4)
    assert (vae.encode(x, 100).latents - vae.encode(x, 900).latents).abs().max() > 1e-3


@torch.no_grad()
def test_tiles_with_the_halo_are_the_whole_picture(vae):
    x = pictures(1, 3, 96, 80)
    whole = vae.encode(x, 500).latents
    tiled = halo_tiled(
        lambda tile: vae.encode(tile, 500).latents, x, 8, vae.encoder_halo // FACTOR, read_scale=FACTOR, write_scale=1
    )
    torch.testing.assert_close(tiled, whole, atol=1e-5, rtol=1e-4)


def test_folding_the_timestep_into_the_weights_leaves_the_gradient():
    block = drawn(TimeAwareBlock(4, 8, 16))
    x, emb = pictures(1, 4, 6, 6), pictures(1, 16)
    gradients = []
    for embedding in (emb, emb.expand(2, 16)):
        block.zero_grad()
        block(x.expand(len(embedding), -1, -1, -1), embedding)[:1].square().sum().backward()
        gradients.append([p.grad.clone() for p in block.parameters()])
    for folded, apart in zip(*gradients, strict=True):
        torch.testing.assert_close(folded, apart, atol=1e-4, rtol=1e-3)
