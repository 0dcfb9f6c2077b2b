"""The factor of the autoencoder is a property of the model: one of factor 4 goes through all steps."""

import math

import pytest
import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from ctsr import CTSRPipeline, TimeConditionedUNetMini
from ctsr.images.tensors import map_to_latents
from ctsr.models.autoencoder_mini import MiniEncoderOutput
from ctsr.models.forward import vae_scale_factor
from ctsr.tiling import networks
from ctsr.tiling.network import choose_tile
from tests.conftest import seeded

FACTOR = 4
CPU = torch.device("cpu")


class QuarterAutoencoder(ModelMixin, ConfigMixin):
    """Factor 4 and no norm: 4x4 pixels to channels, a convolution, and back."""

    vae_scale_factor = FACTOR
    encoder_halo = decoder_halo = FACTOR
    working_values_per_pixel = {"encode": 35.0, "decode": 70.0}  # noqa: RUF012

    @register_to_config
    def __init__(self, latent_channels: int = 4, scaling_factor: float = 1.5):
        super().__init__()
        self.encoder = nn.Conv2d(3 * FACTOR**2, latent_channels, 3, padding=1)
        self.decoder = nn.Conv2d(latent_channels, 3 * FACTOR**2, 3, padding=1)

    def encode(self, x: Tensor, timestep: Tensor | None = None) -> MiniEncoderOutput:
        return MiniEncoderOutput(latents=self.encoder(F.pixel_unshuffle(x, FACTOR)))

    def decode(self, z: Tensor) -> DecoderOutput:
        return DecoderOutput(sample=F.pixel_shuffle(self.decoder(z), FACTOR))


def kl() -> AutoencoderKL:
    """Stable Diffusion's shape with a level less."""
    return AutoencoderKL(
        block_out_channels=(32, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=8,
    )


@pytest.fixture(params=[QuarterAutoencoder, kl], ids=["halo", "kl"])
def pipeline(request: pytest.FixtureRequest) -> CTSRPipeline:
    unet = TimeConditionedUNetMini(
        in_channels=4, out_channels=12, block_out_channels=(8, 8), layers_per_block=(1, 1), time_embed_dim=16
    )
    return CTSRPipeline(seeded(request.param(), 0), seeded(unet, 1), parameterization="residual")


def test_the_factor_is_read_from_the_autoencoder(pipeline, tiny_mini, tiny_sd):
    assert pipeline.vae_scale_factor == FACTOR
    assert pipeline.pad_multiple == 2 * FACTOR
    assert tiny_mini.vae_scale_factor == tiny_sd.vae_scale_factor == 8
    assert vae_scale_factor(AutoencoderKL(block_out_channels=(32,))) == 1


def test_sizes_on_the_way(pipeline):
    x = torch.rand(1, 3, 13, 21)
    encoded = pipeline.encode(x, 26, 42)
    assert encoded.latents[0].shape == (1, 4, 32 // FACTOR, 48 // FACTOR)
    ends = pipeline.endpoints(encoded.latents)
    assert ends.z0.shape == (1, 4, 8, 12)
    assert pipeline.decode(ends.z0).shape == (1, 3, 32, 48)
    assert pipeline(x, scale=2, output_type="pt").images.shape == (1, 3, 26, 42)


def test_tiled_is_untiled_where_nothing_normalises(pipeline):
    x = torch.rand(1, 3, 60, 44)
    untiled, tiled = (pipeline(x, 0.3, output_type="pt", tile=tile).images for tile in (0, 128))
    if isinstance(pipeline.vae, AutoencoderKL):
        assert (tiled - untiled).abs().mean() < 0.02
    else:
        assert (tiled - untiled).abs().max() < 1e-4
    seen: list[tuple[str, int]] = []
    pipeline(x, 0.3, output_type="pt", tile=128, callback=lambda stage, done, total: seen.append((stage, total)))
    if not isinstance(pipeline.vae, AutoencoderKL):
        assert {total for _, total in seen} == {2 * 2}  # 240x176 pixels


def test_a_tile_in_pixels_is_as_many_latents(pipeline):
    for stage in ("encode", "unet", "decode"):
        network = pipeline.network(stage)
        cells = choose_tile(network, 1000, 1000, 128, CPU)
        assert cells == 128 // FACTOR
        assert "128 pixels" in networks.describe_tiles(network, 1000, 1000, cells, 0)


def test_predicted_memory_is_by_pixels(pipeline, tiny_mini):
    if isinstance(pipeline.vae, AutoencoderKL):
        pytest.skip("other networks than the mini's")
    for stage in ("encode", "decode"):
        ours, mini = (pipe.predicted_memory(stage, 256, 256) for pipe in (pipeline, tiny_mini))
        assert math.isclose(ours, mini, rel_tol=1e-6)


def test_a_map_of_t(pipeline):
    half = torch.zeros(64, 64)
    half[:, 32:] = 1
    small = map_to_latents(half, (64, 64), (16, 16), FACTOR)
    assert small.shape == (1, 1, 16, 16)
    assert torch.equal(small[0, 0, 0], torch.tensor([0.0] * 8 + [1.0] * 8))
    x = torch.rand(1, 3, 16, 16)
    z, start, end = (pipeline(x, output_type="latent", **dial).images for dial in ({"t_map": half}, {"t": 0}, {"t": 1}))
    assert torch.allclose(z[..., :7], start[..., :7])
    assert torch.allclose(z[..., 9:], end[..., 9:])
