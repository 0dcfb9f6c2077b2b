"""Baked prompt embeddings, so that no text encoder is needed at run time.

SD 2.1-base families run with one fixed prompt: its CLIP hidden states [1, 77, 1024] travel with the weights as a
component of the pipeline. Our own. Licence: Apache-2.0.
"""

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config  # pyright: ignore[reportUnknownVariableType]
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor


class PromptEmbeddings(ModelMixin, ConfigMixin):
    """Holds `embeds` [1, tokens, dim], zero until loaded; a buffer, so it is saved and moved but never trained.

    Args:
        tokens: length of the prompt, 77 for CLIP.
        dim: width of the text encoder, 1024 for SD 2.1.
    """

    config_name = "config.json"
    embeds: Tensor

    @register_to_config
    def __init__(self, tokens: int = 77, dim: int = 1024):
        super().__init__()
        self.register_buffer("embeds", torch.zeros(1, tokens, dim))

    @classmethod
    def from_embeds(cls, embeds: Tensor) -> "PromptEmbeddings":
        """The component that holds a copy of `embeds`: [1, tokens, dim] or [tokens, dim], dtype and device kept.

        Raises:
            ValueError: `embeds` holds more than one prompt or has another shape.
        """
        if embeds.ndim == 2:
            embeds = embeds[None]
        if embeds.ndim != 3 or embeds.shape[0] != 1:
            raise ValueError(f"embeds must be one prompt, [1, tokens, dim]; got shape {list(embeds.shape)}.")
        model = cls(tokens=embeds.shape[1], dim=embeds.shape[2])
        model.embeds = embeds.detach().clone()
        return model

    def forward(self, batch: int = 1) -> Tensor:
        """[batch, tokens, dim], a view of the one prompt."""
        return self.embeds.expand(batch, -1, -1)
