"""TADSR's time-aware encoder on diffusers' AutoencoderKL."""

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor

from ctsr.models.autoencoder_kl_time_aware import TimeAwareAutoencoderKL

TINY = {
    "block_out_channels": (32, 32),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "sample_size": 16,
}
SD21 = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "sample_size": 768,
}


def is_time(key: str) -> bool:
    return ".time_" in key


def moments(vae: AutoencoderKL, *args: object) -> Tensor:
    with torch.no_grad():
        return vae.encode(*args).latent_dist.parameters


@pytest.fixture
def stock() -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(**TINY).eval()


@pytest.fixture
def vae(stock) -> TimeAwareAutoencoderKL:
    return TimeAwareAutoencoderKL.from_autoencoder_kl(stock)


@pytest.fixture
def trained(vae) -> TimeAwareAutoencoderKL:
    torch.manual_seed(1)
    with torch.no_grad():
        for key, parameter in vae.named_parameters():
            if "time_emb_proj" in key:
                parameter.normal_(std=0.05)
    return vae


@pytest.fixture
def x() -> Tensor:
    return torch.rand(3, 3, 16, 24, generator=torch.Generator().manual_seed(2)) * 2 - 1


def test_time_tensors_at_sd_size():
    with torch.device("meta"):
        vae, stock = TimeAwareAutoencoderKL(**SD21), AutoencoderKL(**SD21)
    time = {key: tuple(value.shape) for key, value in vae.state_dict().items() if is_time(key)}
    resnets = [(f"down_blocks.{i}.resnets.{j}", c) for i, c in enumerate((128, 256, 512, 512)) for j in range(2)]
    resnets += [(f"mid_block.resnets.{j}", 512) for j in range(2)]
    expected = {"encoder.time_embedding.linear_1.weight": (256, 128), "encoder.time_embedding.linear_1.bias": (256,)}
    expected |= {"encoder.time_embedding.linear_2.weight": (256, 256), "encoder.time_embedding.linear_2.bias": (256,)}
    for name, channels in resnets:
        expected[f"encoder.{name}.time_emb_proj.weight"] = (2 * channels, 256)
        expected[f"encoder.{name}.time_emb_proj.bias"] = (2 * channels,)
    assert time == expected
    assert len(time) == 24
    assert sum(torch.Size(shape).numel() for shape in time.values()) == 2_072_576
    assert {key for key in vae.state_dict() if not is_time(key)} == set(stock.state_dict())


@pytest.mark.parametrize("timestep", [None, 0, 500, 999])
def test_untrained_equals_the_plain_encoder_bit_for_bit(stock, vae, x, timestep):
    assert torch.equal(moments(vae, x, timestep), moments(stock, x))


def test_the_decoder_is_the_plain_one_but_for_rounding(stock, vae, x):
    z = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(vae.decode(z).sample, stock.decode(z).sample, rtol=0, atol=1e-5)
        torch.testing.assert_close(vae(x).sample, stock(x).sample, rtol=0, atol=1e-5)


def test_a_trained_encoder_knows_the_timestep_and_stays_plain_without_one(stock, trained, x):
    assert torch.equal(moments(trained, x), moments(stock, x))
    assert (moments(trained, x, 500) - moments(stock, x)).abs().max() > 1e-2
    assert (moments(trained, x, 500) - moments(trained, x, 200)).abs().max() > 1e-3


def test_scale_and_shift_stand_between_norm2_and_its_activation(trained, x):
    """Replays one resnet by TADSR's formula."""
    resnet, silu = trained.encoder.down_blocks[0].resnets[0], torch.nn.functional.silu
    seen = {}
    handle = resnet.register_forward_hook(lambda module, args, output: seen.update(x=args[0], out=output))
    moments(trained, x, 300)
    handle.remove()
    with torch.no_grad():
        emb = trained.encoder.time_embedding(trained.encoder.time_proj(torch.tensor([300.0])))
        scale, shift = resnet.time_emb_proj(silu(emb))[:, :, None, None].chunk(2, dim=1)
        h = resnet.norm2(resnet.conv1(silu(resnet.norm1(seen["x"])))) * (1 + scale) + shift
        expected = seen["x"] + resnet.conv2(silu(h))
    assert torch.allclose(seen["out"], expected, atol=1e-5)


def test_a_vector_of_timesteps_equals_separate_calls(trained, x):
    steps = [100, 500, 999]
    together = moments(trained, x, torch.tensor(steps))
    apart = torch.cat([moments(trained, x[i : i + 1], step) for i, step in enumerate(steps)])
    assert torch.allclose(together, apart, atol=1e-5)


def test_a_call_that_raised_leaves_nothing_behind(stock, trained, x):
    before = moments(trained, x, 500)
    with pytest.raises(RuntimeError):
        trained.encode(torch.zeros(1, 5, 16, 16), 999)
    assert torch.equal(moments(trained, x), moments(stock, x))
    assert torch.equal(moments(trained, x, 500), before)


def test_wrong_arguments_are_refused(vae, x):
    with pytest.raises(ValueError, match="one a picture"):
        vae.encode(x, torch.tensor([1, 2]))
    vae.enable_tiling()
    with pytest.raises(ValueError, match="disable_tiling"):
        vae.encode(x, 1)
    with pytest.raises(ValueError, match="DownEncoderBlock2D"):
        TimeAwareAutoencoderKL(**TINY | {"down_block_types": ("AttnDownEncoderBlock2D",) * 2})


def test_tuple_output(vae, x):
    (posterior,) = vae.encode(x, 500, return_dict=False)
    assert posterior.mode().shape == (3, 4, 8, 12)


def test_round_trip(trained, x, tmp_path):
    trained.save_pretrained(tmp_path)
    loaded = TimeAwareAutoencoderKL.from_pretrained(tmp_path)
    for key, value in TINY.items():
        got = loaded.config[key]
        assert (tuple(got) if isinstance(got, list) else got) == value
    assert torch.equal(moments(loaded, x, 500), moments(trained, x, 500))


def test_from_a_plain_autoencoder_keeps_its_config_dtype_and_weights(stock, x):
    stock.register_to_config(scaling_factor=0.5)
    vae = TimeAwareAutoencoderKL.from_autoencoder_kl(stock.to(torch.bfloat16))
    assert vae.config.scaling_factor == 0.5
    assert vae.dtype == torch.bfloat16
    assert not vae.training
    assert torch.equal(moments(vae, x.bfloat16(), 7), moments(stock, x.bfloat16()))
    stock.encoder.lora = torch.nn.Linear(1, 1)
    with pytest.raises(ValueError, match="merge or unload"):
        TimeAwareAutoencoderKL.from_autoencoder_kl(stock)


def test_gradient_checkpointing_gives_the_same_gradients(trained, x):
    def gradients() -> list[Tensor]:
        trained.zero_grad()
        trained.encode(x, 500).latent_dist.mean.square().mean().backward()
        return [p.grad.clone() for key, p in trained.named_parameters() if is_time(key)]

    trained.train()
    plain = gradients()
    trained.enable_gradient_checkpointing()
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(plain, gradients(), strict=True))
    assert all(g.abs().max() > 0 for g in plain)
