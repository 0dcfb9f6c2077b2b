"""The choice of attention, and that it changes how a network computes, not what."""

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from torch import nn

from ctsr import CTSRPipeline
from ctsr.runtime import attention
from ctsr.runtime.attention import choose_attention, set_attention

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("asked", "device", "installed", "chosen"),
    [
        ("auto", CPU, False, "sdpa"),
        ("auto", CPU, True, "sdpa"),
        ("sdpa", CPU, True, "sdpa"),
        ("auto", CUDA, False, "sdpa"),
        ("auto", CUDA, True, "xformers"),
        ("sdpa", CUDA, True, "sdpa"),
        ("sdpa", CUDA, False, "sdpa"),
        ("xformers", CUDA, True, "xformers"),
    ],
)
def test_the_choice(asked, device, installed, chosen, monkeypatch):
    monkeypatch.setattr(attention, "find_spec", lambda name: object() if installed else None)
    assert choose_attention(asked, device) == chosen


@pytest.mark.parametrize(("device", "installed"), [(CPU, True), (CPU, False), (CUDA, False)])
def test_xformers_by_name_where_it_cannot_be_used(device, installed, monkeypatch):
    monkeypatch.setattr(attention, "find_spec", lambda name: object() if installed else None)
    with pytest.raises(ValueError, match=f"on {device.type} here: install it for a CUDA GPU, or choose sdpa"):
        choose_attention("xformers", device)


def test_an_unknown_name():
    with pytest.raises(ValueError, match="no attention 'flash': choose one of auto, xformers, sdpa"):
        choose_attention("flash", CPU)


def processors(network: nn.Module) -> list[type]:
    return [type(module.processor) for module in network.modules() if isinstance(module, Attention)]


def picture(pipeline: CTSRPipeline) -> torch.Tensor:
    x = torch.rand(1, 3, 9, 13, generator=torch.Generator().manual_seed(0))
    return pipeline(x, t=0.3, output_type="pt").images


def test_sdpa_gives_what_attention_written_out_gives(make_sd):
    pipeline = make_sd()
    for network in (pipeline.unet, pipeline.vae):
        for module in network.modules():
            if isinstance(module, Attention):
                module.set_processor(AttnProcessor())
    written_out = picture(pipeline)
    for network in (pipeline.unet, pipeline.vae):
        assert processors(network)
        set_attention(network, "sdpa")
        assert set(processors(network)) == {AttnProcessor2_0}
    assert (picture(pipeline) - written_out).abs().max() < 1e-5


def test_a_new_network_computes_by_sdpa_already(make_sd, tiny_sd):
    pipeline = make_sd()
    for network in (pipeline.unet, pipeline.vae):
        set_attention(network, "sdpa")
    assert torch.equal(picture(pipeline), picture(tiny_sd))


@pytest.mark.parametrize("name", ["sdpa", "xformers"])
def test_a_network_without_attention_takes_either_and_stays_as_it_is(make_mini, tiny_mini, name):
    pipeline = make_mini()
    for network in (pipeline.unet, pipeline.vae):
        assert not processors(network)
        set_attention(network, name)
    assert torch.equal(picture(pipeline), picture(tiny_mini))
