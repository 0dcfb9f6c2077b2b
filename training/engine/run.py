"""A run: its length, its place and its device."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env


@dataclass(frozen=True)
class Run:
    """How long a stage runs and where it keeps its checkpoint."""

    out: Path
    steps: int
    batch: int = 8  # of one process
    accumulation: int = 1  # batches a step
    precision: Literal["auto", "no", "bf16"] = "auto"  # bf16 in hardware or for a bf16 base; SD overflows in fp16
    seed: int = 0
    ema: float = 0.998
    warm_up: int = 100
    schedule: Literal["cosine", "constant"] = "cosine"
    max_norm: float = 1.0
    workers: int = 1
    save_minutes: float = 5.0
    backup: str | None = None  # folder for a copy of the checkpoint, also an address such as s3://bucket/run (fsspec)
    grace_seconds: float = 120.0  # after SIGTERM, for the step in progress and the checkpoint; then the process ends
    validate_every: int = 500
    log_every: int = 50


def own_state() -> PartialState:
    """This process among others, before there is an `Accelerator`.

    `PartialState()` alone does not ask whether the CPU was wanted: each of several processes would think it is alone.
    """
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))


def own_device() -> torch.device:
    """Where this process trains."""
    return cast(torch.device, own_state().device)


def own_share() -> tuple[int, int]:
    """Number of this process, and of all; (0, 1) outside a launcher."""
    state = own_state()
    return state.process_index, state.num_processes
