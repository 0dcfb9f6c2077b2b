"""The only file that touches the host's memory management: devices, dtypes, loading, eviction, cancel.

Networks are held by patchers of the host, so that it moves them to the device when they are needed and off it when
other models need the room. The host keeps weak references: `HostModel` keeps patchers and networks alive together.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import comfy.model_management as mm
import comfy.model_patcher
import comfy.sd
import comfy.utils
import torch
from torch import Tensor, nn

from .checkpoints import BUILT_IN, BUILT_INS, find
from .checks import check_choice, plain_errors

if TYPE_CHECKING:
    from ..ctsr.pipeline import CTSRPipeline, Progress
    from ..ctsr.precision import Precision
    from ..ctsr.runtime.attention import Attention
    from ..ctsr.tiling.network import Stage

PRECISIONS = ["auto", "fp32", "bf16", "fp16"]
ATTENTIONS = ["auto", "xformers", "sdpa"]
TICKS = 1000
"""Steps of a progress bar: stages have different numbers of tiles."""


class CTSRNetwork(nn.Module):
    """A diffusers model inside a plain module: the host sets `device` on what it moves, which theirs forbid."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network


class CTSRAutoencoder(CTSRNetwork):
    """What `comfy.sd.VAE` calls: pictures in [-1, 1] to unscaled latents and back."""

    def __init__(self, network: nn.Module, timestep: int | None):
        super().__init__(network)
        self.timestep = timestep

    def encode(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, C, H/f, W/f], by the encoder at the checkpoint's own timestep."""
        from ..ctsr.models import forward

        return forward.encode(self.network, x, self.timestep)

    def decode(self, z: Tensor, **_options: Any) -> Tensor:
        """[B, C, h, w] -> [B, 3, f * h, f * w]."""
        from ..ctsr.models import forward

        return forward.decode(self.network, z)

    @property
    def encoder(self) -> nn.Module:
        """Its part, which some nodes ask for."""
        return cast(nn.Module, self.network.encoder)

    @property
    def decoder(self) -> nn.Module:
        """Its part, which some nodes ask for."""
        return cast(nn.Module, getattr(self.network, "decoder", self.network))  # ctsr-mini's is a transform


class WholePatcher(comfy.model_patcher.ModelPatcher):
    """Loads all or nothing: stock modules cannot compute with some layers left on the CPU."""

    def partially_load(self, device_to: torch.device, *_amount: Any, **_options: Any) -> int:
        """Moves the model to the device; returns the bytes that took."""
        if self.model.device == device_to and self.model.model_loaded_weight_memory:
            return 0
        with torch.inference_mode(False):
            self.model.to(device_to)
        self.model.device = device_to
        self.model.model_loaded_weight_memory = self.model_size()
        return self.model_size()

    def partially_unload(self, *_arguments: Any, **_options: Any) -> int:
        """Frees nothing, so that the host unloads the whole."""
        return 0


class CTSRVAE(comfy.sd.VAE):
    """The checkpoint's autoencoder as the host's VAE, and the way back to the model for TiledVAEDecode."""

    def __init__(self, model: HostModel, autoencoder: CTSRAutoencoder, patcher: WholePatcher, dtype: torch.dtype):
        from ..ctsr.models.forward import latent_channels

        with silenced("No VAE weights detected"):
            super().__init__(sd={})
        self.model = model
        self.first_stage_model = autoencoder
        self.patcher = patcher
        self.device = patcher.load_device
        self.output_device = mm.intermediate_device()
        self.vae_dtype = dtype
        self.latent_channels: int = latent_channels(model.pipeline.vae)
        self.disable_offload = True
        self.downscale_ratio = self.upscale_ratio = model.pipeline.vae_scale_factor
        encoder, decoder = model.pipeline.network("encode"), model.pipeline.network("decode")
        self.memory_used_encode = lambda shape, dtype: encoder.bytes_per_pixel * shape[2] * shape[3]
        self.memory_used_decode = lambda shape, dtype: decoder.bytes_per_cell * shape[2] * shape[3]

    def encode(self, pixel_samples: Tensor, *arguments: Any, **options: Any) -> Tensor:
        """IMAGE [B, h, w, 3] -> [B, C, h/f, w/f], cut to multiples of f."""
        self.check_pixels(pixel_samples.shape[1], pixel_samples.shape[2])
        return super().encode(pixel_samples, *arguments, **options)

    def encode_tiled_(self, pixel_samples: Tensor, tile_x: int = 512, tile_y: int = 512, overlap: int = 64) -> Tensor:
        """[B, 3, h, w] in [0, 1] -> [B, C, h/f, w/f] in our own tiles: what the host tiles by."""
        height, width = pixel_samples.shape[-2:]
        self.check_pixels(height, width)
        factor, latents = self.downscale_ratio, Batch(len(pixel_samples), torch.float32)
        for i, on_tile in enumerate(ticking(len(pixel_samples))):
            picture = pixel_samples[i : i + 1].float()
            z, *_ = self.model.pipeline.encode_unscaled(
                picture, height, width, tile=self.side(tile_x, tile_y), callback=on_tile
            )
            latents.add(z[..., : height // factor, : width // factor])  # the pipeline pads for the UNet
        return latents.result().to(self.output_device)

    def decode_tiled_(self, samples: Tensor, tile_x: int = 64, tile_y: int = 64, overlap: int = 16) -> Tensor:
        """[B, C, h, w] -> [B, 3, f * h, f * w] in [0, 1], in tiles of our own, which leave no seams."""
        pictures = Batch(len(samples), torch.float32)
        for i, on_tile in enumerate(ticking(len(samples))):
            tile = self.side(tile_x * self.upscale_ratio, tile_y * self.upscale_ratio)
            z = samples[i : i + 1].float()
            pictures.add(self.model.pipeline.decode_unscaled(z, tile=tile, callback=on_tile))
        return pictures.result().to(self.output_device)

    def side(self, width: int, height: int) -> int:
        """Of our tile, in pixels, for one that the host asks for."""
        from ..ctsr.tiling.tiled import SMALLEST_TILE

        return max(SMALLEST_TILE, min(width, height))

    def check_pixels(self, height: int, width: int) -> None:
        """Raises ValueError for a picture of less than one latent."""
        if min(height, width) < self.downscale_ratio:
            raise ValueError(
                f"pixels are {width}x{height}, and this VAE makes one latent of {self.downscale_ratio}x"
                f"{self.downscale_ratio}: connect a larger picture, or Time-Aware Encode, which pads it."
            )

    def get_sd(self) -> dict[str, Tensor]:
        """The weights, as files hold them: the host's VAE Save writes no others."""
        return {name: value.contiguous() for name, value in super().get_sd().items()}


def ticking(pictures: int) -> Iterator[Progress]:
    """What the pipeline calls after every tile, for each of the pictures."""
    bar = new_bar(TICKS)
    for number in range(pictures):

        def on_tile(stage: str, done: float, total: int, number: int = number) -> None:
            stop_if_cancelled()
            bar.update_absolute(int(TICKS * (number + done / total) / pictures), TICKS)

        yield on_tile


class HostModel:
    """CTSR_MODEL: a pipeline whose networks the host loads and evicts.

    Attributes:
        model_id: name of the checkpoint; latents remember it.
        pipeline: the library's; its networks may lie on any device until `loaded`.
        vae: the autoencoder as the host's VAE.
    """

    def __init__(self, model_id: str, pipeline: CTSRPipeline):
        device, offload = mm.get_torch_device(), mm.unet_offload_device()
        vae_device, vae_offload = mm.vae_device(), mm.vae_offload_device()
        self.model_id, self.pipeline = model_id, pipeline
        self.unet = WholePatcher(CTSRNetwork(pipeline.unet), device, offload)
        autoencoder = CTSRAutoencoder(pipeline.vae, pipeline.family.encoder_timesteps[0])
        self.autoencoder = WholePatcher(autoencoder, vae_device, vae_offload)
        self.vae = CTSRVAE(self, autoencoder, self.autoencoder, pipeline.vae.dtype)
        pipeline.free_memory = free_memory

    def scale(self, asked: float) -> float:
        """Side of a result / side of its picture as asked for; 0 is the checkpoint's own."""
        own = self.pipeline.default_scale
        if asked not in (0, own) and self.pipeline.config["task"] != "sr":
            logging.warning("CTSR: %s is trained for scale %g: set scale to 0.", self.model_id, own)
        return asked or own

    @property
    def latent_channels(self) -> int:
        """C of a latent."""
        return cast(int, self.vae.latent_channels)


def load(model: HostModel, stage: Stage, height: int, width: int, tile: int) -> int:
    """Has the host load a network, evicting others for it and for its work on height x width pixels of the result.

    Returns:
        the bytes that its work is predicted to take.
    """
    mm.throw_exception_if_processing_interrupted()
    patcher = model.unet if stage == "unet" else model.autoencoder
    need = model.pipeline.predicted_memory(stage, height, width, tile, patcher.load_device)
    mm.load_models_gpu([patcher], memory_required=need, force_full_load=True)
    return need


def free_memory() -> None:
    """Evicts every model that is not at work and empties the allocator's cache."""
    device = mm.get_torch_device()
    at_work = [x for x in mm.current_loaded_models if x.currently_used]
    mm.free_memory(mm.get_total_memory(device), device, keep_loaded=at_work)
    mm.soft_empty_cache()


def open_model(checkpoint: str, precision: str, attention: str) -> HostModel:
    """Loads a checkpoint to the devices where the host keeps models that are not at work.

    Raises:
        ValueError: an unknown checkpoint, precision or attention, one that cannot be had here, a damaged file, or no
            checkpoint of ours.
    """
    from ..ctsr.checkpoints.own import move
    from ..ctsr.load import load_pipeline, path_of
    from ..ctsr.precision import accurate_dtype
    from ..ctsr.runtime.attention import use_attention

    check_choice("precision", precision, PRECISIONS)
    check_choice("attention", attention, ATTENTIONS)
    path = find(checkpoint)
    weights = path or path_of(BUILT_INS[checkpoint])
    unet_dtype, vae_dtype = choose_dtypes(precision, weights)
    with torch.inference_mode(False), plain_errors(path):
        pipeline = load_pipeline(weights, torch.float32)
        if precision == "auto":
            unet_dtype = accurate_dtype(unet_dtype, pipeline.family.gain, mm.get_torch_device())
        move(pipeline.vae, mm.vae_offload_device(), vae_dtype)
        move(pipeline.unet, mm.unet_offload_device(), unet_dtype)
        kind = use_attention((pipeline.unet, pipeline.vae), cast("Attention", attention), mm.get_torch_device())
    logging.info("CTSR: %s, UNet in %s, VAE in %s, attention by %s.", checkpoint, unet_dtype, vae_dtype, kind)
    return HostModel(checkpoint, pipeline)


def choose_dtypes(precision: str, path: Path) -> tuple[torch.dtype, torch.dtype]:
    """Dtypes of UNet and autoencoder: by name, or for auto what the host thinks best (no fp16: SD's VAE overflows)."""
    from ..ctsr.precision import choose_dtype

    unet_device, vae_device = mm.get_torch_device(), mm.vae_device()
    if precision != "auto":
        name = cast("Precision", precision)
        return choose_dtype(name, unet_device), choose_dtype(name, vae_device)
    size = path.stat().st_size // 2 if path.is_file() else 0  # parameters, in fp16
    unet = mm.unet_dtype(unet_device, model_params=size, supported_dtypes=[torch.bfloat16, torch.float32])
    if unet.itemsize == 1:  # --fp8_...-unet: stock modules cannot compute in it
        unet = torch.float32
    return unet, mm.vae_dtype(vae_device, [torch.bfloat16])


@lru_cache(maxsize=1)
def built_in() -> HostModel:
    """The built-in checkpoint, kept for nodes that nobody gave a model."""
    return open_model(BUILT_IN, "auto", "auto")


@contextmanager
def silenced(text: str) -> Iterator[None]:
    """Drops the host's log records that contain `text`."""
    keep: Callable[[logging.LogRecord], bool] = lambda record: text not in record.getMessage()  # noqa: E731
    logger = logging.getLogger()
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)


def new_bar(total: int) -> Any:
    """The host's progress bar of the node at work."""
    return comfy.utils.ProgressBar(total)


def stop_if_cancelled() -> None:
    """Raises the host's own exception when the user has cancelled."""
    mm.throw_exception_if_processing_interrupted()


def intermediate_device() -> torch.device:
    """Where the host keeps what travels between nodes."""
    return mm.intermediate_device()


def intermediate_dtype() -> torch.dtype:
    """Number format of pictures and latents between nodes: fp32, unless a newer host was told otherwise."""
    return mm.intermediate_dtype() if hasattr(mm, "intermediate_dtype") else torch.float32


class Batch:
    """Results of one picture each, written into one tensor on the intermediate device as they come.

    So a batch holds its results once, beside one picture at work.

    Args:
        count: of results.
        dtype: of the batch; by default `intermediate_dtype`.
    """

    def __init__(self, count: int, dtype: torch.dtype | None = None):
        self.count, self.done = count, 0
        self.dtype = dtype or intermediate_dtype()
        self.whole: Tensor | None = None

    def add(self, x: Tensor) -> None:
        """The next result, [1, ...] like those before it."""
        whole = self.whole
        if whole is None:
            whole = torch.empty((self.count, *x.shape[1:]), dtype=self.dtype, device=mm.intermediate_device())
        whole[self.done] = x[0]
        self.whole, self.done = whole, self.done + 1

    def so_far(self) -> Tensor:
        """Those that have been added, at least one."""
        if self.whole is None:
            raise RuntimeError("Nothing was added.")
        return self.whole[: self.done]

    def result(self) -> Tensor:
        """[count, ...], once all have been added."""
        if self.whole is None or self.done != self.count:
            raise RuntimeError(f"{self.done} of {self.count} results were added.")
        return self.whole
