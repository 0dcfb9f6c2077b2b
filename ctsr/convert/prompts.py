"""Prompts as the hidden states that Stable Diffusion attends to: for baking, since nothing encodes text at run time.

transformers is imported only here, inside the function: everything else runs without it.
"""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError, CTSRError
from ..models.text import encode_text

_FOLDERS = ("tokenizer", "text_encoder")


def encode_prompts(folder: Path, prompts: Sequence[str]) -> Tensor:
    """CLIP's last hidden states, as Stable Diffusion 2.1 and OSEDiff use them.

    Args:
        folder: of Stable Diffusion in diffusers' layout, with `tokenizer/` and `text_encoder/`.
        prompts: any text; what is longer than the encoder's window is cut off.

    Returns:
        [N, 77, width] fp32 on the CPU; width is 1024 for SD 2.1.

    Raises:
        CTSRError: transformers is not installed.
        CheckpointError: the folder lacks a part, or a part cannot be read.
    """
    for name in _FOLDERS:
        if not (folder / name).is_dir():
            raise CheckpointError(f"{folder} holds no {name}/: give a Stable Diffusion folder in diffusers' layout.")
    try:
        transformers: Any = import_module("transformers")
    except ImportError as error:
        raise CTSRError("Encoding a prompt needs transformers: pip install 'ctsr[sd]'.") from error
    try:
        tokenizer = transformers.CLIPTokenizer.from_pretrained(folder / "tokenizer")
        encoder, keys = transformers.CLIPTextModel.from_pretrained(folder / "text_encoder", output_loading_info=True)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        message = f"{folder} holds a tokenizer or text encoder that cannot be read ({str(error).splitlines()[0]})."
        raise CheckpointError(message + " Fetch it again.") from error
    if keys["missing_keys"]:  # transformers leaves these at random
        raise CheckpointError(f"{folder} holds an incomplete text encoder; fetch it again.")
    return encode_text(tokenizer, encoder.float().eval(), prompts, torch.device("cpu"))
