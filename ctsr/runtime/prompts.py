"""What a pipeline's UNet is told in words: the baked prompt, embeddings of the caller's, or a text to encode."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from ..models.prompt_embeddings import PromptEmbeddings
from ..models.text import encode_text
from ..tiling import networks


class PromptMixin:
    """`encode_prompt`, and which embeddings each picture gets."""

    unet: ModelMixin
    prompt_embeddings: PromptEmbeddings | None
    text_encoder: nn.Module | None
    tokenizer: object | None
    _device_of: Callable[[nn.Module], torch.device]

    def encode_prompt(
        self, prompt: str | Sequence[str], device: torch.device | str | None = None, num_images_per_prompt: int = 1
    ) -> Tensor:
        """Embeddings of texts, for `prompt_embeds`.

        Args:
            prompt: one text or several.
            device: where the result goes; by default it stays where the text encoder computes.
            num_images_per_prompt: how often each is repeated.

        Returns:
            [texts * num_images_per_prompt, tokens, dim].

        Raises:
            ValueError: the pipeline has no text encoder, or it is of another width than the UNet takes.
        """
        if self.text_encoder is None or self.tokenizer is None:
            raise ValueError(
                "prompt needs a text encoder: load the pipeline with Stable Diffusion's text_encoder=... and "
                "tokenizer=..., or leave prompt out, since one is baked in."
            )
        texts = [prompt] if isinstance(prompt, str) else list(prompt)
        embeds = encode_text(self.tokenizer, self.text_encoder, texts, self._device_of(self.text_encoder))
        prompt_embeds = embeds.repeat_interleave(num_images_per_prompt, dim=0)
        return prompt_embeds if device is None else prompt_embeds.to(device)

    def _prompt(self, prompt_embeds: Tensor | None, batch: int) -> Tensor | None:
        """[batch, tokens, dim], or None for a UNet without cross-attention."""
        width = networks.prompt_width(self.unet)
        if width is None:
            if prompt_embeds is not None:
                raise ValueError("This checkpoint takes no prompt: leave prompt and prompt_embeds out.")
            return None
        if prompt_embeds is None:
            if self.prompt_embeddings is None:
                raise ValueError(f"This checkpoint holds no prompt: pass prompt_embeds, [1, tokens, {width}].")
            return self.prompt_embeddings(batch)
        embeds = prompt_embeds[None] if prompt_embeds.ndim == 2 else prompt_embeds
        if embeds.ndim != 3 or embeds.shape[0] not in (1, batch) or embeds.shape[2] != width:
            raise ValueError(f"prompt_embeds must be [1, tokens, {width}], not {list(prompt_embeds.shape)}.")
        return embeds.expand(batch, -1, -1)

    def _prompts(self, prompt: Any, prompt_embeds: Tensor | None, pictures: int) -> list[Tensor | None]:
        """[1, tokens, dim] for each picture, None for a UNet without cross-attention.

        Raises:
            ValueError: a text beside embeddings, one that cannot be encoded, or not one for all or one a picture.
        """
        if prompt is not None:
            if prompt_embeds is not None:
                raise ValueError("prompt and prompt_embeds are both given: pass one of them.")
            if networks.prompt_width(self.unet) is None:
                raise ValueError("This checkpoint takes no prompt: leave prompt and prompt_embeds out.")
            texts = [prompt] if isinstance(prompt, str) else list(prompt)
            if len(texts) not in (1, pictures) or not all(isinstance(text, str) for text in texts):
                raise ValueError(
                    f"prompt must be one text, or one a picture: got {len(texts)} for {pictures} pictures."
                )
            prompt_embeds = self.encode_prompt(texts)
        embeds = self._prompt(prompt_embeds, pictures)
        return [None] * pictures if embeds is None else [embeds[index : index + 1] for index in range(pictures)]
