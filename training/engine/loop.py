"""What every stage shares: turns of a step, averaged weights, atomic checkpoints, the rate, the loop itself.

A stage is a row of turns. In each step every turn gets the batch, gives its loss, and its own optimizer moves its own
parameters; what a turn returns besides scalars joins the batch of the turns after it (a generator's pictures, say, for
the discriminator that follows). All trained networks run inside the forward of a turn's module and nowhere else, so
under DDP the gradients of each of them are synchronised.
"""

import logging
import math
import os
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import tqdm
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from training.engine.run import Run
from training.engine.sources import Sample, Source

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Turn:
    """One optimizer's part in a step.

    Attributes:
        name: for logs and checkpoints.
        module: `module(batch)` returns a dict of tensors; `loss` is minimised, the other scalars are logged.
        peak_rate: learning rate after the warm-up.
        groups: parameter groups; `factor` multiplies the rate. None: all of the module that requires a gradient.
        betas: of AdamW.
        weight_decay: of AdamW.
    """

    name: str
    module: nn.Module
    peak_rate: float
    groups: Sequence[dict[str, Any]] | None = None
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 1e-3

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What the optimizer moves."""
        if self.groups is None:
            return [p for p in self.module.parameters() if p.requires_grad]
        return [p for group in self.groups for p in group["params"]]

    def optimizer(self) -> torch.optim.AdamW:
        """A fresh one."""
        groups = self.groups if self.groups is not None else [{"params": self.parameters}]
        return torch.optim.AdamW(
            [dict(group) for group in groups], lr=self.peak_rate, betas=self.betas, weight_decay=self.weight_decay
        )


@dataclass(frozen=True)
class Report:
    """Figures on held-back photographs, and pictures [N, 3, H, W] in [-1, 1] to look at."""

    figures: Mapping[str, float]
    pictures: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])


def rate(step: int, run: Run, peak: float, floor: float = 0.02) -> float:
    """Linear warm-up, then constant, or half a cosine down to `floor` of the peak."""
    if step < run.warm_up:
        return peak * (step + 1) / run.warm_up
    if run.schedule == "constant":
        return peak
    progress = (step - run.warm_up) / max(1, run.steps - run.warm_up)
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


def kept(module: nn.Module) -> dict[str, Tensor]:
    """What a checkpoint keeps of a module: trained parameters and buffers, not the frozen base."""
    named = module.named_parameters(remove_duplicate=False)  # a frozen module may be reached by two names
    frozen = {name for name, parameter in named if not parameter.requires_grad}
    return {name: tensor for name, tensor in module.state_dict().items() if name not in frozen}


class State:
    """Everything that a checkpoint holds beside the step: turns, optimizers, average, place in the data."""

    def __init__(self, turns: Sequence[Turn], optimizers: Sequence[Any], ema: EMAModel):
        self.turns, self.optimizers, self.ema = turns, optimizers, ema
        self.latest_shards: dict[int, int] = {}

    def save(self, path: Path, step: int) -> None:
        """Writes beside `path`, then renames: a killed run leaves the last whole checkpoint."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        state = {
            "step": step,
            "latest_shards": self.latest_shards,
            "ema": self.ema.state_dict(),
            "modules": {turn.name: kept(turn.module) for turn in self.turns},
            "optimizers": {t.name: o.state_dict() for t, o in zip(self.turns, self.optimizers, strict=True)},
        }
        torch.save(state, partial)
        os.replace(partial, path)

    def load(self, path: Path) -> int:
        """Takes what `save` wrote; the step to go on from, 0 where there is no checkpoint."""
        if not path.exists():
            return 0
        state = torch.load(path, map_location="cpu", weights_only=True)
        for turn, optimizer in zip(self.turns, self.optimizers, strict=True):
            saved = state["modules"].get(turn.name, {})
            if saved.keys() != kept(turn.module).keys():
                raise ValueError(f"{path} is of another recipe: delete it, or give another --run.out.")
            turn.module.load_state_dict(saved, strict=False)
            optimizer.load_state_dict(state["optimizers"][turn.name])
        self.ema.load_state_dict(state["ema"])
        self.ema.to(self.turns[0].parameters[0].device)
        self.latest_shards = state["latest_shards"]
        logger.info("going on from step %d", state["step"])
        return state["step"]


@contextmanager
def stop_on_sigterm() -> Iterator[Callable[[], bool]]:
    """Inside, SIGTERM makes the function say True and does nothing else, so that the loop can save and leave."""
    asked: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        asked.append(number)

    before = signal.signal(signal.SIGTERM, remember)
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def averaged(ema: EMAModel, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """The averaged weights in place of the trained ones."""
    ema.store(parameters)
    ema.copy_to(parameters)
    try:
        yield
    finally:
        ema.restore(parameters)


def fit(run: Run, source: Source, turns: Sequence[Turn], validate: Callable[[], Report]) -> bool:
    """Trains from the checkpoint in `run.out`, if any.

    Args:
        run: length and place.
        source: of batches.
        turns: of a step, in order. The weights of the first are averaged.
        validate: called with the averaged weights in place, every `run.validate_every` steps and at the end.

    Returns:
        True when all steps are done, with the averaged weights in place; False when SIGTERM stopped it (the checkpoint
        is written).

    Raises:
        ValueError: half-precision weights without autocast, or a checkpoint of another recipe.
    """
    halves = {p.dtype for turn in turns for p in turn.module.parameters()} - {torch.float32}
    if halves and run.precision == "no":
        raise ValueError("A frozen base in bf16 needs autocast: give --run.precision bf16 or --adapt.base-dtype fp32.")
    accelerator = Accelerator(
        mixed_precision=run.precision,
        gradient_accumulation_steps=run.accumulation,
        log_with="tensorboard",
        project_dir=run.out,
    )
    run.out.mkdir(parents=True, exist_ok=True)
    accelerator.init_trackers("tensorboard")
    loop = Loop(run, source, turns, validate, accelerator)
    with stop_on_sigterm() as stopped:
        finished = loop.go(stopped)
    accelerator.end_training()
    return finished


class Loop:
    """One run: the networks on their devices, and the steps."""

    def __init__(
        self,
        run: Run,
        source: Source,
        turns: Sequence[Turn],
        validate: Callable[[], Report],
        accelerator: Accelerator,
    ):
        self.run, self.source, self.turns, self.validate, self.accelerator = run, source, turns, validate, accelerator
        self.optimizers = [accelerator.prepare(turn.optimizer()) for turn in turns]
        self.modules = [cast(nn.Module, accelerator.prepare(turn.module)) for turn in turns]
        self.main = turns[0].parameters
        self.ema = EMAModel(self.main, decay=run.ema)
        self.ema.to(accelerator.device)
        self.state = State(turns, self.optimizers, self.ema)
        self.losses: dict[str, list[float]] = defaultdict(list)

    def go(self, stopped: Callable[[], bool]) -> bool:
        """All steps that are left, or until it is `stopped`; whether all are done."""
        run, checkpoint = self.run, self.run.out / "checkpoint.pt"
        start = self.state.load(checkpoint)
        saved = time.monotonic()
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        batches = self.source.batches(run, start, self.state.latest_shards, rank, world)
        for step in tqdm(range(start, run.steps), initial=start, total=run.steps, desc=run.out.name):
            for _ in range(run.accumulation):
                self.take_turns(step, next(batches))
            self.ema.step(self.main)
            self.tell(step + 1)
            leave = self.any_process(stopped())
            late = time.monotonic() - saved > 60 * run.save_minutes
            if (late or leave or step + 1 == run.steps) and self.accelerator.is_main_process:
                self.state.save(checkpoint, step + 1)
                saved = time.monotonic()
            if leave and step + 1 < run.steps:
                return False
        self.ema.copy_to(self.main)
        return True

    def take_turns(self, step: int, batch: Sample) -> None:
        """One batch through every turn."""
        batch = self.source.on_device(batch, self.accelerator.device)
        batch["step"] = torch.tensor(step)
        if "shard" in batch:
            shards = cast(Tensor, self.accelerator.gather(batch.pop("shard")))
            self.state.latest_shards = dict(self.source.consumers({"shard": shards}))
        with self.accelerator.accumulate(*self.modules):
            for turn, module, optimizer in zip(self.turns, self.modules, self.optimizers, strict=True):
                out = module(batch)
                self.accelerator.backward(out["loss"])
                if self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(turn.parameters, self.run.max_norm)
                for group in optimizer.param_groups:
                    group["lr"] = rate(step, self.run, turn.peak_rate) * group.get("factor", 1.0)
                optimizer.step()
                optimizer.zero_grad()
                batch |= {name: value.detach() for name, value in out.items() if value.ndim}
                for name, value in out.items():
                    if not value.ndim:
                        self.losses[f"{turn.name}/{name}"].append(value.item())

    def tell(self, step: int) -> None:
        """Logs losses, and scores the averaged weights, when it is time."""
        run = self.run
        if step % run.log_every == 0:
            means = {name: math.fsum(row) / len(row) for name, row in self.losses.items()}
            self.accelerator.log(means, step)
            logger.info("step %d %s", step, " ".join(f"{name} {value:.4f}" for name, value in means.items()))
            self.losses.clear()
        if step % run.validate_every and step != run.steps:
            return
        if self.accelerator.is_main_process:
            with averaged(self.ema, self.main), torch.no_grad(), self.accelerator.autocast():
                report = self.validate()
            self.show(report, step)
        self.accelerator.wait_for_everyone()

    def show(self, report: Report, step: int) -> None:
        """A report to the log and to TensorBoard."""
        self.accelerator.log({f"held back/{name}": value for name, value in report.figures.items()}, step)
        logger.info("step %d held back: %s", step, " ".join(f"{k} {v:.3f}" for k, v in report.figures.items()))
        for name, pictures in report.pictures.items():
            tracker = cast(Any, self.accelerator.get_tracker("tensorboard"))
            shown = (pictures.float().cpu().clamp(-1, 1) + 1) / 2
            tracker.log_images({name: shown.numpy()}, step, dataformats="NCHW")

    def any_process(self, said: bool) -> bool:
        """Whether any of the processes says so."""
        if self.accelerator.num_processes == 1:
            return said
        flag = torch.tensor(float(said), device=self.accelerator.device)
        return bool(cast(Tensor, self.accelerator.reduce(flag, reduction="sum")) > 0)
