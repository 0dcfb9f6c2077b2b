"""The mini's time-conditioned UNet."""

import copy
import json
import math

import pytest
import torch
from torch import Tensor

from ctsr.models.unet_mini import TimeConditionedUNetMini
from ctsr.tiling.tiled import halo_tiled

TINY = {
    "in_channels": 4,
    "out_channels": 12,
    "block_out_channels": (8, 8),
    "layers_per_block": (1, 1),
    "kernel_size": 3,
    "time_embed_dim": 16,
}


@pytest.fixture
def unet(tiny_mini) -> TimeConditionedUNetMini:
    """All weights drawn, so that no path is dead."""
    return tiny_mini.unet


def latents(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def run(unet: TimeConditionedUNetMini, z: Tensor, timestep: int = 999) -> Tensor:
    return unet(z, timestep).sample


def test_a_new_one_predicts_zero():
    assert run(TimeConditionedUNetMini(**TINY), latents(1, 4, 6, 6)).abs().max() == 0


def test_called_as_a_stock_unet_is(unet):
    z = latents(2, 4, 6, 8)
    with torch.no_grad():
        out = unet(z, 999, encoder_hidden_states=torch.zeros(2, 4, 16)).sample
        (alone,) = unet(z, torch.tensor(999), torch.zeros(2, 4, 16), return_dict=False)
    assert out.shape == (2, 12, 6, 8)
    assert torch.equal(out, alone)


def test_the_timestep_matters_and_may_be_one_a_picture(unet):
    z = latents(2, 4, 6, 8)
    steps = [100, 900]
    together = run(unet, z, torch.tensor(steps))
    apart = torch.cat([run(unet, z[i : i + 1], step) for i, step in enumerate(steps)])
    assert torch.allclose(together, apart, atol=1e-5)
    assert (run(unet, z, 100) - run(unet, z, 900)).abs().max() > 1e-3


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (3, 5), (7, 4)])
def test_odd_sizes(unet, size):
    assert run(unet, latents(1, 4, *size)).shape == (1, 12, *size)


@pytest.mark.parametrize("center", [(20, 20), (21, 20), (20, 21), (21, 21)])
def test_halo_is_the_receptive_field(unet, center):
    """NaN in one latent spreads to all latents that see it: as far as the halo on the worst side, and no farther."""
    z = latents(1, 4, 41, 41)
    z[..., center[0], center[1]] = math.nan
    hit = run(unet, z).isnan().any(dim=1)[0].nonzero()
    reach = (hit - torch.tensor(center)).abs().max()
    assert unet.halo - 1 <= reach <= unet.halo


def test_the_halo_is_reached(unet):
    reaches: list[int] = []
    for column in (20, 21):
        z = latents(1, 4, 8, 41)
        z[..., column] = math.nan
        reaches += (run(unet, z).isnan().any(dim=1)[0].any(dim=0).nonzero() - column).abs().flatten().tolist()
    assert max(reaches) == unet.halo


@pytest.mark.parametrize(("height", "width", "tile"), [(24, 24, 8), (33, 27, 10), (41, 1, 16), (20, 50, 7)])
def test_tiled_equals_untiled(unet, height, width, tile):
    z = latents(1, 4, height, width)
    tiled = halo_tiled(lambda part: run(unet, part), z, tile, unet.halo, align=2)
    assert (tiled - run(unet, z)).abs().max() < 1e-5


def test_tiles_off_the_pairing_would_be_seen(unet):
    z = latents(1, 4, 40, 40)
    tiled = halo_tiled(lambda part: run(unet, part), z, 7, unet.halo, align=1)
    assert (tiled - run(unet, z)).abs().max() > 1e-2


@torch.no_grad()
def test_a_second_condition_starts_without_effect(unet):
    wide = TimeConditionedUNetMini(**TINY, time_cond_proj_dim=6)
    keys = wide.load_state_dict(unet.state_dict(), strict=False)
    assert (keys.missing_keys, keys.unexpected_keys) == (["time_embedding.cond_proj.weight"], [])
    z, condition = latents(2, 4, 6, 8), latents(2, 6)
    torch.testing.assert_close(wide(z, 999, timestep_cond=condition).sample, run(unet, z), rtol=1e-5, atol=1e-5)
    wide.time_embedding.cond_proj.weight.fill_(0.1)
    assert (wide(z, 999, timestep_cond=condition).sample - run(unet, z)).abs().max() > 1e-3
    torch.testing.assert_close(run(wide, z), run(unet, z), rtol=1e-5, atol=1e-5)


def test_a_file_without_a_second_condition_loads(unet, tmp_path):
    copy.deepcopy(unet).to(memory_format=torch.contiguous_format).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    del config["time_cond_proj_dim"]
    path.write_text(json.dumps(config))
    assert TimeConditionedUNetMini.from_pretrained(tmp_path, low_cpu_mem_usage=False).time_embedding.cond_proj is None


def test_round_trip(unet, tmp_path):
    copy.deepcopy(unet).to(memory_format=torch.contiguous_format).save_pretrained(tmp_path)
    loaded = TimeConditionedUNetMini.from_pretrained(tmp_path, low_cpu_mem_usage=False)
    for key, value in unet.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)
