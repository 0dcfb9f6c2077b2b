"""Which implementation computes attention: xformers where it is installed and the device can use it, else torch's SDPA.

Networks without attention, ctsr-mini's, take either name and do nothing with it.
"""

import logging
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any, Literal, cast, get_args

import torch
from diffusers.models.modeling_utils import ModelMixin

from ..errors import first_line

logger = logging.getLogger(__name__)

Attention = Literal["auto", "xformers", "sdpa"]
Operator = Callable[..., Any]
# What diffusers' trial of an installed xformers raises: no GPU, built for another torch, no kernel for this GPU.
_UNUSABLE = (ImportError, OSError, ValueError, RuntimeError, AttributeError)


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


def set_attention(module: ModelMixin, attention: Literal["xformers", "sdpa"], operator: Operator | None = None) -> None:
    """Makes a network compute its attention so, by xformers' `operator` or its own choice; nothing where is none."""
    cast(Any, module).set_use_memory_efficient_attention_xformers(attention == "xformers", operator)


def use_attention(
    modules: Sequence[ModelMixin], attention: Attention, device: torch.device, operator: Operator | None = None
) -> Literal["xformers", "sdpa"]:
    """Makes networks compute their attention by name on `device`; returns what was taken, and logs it.

    `auto` goes on with SDPA where xformers is installed and fails its trial.

    Raises:
        ValueError: an unknown name, or xformers by name where it cannot be used.
    """
    kind, reason = choose_attention(attention, device), ""
    try:
        for module in modules:
            set_attention(module, kind, operator)
    except _UNUSABLE as error:
        if kind == "sdpa":
            raise
        for module in modules:
            set_attention(module, "sdpa")
        if attention == "xformers":
            message = f"xformers is installed but does not work here ({first_line(error)})"
            raise ValueError(f"{message}: install the build for this torch and GPU, or choose sdpa.") from error
        kind, reason = "sdpa", f" (xformers does not work here: {first_line(error)})"
    logger.info("Attention by %s%s.", kind, reason)
    return kind
