"""Which dtype a device computes in."""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Literal

import torch
from torch import Tensor, nn

Precision = Literal["auto", "fp32", "bf16", "fp16"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

ERRORS = {torch.bfloat16: 0.0145, torch.float16: 0.0018, torch.float32: 0.0}
"""Relative RMS error of a UNet of Stable Diffusion's kind by the dtype of its weights and activations.

Measured by benchmarks/precision.py. Rounding the weights alone to bf16 makes .0056, so that no choice of layers that
compute in fp32 would do.
"""
_LARGEST_ERROR = 0.03
"""RMS error that rounding may give z0, whose own RMS is about 1."""


def cpu_has_bf16() -> bool:
    """Whether this processor multiplies bf16 in hardware (AVX512-BF16 or AMX; on Arm, BF16 instructions)."""
    if not torch.backends.mkldnn.is_available():  # builds without it lack the operator, too
        return False
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) and any(
        probe() for probe in (getattr(torch.cpu, name, None) for name in _CPU_PROBES) if probe is not None
    )


_CPU_PROBES = ("_is_avx512_bf16_supported", "_is_amx_tile_supported", "_is_arm_bf16_supported")


def choose_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """`auto` is bf16 where the device has it in hardware, else fp32.

    Raises:
        ValueError: an unknown name, or fp16 on a CPU, where torch's convolutions are slower than in fp32.
    """
    if precision == "auto":
        on_gpu = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if on_gpu or (device.type == "cpu" and cpu_has_bf16()) else torch.float32
    if precision not in DTYPES:
        raise ValueError(f"There is no precision {precision!r}: choose one of auto, {', '.join(DTYPES)}.")
    if precision == "fp16" and device.type == "cpu":
        raise ValueError("fp16 is for GPUs: on a CPU choose precision bf16 or fp32.")
    return DTYPES[precision]


def is_accurate(dtype: torch.dtype, gain: float) -> bool:
    """Whether a UNet in `dtype` gives z0 with an error of at most `_LARGEST_ERROR`; `gain`: see `Family.gain`."""
    return gain * ERRORS[dtype] <= _LARGEST_ERROR


def accurate_dtype(dtype: torch.dtype, gain: float, device: torch.device) -> torch.dtype:
    """`dtype`, or for a UNet that would be too inaccurate in it fp16 on a GPU and fp32 elsewhere.

    Predicted noise at tau = 999 is amplified 14.6-fold: in bf16 z0 is off by .21, in fp16 by .027. What overflows in
    fp16 is computed again in fp32.
    """
    if is_accurate(dtype, gain):
        return dtype
    return torch.float16 if device.type == "cuda" and is_accurate(torch.float16, gain) else torch.float32


@contextmanager
def in_fp32(module: nn.Module) -> Generator[None, None, None]:
    """`module` computes in fp32 inside, and is afterwards what it was, to the bit, also one of several dtypes."""
    dtypes = {name: tensor.dtype for name, tensor in tensors_of(module)}
    try:
        for _, tensor in tensors_of(module):
            if tensor.is_floating_point():
                tensor.data = tensor.data.float()
        yield
    finally:
        for name, tensor in tensors_of(module):  # by name: hooks of offloading have put others in their place
            tensor.data = tensor.data.to(dtypes[name])


def tensors_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers by name."""
    return chain(module.named_parameters(), module.named_buffers())
