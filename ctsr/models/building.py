"""A model with weights that are at hand, without drawing random ones first: half a minute at SD 2.1's size."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

ModelT = TypeVar("ModelT", bound=nn.Module)


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
