"""Stable Diffusion's autoencoder with TADSR's time-aware encoder.

Paper: TADSR (arXiv 2508.16557). Original repository: zty557/TADSR (vendors diffusers 0.25; no code taken). The base is
diffusers' `AutoencoderKL` (Apache-2.0). Keys and shapes of the 24 time tensors are TADSR's; differs from it in that
`time_emb_proj` starts at zero, so an untrained encoder equals the plain one bit for bit at every timestep.

The resnets are diffusers' own, switched to their `scale_shift` conditioning: h = norm2(h) * (1 + scale) + shift.
The timestep travels as an argument, never as state, so tiles, threads and recomputed activations are safe.
"""

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config  # pyright: ignore[reportUnknownVariableType]
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution, Encoder
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.resnet import ResnetBlock2D
from diffusers.utils.accelerate_utils import apply_forward_hook  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint  # pyright: ignore[reportUnknownVariableType]

from .doubling import double_by_phases

__all__ = ["ModelMixin", "TimeAwareAutoencoderKL"]  # diffusers asks this module for the first when it loads a folder

_TIME_EMBED_DIM = 256
_ENCODER_ARGUMENTS = (
    *("in_channels", "down_block_types", "block_out_channels", "layers_per_block", "act_fn", "norm_num_groups"),
    "mid_block_add_attention",
)
"""Those of an autoencoder's arguments that its encoder takes too."""


class TimeProjection(nn.Linear):
    """Activated time embedding [B, 256] -> scale and shift [B, 2C]; zero for None. Starts at zero."""

    def __init__(self, channels: int):
        super().__init__(_TIME_EMBED_DIM, 2 * channels)  # pyright: ignore[reportUnknownMemberType]
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, input: Tensor | None) -> Tensor:
        if input is None:
            return self.weight.new_zeros(1, self.out_features)
        return super().forward(input)


def _make_time_aware(resnet: ResnetBlock2D) -> None:
    """Give a plain resnet `time_emb_proj`; called without an embedding it computes what it did before."""
    resnet.time_emb_proj = TimeProjection(resnet.out_channels)
    resnet.time_embedding_norm = "scale_shift"
    resnet.skip_time_act = True  # the encoder activates the embedding, once for all resnets


def down(block: nn.Module, x: Tensor, emb: Tensor) -> Tensor:
    """A `DownEncoderBlock2D` with the embedding, which its own forward drops: [B, C, H, W] -> [B, C', H/2, W/2]."""
    for resnet in cast(Iterable[nn.Module], block.resnets):
        x = resnet(x, emb)
    for downsampler in cast(Iterable[nn.Module], block.downsamplers or ()):
        x = downsampler(x)
    return x


class TimeAwareEncoder(Encoder):
    """diffusers' `Encoder` whose resnets know the timestep; takes the same arguments."""

    def __init__(self, block_out_channels: tuple[int, ...], **kwargs: Any):
        super().__init__(block_out_channels=block_out_channels, **kwargs)
        dim = max(128, block_out_channels[0])
        self.time_proj = Timesteps(dim, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(dim, _TIME_EMBED_DIM)
        for module in self.modules():
            if isinstance(module, ResnetBlock2D):
                _make_time_aware(module)

    def forward(self, sample: Tensor, timestep: Tensor | None = None) -> Tensor:
        """Moments before `quant_conv`.

        Args:
            sample: [B, 3, H, W] in [-1, 1], H and W multiples of the factor.
            timestep: tau [B]; None is the plain encoder.

        Returns:
            [B, 2 * latent_channels, h, w].
        """
        if timestep is None:
            return super().forward(sample)
        emb = F.silu(self.time_embedding(self.time_proj(timestep).to(sample.dtype)))
        x = self.conv_in(sample)
        for block in self.down_blocks:
            x = self._run(down, block, x, emb)
        x = self._run(self.mid_block, x, emb)
        return self.conv_out(self.conv_act(self.conv_norm_out(x)))

    def _run(self, function: Callable[..., Tensor], *args: nn.Module | Tensor) -> Tensor:
        """function(*args), its activations recomputed on the way back where gradient checkpointing is on."""
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return cast(Tensor, checkpoint(function, *args, use_reentrant=False))
        return function(*args)


class TimeAwareAutoencoderKL(AutoencoderKL):
    """`AutoencoderKL` whose encoder knows the timestep; the decoder differs only in its arithmetic, see `doubling`.

    At SD size it has 24 tensors, 2,072,576 parameters, more: `encoder.time_embedding.linear_{1,2}` and `time_emb_proj`
    of every resnet of the encoder. Arguments are `AutoencoderKL`'s; down blocks must be `DownEncoderBlock2D`.
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",),
        up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",),
        block_out_channels: tuple[int, ...] = (64,),
        layers_per_block: int = 1,
        act_fn: str = "silu",
        latent_channels: int = 4,
        norm_num_groups: int = 32,
        sample_size: int = 32,
        scaling_factor: float = 0.18215,
        shift_factor: float | None = None,
        latents_mean: tuple[float, ...] | None = None,
        latents_std: tuple[float, ...] | None = None,
        force_upcast: bool = True,
        use_quant_conv: bool = True,
        use_post_quant_conv: bool = True,
        mid_block_add_attention: bool = True,
    ):
        if set(down_block_types) != {"DownEncoderBlock2D"}:
            raise ValueError(f"down_block_types must all be 'DownEncoderBlock2D'; got {down_block_types}.")
        # What `register_to_config` has noted: all of the arguments above. Any: diffusers types some as tuples of one.
        given: dict[str, Any] = {key: value for key, value in self.config.items() if not key.startswith("_")}
        super().__init__(**given)
        shape = {key: given[key] for key in _ENCODER_ARGUMENTS}
        self.encoder = TimeAwareEncoder(out_channels=latent_channels, double_z=True, **shape)
        double_by_phases(self)

    @classmethod
    def from_autoencoder_kl(cls, vae: AutoencoderKL) -> "TimeAwareAutoencoderKL":
        """A copy of a plain autoencoder, time layers untrained: same config, weights, dtype, device and mode.

        Raises:
            ValueError: `vae` holds other tensors than its config says, such as LoRA layers not merged.
        """
        # Without the private keys: `from_config` would undo what was registered over a default after construction.
        config = {key: value for key, value in vae.config.items() if not key.startswith("_")}
        model = cast(TimeAwareAutoencoderKL, cls.from_config(config))  # pyright: ignore[reportUnknownMemberType]
        keys = model.load_state_dict(vae.state_dict(), strict=False)
        missing, unexpected = cast(tuple[list[str], list[str]], keys)
        wrong = [key for key in missing if ".time_" not in key] + unexpected
        if wrong:
            raise ValueError(f"vae is not a plain AutoencoderKL ({wrong[0]}): merge or unload its adapters first.")
        nn.Module.to(model, device=vae.device, dtype=vae.dtype)
        return model.train(vae.training)

    @apply_forward_hook
    def encode(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Tensor, timestep: Tensor | float | None = None, return_dict: bool = True
    ) -> AutoencoderKLOutput | tuple[DiagonalGaussianDistribution]:
        """Posterior of the unscaled latents.

        Args:
            x: [B, 3, H, W] in [-1, 1], H and W multiples of the factor (8 at SD size).
            timestep: tau in 0..999, one for all or one a picture [B]; None is the plain encoder.
            return_dict: False gives a tuple.

        Returns:
            `AutoencoderKLOutput`; `.latent_dist.mode()` is [B, latent_channels, h, w].

        Raises:
            ValueError: a timestep that fits neither one nor B pictures, or together with diffusers' own tiling.
        """
        if timestep is None:
            return super().encode(x, return_dict=return_dict)
        if self.use_tiling:
            raise ValueError("diffusers' tiling drops the timestep: call disable_tiling() and tile in the caller.")
        moments = self.encoder(x, steps_of(timestep, x))
        if self.quant_conv is not None:
            moments = self.quant_conv(moments)
        posterior = DiagonalGaussianDistribution(moments)
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)


def steps_of(timestep: Tensor | float, x: Tensor) -> Tensor:
    """`timestep` as fp32 [B] on x's device, B from x [B, ...]."""
    steps = torch.as_tensor(timestep, dtype=torch.float32, device=x.device).reshape(-1)
    if steps.shape[0] not in (1, x.shape[0]):
        raise ValueError(f"timestep must be one number or one a picture ({x.shape[0]}); got {steps.shape[0]}.")
    return steps.expand(x.shape[0])
