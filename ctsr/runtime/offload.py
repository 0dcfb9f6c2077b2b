"""How a pipeline runs: on which device, in which tiles, by which attention, compiled or not; never what it computes."""

from typing import Any, cast

import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from ..models.lora_variant import LoraVariant
from ..tiling import tiled
from .attention import Attention, Operator, use_attention

_DEFAULT_TILE = 512
"""Pixels; of `enable_tiling`. Stable Diffusion's UNet was trained on it."""


class ExecutionMixin:
    """Comes before diffusers' `DiffusionPipeline`, whose offloading it extends, among the bases of a pipeline."""

    vae: ModelMixin
    unet: ModelMixin
    unet_variant: LoraVariant | None
    default_tile: int = 0

    def enable_model_cpu_offload(self, gpu_id: int | None = None, device: torch.device | str | None = None) -> None:
        """Keeps the networks on the CPU and moves each to the GPU for its turn; see diffusers.

        Args:
            gpu_id: number of the GPU, instead of an index in `device`.
            device: by default where it offloaded before, else the machine's GPU.

        Raises:
            ValueError: there is no GPU.
        """
        base: Any = super()
        base.enable_model_cpu_offload(gpu_id, self._offload_to(gpu_id, device))

    def enable_sequential_cpu_offload(
        self, gpu_id: int | None = None, device: torch.device | str | None = None
    ) -> None:
        """As `enable_model_cpu_offload`, but layer by layer: the least memory, and slow.

        Raises:
            ValueError: there is no GPU, or `device` is the CPU.
        """
        base: Any = super()
        target = self._offload_to(gpu_id, device)
        if target.type == "cpu":
            raise ValueError("Layers are offloaded from a GPU to the CPU: name a GPU, or leave offloading out.")
        base.enable_sequential_cpu_offload(gpu_id, target)

    def _offload_to(self, gpu_id: int | None, device: torch.device | str | None) -> torch.device:
        """The device that offloaded networks compute on."""
        last: torch.device | None = getattr(self, "_offload_device", None)
        if device is not None:
            return torch.device(device)
        if last is not None and gpu_id is None:
            return last
        gpu = torch.accelerator.current_accelerator(check_available=True)
        if gpu is None:
            raise ValueError("Offloading needs a GPU and torch finds none: leave it out, the networks are on the CPU.")
        return torch.device(gpu.type)

    def enable_tiling(self, tile: int = _DEFAULT_TILE) -> None:
        """Makes `__call__` work in tiles of `tile` pixels whenever it is given none; without, they are automatic.

        Our own tiling: diffusers' (`pipe.vae.enable_tiling`) drops the timestep and shifts colours.

        Raises:
            ValueError: a tile too small.
        """
        check_tile(tile, None)
        self.default_tile = tile

    def disable_tiling(self) -> None:
        """Back to automatic tiles, see `__call__`."""
        self.default_tile = 0

    enable_vae_tiling = enable_tiling
    disable_vae_tiling = disable_tiling

    def set_attention_backend(self, name: Attention = "auto") -> None:
        """What computes attention: "xformers", "sdpa", or "auto", which takes xformers where it works and logs it.

        Networks without attention, as ctsr-mini's, stay as they are. Call it once they are on their device.

        Raises:
            ValueError: an unknown name, or xformers where it cannot be used.
        """
        use_attention((self.unet, self.vae), name, self._device_of(self.unet))

    def enable_xformers_memory_efficient_attention(self, attention_op: Operator | None = None) -> None:
        """As `set_attention_backend("xformers")`; `attention_op` is xformers' own operator."""
        use_attention((self.unet, self.vae), "xformers", self._device_of(self.unet), attention_op)

    def disable_xformers_memory_efficient_attention(self) -> None:
        """As `set_attention_backend("sdpa")`."""
        self.set_attention_backend("sdpa")

    def compile(self, **options: Any) -> None:
        """torch.compile for the UNet, and for the autoencoder where it runs untiled: the first call takes minutes.

        What is compiled is kept for a shape. UNets with attention see one shape for all pictures that are larger than a
        tile (on a GPU another for the last, smaller batch of tiles); ctsr-mini's tiles are read as long as the picture
        divides evenly, so that torch makes shapes dynamic after the second. Stable Diffusion's autoencoder in tiles or
        layers stays as it is.

        Args:
            options: of torch.compile: mode="reduce-overhead" for CUDA graphs, "max-autotune" to search for kernels.

        Raises:
            TypeError: an option that torch.compile does not take.
        """
        if self.unet_variant is not None:  # its hooks come and go, which torch.compile does not look for by default
            cast(Any, torch)._dynamo.config.skip_nnmodule_hook_guards = False
        parts = [getattr(self.vae, name, None) for name in ("encoder", "decoder")]  # ctsr-mini's decoder has no layers
        for module in (self.unet, *parts):
            if module is not None:
                cast(Any, module).compile(**options)

    def _bring_in(self, module: nn.Module) -> torch.device:
        """Offloads every other network, and returns where this one computes.

        diffusers expects each network to run once, in order; we go from the autoencoder to the UNet and back. A network
        stays until another one needs the room, or until `maybe_free_model_hooks()`.
        """
        for hook in getattr(self, "_all_hooks", []):
            if hook.model is not module:
                hook.offload()
        return self._device_of(module)

    def _device_of(self, module: nn.Module) -> torch.device:
        """Where a component computes: where it lies, or where the hooks of offloading will bring it."""
        return cast(Any, self)._execution_device if hasattr(module, "_hf_hook") else next(module.parameters()).device


def check_tile(tile: int, tile_overlap: int | None) -> None:
    """Raises ValueError for tiles that are too small, or no larger than their overlap."""
    if tile != 0 and tile < tiled.SMALLEST_TILE:
        raise ValueError(f"tile must be 0 (automatic) or at least {tiled.SMALLEST_TILE} pixels, not {tile}.")
    if tile_overlap is not None and (tile_overlap < 0 or (tile != 0 and tile_overlap >= tile)):
        raise ValueError(f"tile_overlap must be from 0 to less than tile ({tile}), not {tile_overlap}.")
