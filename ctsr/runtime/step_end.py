"""`callback_on_step_end` as diffusers' pipelines call it; a picture has one step."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

StepEnd = Callable[[Any, int, int, dict[str, Any]], "dict[str, Any] | None"]
"""Called as `callback(pipeline, step, timestep, tensors)`; what it returns as "latents" is used instead."""

TENSOR_INPUTS = ("latents",)


def wanted_tensors(callback: StepEnd | None, names: Sequence[str]) -> Sequence[str]:
    """Names of the tensors that a callback is given: as it says itself (diffusers' PipelineCallback), else `names`.

    Raises:
        ValueError: a name of none that there is.
    """
    wanted = getattr(callback, "tensor_inputs", names)
    if unknown := [name for name in wanted if name not in TENSOR_INPUTS]:
        raise ValueError(f"callback_on_step_end_tensor_inputs may hold {', '.join(TENSOR_INPUTS)}, not {unknown[0]!r}.")
    return wanted


def end_step(callback: StepEnd, names: Sequence[str], pipeline: Any, timestep: int, latents: Tensor) -> Tensor:
    """The latents [1, C, h, w] after a callback has seen them."""
    returned = callback(pipeline, 0, timestep, dict.fromkeys(names, latents)) or {}
    return returned.get("latents", latents)
