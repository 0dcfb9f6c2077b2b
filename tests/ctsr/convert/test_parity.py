"""OSEDiff, PiSA-SR and TADSR against a few lines of their formulas on plain diffusers modules, and nothing of ours.

The same random weights and the same published file go both ways; latents and pictures may differ by 1e-4 of their
largest value.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from ctsr import CTSRPipeline
from ctsr.checkpoints.inspect import read
from ctsr.convert.convert import Options, assemble, open_published
from ctsr.convert.stable_diffusion import Base
from tests.checkpoints import WRITERS

Networks = tuple[UNet2DConditionModel, AutoencoderKL]
S = 0.18215
SIDE = 64
PROMPT = torch.randn(1, 77, 16, generator=torch.Generator().manual_seed(5))
X = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(6))


def copied(model: nn.Module) -> Any:
    new = type(model).from_config(model.config)
    new.load_state_dict(model.state_dict())
    return new.eval()


def ours(path: Path, sd21: Networks) -> CTSRPipeline:
    base = Base(Path("base"), lambda: copied(sd21[0]), lambda: copied(sd21[1]), lambda prompt: PROMPT)
    return assemble(open_published(read(path))[1], base, Options(), {})


# ----------------------------------------------------------------------------------------------- the reference's parts


def alpha_bar(timestep: int) -> float:
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return float(torch.cumprod(1 - betas, 0)[timestep])


def merged(model: nn.Module, state: dict[str, Tensor], adapters: Sequence[str]) -> Any:
    """W + 2 B A of these adapters."""
    model = copied(model)
    for key, a in state.items():
        name, _, rest = key.partition(".lora_A.")
        adapter = rest.removesuffix(".weight")
        if adapter in adapters:
            b, weight = state[f"{name}.lora_B.{adapter}.weight"], model.get_parameter(f"{name}.weight")
            is_linear = weight.ndim == 2
            weight += 2 * (b @ a if is_linear else F.conv2d(a.transpose(0, 1), b).transpose(0, 1))
    return model


def osediff_networks(data: dict[str, Any], sd21: Networks) -> Networks:
    unet, state = copied(sd21[0]), data["state_dict_unet"]
    for kind in ("weight", "bias"):
        getattr(unet.conv_in, kind).copy_(state[f"conv_in.base_layer.{kind}"])
    unet = merged(unet, state, ["default_encoder", "default_decoder", "default_others"])
    return unet, merged(sd21[1], data["state_dict_vae"], ["default_encoder"])


def mode(vae: Any, moments: Tensor) -> Tensor:
    return S * vae.quant_conv(moments).chunk(2, dim=1)[0]


def decoded(vae: AutoencoderKL, z: Tensor) -> Tensor:
    return vae.decode(z / S).sample.clamp(-1, 1) / 2 + 0.5


def time_aware_moments(vae: Any, time: dict[str, Tensor], x: Tensor, timestep: int) -> Tensor:
    """The encoder with h = norm2(h) (1 + scale) + shift in every resnet."""
    angles = timestep * torch.exp(-torch.arange(64) / 64 * torch.log(torch.tensor(10000.0)))
    emb = torch.cat([angles.cos(), angles.sin()])[None]

    def linear(name: str, y: Tensor) -> Tensor:
        return F.linear(y, time[f"encoder.{name}.weight"], time[f"encoder.{name}.bias"])

    emb = linear("time_embedding.linear_2", F.silu(linear("time_embedding.linear_1", emb)))

    def resnet(name: str, block: Any, h: Tensor) -> Tensor:
        scale, shift = linear(f"{name}.time_emb_proj", F.silu(emb))[..., None, None].chunk(2, dim=1)
        skip = h if block.conv_shortcut is None else block.conv_shortcut(h)
        h = block.norm2(block.conv1(F.silu(block.norm1(h)))) * (1 + scale) + shift
        return skip + block.conv2(F.silu(h))

    encoder = vae.encoder
    h = encoder.conv_in(x)
    for i, block in enumerate(encoder.down_blocks):
        for j, part in enumerate(block.resnets):
            h = resnet(f"down_blocks.{i}.resnets.{j}", part, h)
        for part in block.downsamplers or []:
            h = part(h)
    h = resnet("mid_block.resnets.0", encoder.mid_block.resnets[0], h)
    h = encoder.mid_block.attentions[0](h)
    h = resnet("mid_block.resnets.1", encoder.mid_block.resnets[1], h)
    return encoder.conv_out(F.silu(encoder.conv_norm_out(h)))


def check(pipeline: CTSRPipeline, vae: AutoencoderKL, z: Tensor, expected: Tensor, t: float, **options: Any) -> None:
    """Our latent `z` and our picture at t against the reference's latent and what its decoder makes of it."""
    image: Any = pipeline(X, scale=1, t=t, color_fix="none", output_type="pt", **options).images
    reference = decoded(vae, expected)
    for name, one, other in (("latent", z, expected), ("picture", image, reference)):
        error = float((one - other).abs().max() / other.abs().max())
        assert error <= 1e-4, (name, error)
    assert reference.std() > 0.01


# --------------------------------------------------------------------------------------------------------------- tests


@pytest.fixture
def write(sd21: Networks, tmp_path: Path) -> Any:
    """`write("tadsr")`: that method's dictionary, and its file."""

    def make(name: str) -> tuple[dict[str, Any], Path]:
        data = WRITERS[name](*sd21)
        torch.save(data, tmp_path / "checkpoint.pkl")
        return data, tmp_path / "checkpoint.pkl"

    return make


@torch.no_grad()
def test_osediff(sd21, write):
    data, path = write("osediff")
    pipeline = ours(path, sd21)
    unet, vae = osediff_networks(data, sd21)
    z = mode(vae, vae.encoder(2 * X - 1))
    eps = unet(z, 999, encoder_hidden_states=PROMPT).sample
    abar = alpha_bar(999)
    assert (1 / abar**0.5, ((1 - abar) / abar) ** 0.5) == pytest.approx((14.6488, 14.6146), abs=1e-4)
    expected = (z - (1 - abar) ** 0.5 * eps) / abar**0.5
    found = pipeline.endpoints(pipeline.encode(X, SIDE, SIDE).latents)
    assert found.delta is None
    check(pipeline, vae, found.z0, expected, 0.5)


@pytest.mark.parametrize(("pix", "sem"), [(1, 1), (1, 0.5), (1, 0)])
@torch.no_grad()
def test_pisa(pix, sem, sd21, write):
    """lambda_pix = 1 is our dial at t = 1 - lambda_sem."""
    data, path = write("pisa")
    pipeline = ours(path, sd21)
    expected, _ = pisa_reference(data, sd21, pix, sem)
    found = pipeline.endpoints(pipeline.encode(X, SIDE, SIDE).latents)
    check(pipeline, sd21[1], pipeline.blend(found, 1 - sem), expected, 1 - sem)


def pisa_reference(data: dict[str, Any], sd21: Networks, pix: float, sem: float) -> tuple[Tensor, Tensor]:
    """z - (lambda_pix o_pix + lambda_sem (o_full - o_pix)), and z."""
    parts, state, vae = ("encoder", "decoder", "others"), data["state_dict_unet"], sd21[1]
    kinds = {kind: [f"default_{part}_{kind}" for part in parts] for kind in ("pix", "sem")}
    z = mode(vae, vae.encoder(2 * X - 1))
    o_pix, o_full = (
        merged(sd21[0], state, adapters)(z, 1, encoder_hidden_states=PROMPT).sample
        for adapters in (kinds["pix"], kinds["pix"] + kinds["sem"])
    )
    return z - (pix * o_pix + sem * (o_full - o_pix)), z


@torch.no_grad()
def test_compiled_pisa_keeps_its_dial(sd21, write):
    """The second variant is hooks that come and go, for which compiled networks must look."""
    pipeline = ours(write("pisa")[1], sd21)
    latents = [pipeline.encode(X.roll(shift, -1), SIDE, SIDE).latents for shift in range(3)]
    expected = [pipeline.endpoints(each) for each in latents]
    torch.compiler.reset()
    pipeline.compile(backend="eager")
    for each, wanted in zip(latents, expected, strict=True):
        found = pipeline.endpoints(each)
        torch.testing.assert_close(found.z0, wanted.z0, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.delta, wanted.delta, rtol=1e-4, atol=1e-5)
    assert expected[0].delta.abs().max() > 1e-3


@torch.no_grad()
def test_pisa_beyond_the_dial(sd21, write):
    """Any two lambdas, from the endpoints: o_pix = z_L - z1, o_full - o_pix = z1 - z0."""
    data, path = write("pisa")
    pipeline = ours(path, sd21)
    (latents,) = pipeline.encode(X, SIDE, SIDE).latents
    found = pipeline.endpoints([latents])
    for pix, sem in ((0.8, 1.3), (1.2, 0.4), (0, 1)):
        z1 = pipeline.blend(found, 1.0)
        z = latents - (pix * (latents - z1) + sem * (z1 - found.z0))
        expected, start = pisa_reference(data, sd21, pix, sem)
        assert (z - expected).abs().max() <= 1e-4 * expected.abs().max()
        assert (expected - start).abs().max() > 0.01


@pytest.mark.parametrize("timestep", [100, 500, 900])
@torch.no_grad()
def test_tadsr(timestep, sd21, write):
    data, path = write("tadsr")
    pipeline = ours(path, sd21)
    unet, vae = osediff_networks(data, sd21)
    z = mode(vae, time_aware_moments(vae, data["state_dict_vae_time"], 2 * X - 1, timestep))
    o = unet(z, timestep, encoder_hidden_states=PROMPT).sample
    expected = z / alpha_bar(timestep) ** 0.5 - o
    found = pipeline.endpoints(pipeline.encode(X, SIDE, SIDE, timestep).latents, timestep)
    check(pipeline, vae, found.z0, expected, 0.5, timestep=timestep)


@torch.no_grad()
def test_tadsrs_dial_runs_from_500_to_200(sd21, write):
    pipeline = ours(write("tadsr")[1], sd21)
    both = pipeline.endpoints(pipeline.encode(X, SIDE, SIDE).latents)
    for t, timestep in ((0.0, 500), (1.0, 200)):
        one = pipeline.endpoints(pipeline.encode(X, SIDE, SIDE, timestep).latents, timestep)
        torch.testing.assert_close(pipeline.blend(both, t), one.z0, rtol=0, atol=1e-5)
