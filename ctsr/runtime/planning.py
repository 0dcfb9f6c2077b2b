"""What a pipeline knows of a run before it: its networks, their memory, and the plan of a run over pictures."""

from collections.abc import Sequence

import torch

from ..checkpoints.saved_pipeline import SavedPipeline
from ..images.tensors import check_size
from ..models.forward import latent_channels, vae_scale_factor
from ..models.prompt_embeddings import PromptEmbeddings
from ..tiling import networks
from ..tiling.network import Network, Stage
from .cost import Plan, StagePlan, make_plan, plan_stage
from .offload import ExecutionMixin, check_tile
from .speed import speeds

_RESULT_BYTES = 12
"""Of a result in memory, a pixel: three fp32 numbers."""


class PlannedPipeline(ExecutionMixin, SavedPipeline):
    """`plan` and `predicted_memory`, and the networks they are about."""

    prompt_embeddings: PromptEmbeddings | None

    @property
    def vae_scale_factor(self) -> int:
        """Pixels a side of a latent."""
        return vae_scale_factor(self.vae)

    @property
    def pad_multiple(self) -> int:
        """Pixels that the sides of the enlarged picture are padded to a multiple of."""
        return self.vae_scale_factor * networks.unet_alignment(self.unet)

    def network(self, stage: Stage) -> Network:
        """One of the networks and how it is tiled, at the checkpoint's own timestep and with its baked prompt."""
        if stage == "encode":
            return networks.encoder(self.vae, self.family.encoder_timesteps[0])
        if stage == "decode":
            return networks.decoder(self.vae)
        prompt = None if self.prompt_embeddings is None else self.prompt_embeddings(1)
        return networks.unet(self.unet, self.vae_scale_factor, self.family.timesteps[0], prompt)

    def plan_stage(
        self, stage: Stage, height: int, width: int, tile: int = 0, device: torch.device | None = None
    ) -> StagePlan:
        """How a network will be run over a result: its tiles and its working memory.

        Args:
            stage: "encode", "unet" or "decode".
            height, width: of the result in pixels.
            tile: side of a tile in pixels of the result, 0 for automatic.
            device: that it will compute on; by default where it lies.
        """
        network = self.network(stage)
        device = device or self._device_of(network.module)
        return plan_stage(network, 1, (height, width), self.pad_multiple, device, tile, None)

    def predicted_memory(
        self, stage: Stage, height: int, width: int, tile: int = 0, device: torch.device | None = None
    ) -> int:
        """Bytes that a network is predicted to work in, beside its weights, input and result; see `plan_stage`."""
        return self.plan_stage(stage, height, width, tile, device).work

    def plan(
        self,
        sizes: Sequence[tuple[int, int]],
        tile: int = 0,
        keep: bool = True,
        with_time: bool = True,
        tile_overlap: int | None = None,
    ) -> Plan:
        """What a run will cost, before it: tiles, passes, memory against what is free, time, or why it is refused.

        Args:
            sizes: height and width of each result in pixels.
            tile: as for `encode`.
            keep: all results stay in memory until the end, as `__call__` returns them; False for those that are written
                to files one by one.
            with_time: estimate the time, from speeds that are measured once for a device (some seconds, in the user's
                cache folder).
            tile_overlap: as for `encode`.

        Raises:
            ValueError: no size, an absurd one, or a tile that is too small or no larger than its overlap.
        """
        if not sizes:
            raise ValueError("sizes is empty: pass height and width of at least one result.")
        for size in sizes:
            check_size(*size)
        check_tile(tile, tile_overlap)
        each = [self.network("encode"), self.network("unet"), self.network("decode")]
        passes = (len(self.family.encoder_timesteps), self.family.passes, 1)
        latents = latent_channels(self.vae) / self.vae_scale_factor**2
        return make_plan(
            list(zip(each, passes, strict=True)),
            sizes,
            self.pad_multiple,
            latents,
            self._device_of(self.unet),
            tile or self.default_tile,
            _RESULT_BYTES if keep else 0,
            speeds(each) if with_time else None,
            tile_overlap,
        )
