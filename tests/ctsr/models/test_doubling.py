"""Doubling by phases against nearest neighbour and convolution."""

import copy

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.upsampling import Upsample2D
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ctsr.models.doubling import DoublingConv2d, double_by_phases, doubling


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [(1, 1), (1, 5), (7, 4)])
def test_equal_to_nearest_and_convolution(size: tuple[int, int], bias: bool):
    torch.manual_seed(0)
    conv, x = nn.Conv2d(6, 5, 3, padding=1, bias=bias).double(), torch.randn(2, 6, *size, dtype=torch.float64)
    assert torch.allclose(doubling(conv)(x), conv(F.interpolate(x, scale_factor=2.0)), rtol=0, atol=1e-12)


def test_bfloat16_keeps_its_dtype_and_precision():
    torch.manual_seed(0)
    conv, x = nn.Conv2d(8, 8, 3, padding=1), torch.randn(1, 8, 5, 6)
    expected = conv(F.interpolate(x, scale_factor=2.0))
    result = doubling(conv.to(torch.bfloat16))(x.to(torch.bfloat16))
    assert result.dtype == torch.bfloat16
    assert (result.float() - expected).abs().max() < 2e-2 * expected.abs().max()


def test_gradients_reach_the_same_parameters():
    torch.manual_seed(0)
    conv, x = nn.Conv2d(4, 4, 3, padding=1), torch.randn(1, 4, 3, 3)
    by_phases = doubling(conv)
    assert by_phases.weight is conv.weight
    expected = torch.autograd.grad(conv(F.interpolate(x, scale_factor=2.0)).square().sum(), conv.weight)[0]
    assert torch.allclose(torch.autograd.grad(by_phases(x).square().sum(), conv.weight)[0], expected, rtol=1e-4)


def test_decoder_of_stable_diffusion_with_less_arithmetic(sd21):
    torch.manual_seed(0)
    plain = copy.deepcopy(sd21[1])
    for block in plain.decoder.up_blocks:  # another test's pipeline may have come first
        for upsampler in block.upsamplers or ():
            fresh = Upsample2D(upsampler.channels, use_conv=True, out_channels=upsampler.out_channels)
            fresh.load_state_dict(upsampler.state_dict())
            upsampler.conv, upsampler.interpolate = fresh.conv, True
    ours, z = copy.deepcopy(plain), torch.randn(1, 4, 5, 7)
    double_by_phases(ours)
    assert ours.state_dict().keys() == plain.state_dict().keys()
    work = []
    for vae in (plain, ours):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            work.append((vae.decode(z).sample, counter.get_total_flops()))
    (expected, more), (result, less) = work
    assert less < more
    assert torch.allclose(result, expected, atol=1e-5)


def test_adapters_and_a_second_time(sd21):
    vae = copy.deepcopy(sd21[1])
    double_by_phases(vae)
    modules = [module for module in vae.modules() if isinstance(module, DoublingConv2d)]
    upsampler = vae.decoder.up_blocks[0].upsamplers[0]
    adapted = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1))
    upsampler.conv, upsampler.interpolate = adapted, True
    double_by_phases(vae)
    assert upsampler.conv is adapted
    assert upsampler.interpolate
    assert [m for m in vae.modules() if isinstance(m, DoublingConv2d)] == modules[1:]
    assert len(modules) == 3
