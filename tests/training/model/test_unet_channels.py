"""A UNet's ends made wider or narrower: what it predicts then, and what its file and config say."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from ctsr import CTSRPipeline
from training.model.lora import add_lora, merge_lora, unet_targets
from training.model.unet_channels import keep_groups, widen_conv_in, widen_conv_out

Make = Callable[..., CTSRPipeline]


@pytest.fixture(params=["mini", "sd"])
def make(request: pytest.FixtureRequest, make_mini: Make, make_sd: Make) -> Callable[[], CTSRPipeline]:
    """A pipeline of 4 latent channels, the same at every call."""
    return make_mini if request.param == "mini" else lambda: make_sd("osediff")


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_a_wider_unet_ignores_the_new_half_and_says_so_in_its_file(
    make: Callable[[], CTSRPipeline], tmp_path: Path
) -> None:
    narrow, wide = make(), make()
    widen_conv_in(wide.unet)
    z, condition, prompt = random(1, 4, 8, 8), random(1, 4, 8, 8) + 1, random(1, 4, 16)
    both, before = torch.cat([z, condition], 1), narrow.unet(z, 500, prompt).sample
    assert torch.allclose(wide.unet(both, 500, prompt).sample, before, atol=1e-6)
    wide.save_single_file(tmp_path / "wide.safetensors", torch.float32)
    again = CTSRPipeline.from_single_file(tmp_path / "wide.safetensors", torch.float32)
    assert again.unet.config["in_channels"] == 8
    torch.testing.assert_close(again.unet(both, 500, prompt).sample, before, atol=1e-5, rtol=1e-4)  # in another layout
    wide.save_pretrained(tmp_path / "folder")
    assert CTSRPipeline.from_pretrained(tmp_path / "folder").unet.config["in_channels"] == 8


def test_new_output_groups_are_zero_and_the_unet_saves_and_loads(make_sd: Make, tmp_path: Path) -> None:
    narrow, unet = make_sd("osediff").unet.conv_out, make_sd("osediff").unet
    widen_conv_out(unet)
    torch.testing.assert_close(unet.conv_out.weight[:4], narrow.weight, rtol=0, atol=0)
    torch.testing.assert_close(unet.conv_out.bias[:4], narrow.bias, rtol=0, atol=0)
    assert unet.conv_out.weight[4:].abs().max() == unet.conv_out.bias[4:].abs().max() == 0
    unet.to(memory_format=torch.contiguous_format).save_pretrained(tmp_path)
    loaded = UNet2DConditionModel.from_pretrained(tmp_path, low_cpu_mem_usage=False)
    assert loaded.config["out_channels"] == 12
    assert torch.equal(loaded.conv_out.weight, unet.conv_out.weight)


def test_the_widened_config_rebuilds_also_where_the_width_was_a_default() -> None:
    shape = {"block_out_channels": (8,), "down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    unet = UNet2DConditionModel(**shape, layers_per_block=1, norm_num_groups=4, cross_attention_dim=8)
    widen_conv_out(unet, groups=2)
    assert UNet2DConditionModel.from_config(unet.config).conv_out.out_channels == 8


def test_surplus_output_groups_are_cut_off_and_the_rest_predicts_as_before(
    make_mini: Make, tiny_mini: CTSRPipeline
) -> None:
    pipeline, z = make_mini(), random(1, 4, 6, 6)
    keep_groups(pipeline.unet, 4)
    assert torch.allclose(pipeline.unet(z, 9).sample, tiny_mini.unet(z, 9).sample[:, :4], atol=1e-5)
    assert pipeline.unet.config["out_channels"] == 4
    with pytest.raises(ValueError, match="8 or more"):
        keep_groups(pipeline.unet, 8)


@pytest.mark.parametrize("change", [widen_conv_out, lambda unet: keep_groups(unet, 4)])
def test_adapters_must_be_merged_first(make_sd: Make, change: Callable[[torch.nn.Module], None]) -> None:
    pytest.importorskip("peft")
    unet = make_sd("ctsr").unet
    add_lora(unet, unet_targets(unet))
    with pytest.raises(ValueError, match="merge_lora"):
        change(unet)
    merge_lora(unet)
    change(unet)
    assert unet.conv_out.out_channels in (4, 36)
