"""Prompts as the hidden states that Stable Diffusion attends to."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)


@torch.no_grad()
def encode_text(tokenizer: Any, text_encoder: Any, prompts: Sequence[str], device: torch.device) -> Tensor:
    """CLIP's last hidden states, as Stable Diffusion 2.1 and OSEDiff use them.

    Args:
        tokenizer: transformers' CLIPTokenizer.
        text_encoder: transformers' CLIPTextModel.
        prompts: any text; what is longer than the encoder's window is cut off, with a warning.
        device: where the text encoder computes.

    Returns:
        [N, tokens, width] in the text encoder's dtype; 77 tokens, width 1024 for SD 2.1.
    """
    window = tokenizer.model_max_length
    for prompt in prompts:
        if (length := len(tokenizer(prompt, truncation=False, verbose=False).input_ids)) > window:
            logger.warning("The prompt's end is cut off: it has %d tokens, of %d that fit.", length, window)
    # SD 2.1 pads with "!", and its encoder sees the padding: no attention mask.
    tokens = tokenizer(
        list(prompts), padding="max_length", max_length=window, truncation=True, return_tensors="pt"
    ).input_ids
    return text_encoder(tokens.to(device)).last_hidden_state
