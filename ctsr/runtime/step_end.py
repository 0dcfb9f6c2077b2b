"""`callback_on_step_end` as diffusers' pipelines call it; a picture has one step."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor

StepEnd = Callable[[Any, int, int, dict[str, Any]], "dict[str, Any] | None"]
"""Called as `callback(pipeline, step, timestep, tensors)`; what it returns as "latents" is used instead."""

TENSOR_INPUTS = ("latents",)


def step_end_of(
    callback: StepEnd | None, names: Sequence[str], pipeline: Any
) -> Callable[[int, Tensor], Tensor] | None:
    """A callback as a function of timestep and latents that gives the latents to go on with; None for none.

    Args:
        callback: that the user gave.
        names: of the tensors that it is given, where it does not say itself (diffusers' PipelineCallback).
        pipeline: that it is told.

    Raises:
        ValueError: a name of none that there is.
    """
    wanted = getattr(callback, "tensor_inputs", names)
    if unknown := [name for name in wanted if name not in TENSOR_INPUTS]:
        raise ValueError(f"callback_on_step_end_tensor_inputs may hold {', '.join(TENSOR_INPUTS)}, not {unknown[0]!r}.")
    return None if callback is None else partial(_end_step, callback, wanted, pipeline)


def _end_step(callback: StepEnd, names: Sequence[str], pipeline: Any, timestep: int, latents: Tensor) -> Tensor:
    """The latents [1, C, h, w] after a callback has seen them."""
    returned = callback(pipeline, 0, timestep, dict.fromkeys(names, latents)) or {}
    return returned.get("latents", latents)
