"""Adapters: which modules at full SD 2.1 size (nothing is allocated), and that all groups act, train and merge."""

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from ctsr import TimeAwareAutoencoderKL

pytest.importorskip("peft")

from training.model.lora import add_lora, lora_parameters, merge_lora, train_conv_in, unet_targets, vae_targets
from training.model.sd21 import SD21_UNET, SD21_VAE


def numel(parameters) -> int:
    return sum(parameter.numel() for parameter in parameters)


def wake(model: nn.Module, seed: int = 0) -> None:
    """B starts at zero: give it values, so that the adapters do something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in lora_parameters(model):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


def predict(unet: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    z, embeds = torch.randn(1, 4, 8, 8, generator=generator), torch.randn(1, 4, 16, generator=generator)
    return unet(z, 999, encoder_hidden_states=embeds).sample


def test_the_counts_of_osediff_at_sd21_size():
    with torch.device("meta"):
        unet = UNet2DConditionModel(**SD21_UNET)
        vae = TimeAwareAutoencoderKL(**SD21_VAE)
    groups = unet_targets(unet)
    assert {name: len(modules) for name, modules in groups.items()} == {
        "default_encoder": 94,
        "default_decoder": 148,
        "default_others": 16,
    }
    assert [len(modules) for modules in vae_targets(vae).values()] == [32]
    add_lora(unet, groups)
    add_lora(vae, vae_targets(vae))
    conv_in = train_conv_in(unet)
    assert numel(lora_parameters(unet)) == 4_055_712
    assert numel(lora_parameters(vae)) == 369_356
    assert numel(conv_in) == 11_840
    assert numel(p for model in (unet, vae) for p in model.parameters() if p.requires_grad) == 4_436_908
    assert {p.device.type for p in (*unet.parameters(), *vae.parameters())} == {"meta"}


def test_names_and_shapes_are_those_of_osediff_checkpoints():
    with torch.device("meta"):
        unet = UNet2DConditionModel(**SD21_UNET)
    add_lora(unet, unet_targets(unet))
    state = unet.state_dict()
    attention = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    assert state[f"{attention}.lora_A.default_encoder.weight"].shape == (4, 320)
    assert state[f"{attention}.lora_B.default_encoder.weight"].shape == (320, 4)
    assert state["conv_in.lora_A.default_encoder.weight"].shape == (4, 4, 3, 3)
    assert state["conv_in.lora_B.default_encoder.weight"].shape == (320, 4, 1, 1)
    assert state["conv_in.base_layer.weight"].shape == (320, 4, 3, 3)
    assert not [key for key in state if "lora" in key and ("time_emb" in key or "norm" in key)]


def test_no_time_layer_of_the_encoder_is_adapted(make_sd):
    vae = make_sd().vae
    (names,) = vae_targets(vae).values()
    assert not [name for name in names if "time" in name or name.startswith(("decoder", "post_quant"))]
    assert "quant_conv" in names


def test_a_new_adapter_changes_nothing_and_every_group_trains(make_sd):
    unet = make_sd("osediff").unet
    before = predict(unet)
    add_lora(unet, unet_targets(unet), seed=0)
    assert torch.equal(predict(unet), before)
    predict(unet).square().mean().backward()
    b = {name: p for name, p in unet.named_parameters() if ".lora_B." in name}
    assert {name.split(".")[-2] for name in b} == set(unet_targets(make_sd("osediff").unet))
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in b.values())
    assert not [name for name, p in unet.named_parameters() if p.requires_grad and ".lora_" not in name]


def test_a_start_is_gaussian_and_repeats_with_its_seed(make_sd):
    def start(seed: int, rank: int = 4) -> Tensor:
        unet = make_sd().unet
        state = torch.get_rng_state()
        add_lora(unet, unet_targets(unet), rank=rank, seed=seed)
        assert torch.equal(torch.get_rng_state(), state)
        return torch.cat([p.detach().flatten() for n, p in unet.named_parameters() if ".lora_A." in n])

    assert torch.equal(start(0), start(0))
    assert not torch.equal(start(0), start(1))
    for rank in (4, 2):
        assert start(0, rank).std().item() == pytest.approx(1 / rank, rel=0.03)
        assert start(0, rank).abs().max() > 3.5 / rank  # a uniform start has no tail


@pytest.mark.parametrize("alpha", [8, 4])
def test_merged_output_is_the_unmerged_one(make_sd, alpha):
    unet = make_sd("osediff").unet
    keys, before = set(unet.state_dict()), predict(unet)
    add_lora(unet, unet_targets(unet), alpha=alpha)
    wake(unet)
    unmerged = predict(unet)
    assert (unmerged - before).abs().max() > 0.01
    merge_lora(unet)
    assert set(unet.state_dict()) == keys
    torch.testing.assert_close(predict(unet), unmerged, rtol=1e-4, atol=1e-5)
    add_lora(unet, unet_targets(unet))  # as a plain model again
    merge_lora(unet)
    torch.testing.assert_close(predict(unet), unmerged, rtol=1e-4, atol=1e-5)


def test_the_share_of_an_adapter_is_alpha_over_rank():
    model = nn.Sequential(nn.Linear(6, 5))
    weight = model[0].weight.detach().clone()
    add_lora(model, {"x": ["0"]}, rank=4, alpha=8)
    wake(model)
    a, b = model[0].lora_A["x"].weight.detach().clone(), model[0].lora_B["x"].weight.detach().clone()
    merge_lora(model)
    torch.testing.assert_close(model[0].weight.detach(), weight + 2 * b @ a)


def test_half_precision_weights_are_merged_in_fp32():
    model = nn.Sequential(nn.Conv2d(6, 5, 3)).bfloat16()
    weight = model[0].weight.detach().float()
    add_lora(model, {"x": ["0"]})
    wake(model)
    a, b = model[0].lora_A["x"].weight, model[0].lora_B["x"].weight
    assert a.dtype == b.dtype == torch.float32
    delta = 2 * torch.einsum("or,rihw->oihw", b[..., 0, 0], a).detach()
    merge_lora(model)
    assert model[0].weight.dtype == torch.bfloat16
    torch.testing.assert_close(model[0].weight.detach(), (weight + delta).bfloat16(), rtol=2**-8, atol=0)


def test_only_active_adapters_are_merged(make_sd):
    unet = make_sd("osediff").unet
    add_lora(unet, unet_targets(unet))
    wake(unet)
    unet.set_adapter(["default_encoder", "default_others"])
    expected = predict(unet)
    merge_lora(unet)
    torch.testing.assert_close(predict(unet), expected, rtol=1e-4, atol=1e-5)


def test_conv_in_trains_in_fp32_with_and_without_an_adapter(make_sd):
    for adapted in (False, True):
        unet = make_sd("osediff").unet.bfloat16()
        if adapted:
            add_lora(unet, unet_targets(unet))
        unet.requires_grad_(False)
        weights = train_conv_in(unet)
        assert [tuple(p.shape) for p in weights] == [(32, 4, 3, 3), (32,)]
        with torch.autocast("cpu", torch.bfloat16):
            predict(unet).float().square().mean().backward()
        assert all(p.dtype == torch.float32 and p.grad.abs().max() > 0 for p in weights)
        assert {name.replace("base_layer.", "") for name, p in unet.named_parameters() if p.requires_grad} == {
            "conv_in.weight",
            "conv_in.bias",
        }


def test_a_name_that_is_not_there_is_refused(make_sd):
    unet = make_sd().unet
    with pytest.raises(ValueError, match="no module 'conv_im'"):
        add_lora(unet, {"x": ["conv_in", "conv_im"]})
    assert not hasattr(unet, "peft_config")


def test_only_the_named_modules_are_adapted():
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4)))
    add_lora(model, {"x": ["0"]})
    assert type(model.get_submodule("1.0")) is nn.Linear
    assert type(model.get_submodule("0")) is not nn.Linear


def test_merging_a_model_without_adapters_does_nothing(make_mini):
    unet = make_mini().unet
    before = {key: value.clone() for key, value in unet.state_dict().items()}
    merge_lora(unet)
    assert all(torch.equal(value, before[key]) for key, value in unet.state_dict().items())
