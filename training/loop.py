"""What every stage shares: samples by number, averaged weights, atomic checkpoints, the rate, the loop itself."""

import logging
import math
import os
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset

logger = logging.getLogger(__name__)

Sample = dict[str, Tensor]
MakeSample = Callable[[int], Sample]


class Stateful(Protocol):
    """What a checkpoint keeps: modules, averages, optimizers."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> object: ...


@dataclass(frozen=True)
class Run:
    """How long a stage runs and where it keeps its checkpoint."""

    out: Path
    steps: int
    batch: int = 8
    workers: int = 1
    save_minutes: float = 5.0
    validate_every: int = 500
    log_every: int = 50


class Samples(Dataset[Sample]):
    """Sample `i` is `make(i)`: a pure function of its number, so a resumed run sees what an unbroken one would."""

    def __init__(self, make: MakeSample, length: int):
        self.make, self.length = make, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        return self.make(index)


def leave_sigterm_to_the_main_process(worker: int) -> None:
    """It goes to the whole process group; the main process wants to finish its step and save."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def batches(make: MakeSample, run: Run, start: int) -> Iterator[Sample]:
    """Batches of the steps `start`..`run.steps` - 1, made ahead by worker processes."""
    loader = DataLoader(
        Samples(make, run.steps * run.batch),
        batch_size=run.batch,
        sampler=range(start * run.batch, run.steps * run.batch),
        num_workers=run.workers,
        multiprocessing_context="fork" if run.workers else None,
        prefetch_factor=4 if run.workers else None,
        worker_init_fn=leave_sigterm_to_the_main_process,
    )
    return iter(loader)


def averaged(model: nn.Module, decay: float) -> AveragedModel:
    """Exponential moving average of the weights."""
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))


def rate(step: int, steps: int, peak: float, warm_up: int = 100, floor: float = 0.02) -> float:
    """Linear warm-up, then half a cosine down to `floor` of the peak."""
    if step < warm_up:
        return peak * (step + 1) / warm_up
    progress = (step - warm_up) / max(1, steps - warm_up)
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


def update(optimizer: torch.optim.Optimizer, loss: Tensor, learning_rate: float, max_norm: float = 1.0) -> None:
    """One clipped optimizer step; a parameter group's own `factor` multiplies the rate."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group.get("factor", 1.0)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], max_norm)
    optimizer.step()


def save_checkpoint(path: Path, step: int, parts: Mapping[str, Stateful]) -> None:
    """Writes beside `path`, then renames: a killed run leaves the last whole checkpoint."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save({"step": step, **{name: part.state_dict() for name, part in parts.items()}}, partial)
    os.replace(partial, path)


def resume(path: Path, parts: Mapping[str, Stateful]) -> int:
    """Loads what `save_checkpoint` wrote into `parts`; the step to go on from, 0 where there is no checkpoint."""
    if not path.exists():
        return 0
    state = torch.load(path, map_location="cpu", weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    logger.info("going on from step %d", state["step"])
    return state["step"]


def stop_on_sigterm() -> Callable[[], bool]:
    """After SIGTERM the returned function says True, so that the loop can save and leave."""
    asked: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        asked.append(number)

    signal.signal(signal.SIGTERM, remember)
    return lambda: bool(asked)


def fit(
    run: Run,
    make: MakeSample,
    step_of: Callable[[int, Sample], Mapping[str, float]],
    parts: Mapping[str, Stateful],
    validate: Callable[[], Mapping[str, float]],
) -> bool:
    """Trains from the checkpoint in `run.out`, if any.

    Args:
        run: length and place.
        make: sample by number.
        step_of: does one optimizer step on a batch and returns the losses to log.
        parts: everything that a checkpoint keeps.
        validate: figures on held-back photographs, logged every `run.validate_every` steps and at the end.

    Returns:
        True when all steps are done, False when SIGTERM stopped it (the checkpoint is written).
    """
    checkpoint = run.out / "checkpoint.pt"
    step = resume(checkpoint, parts)
    stopped, saved = stop_on_sigterm(), time.monotonic()
    sums: dict[str, float] = defaultdict(float)
    for batch in batches(make, run, step):
        for name, value in step_of(step, batch).items():
            sums[name] += value / run.log_every
        step += 1
        if step % run.log_every == 0:
            logger.info("step %d %s", step, " ".join(f"{k} {v:.4f}" for k, v in sums.items()))
            sums.clear()
        if step % run.validate_every == 0 or step == run.steps:
            logger.info("step %d held back: %s", step, " ".join(f"{k} {v:.3f}" for k, v in validate().items()))
        if step == run.steps or stopped() or time.monotonic() - saved > 60 * run.save_minutes:
            save_checkpoint(checkpoint, step, parts)
            saved = time.monotonic()
        if stopped():
            return False
    return True
