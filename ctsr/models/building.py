"""Models with weights that are at hand, without drawing random ones first (half a minute at SD 2.1's size), and models
made fast."""

from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .doubling import double_by_phases

ModelT = TypeVar("ModelT", bound=nn.Module)

ALIGNMENT = 64
"""Bytes; where torch's own allocator on the CPU puts tensors."""


def unfilled(make: Callable[..., ModelT], *args: Any, **config: Any) -> ModelT:
    """`make(*args, **config)` on the CPU in fp32, with any numbers in its tensors: fill them all.

    Args:
        make: a class without tensors outside its state dict, for those would stay as they are.
        args, config: its arguments.
    """
    with torch.device("meta"):
        model = make(*args, **config)
    return model.to_empty(device="cpu")


def filled(make: Callable[..., ModelT], config: Mapping[str, Any], state: Mapping[str, Tensor]) -> ModelT:
    """The model with exactly these weights, fp32; raises RuntimeError for weights that are not all and only its own."""
    model = unfilled(make, **config)
    model.load_state_dict(state, strict=True)
    return model


def settle(module: nn.Module) -> None:
    """Weights channels-last and at aligned addresses, in place: bits of a picture depend on their values alone.

    A folder is loaded as views into its file, at any address, and torch's CPU kernels round differently there.
    """
    for tensor in chain(module.parameters(), module.buffers()):
        data = tensor.data.to(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor.data
        data = data.clone() if data.device.type == "cpu" and data.data_ptr() % ALIGNMENT else data
        if (data.data_ptr(), data.stride()) != (tensor.data_ptr(), tensor.stride()):
            tensor.data = data


def make_fast(model: ModelT) -> ModelT:
    """The model itself, its weights laid out by `settle`; Stable Diffusion's decoder gets sub-pixel convolutions."""
    settle(model)
    double_by_phases(model)
    return model
