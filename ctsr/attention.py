"""Which implementation computes attention: xformers where it is installed and the device can use it, else torch's SDPA.

Networks without attention, ctsr-mini's, take either name and do nothing with it.
"""

from importlib.util import find_spec
from typing import Any, Literal, cast, get_args

import torch
from diffusers.models.modeling_utils import ModelMixin

Attention = Literal["auto", "xformers", "sdpa"]


def choose_attention(attention: Attention, device: torch.device) -> Literal["xformers", "sdpa"]:
    """What `auto` means on `device`; names are returned as they are.

    Raises:
        ValueError: an unknown name, or xformers where it is not installed or the device is no CUDA one.
    """
    if attention not in get_args(Attention):
        raise ValueError(f"There is no attention {attention!r}: choose one of {', '.join(get_args(Attention))}.")
    usable = device.type == "cuda" and find_spec("xformers") is not None
    if attention == "xformers" and not usable:
        raise ValueError(f"xformers cannot be used on {device.type} here: install it for a CUDA GPU, or choose sdpa.")
    return "xformers" if usable and attention != "sdpa" else "sdpa"


def set_attention(module: ModelMixin, attention: Literal["xformers", "sdpa"]) -> None:
    """Makes a network compute its attention so; of networks without attention nothing changes."""
    cast(Any, module).set_use_memory_efficient_attention_xformers(attention == "xformers")
