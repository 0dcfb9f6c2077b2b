"""The mini's norm-free time-aware autoencoder."""

import pytest
import torch
from torch import Tensor

from ctsr.models.autoencoder_mini import TimeAwareAutoencoderMini

TINY = {"latent_channels": 4, "block_out_channels": (8, 8, 8), "layers_per_block": (1, 2, 1), "time_embed_dim": 16}


def latents(vae: TimeAwareAutoencoderMini, *args: object) -> Tensor:
    with torch.no_grad():
        return vae.encode(*args).latents


@pytest.fixture
def vae() -> TimeAwareAutoencoderMini:
    """Untrained, but for the convolutions that start at zero: else every block is the identity."""
    torch.manual_seed(0)
    model = TimeAwareAutoencoderMini(**TINY).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "conv2" in key:
                parameter.normal_(std=0.1)
    return model


@pytest.fixture
def trained(vae: TimeAwareAutoencoderMini) -> TimeAwareAutoencoderMini:
    torch.manual_seed(1)
    with torch.no_grad():
        for key, parameter in vae.named_parameters():
            if "time_proj" in key:
                parameter.normal_(std=0.1)
    return vae


@pytest.fixture
def x() -> Tensor:
    return torch.rand(3, 3, 24, 40, generator=torch.Generator().manual_seed(2)) * 2 - 1


@pytest.mark.parametrize("timestep", [0, 500, 999])
def test_untrained_equals_the_plain_encoder_bit_for_bit(vae, x, timestep):
    assert torch.equal(latents(vae, x, timestep), latents(vae, x))


def test_trained_time_weights_change_the_latents(trained, x):
    plain, early, late = latents(trained, x), latents(trained, x, 200), latents(trained, x, 900)
    assert (early - plain).abs().max() > 1e-3
    assert (early - late).abs().max() > 1e-3


def test_a_vector_of_timesteps_equals_separate_calls(trained, x):
    steps = [100, 500, 999]
    together = latents(trained, x, torch.tensor(steps))
    apart = torch.cat([latents(trained, x[i : i + 1], step) for i, step in enumerate(steps)])
    assert torch.allclose(together, apart, atol=1e-6)


def test_shapes(vae, x):
    z = latents(vae, x)
    assert z.shape == (3, 4, 3, 5)
    with torch.no_grad():
        assert vae.decode(z).sample.shape == x.shape
        assert vae.encode(x, 500, return_dict=False)[0].shape == z.shape
        assert vae.decode(z, return_dict=False)[0].shape == x.shape
        assert vae(x, 500).sample.shape == x.shape


def test_bf16_in_bf16_out(trained, x):
    exact = latents(trained, x, 999)
    half = latents(trained.bfloat16(), x.bfloat16(), 999)
    assert half.dtype == torch.bfloat16
    assert (half.float() - exact).abs().max() < 0.1


def test_outputs_are_not_squashed(trained):
    """`AutoencoderTiny` maps to [0, 1] inside; here a picture far outside of [-1, 1] stays so."""
    with torch.no_grad():
        trained.decoder.conv_out.bias.fill_(7)
        assert trained.decode(torch.zeros(1, 4, 2, 2)).sample.max() > 5


def test_round_trip(trained, x, tmp_path):
    trained.save_pretrained(tmp_path)
    loaded = TimeAwareAutoencoderMini.from_pretrained(tmp_path, low_cpu_mem_usage=False)
    for key, value in TINY.items():
        got = loaded.config[key]
        assert (tuple(got) if isinstance(got, list) else got) == value
    for key, value in trained.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)
