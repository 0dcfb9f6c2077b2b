"""The time-conditioned UNet of ctsr-mini 2."""

import pytest
import torch
from torch import Tensor

from ctsr.models.unet_mini2 import TimeConditionedUNetMini2
from ctsr.tiling.tiled import halo_tiled
from tests.ctsr.models.test_autoencoder_mini2 import drawn

TINY = {
    "in_channels": 4,
    "out_channels": 12,
    "block_out_channels": (8,),
    "layers_per_block": 2,
    "time_embed_dim": 16,
}


@pytest.fixture
def unet() -> TimeConditionedUNetMini2:
    return drawn(TimeConditionedUNetMini2(**TINY))


def latents(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_a_new_one_predicts_zero():
    assert TimeConditionedUNetMini2(**TINY)(latents(1, 4, 6, 6), 999).sample.abs().max() == 0


@torch.no_grad()
def test_called_as_a_stock_unet_is(unet):
    z = latents(2, 4, 6, 8)
    out = unet(z, 999, encoder_hidden_states=torch.zeros(2, 4, 16)).sample
    (alone,) = unet(z, torch.tensor(999), torch.zeros(2, 4, 16), return_dict=False)
    assert out.shape == (2, 12, 6, 8)
    assert torch.equal(out, alone)


@torch.no_grad()
def test_the_timestep_matters_and_may_be_one_a_picture(unet):
    z, steps = latents(2, 4, 6, 8), [100, 900]
    together = unet(z, torch.tensor(steps)).sample
    apart = torch.cat([unet(z[i : i + 1], step).sample for i, step in enumerate(steps)])
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-4)
    assert (unet(z, 100).sample - unet(z, 900).sample).abs().max() > 1e-3


@torch.no_grad()
def test_the_halo_is_the_reach_of_one_latent(unet):
    z = latents(1, 4, 33, 33)
    moved = z.clone()
    moved[..., 16, 16] += 1
    touched = (unet(z, 500).sample - unet(moved, 500).sample).abs().sum((0, 1)).nonzero() - 16
    assert int(touched.abs().max()) == unet.halo == 6


@torch.no_grad()
def test_tiles_with_the_halo_are_the_whole(unet):
    z = latents(1, 4, 40, 30)
    tiled = halo_tiled(lambda tile: unet(tile, 500).sample, z, 16, unet.halo, read_scale=1, write_scale=1)
    torch.testing.assert_close(tiled, unet(z, 500).sample, atol=1e-5, rtol=1e-4)
